"""Whole runs in processes of their own: over several of them, and with real images."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
from children import (
    PCJAX,
    at_step,
    checkpoint_of,
    environment,
    finish,
    pcjax,
    start,
    start_two,
)
from small import SMALL

from pcjax.training.metrics_log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "tfds"
# The teacher's ranks, and the sign of a rank's error, jump where rounding decides which of two
# distances is larger. With these nothing jumps.
SMOOTH = ["--losses.0.arguments.teacher_temperature", "0.1", "--losses.0.arguments.power", "2"]
FEW = [*SMALL, "--training.steps", "20", "--training.save-every", "10"]


@pytest.mark.parametrize(
    ("how", "loss"),
    [
        pytest.param("shard_map", SMOOTH, marks=pytest.mark.gate),
        pytest.param("pmap", SMOOTH, marks=pytest.mark.nightly),
        pytest.param("pmap", [], marks=pytest.mark.nightly),
    ],
)
def test_two_processes_with_two_devices_train_as_one_with_four(how, loss, tmp_path):
    # A bank, filled in the second step, holds the examples of all processes.
    words = ["distill", *FEW, *loss, "--losses.0.bank", "100", "--training.parallel", how]
    # Adam would make much of the last digit of a small gradient.
    words += ["--training.optimiser", "sgd", "--training.learning-rate", "0.05"]
    words += ["--teacher.training.optimiser", "sgd"]
    pcjax(*words, "--workdir", tmp_path / "one", env=environment(JAX_NUM_CPU_DEVICES=4))
    for status, _, complaint in map(finish, start_two(*words, "--workdir", tmp_path / "two")):
        assert status == 0, complaint
    (one, _), (two, _) = (checkpoint_of(tmp_path / name, 20) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        # Where ranks jump, momentum shows it at once; parameters move by a twentieth of it.
        if loss or not name.startswith("optimiser/"):
            error = np.abs(two[name].astype(float) - expected).max()
            assert error <= 1e-5 * max(np.abs(expected).max(), 1), name
    records = [read_metrics(tmp_path / name) for name in ("two", "one")]
    for record, expected in zip(*records, strict=True):
        for each in (record, expected):
            each.pop("steps_per_second", None)
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # Each process has evaluated its part of the examples.
    two, one = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")
    )
    for name in ("teacher", "untrained", "student"):
        assert abs(two[name]["knn_accuracy"] - one[name]["knn_accuracy"]) <= 0.01
        values = [result[name]["coherence"]["spearman"]["value"] for result in (two, one)]
        assert abs(values[0] - values[1]) <= 1e-3


@pytest.mark.gate
def test_a_comparison_that_is_stopped_resumes(tmp_path):
    words = ["compare", *FEW, "--losses", "pkt,cka", "--seeds", "1", "--workdir", tmp_path / "run"]
    words += ["--training.log-every", "5"]  # and take no more steps at once
    # After the teacher's four steps and all of pkt's, in those of cka.
    status, _, complaint = finish(start(*words, before=at_step(4 + 20 + 5, "stop(signal.SIGTERM)")))
    assert (status, complaint.count("\n")) == (143, 1), complaint
    output = pcjax(*words)
    assert "student: resuming after step 5 of 20" in output
    losses = json.loads((tmp_path / "run" / "comparison.json").read_text())["losses"]
    statuses = {name: loss["runs"]["0"]["status"] for name, loss in losses.items()}
    assert statuses == {"pkt": "done", "cka": "done"}


@pytest.mark.nightly
def test_two_processes_compare_as_one(tmp_path):
    words = ["compare", *FEW, "--losses", "pkt,cka", "--seeds", "1", "--workdir", tmp_path / "two"]
    for status, _, complaint in map(finish, start_two(*words)):
        assert status == 0, complaint
    losses = json.loads((tmp_path / "two" / "comparison.json").read_text())["losses"]
    statuses = [run["status"] for loss in losses.values() for run in loss["runs"].values()]
    assert statuses == ["done", "done"]
    assert not [*(tmp_path / "two").rglob("*.unfinished")]


# The second process looks into the folder once the first has written there, or has not for 5 s.
LATE = """
look = pathlib.Path.iterdir

