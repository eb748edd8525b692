"""A checkpoint is restored as it was saved, or not at all."""

import gc
import json
import os
import random
import shutil

import chex
import numpy as np
import pytest

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.run import Clock
from pcjax.training import checkpoint
from pcjax.training.checkpoint import Checkpoints, UnsavedError, load_trained, named_leaves
from pcjax.training.embedding import FrozenModel

IDENTITY = {"role": "student", "seed": 0, "model": {"name": "mlp", "widths": [4, 2]}}


def state(step=1):
    student = {
        "embed/kernel": np.arange(6, dtype=np.float32).reshape(2, 3) + step,
        "embed/bias": np.float32(step),
    }
    return {
        "step": np.int32(step),
        "student": student,
        "optimiser": (np.zeros(1, np.uint32), [np.ones(2)]),
    }


@pytest.fixture
def lines():
    return []


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def opened(folder, lines):
    made = []

    def open_(identity=IDENTITY, **given):
        while made:  # as a process ends before the next one begins
            made.pop().close()
        made.append(Checkpoints(folder, identity, say=lines.append, **given))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.try_save(step, state(step), {"step": step})
    checkpoints.wait()


def assert_same(one, other):
    chex.assert_trees_all_equal(one, other, strict=True)


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def files_of(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def test_leaves_have_names_of_their_own():
    assert list(named_leaves(state())) == [
        "optimiser/0",
        "optimiser/1/0",
        "step",
        "student/embed.bias",
        "student/embed.kernel",
    ]


def test_a_checkpoint_is_restored_bit_for_bit(opened):
    checkpoints = opened()
    checkpoints.try_save(3, state(3), {"step": 3, "pipeline": {"seed": 0}})
    restored, position, step = opened().restore(state(0))
    assert (step, position) == (3, {"step": 3, "pipeline": {"seed": 0}})
    assert_same(restored, state(3))


def test_nothing_to_restore(opened):
    assert opened().restore(state()) is None


def test_the_seconds_before_a_checkpoint_count_once(opened):
    clock = Clock()
    clock.resume(1000.0)
    save(opened(clock=clock), 1)
    again = Clock()
    for _ in range(2):
        opened(clock=again).restore(state())
    assert 1000 <= again() < 1500
    again.resume(700.0)  # of an earlier checkpoint
    assert 1000 <= again() < 1500


def test_the_latest_and_the_best_are_kept(opened, folder):
    checkpoints = opened(keep=2)
    for step, score in enumerate([0.1, 0.9, 0.3, float("nan"), float("inf"), None, 0.2], 1):
        if score is not None:
            checkpoints.set_score(step, score)
        save(checkpoints, step)
    assert steps_in(folder) == [2, 6, 7]
    again = opened(keep=2)
    assert again.best_of(again.steps()) == 2
    assert again.is_scored(7)
    assert not again.is_scored(6)


def flip_bits(path, random_):
    content = bytearray(path.read_bytes())
    place = random_.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("rounds", [1, pytest.param(13, marks=pytest.mark.nightly)])
def test_flipped_bits_are_noticed_and_the_checkpoint_before_is_restored(
    rounds, tmp_path, folder, opened, lines
):
    """One bit of each file: the state is what was saved, of this checkpoint or the one before."""
    save(opened(), 1, 2)
    opened().close()
    random_, sound = random.Random(0), tmp_path / "sound"  # noqa: S311
    shutil.copytree(folder, sound)
    steps = []
    for path in rounds * [path for path in files_of(folder, 2) if path.stat().st_size]:
        shutil.rmtree(folder)
        shutil.copytree(sound, folder)
        flip_bits(path, random_)
        lines.clear()
        checkpoints = Checkpoints(folder, IDENTITY, say=lines.append)
        restored, position, step = checkpoints.restore(state(0))
        checkpoints.close()
        assert position == {"step": step}
        assert_same(restored, state(step))
        assert bool(lines) == (step == 1)
        assert (folder / "corrupt-2").exists() == (step == 1)
        steps.append(step)
    # Some files hold bits that nothing depends on, but each bit of state/manifest.ocdbt counts.
    assert 1 in steps


@pytest.mark.parametrize("item", ["state", "data", "manifest"])
def test_a_missing_item_is_noticed(opened, folder, lines, item):
    save(opened(), 1, 2)
    opened().close()
    for path in files_of(folder, 2):
        if path.relative_to(folder / "2").parts[0] == item:
            path.unlink()
    assert opened().restore(state(0))[2] == 1
    assert lines[0].startswith("checkpoint 2 is corrupt (")
    assert lines[0].endswith("renamed corrupt-2; resuming from 1")


def test_arrays_of_another_checkpoint_are_noticed(opened, folder, lines):
    save(opened(), 1, 2)
    opened().close()
    shutil.rmtree(folder / "2" / "state")
    shutil.copytree(folder / "1" / "state", folder / "2" / "state")
    assert opened().restore(state(0))[2] == 1
    assert "differs from its saved digest" in lines[0]


def test_another_position_in_the_data_is_noticed(opened, folder, lines):
    save(opened(), 1, 2)
    opened().close()
    path = folder / "2" / "data" / "metadata"
    assert json.loads(path.read_text()) == {"step": 2}
    path.write_text(json.dumps({"step": 3}))
    assert opened().restore(state(0))[1:] == ({"step": 1}, 1)
    assert "the position in the data differs from its saved digest" in lines[0]


def test_the_last_corrupt_checkpoint_leaves_nothing(opened, folder, lines):
    save(opened(), 1)
    opened().close()
    (folder / "1" / "manifest" / "metadata").write_text("{}")
    assert opened().restore(state(0)) is None
    assert lines[0].endswith("renamed corrupt-1; there is none before it")


def test_a_folder_without_its_mark_is_no_checkpoint(opened, folder):
    save(opened(), 1, 2)
    opened().close()
    (folder / "2" / "commit_success.txt").unlink()
    (folder / "3").mkdir()
    assert opened().restore(state(0))[2] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "was made with seed 0, but this run has 1"),
        ({"role": "teacher"}, "was made with role 'student', but this run has 'teacher'"),
        ({"model": {"name": "mlp", "widths": [4, 3]}}, "'widths': [4, 3]"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_and_stays(opened, folder, change, message):
    save(opened(), 1)
    with pytest.raises(RequestError, match="choose another --workdir") as caught:
        opened(IDENTITY | change).restore(state())
    assert message in str(caught.value)
    assert steps_in(folder) == [1]


def test_other_shapes_dtypes_and_leaves_are_refused_by_name(opened):
    save(opened(), 1)
    changes = [
        (lambda s: s["student"].update({"embed/kernel": np.zeros((3, 2), np.float32)}), "kernel"),
        (lambda s: s["student"].update({"embed/bias": np.float64(0)}), "student/embed.bias"),
        (lambda s: s.pop("step"), "for step"),
        (lambda s: s.update(more=np.zeros(1)), "nothing for more"),
    ]
    for change, message in changes:
        other = state()
        change(other)
        with pytest.raises(RequestError, match=message):
            opened().restore(other)


def test_other_versions_are_refused_unless_they_are_allowed(opened, lines, monkeypatch):
    save(opened(), 1)
    own = checkpoint.versions()
    monkeypatch.setattr(checkpoint, "versions", lambda: own | {"jax": "99.0"})
    with pytest.raises(RequestError, match=r"but this run has jax 99\.0: install what made it"):
        opened().restore(state())
    assert lines == []
    assert opened().restore(state(), other_versions=True)[2] == 1
    assert opened().restore(state(), last=1)[2] == 1  # a finished training is taken from any
    assert len(lines) == 2
    assert all("the last digits of what follows may differ" in line for line in lines)


def test_a_failed_save_is_reported_and_the_next_one_works(opened, folder, monkeypatch):
    checkpoints = opened()
    save(checkpoints, 1)
    with monkeypatch.context() as patched:

        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        patched.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(UnsavedError, match=r"could not be saved .*No space left on device"):
            checkpoints.try_save(2, state(2), {})
    save(checkpoints, 3)
    assert opened().restore(state(0))[2] == 3
    assert steps_in(folder) == [1, 3]


def test_saving_a_step_again_changes_nothing(opened, folder):
    save(opened(), 1)
    before = {path: path.read_bytes() for path in files_of(folder, 1)}
    checkpoints = opened()
    checkpoints.try_save(1, state(5), {})
    checkpoints.wait()
    assert {path: path.read_bytes() for path in files_of(folder, 1)} == before


@pytest.mark.gate
def test_saves_leave_nothing_in_memory(opened):
    checkpoints = opened()
    save(checkpoints, 1, 2)
    growths = []
    for first in (3, 6, 9):  # a first use of something may leave objects, once
        gc.collect()
        before = len(gc.get_objects())
        save(checkpoints, *range(first, first + 3))
        gc.collect()
        growths.append(len(gc.get_objects()) - before)
    assert min(growths) < 3 * 20, growths


def test_corrupt_scores_are_an_error(opened, folder):
    checkpoints = opened()
    checkpoints.set_score(1, 0.5)
    save(checkpoints, 1)
    path = folder / "scores.json"
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(RequestError, match="delete it; the latest checkpoint"):
        opened()


MODEL = FrozenModel(
    None,
    {"embed/kernel": np.zeros((2, 3), np.float32), "embed/bias": np.float32(0)},
    {},
)


def test_a_trained_model_is_read_without_changing_anything(opened, folder):
    checkpoints = opened()
    for step, score in ((1, 0.9), (2, 0.1)):
        checkpoints.set_score(step, score)
        save(checkpoints, step)
    opened().close()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for choose, step in (("best", 1), ("last", 2)):
        model = load_trained(folder, {"role": "student"}, MODEL, choose)
        assert float(model.parameters["embed/bias"]) == step
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    array = max(files_of(folder, 1), key=lambda p: p.stat().st_size * (p.parent.name == "d"))
    os.truncate(array, array.stat().st_size // 2)
    with pytest.raises(RequestError, match=r"is corrupt .*: repeat the command"):
        load_trained(folder, {"role": "student"}, MODEL, "best")
    with pytest.raises(RequestError, match="There are no checkpoints"):
        load_trained(folder / "none", {}, MODEL, "best")


def test_a_model_of_another_architecture_is_refused(opened, folder):
    save(opened(), 1)
    opened().close()
    other = MODEL._replace(parameters={"embed/kernel": np.zeros((3, 2), np.float32)})
    with pytest.raises(RequestError, match=r"config\.json was changed"):
        load_trained(folder, {}, other, "last")


def test_signed_files_notice_every_change(tmp_path):
    path = tmp_path / "result.json"
    _io.write_signed(path, {"score": 0.5, "names": ["a", "b"]})
    assert _io.read_signed(path, "remedy") == {"score": 0.5, "names": ["a", "b"]}
    text = path.read_text()
    letters = [i for i, letter in enumerate(text) if not letter.isspace()]
    for i in letters:
        path.write_text(text[:i] + chr(ord(text[i]) ^ 1) + text[i + 1 :])
        with pytest.raises(RequestError, match="remedy"):
            _io.read_signed(path, "remedy")
