"""kill -9 in every phase of a save: the file system's calls are counted, and the command ends before a chosen one."""

import contextlib
import os
import random
import subprocess

import pytest
from children import (
    SMALL,
    STEPS,
    environment,
    fault,
    finish,
    outcome_of,
    start,
    steps_saved,
    wait_until,
)
from counts import tries

pytestmark = pytest.mark.slow

TRIES = tries(50, otherwise=0)
# Calls 0 to 18 make a checkpoint's folders and files, the last is its mark; the next ones remove an older checkpoint.
# With a number of files: while arrays are written, which is not seen as calls.
PHASES = {
    "before anything is written": (0, 0),
    "while arrays are written": (4, 4),
    "after the arrays, before the manifest": (7, 0),
    "between the manifest and the mark": (18, 0),
    "after the mark": (19, 0),
    "while an older one is removed": (30, 0),
}
EVERY = [*((call, 0) for call in range(42)), *((4, files) for files in range(2, 8))]


def killed(run, name, call, files=0, inside="checkpoints", errors=0, more=()):
    given = fault(
        **{"in": run / inside, "from": name, "at": call, "files": files, "errors": errors}
    )
    return finish(start("distill", *SMALL, *more, "--workdir", run, env=environment(**given)))


@pytest.fixture(scope="module")
def whole(unstopped):
    return outcome_of(unstopped[0])


def test_killed_in_each_phase_of_a_save(whole, tmp_path, tried):
    """One training is killed in one save after another, goes on every time, and ends as if nothing had been."""
    moments = list(PHASES.values())
    if TRIES:
        moments = random.Random(0).sample(EVERY * (TRIES // len(EVERY) + 1), TRIES)  # noqa: S311
    place, step = 0, 12
    for call, files in moments:
        run = tmp_path / f"run{place}"
        status, said, complaint = killed(run, str(step), call, files)
        assert status == -9, (call, files, status, complaint)
        # A checkpoint that was half removed is no loss where a newer one is there.
        assert said.count("is unsound") == said.count("; a newer one is there")
        assert steps_saved(run)[-1] in (step - 3, step), (call, files)
        tried("kill -9 in a phase of a save", "gone on from the last checkpoint")
        # The save that was killed is done again, and the next but one that is new is killed.
        step += 6
        if step >= 57 or (call, files) == moments[-1]:
            assert finish(start("distill", *SMALL, "--workdir", run))[0] == 0
            assert outcome_of(run) == whole
            tried("kill -9 in phases of a save, to the end", "bit-identical")
            place, step = place + 1, 12


@pytest.mark.parametrize("call", [0, 1, 2] if TRIES else [1])
def test_killed_while_an_unsound_one_is_put_aside(call, whole, tmp_path, tried):
    run = tmp_path / "run"
    assert killed(run, "12", 19)[0] == -9
    array = max(
        (run / "checkpoints" / "12" / "state").rglob("d/*"), key=lambda path: path.stat().st_size
    )
    os.truncate(array, array.stat().st_size // 2)
    status, said, complaint = killed(run, "unsound", call, inside="")
    assert status == -9, (said, complaint)
    status, said, complaint = finish(start("distill", *SMALL, "--workdir", run))
    assert (status, complaint) == (0, "")
    assert ("checkpoint 12 is unsound" in said) == (call < 2)
    assert outcome_of(run) == whole
    tried("kill -9 while an unsound checkpoint is put aside", "resumed bit-identical")


def test_a_disk_that_fails_for_a_while(whole, tmp_path, tried):
    """Every call that writes fails with EIO in some saves; the command says so and ends as if nothing had been."""
    status, said, complaint = killed(run := tmp_path / "run", "12", 0, errors=8)
    assert (status, complaint) == (0, "")
    assert "could not be saved" in said
    assert outcome_of(run) == whole
    tried("a disk with EIO for a while, under the command", "said, saved later, bit-identical")


def test_a_disk_that_fails_for_a_while_at_the_end(whole, tmp_path, tried):
    """The last save is tried again for longer than a step may take."""
    more = ["--training.watchdog-seconds", "4"]
    status, said, complaint = killed(run := tmp_path / "run", str(STEPS), 0, errors=8, more=more)
    assert (status, complaint) == (0, "")
    assert said.count(f"checkpoint {STEPS} could not be saved") >= 3  # one second, then four
    assert outcome_of(run) == whole
    tried("a disk with EIO for a while at the end, under the command", "said, saved later")


def test_a_disk_that_stays_full(whole, tmp_path, tried):
    """The last save fails: status 1 and one line; with room the same command goes on from what was saved before."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    run, filling = tmp_path / "run", tmp_path / "filling"
    try:
        process = start("distill", *SMALL, "--workdir", run)
        assert wait_until(lambda: steps_saved(run), process, every=0.01)
        with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        status, _, complaint = finish(process)
        assert (status, complaint.count("\n")) == (1, 1), complaint
        assert "No space left on device" in complaint
        assert "see to the disk" in complaint
        assert steps_saved(run)[-1] >= 3
        filling.unlink()
        assert finish(start("distill", *SMALL, "--workdir", run))[0] == 0
        assert outcome_of(run) == whole
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    tried("a disk that stays full, under the command", "status 1, one line, resumed bit-identical")