def late(folder):
    deadline = time.monotonic() + 5
    while not (folder / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return look(folder)

pathlib.Path.iterdir = late
"""


@pytest.mark.nightly
def test_nothing_is_written_before_every_process_has_checked_the_folder(tmp_path):
    processes = start_two("distill", *FEW, "--workdir", tmp_path, before=("", LATE))
    for status, _, complaint in map(finish, processes):
        assert status == 0, complaint


@pytest.mark.nightly
def test_the_first_command_of_a_newcomer(tmp_path):
    """The installed `pcjax distill` in an empty folder, with the compiler's optimisations."""
    subprocess.run([PCJAX, "distill"], cwd=tmp_path, env=environment(XLA_FLAGS=""), check=True)
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    teacher, student, untrained = (result[name] for name in ("teacher", "student", "untrained"))
    assert student["knn_accuracy"] >= 0.95 * teacher["knn_accuracy"]
    assert student["knn_accuracy"] >= untrained["knn_accuracy"] + 0.05
    assert student["parameters"] <= teacher["parameters"] / 10
    low, high = student["coherence"]["spearman"]["low"], untrained["coherence"]["spearman"]["high"]
    assert low > high + 0.2


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("fashion_mnist", ["--training.batch", "64", "--teacher.training.batch", "64"]),
        (
            "cifar100_resnet56_resnet20",
            [
                *("--teacher.model.name", "resnet8", "--student.name", "resnet8"),
                *("--training.batch", "32"),
            ],
        ),
    ],
)
def test_real_images_from_end_to_end(config, words, tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"there are no prepared data sets in {REAL}")
    words = [ROOT / "configs" / f"{config}.py", *words, "--data.data-dir", REAL]
    words += ["--data.part", "0.05", "--teacher.training.steps", "3"]
    words += ["--training.steps", "4", "--training.save-every", "2"]
    pcjax("distill", *words, "--workdir", tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["student"]["knn_accuracy"] < 1
    assert (tmp_path / "run" / "teacher" / "metrics.jsonl").exists()


@pytest.mark.nightly
def test_the_pod_config_shrinks_to_a_laptop(tmp_path):
    """The command that the config's docstring names to try first."""
    text = (ROOT / "configs" / "imagenet_pod.py").read_text()
    words = text.split("on a CPU first: ")[1].split("Expected:")[0].split()
    pcjax("distill", ROOT / "configs" / "imagenet_pod.py", *words, "--workdir", tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.gate
def test_two_processes_embed_texts_as_one(tmp_path):
    """Each embeds its part of the teacher's texts; only the first one writes the cache."""
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from small_texts import write_bert

    write_bert(tmp_path / "teacher", dense=False)
    texts = [
        f"{a} {b} {c} {'cat ' * n}" for n in range(5) for a in "abcd" for b in "efg" for c in "hij"
    ]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    words = ["distill", "--data.source", f"text:{tmp_path}/texts.txt", "--student.name", "static"]
    words += ["--teacher.source", f"sentence-transformers:{tmp_path}/teacher"]
    words += ["--student.features", "5", "--training.steps", "4", "--training.batch", "32"]
    one = {"XDG_CACHE_HOME": tmp_path / "cache of one", "JAX_NUM_CPU_DEVICES": 4}
    pcjax(*words, "--workdir", tmp_path / "one", env=environment(**one))
    two = start_two(*words, "--workdir", tmp_path / "two", XDG_CACHE_HOME=tmp_path / "cache of two")
    for status, _, complaint in map(finish, two):
        assert status == 0, complaint
    for path in sorted((tmp_path / "cache of one/pcjax/teachers").rglob("*.npz")):
        other = tmp_path / "cache of two" / path.relative_to(tmp_path / "cache of one")
        features = [np.load(each)["features"] for each in (other, path)]
        np.testing.assert_allclose(*features, atol=1e-6)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    for model in ("untrained", "student"):
        values = [result[model]["coherence"]["spearman"]["value"] for result in results]
        assert abs(values[0] - values[1]) <= 1e-3
