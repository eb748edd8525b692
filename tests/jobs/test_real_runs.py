"""Whole runs of the installed command: stopped by signals, over processes, on real data, and a newcomer's first."""

import json
import pathlib
import signal
import sys

import numpy as np
import pytest
from children import arrays_of, environment, finish, pcjax, start, start_two, wait_until

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "tfds"
SMALL = [
    *(
        "--teacher.model.widths",
        "24",
        "--teacher.model.features",
        "12",
        "--teacher.training.steps",
        "6",
    ),
    *("--teacher.training.batch", "64", "--teacher.training.optimiser", "sgd"),
    *("--student.name", "cnn", "--student.widths", "4", "6", "--student.features", "4"),
    *("--training.batch", "64", "--training.optimiser", "sgd", "--training.learning-rate", "0.05"),
    *("--training.log-every", "2"),
]


# A rank of the teacher's, and the sign of what a rank misses it by, jump where rounding decides which of two distances
# is the larger one, as between one process and two: with these nothing jumps.
SMOOTH = ["--losses.0.arguments.teacher_temperature", "0.1", "--losses.0.arguments.power", "2"]


@pytest.mark.parametrize(("how", "loss"), [("pmap", SMOOTH), ("shard_map", SMOOTH), ("pmap", [])])
def test_two_processes_with_two_devices_train_as_one_with_four(how, loss, tmp_path):
    # A bank, filled in the second step, holds the examples of all processes.
    bank = ["--losses.0.bank", "100"]
    asked = ["distill", *SMALL, *bank, "--training.steps", "20", "--training.save-every", "10"]
    asked += ["--training.parallel", how, *loss]
    pcjax(*asked, "--workdir", tmp_path / "one", env=environment(JAX_NUM_CPU_DEVICES=4))
    for status, _, complaint in map(finish, start_two(*asked, "--workdir", tmp_path / "two")):
        assert status == 0, complaint
    (one, _), (two, _) = (arrays_of(tmp_path / name, 20) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        # Where ranks jump, momentum, a sum of gradients, shows it at once; parameters move by a twentieth of it.
        if loss or not name.startswith("optimiser/"):
            assert np.abs(two[name].astype(float) - expected).max() <= 1e-5 * max(
                np.abs(expected).max(), 1
            ), name
    for found, expected in zip(losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    # Each process has looked at its part of what was judged.
    found, expected = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one")
    )
    for who in ("teacher", "untrained", "student"):
        assert abs(found[who]["knn_accuracy"] - expected[who]["knn_accuracy"]) <= 0.01
        values = [of[who]["coherence"]["spearman"]["value"] for of in (found, expected)]
        assert abs(values[0] - values[1]) <= 1e-3


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "steps_per_second"} for line in lines
    ]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(number, expected, tmp_path):
    steps = 1000
    asked = ["distill", *SMALL, "--training.steps", steps, "--training.save-every", "500"]
    process = start(*asked, "--workdir", tmp_path / "run", env=environment(JAX_NUM_CPU_DEVICES=1))
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert wait_until(lambda: metrics.exists() and losses(tmp_path / "run"), process)
    process.send_signal(number)
    status, _, complaint = finish(process)
    assert status == expected
    assert complaint.count("\n") == 1
    stopped = int(complaint.split("after step ")[1].split(",")[0])
    assert 0 < stopped < steps
    assert "to go on: pcjax distill" in complaint
    said = pcjax(*asked, "--workdir", tmp_path / "run", env=environment(JAX_NUM_CPU_DEVICES=1))
    assert f"going on after step {stopped} of {steps}" in said
    pcjax(*asked, "--workdir", tmp_path / "whole", env=environment(JAX_NUM_CPU_DEVICES=1))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    (found, _), (expected_arrays, _) = (
        arrays_of(tmp_path / name, steps) for name in ("run", "whole")
    )
    for name, array in expected_arrays.items():
        assert np.array_equal(found[name], array), name


def test_a_training_goes_on_where_the_teacher_differs_in_its_last_digits(tmp_path):
    asked = [
        "distill",
        *SMALL,
        "--training.steps",
        "3000",
        "--training.save-every",
        "1000",
        "--workdir",
        tmp_path,
    ]
    process = start(*asked, env=environment(JAX_NUM_CPU_DEVICES=1))
    metrics = tmp_path / "metrics.jsonl"
    assert wait_until(lambda: metrics.exists() and losses(tmp_path), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    # Another processor would compute so.
    said = pcjax(
        *asked, env=environment(JAX_NUM_CPU_DEVICES=1, XLA_FLAGS="--xla_cpu_max_isa=SSE4_2")
    )
    assert "going on after step" in said


def test_a_comparison_that_is_stopped_goes_on(tmp_path):
    few = [
        *SMALL,
        "--training.steps",
        "300",
        "--training.save-every",
        "300",
        "--training.devices",
        "1",
    ]
    asked = ["compare", *few, "--losses", "pkt,cka", "--seeds", "1"]
    process = start(*asked, "--workdir", tmp_path / "run")
    second = tmp_path / "run" / "runs" / "cka" / "0" / "metrics.jsonl"
    assert wait_until(lambda: second.exists() and second.read_text(), process)
    process.send_signal(signal.SIGTERM)
    status, _, complaint = finish(process)
    assert (status, complaint.count("\n")) == (143, 1), complaint
    status, _, complaint = finish(start("report", tmp_path / "run"))
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert "no comparison.json in" in complaint
    said = pcjax(*asked, "--workdir", tmp_path / "run")
    assert "going on after step" in said
    assert "pkt, seed" not in said
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())["losses"]
    assert {name: loss["runs"]["0"]["status"] for name, loss in found.items()} == {
        "pkt": "done",
        "cka": "done",
    }


