"""A checkpoint comes back as it was saved, or not at all."""

import errno
import gc
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

from pcjax._checks import RequestError
from pcjax.training import checkpoint, disk
from pcjax.training.arrays import named
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.clock import Clock

MANIFEST = {"role": "student", "seed": 0, "model": {"name": "mlp", "widths": [4, 2]}}


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
def said():
    return []


@pytest.fixture
def opened(tmp_path, said):
    made = []

    def open_(manifest=MANIFEST, **given):
        while made:  # as a process ends before the next one begins
            made.pop().close()
        made.append(Checkpoints(tmp_path / "checkpoints", manifest, say=said.append, **given))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


def test_the_time_before_a_checkpoint_counts_once(opened):
    clock = Clock()
    clock.go_on(1000.0)
    opened(clock=clock).save(1, state(1), {})
    again = Clock()
    for _ in range(2):
        opened(clock=again).restore(state())
    assert 1000 <= again() < 1500
    again.go_on(700.0)  # of the teacher's training, which came before
    assert 1000 <= again() < 1500


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def steps_in(tmp_path):
    return sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def test_leaves_have_names_of_their_own():
    assert list(named(state())) == [
        "optimiser/0",
        "optimiser/1/0",
        "step",
        "student/embed.bias",
        "student/embed.kernel",
    ]


def test_comes_back_bit_for_bit(opened):
    opened().save(3, state(3), {"step": 3, "pipeline": {"seed": 0}}, score=0.5)
    found, place, step = opened().restore(state(0))
    assert (step, place) == (3, {"step": 3, "pipeline": {"seed": 0}})
    assert_same(found, state(3))


def test_nothing_to_restore(opened):
    assert opened().restore(state()) is None


def test_latest_and_best_are_kept(opened, tmp_path):
    checkpoints = opened(keep=2)
    for step, score in enumerate([0.1, 0.9, 0.3, float("nan"), float("inf"), None, 0.2], start=1):
        checkpoints.save(step, state(step), {}, score)
    checkpoints.wait()
    assert (checkpoints.latest, checkpoints.best) == (7, 2)
    assert steps_in(tmp_path) == [2, 6, 7]
    assert opened(keep=2).best == 2


def files_of(tmp_path, step):
    return sorted(
        path for path in (tmp_path / "checkpoints" / str(step)).rglob("*") if path.is_file()
    )


def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(opened, tmp_path, said):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.close()
    largest = max(
        files_of(tmp_path, 2), key=lambda path: path.stat().st_size * (path.parent.name == "d")
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    found, place, step = opened().restore(state(0))
    assert (step, place) == (1, {"step": 1})
    assert_same(found, state(1))
    assert "checkpoint 2 is unsound" in said[0]
    assert (tmp_path / "unsound" / "2").is_dir()
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("item", ["state", "data", "manifest"])
def test_a_missing_item_is_noticed(opened, tmp_path, said, item):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.close()
    for path in files_of(tmp_path, 2):
        if path.relative_to(tmp_path / "checkpoints" / "2").parts[0] == item:
            path.unlink()
    assert opened().restore(state(0))[2] == 1
    assert "checkpoint 2 is unsound" in said[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "was made with seed 0, this run has 1"),
        ({"role": "teacher"}, "was made with role 'student', this run has 'teacher'"),
        (
            {"model": {"name": "mlp", "widths": [4, 3]}},
            "this run has {'name': 'mlp', 'widths': [4, 3]}",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_and_stays(opened, tmp_path, change, message):
    opened().save(1, state(), {})
    with pytest.raises(RequestError, match="choose another --workdir") as caught:
        opened(MANIFEST | change).restore(state())
    assert message in str(caught.value)
    assert steps_in(tmp_path) == [1]


def test_other_shapes_dtypes_and_leaves_are_refused_by_name(opened):
    opened().save(1, state(), {})
    for change, message in [
        (
            lambda s: s["student"].update({"embed/kernel": np.zeros((3, 2), np.float32)}),
            "student/embed.kernel",
        ),
        (lambda s: s.update(step=np.int64(0)), "for step"),
        (lambda s: s.update(more=np.zeros(1)), "has nothing for more"),
        (lambda s: s["student"].pop("embed/bias"), "expected nothing"),
    ]:
        changed = state()
        change(changed)
        with pytest.raises(RequestError, match=message):
            opened().restore(changed)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ValueError("UNKNOWN: Error reading local file: Too many open files [system errno 24]"),
        MemoryError(),
    ],
)
def test_what_cannot_be_read_for_now_stays_where_it_is(opened, said, monkeypatch, error):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, state(step), {"at": step})
        checkpoints.wait()

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "_arrays", fail)
        with pytest.raises(OSError, match=r"checkpoint 2 in .* cannot be read now"):
            checkpoints.restore(state())
    assert said == []
    assert opened().restore(state())[2] == 2


