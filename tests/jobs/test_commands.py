"""The commands, as a user gives them, in this process."""

import contextlib
import dataclasses
import io
import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from children import everything_in
from reading import check
from small import QUICK

import pcjax
from pcjax import data
from pcjax.config import read_stored
from pcjax.training.metrics_log import read_metrics


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_command):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_command("distill", *QUICK, "--workdir", folder) == 0
    return folder


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_distill_writes_what_it_promises(run):
    assert read_stored(run / "config.json")[0] == "distill"
    records = read_metrics(run)
    assert [record["step"] for record in records] == [2, 4, 4, 6, 8, 8]
    assert all(np.isfinite(record.get("loss", 0)) for record in records)
    result = result_of(run)
    names = {"teacher", "untrained", "student"}
    assert result.keys() == names | {"seconds", "steps", "versions", "digest"}
    # One batch-normalised hidden layer without biases; features and classes with biases.
    for name, hidden, features, classes in (("teacher", 24, 12, 10), ("student", 8, 4, 0)):
        parameters = 64 * hidden + 2 * hidden + (hidden + 1) * features + (features + 1) * classes
        metrics = result[name]
        assert metrics["parameters"] == parameters
        assert metrics["flops"] >= 2 * (parameters - 60)
        assert 0 < metrics["knn_accuracy"] <= 1
        assert 0 < metrics["linear_probe_accuracy"] <= 1
        assert metrics["coherence"].keys() == {"footrule", "spearman", "kendall", "neighbours"}
    assert result["teacher"]["coherence"]["spearman"]["value"] == pytest.approx(1)
    assert result["student"]["coherence"] != result["untrained"]["coherence"]
    assert result["steps"] == 8
    headings = check((run / "report.html").read_text()).texts["h2"]
    assert headings == ["Results", "Coherence", "Maps", "Neighbours", "Confusion"]