def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step(tmp_path):
    asked = ["distill", *SMALL, "--training.steps", "100000", "--training.save-every", "50000"]
    processes = start_two(*asked, "--workdir", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    assert wait_until(lambda: metrics.exists() and losses(tmp_path / "run"), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process, timeout=60) for process in processes]
    stopped = set()
    for status, _, complaint in ends:
        assert status == 143, complaint
        stopped.add(complaint.split("after step ")[1].split(",")[0])
    assert len(stopped) == 1
    assert (tmp_path / "run" / "checkpoints" / stopped.pop()).is_dir()


def test_two_processes_compare_as_one(tmp_path):
    asked = ["compare", *SMALL, "--losses", "pkt,cka", "--seeds", "1", "--training.steps", "6"]
    for status, _, complaint in map(finish, start_two(*asked, "--workdir", tmp_path / "two")):
        assert status == 0, complaint
    found = json.loads((tmp_path / "two" / "comparison.json").read_text())["losses"]
    assert [run["status"] for loss in found.values() for run in loss["runs"].values()] == [
        "done",
        "done",
    ]
    assert not [*(tmp_path / "two").rglob("*.unfinished")]


# The second process looks into the folder only when the first has written there, or has not for five seconds.
LATE = """
import os, pathlib, time
from pcjax.cli import command

look = pathlib.Path.iterdir

def late(folder):
    deadline = time.monotonic() + 5
    while not (folder / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return look(folder)

if os.environ["PCJAX_PROCESS"] == "1":
    pathlib.Path.iterdir = late
command()
"""


def test_nothing_is_written_before_every_process_has_looked_at_the_folder(tmp_path):
    asked = ["distill", *SMALL, "--training.steps", "6", "--workdir", tmp_path]
    processes = start_two(*asked, program=(sys.executable, "-c", LATE))
    for status, _, complaint in map(finish, processes):
        assert status == 0, complaint


def test_what_a_newcomer_runs(tmp_path):
    """`pcjax distill` in an empty folder: the student's k-NN accuracy against the teacher's, on two cores in 150 s."""
    pcjax("distill", cwd=tmp_path, env=environment(XLA_FLAGS=""))
    result = json.loads((tmp_path / "runs" / "digits" / "result.json").read_text())
    teacher, student, untrained = (result[name] for name in ("teacher", "student", "untrained"))
    assert student["knn_accuracy"] >= 0.95 * teacher["knn_accuracy"]
    assert student["knn_accuracy"] >= untrained["knn_accuracy"] + 0.05
    assert student["parameters"] <= teacher["parameters"] / 10
    assert (
        student["coherence"]["spearman"]["low"] > untrained["coherence"]["spearman"]["high"] + 0.2
    )
    assert result["seconds"] <= 150


@pytest.mark.parametrize(
    ("config", "small"),
    [
        ("fashion_mnist", ["--training.batch", "64", "--teacher.training.batch", "64"]),
        (
            "cifar100_resnet56_resnet20",
            [
                "--teacher.model.name",
                "resnet8",
                "--student.name",
                "resnet8",
                "--training.batch",
                "32",
            ],
        ),
    ],
)
def test_real_images_from_end_to_end(config, small, tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"no prepared data sets in {REAL}")
    asked = ["distill", ROOT / "configs" / f"{config}.py", *small, "--data.data-dir", REAL]
    asked += [
        "--data.part",
        "0.05",
        "--teacher.training.steps",
        "3",
        "--training.steps",
        "4",
        "--training.save-every",
        "2",
    ]
    pcjax(*asked, "--workdir", tmp_path / "run", env=environment(JAX_NUM_CPU_DEVICES=1))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["student"]["knn_accuracy"] < 1
    assert (tmp_path / "run" / "teacher" / "metrics.jsonl").exists()


def test_the_pod_config_shrinks_to_a_laptop(tmp_path):
    """The command that the config's docstring tells to try first."""
    text = (ROOT / "configs" / "imagenet_pod.py").read_text()
    small = text.split("on a CPU: ")[1].split("Expected:")[0].split()
    pcjax("distill", ROOT / "configs" / "imagenet_pod.py", *small, "--workdir", tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()