def test_other_versions_are_refused_or_said(opened, said):
    checkpoints = opened(about={"versions": {"jax": "0.10.2", "numpy": "2.4"}})
    holding(checkpoints, 1)
    newer = {"about": {"versions": {"jax": "0.12.0", "numpy": "2.4"}}}
    differs = r"checkpoint 1 in .* was made with jax 0\.10\.2, this run has jax 0\.12\.0: "
    with pytest.raises(
        RequestError, match=differs + "install what made it, or go on with --other-versions True"
    ):
        opened(**newer).restore(state())
    assert (checkpoints.folder / "1").exists()
    assert said == []
    with pytest.raises(RequestError, match=r"made with more None, this run has more 1: "):
        opened(about={"versions": {"jax": "0.10.2", "more": "1"}}).restore(state())
    # Where it is asked for, and where the training has ended there.
    assert opened(**newer, other_versions=True).restore(state())[2] == 1
    assert opened(**newer).restore(state(), last=1)[2] == 1
    assert len(said) == 2
    assert all(
        re.fullmatch(differs + "what follows may differ in last digits", one) for one in said
    )


@pytest.mark.parametrize("versions", [None, [], "0.10.2", 3, {}])
def test_versions_of_another_form_are_other_versions(versions, opened, said):
    opened(about={"versions": versions}).save(1, state(), {"at": 1})
    with pytest.raises(RequestError, match=r"was made with jax None, this run has jax 0\.10\.2: "):
        opened(about={"versions": {"jax": "0.10.2"}}).restore(state())
    assert said == []


def test_no_library_warns_of_what_is_damaged(opened, said, monkeypatch):
    """Orbax compares the arrays that it is to fill with others where a name is not found."""
    checkpoints = opened()
    holding(checkpoints, 1)
    path = checkpoints.folder / "1" / "state" / "_METADATA"
    path.write_bytes(path.read_bytes().replace(b"embed.kernel", b"embed.kernem"))
    signalling = np.array([0x7FA00000], np.uint32).view(np.float32)
    monkeypatch.setattr(
        np, "empty", lambda shape, *_, **__: np.resize(signalling, shape)
    )  # it may hold anything
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert opened().restore(state()) is None
    assert warned == []
    assert "checkpoint 1 is unsound" in said[0]


def test_the_last_one_that_is_unsound_is_said_to_be_the_last(opened, said):
    checkpoints = opened()
    checkpoints.save(1, state(), {"at": 1})
    checkpoints.wait()
    for path in (checkpoints.folder / "1" / "data").iterdir():
        path.write_text("{")
    assert opened().restore(state()) is None
    assert said[-1].endswith("; there is none before it")


@pytest.mark.parametrize("name", ["[x]", "a\\b"])
def test_what_libraries_wrote_elsewhere_is_not_called_saved(name, tmp_path, said):
    """TensorStore and Orbax read names as patterns, and say nothing where arrays are not where they should be."""
    checkpoints = Checkpoints(tmp_path / name / "checkpoints", MANIFEST, say=said.append)
    checkpoints.save(1, state(), {"at": 1})
    assert "checkpoint" in str(checkpoints.wait())
    assert checkpoints.latest is None
    assert said[-1].endswith(
        "none is saved yet; what was learnt stays in memory, and the next save is tried"
    )
    checkpoints.close()


def test_one_that_was_saved_unjudged_is_saved_again_with_its_score(opened):
    checkpoints = opened()
    checkpoints.save(1, state(1), {}, 0.5)
    checkpoints.save(2, state(2), {}, judged=False)
    checkpoints.wait()
    for _ in range(2):
        checkpoints = opened()
        assert [checkpoints.is_unjudged(step) for step in (1, 2)] == [False, True]
        assert checkpoints.best == 1
        checkpoints.save(2, state(2), {}, judged=False)
    checkpoints.save(2, state(2), {}, 0.75)
    assert checkpoints.wait() is None
    checkpoints = opened()
    assert not checkpoints.is_unjudged(2)
    assert (checkpoints.best, checkpoints.latest) == (2, 2)
    assert_same(checkpoints.restore(state())[0], state(2))


