"""A save that is killed or fails: the run resumes from what was saved and ends bit-identical."""

import contextlib
import random
import subprocess

import pytest
from children import ONLY_TRAIN, at_step, finish, outcome_of, start, steps_saved, wait_until
from small import SMALL

pytestmark = pytest.mark.gate

# The name at which calls of the file system are counted from, the call that is killed, and the
# number of files below the name that are waited for: arrays are written without such calls.
PHASES = {
    "before anything is written": ("{step}", 0, 0),
    "while arrays are written": ("{step}/state", 0, 4),
    "after the arrays, before their metadata": ("{step}/state/_METADATA", 0, 0),
    "before the mark": ("{step}/commit_success.txt", 0, 0),
    "after the mark": ("{step}/commit_success.txt", 2, 0),
    "while an older one is removed": ("{step}/commit_success.txt", 14, 0),
}
ALL = [*(("{step}", call, 0) for call in range(42)), *(("{step}", 4, n) for n in range(2, 8))]
NIGHTLY = 50


@pytest.fixture(scope="module")
def whole(unstopped):
    return outcome_of(unstopped)


def start_with_fault(run, first, at, inside="checkpoints", **fault):
    fault = {"inside": run / inside, "first": first, "at": at, **fault}
    return start("distill", *SMALL, "--workdir", run, before=ONLY_TRAIN, fault=fault)


def resumes_to_the_end(run, whole):
    status, _, complaint = finish(start("distill", *SMALL, "--workdir", run, before=ONLY_TRAIN))
    assert (status, complaint) == (0, "")
    assert outcome_of(run) == whole


def kill_in_saves(moments, whole, tmp_path, tried):
    """Kill one training in one save after another, and resume it every time."""
    number, step = 0, 12
    for name, call, files in moments:
        run = tmp_path / f"run{number}"
        name = name.format(step=step)
        status, output, complaint = finish(start_with_fault(run, name, call, files=files))
        assert status == -9, (name, call, files, complaint)
        assert "is corrupt" not in output
        assert steps_saved(run)[-1] in (step - 3, step), (name, call, files)
        tried("kill -9 in a phase of a save", "resumed from the last checkpoint")
        step += 6  # the save that was killed is done again, and the next but one is killed
        if step >= 57:
            resumes_to_the_end(run, whole)
            tried("kill -9 in phases of a save, to the end", "bit-identical")
            number, step = number + 1, 12
    if step > 12:
        resumes_to_the_end(run, whole)
        tried("kill -9 in phases of a save, to the end", "bit-identical")


def test_killed_in_each_phase_of_a_save(whole, tmp_path, tried):
    kill_in_saves([*PHASES.values()], whole, tmp_path, tried)


@pytest.mark.nightly
def test_killed_before_any_call_of_a_save(whole, tmp_path, tried):
    moments = random.Random(0).sample(ALL * 2, NIGHTLY)  # noqa: S311
    kill_in_saves(moments, whole, tmp_path, tried)


def test_one_flipped_bit_and_a_kill_while_the_checkpoint_is_renamed(whole, tmp_path, tried):
    run = tmp_path / "run"
    assert finish(start_with_fault(run, "12/commit_success.txt", 2))[0] == -9
    arrays = (run / "checkpoints" / "12" / "state").rglob("d/*")
    largest = max(arrays, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert finish(start_with_fault(run, "corrupt-12", 0))[0] == -9
    assert steps_saved(run)[-1] == 12
    status, output, complaint = finish(
        start("distill", *SMALL, "--workdir", run, before=ONLY_TRAIN)
    )
    assert (status, complaint) == (0, "")
    assert "checkpoint 12 is corrupt (" in output
    assert "renamed corrupt-12; resuming from 9" in output
    assert "student: resuming after step 9 of 60" in output
    assert outcome_of(run) == whole
    tried("a flipped bit, and kill -9 while it is renamed", "named, then bit-identical")


def test_a_disk_that_fails_for_a_while(whole, tmp_path, tried):
    """Every call that writes fails in some saves; the command reports it and continues."""
    run = tmp_path / "run"
    status, output, complaint = finish(start_with_fault(run, 12, 0, errors=8))
    assert (status, complaint) == (0, "")
    assert "a checkpoint could not be saved" in output
    assert outcome_of(run) == whole
    tried("a disk that fails for a while", "reported, saved later, bit-identical")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 8 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_disk_that_stays_full(whole, small_disk, tried):
    """The last save fails: status 1 and a line; with room the same command resumes."""
    run, filling = small_disk / "run", small_disk / "filling"
    go = small_disk / "go"
    waits = at_step(4 + 20, f"wait_for({str(go)!r})")
    child = start("distill", *SMALL, "--workdir", run, before=waits)
    assert wait_until(lambda: steps_saved(run), child)
    with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    go.symlink_to(filling)
    status, _, complaint = finish(child)
    last = complaint.splitlines()[-1]  # after what Orbax prints
    assert status == 1
    assert last.startswith("pcjax: a checkpoint could not be saved (")
    assert "Free the disk, then repeat the command to resume: pcjax distill" in last
    assert steps_saved(run)[-1] >= 3
    filling.unlink()
    resumes_to_the_end(run, whole)
    tried("a disk that stays full", "status 1, reported, resumed bit-identical")
