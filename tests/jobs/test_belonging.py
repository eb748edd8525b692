"""What a command puts together belongs together: a run, its teacher, and the data of both; else it is refused."""

import json
import shutil

import numpy as np
import pytest
from children import everything_in
from test_commands import SMALL

from pcjax import cli, data
from pcjax._checks import RequestError
from pcjax.config import Model
from pcjax.jobs import prepare
from pcjax.jobs.distill import load_teacher
from pcjax.run import config_of
from pcjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


def write(folder, part, images, labels):
    np.savez(folder / f"{part}.npz", images=images, labels=labels)


class Place:
    """A data set, a teacher of it, and what was made with both."""

    def __init__(self, folder):
        self.folder, self.images, self.teacher = folder, folder / "images", folder / "teacher"
        self.data = ("--data.source", f"arrays:{self.images}")
        self.taught = (*self.data, "--teacher.run", self.teacher)
        self.compare = (
            "compare",
            *SMALL,
            *self.taught,
            "--losses",
            "pkt",
            "--workdir",
            folder / "comparison",
        )
        self.tune = (
            "tune",
            *SMALL,
            *self.taught,
            "--losses",
            "pkt",
            "--trials",
            "1",
            "--workdir",
            folder / "tuning",
        )

    def another_test_set(self):
        with np.load(self.images / "test.npz") as test:
            write(self.images, "test", test["images"][::-1], test["labels"][::-1])


def give(*arguments):
    cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("made") / "all")
    place.images.mkdir(parents=True)
    digits = data.load("digits")
    for part in ("train", "validation", "test"):
        examples = getattr(digits, part)
        write(place.images, part, examples.take(np.arange(len(examples))), examples.labels)
    give("teach", *SMALL, *place.data, "--workdir", place.teacher)
    give("embed", place.teacher)
    give("distill", *SMALL, *place.taught, "--workdir", place.folder / "run")
    give(*place.compare, "--seeds", 1)
    give(*place.tune)
    return place


@pytest.fixture
def place(made):
    """The same, as it was again after every test; configs hold where they lie."""
    kept = made.folder.with_name("kept")
    if not kept.exists():
        shutil.copytree(made.folder, kept)
    yield made
    shutil.rmtree(made.folder)
    shutil.copytree(kept, made.folder)


def refused(command, arguments, *words):
    status, said, complaint = command(*arguments)
    assert (status, complaint.count("\n")) == (2, 1), (status, said, complaint)
    assert all(word in complaint for word in words), complaint


def test_with_nothing_changed_all_go_on(place, command):
    """So that the refusals below are of what was changed."""
    for asked in (("evaluate", place.folder / "run"), (*place.compare, "--seeds", 1), place.tune):
        assert command(*asked)[0] == 0


@pytest.mark.parametrize(("field", "value"), [("features", 20), ("widths", [24, 24])])
def test_a_teacher_whose_config_was_changed_since(field, value, place, command):
    stored = place.teacher / "config.json"
    changed = json.loads(stored.read_text())
    changed["config"]["teacher"]["model"][field] = value
    stored.write_text(json.dumps(changed))
    new = place.folder / "new"
    refused(command, ("distill", *SMALL, *place.taught, "--workdir", new), "was made with config")
    assert not (new / "checkpoints").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Model("mlp", features=20, widths=(24,)),
            r"has .*\(12, 10\)\) for student/classify\.kernel, expected .*\(20, 10\)",
        ),
        (
            Model("mlp", features=12, widths=(24, 24)),
            r"has nothing for statistics/norms\.1\.mean, expected",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_their_leaf(model, message, place):
    config = config_of(place.teacher)[1]
    loaded = prepare.load(config)
    like = prepare.new_model(model, loaded, config.teacher.training, prepare.TEACHER_SEED)
    checkpoints = Checkpoints(place.teacher / "checkpoints", {}, writable=False)
    with pytest.raises(RequestError, match=message):
        prepare.weights(checkpoints, config.teacher.training, like)
    checkpoints.close()
    assert load_teacher(place.teacher, config, loaded).parameters["embed/kernel"].shape == (24, 12)


@pytest.fixture
def another_teacher(place, command):
    shutil.rmtree(place.teacher)
    seed = ("--teacher.training.seed", 7)
    assert command("teach", *SMALL, *place.data, *seed, "--workdir", place.teacher)[0] == 0
    return place


@pytest.mark.parametrize("job", ["evaluate", "report", "distill"])
def test_a_run_beside_another_teacher(job, another_teacher, command):
    run = another_teacher.folder / "run"
    asked = (
        ("distill", *SMALL, *another_teacher.taught, "--workdir", run)
        if job == "distill"
        else (job, run)
    )
    before = everything_in(run)
    refused(command, asked, "was made with teacher")
    assert everything_in(run) == before


@pytest.mark.parametrize("job", ["compare", "tune"])
@pytest.mark.parametrize("other", ["teacher", "data"])
def test_runs_that_have_ended_beside_another_teacher_or_data(job, other, place, command, request):
    if other == "teacher":
        request.getfixturevalue("another_teacher")
    else:
        place.another_test_set()
        shutil.rmtree(place.teacher)
        assert command("teach", *SMALL, *place.data, "--workdir", place.teacher)[0] == 0
    before = everything_in(place.folder / {"compare": "comparison", "tune": "tuning"}[job])
    asked = (
        (*place.compare, "--seeds", 2) if job == "compare" else (*place.tune, "--losses", "pkt,cka")
    )
    refused(command, asked, f"came of {other}", "choose another --workdir")
    after = everything_in(place.folder / {"compare": "comparison", "tune": "tuning"}[job])
    assert after == before


def test_features_of_other_test_images(place, command):
    place.another_test_set()
    features = ("--teacher.features", place.teacher / "features.npz")
    refused(
        command,
        ("distill", *SMALL, *place.data, *features, "--workdir", place.folder / "new"),
        "is of other data",
    )


@pytest.mark.parametrize("asked", ["evaluate", "distill"])
def test_a_run_beside_other_test_images(asked, place, command):
    place.another_test_set()
    run = place.folder / "run"
    asked = (
        ("distill", *SMALL, *place.taught, "--workdir", run)
        if asked == "distill"
        else ("evaluate", run)
    )
    refused(command, asked, "was made with data")