def test_a_score_that_finds_no_room_leaves_the_checkpoint_as_it_was(opened, monkeypatch):
    checkpoints = opened()
    checkpoints.save(2, state(2), {}, judged=False)
    checkpoints.wait()
    with monkeypatch.context() as full:
        full.setattr(
            "pathlib.Path.write_text",
            lambda *_, **__: raises(OSError(errno.ENOSPC, "No space left")),
        )
        checkpoints.save(2, state(2), {}, 0.75)
        assert "No space left" in str(checkpoints.settled())
    assert_same(opened().restore(state())[0], state(2))
    checkpoints = opened()
    assert checkpoints.is_unjudged(2)
    checkpoints.save(2, state(2), {}, 0.75)
    assert checkpoints.settled() is None
    assert not opened().is_unjudged(2)


def holding(checkpoints, *steps):
    """With these steps saved."""
    for step in steps:
        checkpoints.save(step, state(step), {"at": step})
    checkpoints.wait()
    return checkpoints


def raises(error):
    raise error


def test_why_a_save_failed_is_not_covered_by_what_follows_from_it(opened, tmp_path, monkeypatch):
    checkpoints = opened()
    checkpoints.save(1, state(1), {})
    checkpoints.wait()
    with monkeypatch.context() as full:
        broken = OSError(errno.ENOSPC, "No space left")
        full.setattr(checkpoints._manager, "save", lambda *_, **__: raises(broken))
        checkpoints.save(2, state(2), {})
    for _ in range(2):
        assert "checkpoint 2 could not be saved (OSError: [Errno 28] No space left)" in str(
            checkpoints.settled()
        )
    checkpoints.save(3, state(3), {})
    with monkeypatch.context() as full:
        waits = checkpoints._manager.wait_until_finished

        def fails():
            waits()
            raise broken

        full.setattr(checkpoints._manager, "wait_until_finished", fails)
        assert "No space left" in str(checkpoints.settled())
    assert "No space left" in str(checkpoints.settled())
    assert not (tmp_path / "unsound").exists()
    assert opened().restore(state())[2] == 3


def test_a_save_that_lost_its_arrays_is_not_called_one(tmp_path, said):
    pattern = tmp_path / "a[1]" / "checkpoints"  # as Orbax reads it
    checkpoints = Checkpoints(pattern, MANIFEST, say=said.append)
    checkpoints.save(1, state(1), {})
    assert "not all of its arrays are there" in str(checkpoints.settled())
    assert "checkpoint 1 is unsound (RequestError: not all of its arrays are there)" in said[0]
    assert checkpoints.latest is None


def test_what_could_not_be_looked_at_for_now_is_looked_at_again(opened, tmp_path, monkeypatch):
    checkpoints = opened()
    with monkeypatch.context() as short:
        no_file = OSError(errno.EMFILE, "Too many open files")
        short.setattr(checkpoint, "names_in", lambda _: raises(no_file))
        checkpoints.save(1, state(1), {})
        for _ in range(2):
            assert "Too many open files" in str(checkpoints.settled())
    checkpoints.save(1, state(1), {})
    assert checkpoints.settled() is None
    assert not (tmp_path / "unsound").exists()
    assert opened().restore(state())[2] == 1


def test_saving_leaves_nothing_in_memory(opened):
    checkpoints, there = opened(), []
    for step in range(1, 49):
        checkpoints.save(step, state(step), {"at": step})
        assert checkpoints.settled() is None
        if step >= 40:  # Orbax remembers 32 paths
            gc.collect()
            there.append(len(gc.get_objects()))
    assert there[-1] - there[0] < 8  # one object in a save would be as many


def test_a_folder_is_held_until_the_command_ends(tmp_path):
    again = (
        "import sys, pathlib; from pcjax.training.disk import hold; hold(pathlib.Path(sys.argv[1]))"
    )
    disk.hold(tmp_path)
    disk.hold(tmp_path)  # its own
    for released in (False, True):
        other = subprocess.run(
            [sys.executable, "-c", again, tmp_path], capture_output=True, text=True, check=False
        )
        refused = f"another command is at work in {tmp_path}: wait for its end, or choose another --workdir"
        assert (refused in other.stderr) == (not released)
        assert (other.returncode == 0) == released
        disk.let_go()


