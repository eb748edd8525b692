"""The commands, as a user gives them."""

import errno
import gc
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from children import everything_in

import pcjax
from pcjax import cli, data
from pcjax.config import Config, Loss, Ramp, read
from pcjax.run import config_of
from pcjax.training.checkpoint import Checkpoints

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
SMALL = [
    *(
        "--teacher.model.widths",
        "24",
        "--teacher.model.features",
        "12",
        "--teacher.training.steps",
        "6",
    ),
    *("--student.widths", "8", "--student.features", "4", "--training.steps", "8"),
    *("--training.batch", "64", "--teacher.training.batch", "64", "--training.devices", "1"),
    *("--teacher.training.devices", "1", "--training.save-every", "4", "--training.log-every", "2"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    cli.main(["distill", *SMALL, "--workdir", str(folder)])
    return folder


def test_distill_writes_what_it_promises(run):
    assert json.loads((run / "config.json").read_text())["job"] == "distill"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8]
    assert all(np.isfinite(line.get("loss", 0)) for line in lines)
    result = json.loads((run / "result.json").read_text())
    assert result.keys() == {
        "teacher",
        "untrained",
        "student",
        "seconds",
        "steps",
        "versions",
        "digest",
    }
    # One hidden layer without biases, batch-normalised; features and classes with biases.
    counts = {"teacher": (24, 12), "student": (8, 4)}
    for name, (hidden, features) in counts.items():
        parameters = 64 * hidden + 2 * hidden + (hidden + 1) * features + (features + 1) * 10
        found = result[name]
        assert found["parameters"] == parameters
        assert found["flops"] >= 2 * (parameters - 60)
        assert 0 < found["knn_accuracy"] <= 1
        assert 0 < found["linear_probe_accuracy"] <= 1
        assert found["coherence"].keys() == {"footrule", "spearman", "kendall", "neighbours"}
    assert result["teacher"]["coherence"]["spearman"]["value"] == pytest.approx(1)
    assert result["student"]["coherence"] != result["untrained"]["coherence"]
    assert result["steps"] == 8


def test_evaluate_repeats_the_table(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = json.loads((copy / "result.json").read_text())
    status, said, _ = command("evaluate", copy)
    assert status == 0
    assert "student after" in said
    after = json.loads((copy / "result.json").read_text())
    assert after == before


def test_the_seconds_of_a_run_are_those_of_every_time_that_it_was_gone_on_with(
    run, command, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()  # as if it had been stopped after the last checkpoint
    checkpoints = Checkpoints(copy / "checkpoints", {}, writable=False)
    until_then = checkpoints._manifest_of(checkpoints.latest)["seconds"]
    checkpoints.close()
    began = time.perf_counter()
    assert command("distill", *SMALL, "--workdir", copy)[0] == 0
    own = time.perf_counter() - began
    found = json.loads((copy / "result.json").read_text())["seconds"]
    assert until_then > 0
    assert 0.5 * own <= found - until_then <= own + 0.2


def test_the_same_command_again_only_repeats_the_table(run, command):
    before = everything_in(run / "checkpoints"), (run / "metrics.jsonl").read_text()
    status, said, _ = command("distill", *SMALL, "--workdir", run)
    assert status == 0
    assert "steps/s" not in said
    assert (everything_in(run / "checkpoints"), (run / "metrics.jsonl").read_text()) == before


@pytest.mark.slow
def test_a_stored_config_starts_an_equal_run(run, command, tmp_path):
    status, _, _ = command("distill", run / "config.json", "--workdir", tmp_path / "again")
    assert status == 0
    one, other = (
        json.loads((folder / "result.json").read_text()) for folder in (run, tmp_path / "again")
    )
    assert one["student"] == other["student"]


def test_features_and_runs_serve_as_teachers(run, command, tmp_path):
    teacher = tmp_path / "a teacher"
    status, after_teaching, _ = command("teach", *SMALL, "--workdir", teacher)
    assert status == 0
    result = json.loads((teacher / "result.json").read_text())
    assert result["teacher"] == json.loads((run / "result.json").read_text())["teacher"]
    status, after_embedding, _ = command("embed", teacher)
    assert status == 0
    features = teacher / "features.npz"
    with np.load(features) as stored:
        assert {name: stored[name].shape for name in ("train", "validation", "test")} == {
            "train": (1294, 12),
            "validation": (144, 12),
            "test": (359, 12),
        }
    expected = json.loads((run / "result.json").read_text())["student"]
    for said, by in ((after_teaching, "--teacher.run"), (after_embedding, "--teacher.features")):
        job, *given = shlex.split(said.splitlines()[-1].removeprefix("next: pcjax "))
        assert (job, given[1]) == ("distill", by)
        status, _, complaint = command(job, *given)
        assert status == 0, complaint
        folder = tmp_path / "a teacher-student"
        assert not (folder / "teacher").exists()
        assert json.loads((folder / "result.json").read_text())["student"] == expected
        folder.rename(tmp_path / by)


def test_the_exported_student_has_the_features_that_embed_writes(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    status, said, _ = command("export", copy)
    assert status == 0
    file = copy / "student.safetensors"
    assert f"{file.stat().st_size:,} bytes" in said
    assert command("embed", copy)[0] == 0
    model = pcjax.load(file)
    assert model.about["config"] == config_of(copy)[1].digest()
    test = data.load("digits").test
    # The weights are the same bits; what is compiled beside other operations may add in another order.
    found = model(test.take(np.arange(len(test)))).features
    with np.load(copy / "features.npz") as stored:
        np.testing.assert_allclose(found, stored["test"], rtol=1e-5, atol=1e-6)
        assert model.about["features"] == stored["test"].shape[1]


def test_what_has_no_student_is_not_exported(run, command, tmp_path):
    (tmp_path / "config.json").write_text(
        (run / "config.json").read_text().replace('"distill"', '"teach"', 1)
    )
    for folder, why in ((tmp_path, "has no student"), (tmp_path / "none", "no run in")):
        status, _, complaint = command("export", folder)
        assert (status, complaint.count("\n")) == (2, 1)
        assert why in complaint


def test_what_has_not_ended_is_neither_embedded_nor_exported(run, command, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    for name in ("result.json", "features.npz", "student.safetensors"):
        (stopped / name).unlink(missing_ok=True)
    for job in ("embed", "export", "evaluate", "report"):
        status, _, complaint = command(job, stopped)
        assert (status, complaint.count("\n")) == (2, 1)
        assert (
            f"no result.json in {stopped}: give its own command again, which goes on to the end"
            in complaint
        )
    assert not {"features.npz", "student.safetensors"} & {path.name for path in stopped.iterdir()}


LOSSES = """
from pcjax.config import Config, Loss, Model, Teacher, Training
losses = (
    Loss("bingo", head="mlp", bank=100),
    Loss("crd", head="linear", arguments={{"negatives": 8, "class_aware": True}}),
    Loss("shared_classifier", head="linear"),
    {more}
)
training = Training(steps=3, batch=32, devices=1)
teacher = Teacher(Model("{model}", widths=(6,), features=6), live={live}, training=Training(steps=2, devices=1))
config = Config(teacher=teacher, losses=losses, student=Model("{model}", widths=(4,), features=4), training=training)
"""
MAPS = """
    Loss("attention_transfer"),
    Loss("hint", head="conv", maps=("stage1", "stage1")),
"""


@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True])
def test_losses_with_all_that_they_need(live, tmp_path, command):
    given = {"live": live, "model": "cnn" if live else "mlp", "more": MAPS if live else ""}
    (tmp_path / "mine.py").write_text(LOSSES.format(**given))
    status, _, complaint = command("distill", tmp_path / "mine.py", "--workdir", tmp_path / "run")
    assert status == 0, complaint
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    for name in (
        "bingo",
        "crd",
        "shared_classifier",
        *(("hint", "attention_transfer") if live else ()),
    ):
        assert record[name] > 0, name
    assert "skipped" not in record


def test_arguments_that_a_config_does_not_name_can_be_given(command, tmp_path):
    (tmp_path / "ramp.py").write_text(
        "from pcjax.config import Config, Loss, Ramp\n"
        'config = Config(losses=(Loss(arguments={"temperature": Ramp(0.5, 0.1)}),))\n'
    )
    given = ["--losses.0.arguments.frame", "teacher", "--losses.0.arguments.power=2"]
    given += ["--losses.0.head", "linear", "--losses.0.arguments.temperature", "0.3"]
    status, _, complaint = command(
        "distill", tmp_path / "ramp.py", *SMALL, *given, "--workdir", tmp_path / "run"
    )
    assert status == 0, complaint
    arguments = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["losses"][0][
        "arguments"
    ]
    assert arguments == {"temperature": 0.3, "frame": "teacher", "power": 2}


def flags(value, name):
    """Everything a config says, as the command line would say it."""
    if isinstance(value, dict):
        return [word for field, inner in value.items() for word in flags(inner, f"{name}.{field}")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [
            word for place, inner in enumerate(value) for word in flags(inner, f"{name}.{place}")
        ]
    words = value if isinstance(value, list) else [value]
    return [f"--{name.removeprefix('.')}", *map(str, words)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_field_of_a_config_can_be_said_on_the_command_line(path):
    config = read(path)
    said = flags(json.loads(config.to_json()), "")
    # What is empty has no words.
    said = [
        word for word in said if word not in ("--evaluation.corruptions", "--comparison.contenders")
    ]
    assert cli._overridden("distill", config, None, said)[0].to_json() == config.to_json()
    place = said.index("--losses.0.weight")
    said[place + 1] = "0.125"
    assert cli._overridden("distill", config, None, said)[0].losses[0].weight == 0.125


def test_a_number_takes_a_ramps_place():
    config = Config(losses=(Loss("pkt", weight=Ramp(0.0, 1.0)),))
    given = ["--losses.0.weight", "0.5", "--training.batch", "64"]
    assert cli._with_arguments(config, given).losses[0].weight == 0.5
    assert given == ["--training.batch", "64"]
    moved, _ = cli._overridden("distill", config, None, ["--losses.0.weight.end", "3"])
    assert moved.losses[0].weight == Ramp(0.0, 3.0)


LABELLESS = "arrays:{tmp}/plain.npy"
REFUSED = {
    "unknown job": (["distil"], "unknown job 'distil': expected one of distill, teach"),
    "unknown field": (["distill", "--training.bach", "3"], "--training.bach"),
    "stray word": (["distill", "--training.warmup", "0.1", "0.5"], "Unrecognized options: 0.5"),
    "wrong weight": (
        ["distill", "--losses.0.weight", "much"],
        "--losses.0.weight: could not convert",
    ),
    "wrong type": (
        ["distill", "--training.batch", "many"],
        "--training.batch: invalid literal for int()",
    ),
    "unknown argument": (
        ["distill", "--losses.0.arguments.sharpness", "3"],
        "unknown argument of perception_coherence",
    ),
    "no value": (
        ["distill", "--losses.0.arguments.power"],
        "got --losses.0.arguments.power without a value",
    ),
    "unknown loss": (
        ["distill", "--losses.0.name", "nope"],
        "unknown loss 'nope': expected one of",
    ),
    "unknown model": (
        ["distill", "--student.name", "resnet7"],
        "unknown model 'resnet7': expected one of",
    ),
    "unknown data": (
        ["distill", "--data.source", "mnist"],
        "unknown data source 'mnist': expected",
    ),
    "unknown config": (
        ["distill", "{tmp}/none.py"],
        "none.py: expected a .py file that sets `config`",
    ),
    "small batch": (
        ["distill", "--training.batch", "2"],
        "got training.batch 2: expected at least 3",
    ),
    "large batch": (
        ["distill", "--training.batch", "4096"],
        "got training.batch 4096 for 1294 training examples",
    ),
    "batch by devices": (
        ["distill", "--training.batch", "30"],
        "got training.batch 30 for 8 devices: expected a multiple",
    ),
    "more devices": (
        ["distill", "--training.devices", "64"],
        "got training.devices 64: expected at most 8",
    ),
    "the teacher's batch": (
        ["distill", "--teacher.training.batch", "4096"],
        "got teacher.training.batch 4096 for 1294 training examples",
    ),
    "the teacher's batch by devices": (
        ["distill", "--teacher.training.batch", "30"],
        "got teacher.training.batch 30 for 8 devices: expected a multiple",
    ),
    "the teacher's devices": (
        ["distill", "--teacher.training.devices", "64"],
        "got teacher.training.devices 64: expected at most 8",
    ),
    "no file": (["distill", "--data.source", "arrays:{tmp}/none.npz"], "none.npz: no such file"),
    "corrupt file": (["distill", "--data.source", "arrays:{tmp}/corrupt.npz"], "corrupt.npz"),
    "no labels": (["distill", "--data.source", LABELLESS], "has no labels to train a teacher with"),
    "no tfds": (
        ["distill", "--data.source", "tfds:cifar100", "--data.data-dir", "{tmp}"],
        "cifar100",
    ),
    "dimensions": (["distill", "{tmp}/frame.py", *SMALL], "student in the teacher's dimension"),
    "too few held out": (
        ["distill", "--data.validation", "0.001"],
        "got 1 validation examples from digits: expected",
    ),
    "no temperature": (
        ["distill", "{tmp}/bare.py"],
        "got no temperature among the arguments of perception_coherence",
    ),
    "wrong argument": (
        ["distill", "{tmp}/wrong.py"],
        "the losses (cross_entropy) cannot be computed as asked",
    ),
    "a map": (
        ["distill", "{tmp}/map.py"],
        "unknown map of the student 'stage9': expected one of 'stage1'",
    ),
    "widths": (
        ["distill", "{tmp}/widths.py"],
        "got student (256, 16) and teacher (256, 64): expected",
    ),
    "no such teacher": (
        ["distill", "--teacher.run", "{tmp}/none"],
        "none (teacher.run): expected the --workdir of an earlier",
    ),
    "no such features": (
        ["distill", "--teacher.features", "{tmp}/none.npz"],
        "none.npz (teacher.features)",
    ),
    "corrupt features": (["distill", "--teacher.features", "{tmp}/corrupt.npz"], "cannot read"),
    "not a run": (["evaluate", "{tmp}"], "expected the --workdir of an earlier pcjax command"),
    "no run": (["evaluate"], "got nothing for evaluate: expected the folder of one run"),
    "a file for a folder": (
        ["distill", "--workdir", "{tmp}/corrupt.npz"],
        "which is a file: choose a folder",
    ),
    "a folder in use": (["distill", "--workdir", "{tmp}"], "is neither empty nor a run's folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_said_in_a_line(name, tmp_path, command):
    (tmp_path / "corrupt.npz").write_bytes(b"PK\x03\x04 this is not an archive")
    np.save(tmp_path / "plain.npy", np.zeros((600, 8, 8, 1), np.float32))
    (tmp_path / "frame.py").write_text(
        "from pcjax.config import Config, Loss\n"
        'config = Config(losses=(Loss(arguments={"temperature": 0.1, "frame": "teacher"}),))\n'
    )
    head = "from pcjax.config import Config, Loss\n"
    (tmp_path / "bare.py").write_text(f"{head}config = Config(losses=(Loss(),))\n")
    wrong = 'Loss("cross_entropy", arguments={"label_smoothing": "x"})'
    (tmp_path / "wrong.py").write_text(f"{head}config = Config(losses=({wrong},))\n")
    named = 'losses=(Loss("hint", maps=("stage9", "stage1")),), teacher=Teacher(live=True)'
    (tmp_path / "map.py").write_text(
        f"from pcjax.config import Config, Loss, Teacher\nconfig = Config({named})\n"
    )
    (tmp_path / "widths.py").write_text(f'{head}config = Config(losses=(Loss("embed_distill"),))\n')
    given, message = REFUSED[name]
    arguments = [argument.format(tmp=tmp_path) for argument in given]
    if given[0] == "distill" and "--workdir" not in given:
        arguments += ["--workdir", str(tmp_path / "new")]
    before = everything_in(tmp_path)
    status, said, complaint = command(*arguments)
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1
    assert "Traceback" not in said + complaint
    assert everything_in(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "asked",
    [
        ["distill", "--data.source", "arrays:{locked}/x.npz"],
        ["distill", "{locked}/c.py"],
        ["distill", "--workdir", "{locked}/new"],
        ["evaluate", "{locked}/run"],
    ],
)
def test_what_may_not_be_read_is_said_in_a_line(asked, tmp_path, command, monkeypatch):
    """As the system answers of what lies in a folder that is another user's; root is never answered so."""
    locked, stat = str(tmp_path / "locked"), os.stat

    def answer(path, *given, **more):
        if str(path).startswith(locked):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *given, **more)

    monkeypatch.setattr(os, "stat", answer)
    job, *given = (word.format(locked=locked) for word in asked)
    more = [] if "--workdir" in given or job == "evaluate" else ["--workdir", tmp_path / "new"]
    status, _, complaint = command(job, *given, *more)
    assert (status, complaint.count("\n")) == (2, 1)
    assert locked in complaint
    assert "Permission denied" in complaint


def test_accuracy_is_of_the_examples_that_have_a_class(tmp_path, command):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    images = (labels[:, None, None, None] * 80 + random.integers(0, 20, (300, 6, 6, 1))).astype(
        np.uint8
    )
    labels[::3] = -1
    np.savez(tmp_path / "some.npz", images=images, labels=labels)
    asked = [
        "teach",
        *SMALL,
        "--teacher.training.steps",
        "60",
        "--data.source",
        f"arrays:{tmp_path / 'some.npz'}",
    ]
    status, said, complaint = command(*asked, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    assert "100 without a class, so k-NN and linear probe are left out" in said
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert max(line.get("validation_accuracy", 0) for line in lines) > 0.9


def test_a_run_of_another_config_is_left_alone(run, command):
    before = everything_in(run)
    status, _, complaint = command("distill", *SMALL, "--training.seed", "3", "--workdir", run)
    assert status == 2
    assert (
        "holds a run with training.seed 0, asked for now is 3: choose another --workdir"
        in complaint
    )
    status, _, complaint = command("teach", *SMALL, "--workdir", run)
    assert status == 2
    assert "holds a run of `pcjax distill`, not of teach" in complaint
    assert everything_in(run) == before


def test_help_and_version(command):
    for arguments in ([], ["--help"], ["evaluate", "--help"]):
        status, said, _ = command(*arguments)
        assert status == 0
        assert "pcjax distill [CONFIG]" in said
    status, said, _ = command("distill", "--help")
    assert status == 0
    assert "--training.batch" in said
    assert command("--version")[0] == 0


PACKAGE = """
import flax.linen as nn, jax, jax.numpy as jnp
from pcjax.models import Output, from_function, from_linen

class Net(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x, train):
        hidden = nn.BatchNorm(use_running_average=not train)(nn.Dense(12)(x.reshape(len(x), -1)))
        features = nn.Dense(6)(nn.relu(hidden))
        return Output(features, nn.Dense(self.classes)(features), {})

def linen_net(shape, classes, *, rngs, dtype, axis_name):
    net = Net(classes)
    variables = net.init(rngs.params(), jnp.ones((1, *shape)), train=False)
    return from_linen(net, variables, training={"train": True}, evaluation={"train": False})

def projection(shape, classes, *, rngs, dtype, axis_name):
    weights = jax.random.normal(rngs.params(), (64, 4)) / 8
    return from_function(lambda w, x: x.reshape(len(x), -1) @ w["map"], {"map": weights})
"""


@pytest.mark.slow
def test_a_linen_module_and_a_function_of_another_package_serve_as_teacher_and_student(
    tmp_path, monkeypatch, command
):
    installed = tmp_path / "site" / "others-1.0.dist-info"
    installed.mkdir(parents=True)
    (tmp_path / "site" / "others_models.py").write_text(PACKAGE)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    names = "linen_net = others_models:linen_net\nprojection = others_models:projection\n"
    (installed / "entry_points.txt").write_text(f"[pcjax.models]\n{names}")
    monkeypatch.syspath_prepend(tmp_path / "site")
    asked = [
        "--teacher.model.name",
        "linen_net",
        "--student.name",
        "projection",
        "--training.devices",
        "1",
    ]
    asked += [
        word
        for who in ("teacher.model", "student")
        for of in ("features", "widths")
        for word in (f"--{who}.{of}", "None")
    ]
    asked += [
        "--teacher.training.devices",
        "1",
        "--training.steps",
        "30",
        "--teacher.training.steps",
        "20",
    ]
    asked += [
        "--training.batch",
        "128",
        "--teacher.training.batch",
        "128",
        "--training.learning-rate",
        "0.02",
    ]
    status, _, complaint = command("distill", *asked, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher"]["parameters"] == 65 * 12 + 2 * 12 + 13 * 6 + 7 * 10
    assert result["student"]["parameters"] == 64 * 4
    before, after = (
        result[name]["coherence"]["spearman"]["value"] for name in ("untrained", "student")
    )
    assert after > before + 0.05
    status, _, complaint = command("evaluate", tmp_path / "run")
    assert status == 0, complaint
    reads = ["--losses.0.name", "shared_classifier", "--losses.0.head", "linear"]
    status, _, complaint = command("distill", *asked, *reads, "--workdir", tmp_path / "new")
    assert (status, complaint.count("\n")) == (2, 1)
    assert (
        "shared_classifier reads with the teacher's last layer, classify/kernel among" in complaint
    )
    status, _, complaint = command(
        "distill", "--student.name", "nobodys", "--workdir", tmp_path / "new"
    )
    assert status == 2
    assert "unknown model 'nobodys'" in complaint
    assert "'projection'" in complaint


def test_what_an_extra_brings_is_asked_for_before_anything_is_trained(
    tmp_path, monkeypatch, command
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    asked = ["distill", "--training.tensorboard", "True", "--workdir", tmp_path / "new"]
    status, _, complaint = command(*asked)
    assert (status, complaint.count("\n")) == (2, 1)
    assert (
        'got training.tensorboard, which needs tensorboardX: `pip install "pcjax[tensorboard]"`'
        in complaint
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_that_comes_where_python_ignores_exceptions(
    number, monkeypatch, command
):
    def told(phase, _):
        if phase == "start":
            gc.callbacks.remove(told)
            signal.raise_signal(number)

    def works(*_):
        gc.callbacks.append(told)
        gc.collect()
        time.sleep(20)

    monkeypatch.setattr(cli, "_run", works)
    status, _, complaint = command("evaluate", "runs/one")
    assert status == 128 + number
    assert (
        complaint
        == f"pcjax: stopped by {number.name}; what was saved stays; to go on: pcjax evaluate runs/one\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_end_does_not_change_the_status(number):
    # The interpreter waits for this thread before it takes itself down.
    late = f"threading.Timer(0.5, os.kill, (os.getpid(), {int(number)})).start()"
    code = f"import os, sys, threading; from pcjax import cli; {late}; sys.argv[1:] = ['--version']; cli.command()"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_command_is_installed():
    script = pathlib.Path(sys.executable).with_name("pcjax")
    assert script.exists()