def test_evaluate_repeats_the_metrics(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = result_of(copy)
    status, output, _ = command("evaluate", copy)
    assert status == 0
    assert "student after" in output
    assert result_of(copy) == before


def test_a_repeated_command_only_repeats_the_evaluation(run, command):
    before = everything_in(run / "checkpoints"), read_metrics(run), result_of(run)
    status, output, _ = command("distill", *QUICK, "--workdir", run)
    assert status == 0
    assert "steps/s" not in output
    assert (everything_in(run / "checkpoints"), read_metrics(run), result_of(run)) == before


@pytest.mark.gate
def test_the_seconds_of_all_commands_are_added_up(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()  # as if it had been stopped after the last checkpoint
    manifest = json.loads((copy / "checkpoints" / "8" / "manifest" / "metadata").read_text())
    assert command("distill", *QUICK, "--workdir", copy)[0] == 0
    assert result_of(copy)["seconds"] > manifest["seconds"] > 0


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, run_command):
    """Train a teacher alone and store its features."""
    folder = tmp_path_factory.mktemp("teacher") / "a teacher"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        assert run_command("teach", *QUICK, "--workdir", folder) == 0
        lines = {"--teacher.run": output.getvalue().splitlines()[-1]}
        assert run_command("embed", folder) == 0
        lines["--teacher.features"] = output.getvalue().splitlines()[-1]
    return folder, lines


@pytest.mark.gate
def test_features_and_runs_serve_as_teachers(run, teacher, command, tmp_path):
    """The commands that `teach` and `embed` print at the end give the same student."""
    teacher, lines = teacher
    assert result_of(teacher)["teacher"] == result_of(run)["teacher"]
    expected = result_of(run)["student"]
    for option, line in lines.items():
        job, *words = shlex.split(line.removeprefix("next: pcjax "))
        assert job == "distill"
        assert option in words
        status, _, complaint = command(job, *words)
        assert status == 0, complaint
        student = teacher.with_name("a teacher-student")
        assert not (student / "teacher").exists()
        assert result_of(student)["student"] == expected
        student.rename(tmp_path / option)
    # A distill run's own teacher serves too.
    words = ["--teacher.run", run, "--workdir", tmp_path / "again"]
    assert command("distill", *QUICK, *words)[0] == 0
    assert result_of(tmp_path / "again")["student"] == expected


@pytest.mark.gate
def test_plain_features_are_in_the_order_of_the_source(teacher, command, tmp_path):
    """Take one .npy with a row for every example, and notice a wrong order."""
    dataset = data.load("digits", part=0.4, validation=0.2)
    with np.load(teacher[0] / "features.npz") as stored:
        rows = np.zeros((1797, stored["train"].shape[1]), np.float32)
        for part, examples in dataset.parts.items():
            rows[examples.rows] = stored[part]
    np.save(tmp_path / "rows.npy", rows)
    wrong = np.random.default_rng(0).permutation(rows[rows.any(axis=1)])
    np.save(tmp_path / "wrong.npy", np.resize(wrong, rows.shape))
    for name in ("rows", "wrong"):
        words = ["--teacher.features", tmp_path / f"{name}.npy", "--workdir", tmp_path / name]
        status, output, complaint = command("distill", *QUICK, *words)
        assert status == 0, complaint
        assert ("WARNING: the teacher's features are unrelated" in output) == (name == "wrong")
    results = [result_of(path)["teacher"] for path in (tmp_path / "rows", teacher[0])]
    for name in ("knn_accuracy", "linear_probe_accuracy", "retrieval"):
        assert results[0][name] == results[1][name]
    np.save(tmp_path / "few.npy", rows[:-1])
    status, _, complaint = command(
        "distill", *QUICK, "--teacher.features", tmp_path / "few.npy", "--workdir", tmp_path / "few"
    )
    assert status == 2
    assert "expected numbers of shape (1797, features), one row an example" in complaint


def test_the_exported_student_has_the_features_that_embed_writes(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    status, output, _ = command("export", copy)
    assert status == 0
    file = copy / "student.safetensors"
    assert f"{file.stat().st_size:,} bytes" in output
    assert command("embed", copy)[0] == 0
    student = pcjax.load(file)
    assert student.about["config"] == read_stored(copy / "config.json")[1].digest()
    test = data.load("digits", part=0.4, validation=0.2).test
    features = pcjax.load(copy).features(test.take(np.arange(len(test))))
    with np.load(copy / "features.npz") as stored:
        # Compiled beside other operations, sums may be added up in another order.
        np.testing.assert_allclose(features, stored["test"], rtol=1e-5, atol=1e-6)
        assert student.about["features"] == stored["test"].shape[1]


def test_only_finished_runs_are_used(run, command, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "result.json").unlink()
    for job in ("embed", "export", "evaluate", "report"):
        status, _, complaint = command(job, stopped)
        assert (status, complaint.count("\n")) == (2, 1)
        assert "has no result.json: repeat the run's own command" in complaint
    status, _, complaint = command(
        "distill", *QUICK, "--teacher.run", stopped, "--workdir", tmp_path / "new"
    )
    assert status == 2
    assert "is not finished" in complaint


LOSSES = """
from pcjax.config import Config, Loss, Model, Teacher, Training
losses = (
    Loss("bingo", head="mlp", bank=100),
    Loss("crd", head="linear", arguments={{"negatives": 8, "class_aware": True}}),
    Loss("shared_classifier", head="linear"),
    {more}
)
training = Training(steps=3, batch=32, devices=1)
teacher = Teacher(
    Model("{model}", {{"widths": (6,), "features": 6}}),
    live={live},
    training=Training(steps=2, devices=1),
)
student = Model("{model}", {{"widths": (4,), "features": 4}})
config = Config(teacher=teacher, losses=losses, student=student, training=training)
"""
MAPS = """
    Loss("attention_transfer"),
    Loss("hint", head="conv", maps=("stage1", "stage1")),
"""


@pytest.mark.gate
@pytest.mark.parametrize("live", [pytest.param(False, marks=pytest.mark.nightly), True])
def test_losses_get_all_that_they_need(live, tmp_path, command):
    options = {"live": live, "model": "cnn" if live else "mlp", "more": MAPS if live else ""}
    (tmp_path / "mine.py").write_text(LOSSES.format(**options))
    status, _, complaint = command("distill", tmp_path / "mine.py", "--workdir", tmp_path / "run")
    assert status == 0, complaint
    record = read_metrics(tmp_path / "run")[0]
    maps = ("hint", "attention_transfer") if live else ()
    assert all(record[name] > 0 for name in ("bingo", "crd", "shared_classifier", *maps))
    assert "skipped" not in record


HEAD = "from pcjax.config import *\nconfig = Config("
FILES = {
    "wrong.py": HEAD + 'losses=(Loss("cross_entropy", arguments={"label_smoothing": "x"}),))',
    "map.py": HEAD + 'losses=(Loss("hint", maps=("stage9", "stage1")),), '
    'teacher=Teacher(live=True), student=Model("cnn"))',
    "widths.py": HEAD + 'losses=(Loss("embed_distill"),))',
    "frame.py": HEAD + 'losses=(Loss(arguments={"frame": "teacher"}),))',
}
REFUSED = {
    "unknown job 'distil' (did you mean 'distill'?)": ["distil"],
    "(did you mean '--training.batch'?)": ["distill", "--training.bach", "3"],
    "training.batch='many' is not of type int": ["distill", "--training.batch", "many"],
    "unknown argument of perception_coherence": ["distill", "--losses.0.sharpness", "3"],
    "unknown loss 'nope'": ["distill", "--losses", "nope"],
    "unknown data source 'mnist': did you mean 'tfds:mnist'?": [
        "distill",
        "--data.source",
        "mnist",
    ],
    "There is no config {tmp}/none.py": ["distill", "{tmp}/none.py"],
    "training.batch=4096 exceeds the 1294": ["distill", "--training.batch", "4096"],
    "training.batch=30 cannot be split evenly": ["distill", "--training.batch", "30"],
    "training.devices=64, but only 8": ["distill", "--training.devices", "64"],
    "teacher.training.batch=4096 exceeds": ["distill", "--teacher.training.batch", "4096"],
    "none.npz: no such file": ["distill", "--data.source", "arrays:{tmp}/none.npz"],
    "corrupt.npz: cannot be read": ["distill", "--data.source", "arrays:{tmp}/corrupt.npz"],
    "has no labels to train a teacher": ["distill", "--data.source", "arrays:{tmp}/plain.npy"],
    "holds no data set 'cifar100'": [
        *("distill", "--data.source", "tfds:cifar100", "--data.data-dir", "{tmp}")
    ],
    "digits has 1 validation examples": ["distill", "--data.validation", "0.001"],
    "The losses (cross_entropy) cannot be computed": ["distill", "{tmp}/wrong.py"],
    "unknown map of the student 'stage9'": ["distill", "{tmp}/map.py"],
    "got student (256, 16) and teacher (256, 64)": ["distill", "{tmp}/widths.py"],
    'frame="teacher" needs a linear head': ["distill", "{tmp}/frame.py"],
    "There is no run in {tmp}/none (teacher.run)": ["distill", "--teacher.run", "{tmp}/none"],
    "There is no file {tmp}/none.npz": ["distill", "--teacher.features", "{tmp}/none.npz"],
    "corrupt.npz (teacher.features) cannot be used": [
        *("distill", "--teacher.features", "{tmp}/corrupt.npz")
    ],
    "There is no run in {tmp};": ["evaluate", "{tmp}"],
    "`pcjax evaluate` needs the folder of a run": ["evaluate"],
    "is a file; choose a folder": ["distill", "--workdir", "{tmp}/corrupt.npz"],
    "is neither empty nor a run": ["distill", "--workdir", "{tmp}"],
    "is not on this machine's disks": ["distill", "--workdir", "gs://bucket/run"],
    "contains [ ]; choose another name": ["distill", "--workdir", "{tmp}/[a]"],
    "There is nothing to compare": ["compare"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_requests_are_refused_in_a_line_before_anything_is_written(
    message, tmp_path, command
):
    (tmp_path / "corrupt.npz").write_bytes(b"PK\x03\x04 this is not an archive")
    np.save(tmp_path / "plain.npy", np.zeros((600, 8, 8, 1), np.float32))
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    words = [word.format(tmp=tmp_path) for word in REFUSED[message]]
    if words[0] in ("distill", "compare") and "--workdir" not in words:
        words += ["--workdir", str(tmp_path / "new")]
    before = everything_in(tmp_path)
    status, output, complaint = command(*words)
    assert message.replace("{tmp}", str(tmp_path)) in complaint
    assert status == 2
    assert complaint.count("\n") == 1
    assert complaint.startswith("pcjax: ")
    assert "Traceback" not in output + complaint
    assert everything_in(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.gate
def test_accuracy_is_of_the_examples_that_have_a_label(tmp_path, command):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    images = labels[:, None, None, None] * 80 + random.integers(0, 20, (300, 6, 6, 1))
    labels[::3] = -1
    np.savez(tmp_path / "some.npz", images=images.astype(np.uint8), labels=labels)
    words = ["--teacher.training.steps", "120", "--data.source"]
    words += [f"arrays:{tmp_path / 'some.npz'}"]
    status, output, complaint = command(
        "teach", *QUICK, *words, "--data.part", "1.0", "--workdir", tmp_path / "run"
    )
    assert status == 0, complaint
    assert "100 without a label, so k-NN and the linear probe are left out" in output
    accuracies = [r.get("validation_accuracy", 0) for r in read_metrics(tmp_path / "run")]
    assert max(accuracies) > 0.9


@pytest.mark.gate
def test_a_student_without_labels(tmp_path, command):
    """Features of a teacher suffice; the table then has no row that needs labels."""
    random = np.random.default_rng(0)
    images = random.normal(size=(200, 12)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "features.npy", np.tanh(images @ random.normal(size=(12, 5))))
    words = ["--data.source", f"arrays:{tmp_path / 'images.npy'}", "--data.part", "1.0"]
    words += ["--teacher.features", tmp_path / "features.npy"]
    status, output, complaint = command("distill", *QUICK, *words, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    assert "k-NN" not in output
    assert "recall@1" not in output
    assert "teacher's nearest kept" in output
    result = result_of(tmp_path / "run")
    assert result["teacher"]["parameters"] is None
    assert result["student"]["parameters"] == 12 * 8 + 16 + 9 * 4  # no classifier


def test_a_run_of_another_config_is_left_alone(run, command):
    before = everything_in(run)
    status, _, complaint = command("distill", *QUICK, "--training.seed", "3", "--workdir", run)
    assert status == 2
    assert "holds a run with training.seed=0, but 3 is requested: choose another" in complaint
    status, _, complaint = command("teach", *QUICK, "--workdir", run)
    assert status == 2
    assert "holds a run of `pcjax distill`; choose another --workdir" in complaint
    assert everything_in(run) == before


@pytest.mark.gate
def test_other_data_or_another_teacher_is_refused(run, command, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"part": 0.4', '"part": 0.5'))
    status, _, complaint = command("evaluate", copy)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "was made with data" in complaint
    shutil.rmtree(copy)
    shutil.copytree(run, copy)
    other = tmp_path / "other"
    words = ["--teacher.training.seed", "5", "--training.steps", "4"]
    assert command("distill", *QUICK, *words, "--workdir", other)[0] == 0
    shutil.rmtree(copy / "teacher")
    shutil.copytree(other / "teacher", copy / "teacher")
    status, _, complaint = command("evaluate", copy)
    assert status == 2
    assert "was made with" in complaint


def test_help_and_lists(command):
    for words in ([], ["--help"], ["evaluate", "--help"], ["distill", "--help"]):
        status, output, _ = command(*words)
        assert status == 0
        assert len(output.splitlines()) <= 30
    assert "--training.save-every" in command("distill", "--help-all")[1]
    assert command("--version")[1].strip() == pcjax.__version__
    for what, name in (("losses", "rkd"), ("models", "mobilenetv2"), ("sources", "tfds")):
        assert name in command("list", what)[1]
    assert command("list", "loses")[0] == 2


def test_help_imports_no_jax():
    code = (
        "import sys; from pcjax.cli import main; main(['--help']); main(['distill', '--help'])\n"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=-3).returncode == 0


@pytest.mark.gate
def test_no_cache_compiles_anew(run, command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert command("evaluate", run, "--no-cache")[0] == 0
    assert not (tmp_path / "pcjax").exists()


def test_configs_are_frozen(run):
    config = read_stored(run / "config.json")[1]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.training = None