def test_one_folder_is_let_go_and_the_others_stay_held(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        disk.hold(tmp_path / name)
    disk.let_go(tmp_path / "a")
    disk.let_go(tmp_path / "c")  # never held
    assert [*disk._held] == [str(tmp_path / "b")]
    disk.let_go()
    assert not disk._held


@pytest.mark.parametrize("name", ["007", "\u0661\u0662", "00"])  # the second is 12 in other digits
def test_what_is_named_nearly_like_a_step_harms_none(name, opened, tmp_path, said):
    holding(opened(), 7, 12)
    (tmp_path / "checkpoints" / name).symlink_to(tmp_path)
    (tmp_path / "checkpoints" / f"{name}0").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "13")
    again = opened()
    assert_same(again.restore(state())[0], state(12))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "7"]
    assert sorted(line.partition(")")[0] for line in said) == sorted(
        [
            f"checkpoint {name} is unsound (it is a symbolic link",
            f"checkpoint {name}0 is unsound (steps have no such name",
            "checkpoint 13 is unsound (it is no folder",
        ]
    )
    again.save(13, state(13), {"at": 13})
    assert again.settled() is None
    assert_same(opened().restore(state())[0], state(13))
    assert len(said) == 3


@pytest.mark.parametrize("place", ["manifest/metadata", "state/d/pipe", "commit_success.txt"])
@pytest.mark.parametrize("writable", [True, False])
def test_a_pipe_is_not_waited_for(place, writable, opened, said):
    checkpoints = holding(opened(), 1, 2)
    path = checkpoints.folder / "2" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    name = path.name
    if writable:
        assert opened().restore(state())[2] == 1
        assert f"checkpoint 2 is unsound ({name} is no file)" in said[0]
    else:
        with pytest.raises(
            RequestError, match=rf"checkpoint 2 .* is unsound \({name} is no file\)"
        ):
            opened(writable=False)


def test_a_checkpoint_that_is_removed_before_one_looks_into_it(opened, monkeypatch):
    checkpoints = holding(opened(), 1, 2)
    finds = Checkpoints._finished

    def late(self):
        found = finds(self)
        shutil.rmtree(found[0], ignore_errors=True)
        return found

    monkeypatch.setattr(Checkpoints, "_finished", late)
    looker = Checkpoints(checkpoints.folder, MANIFEST, writable=False)
    assert looker.chosen_arrays("last")[0] == 2
    looker.close()


def test_a_checkpoint_that_is_removed_while_one_looks_is_no_damage(opened, monkeypatch):
    checkpoints = opened()
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"at": step}, score=1 / step)
    checkpoints.wait()
    reads, removed, gone = Checkpoints._manifest_of, 2, []

    def late(self, step):
        if step == removed and not gone:
            gone.append(shutil.rmtree(self.folder / str(step)))
        return reads(self, step)

    monkeypatch.setattr(Checkpoints, "_manifest_of", late)
    looker = Checkpoints(checkpoints.folder, MANIFEST, writable=False)
    assert gone
    assert looker.chosen_arrays("last")[0] == 3
    # The one that is chosen goes between the choice and the reading of it.
    gone.clear()
    removed = 1
    assert looker.chosen_arrays("best")[0] == 3
    assert gone
    looker.close()


def test_links_in_the_place_of_checkpoints_are_put_aside(opened, tmp_path, said):
    opened().close()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints" / "99").symlink_to(tmp_path / "elsewhere")
    assert opened().restore(state()) is None
    assert opened().restore(state()) is None
    aside = tmp_path / "unsound" / "99"
    assert said == [
        f"checkpoint 99 is unsound (it is a symbolic link); it was moved to {aside}; there is none before it"
    ]
    assert aside.is_symlink()
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize(
    "name",
    [
        "data/metadata",
        "manifest/metadata",
        "state/_METADATA",
        "state/manifest.ocdbt",
        "_CHECKPOINT_METADATA",
    ],
)
def test_what_has_grown_beyond_measure_is_not_read(name, opened, said, monkeypatch):
    checkpoints = holding(opened(), 1, 2)
    path = checkpoints.folder / "2" / name
    os.truncate(path, 3 * 2**30)  # of which the disk holds nothing
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert opened().restore(state())[2] == 1
    assert f"{path.name} is larger than any that is read whole" in said[0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes
