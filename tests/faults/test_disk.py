"""A disk that is full, or may only be read: nothing that was saved is lost, and what is in memory is saved later."""

import os
import pathlib
import subprocess

import numpy as np
import pytest

from pcjax.training.checkpoint import Checkpoints
from pcjax.training.loop import _Metrics

pytestmark = pytest.mark.slow


def state(step):
    return {"step": np.int32(step), "x": np.random.default_rng(step).normal(size=20_000)}


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=900k", "none", tmp_path],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def break_(disk, how):
    if how == "full":
        with (disk / "filling").open("wb") as file:
            while True:
                try:
                    os.write(file.fileno(), bytes(4096))
                except OSError:
                    break
    else:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


def mend(disk, how):
    (disk / "filling").unlink() if how == "full" else subprocess.run(
        ["mount", "-o", "remount,rw", disk], check=True
    )


@pytest.mark.parametrize("how", ["full", "read-only"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_save_that_fails_is_said_and_tried_again(disk, how, before, tried):
    said = []
    checkpoints = Checkpoints(disk / "checkpoints", {}, keep=1, say=said.append)
    for step in range(1, before + 1):
        checkpoints.save(step, state(step), {"step": step})
    assert checkpoints.wait() is None
    break_(disk, how)
    for step in (5, 6):
        checkpoints.save(step, state(step), {"step": step})
        assert checkpoints.wait() is not None
        assert (
            f"checkpoint {step} could not be saved" in said[-1]
            or "a checkpoint could not be saved" in said[-1]
        )
        assert (f"newest that is saved is {before}" if before else "none is saved yet") in said[-1]
    mend(disk, how)
    checkpoints.save(7, state(7), {"step": 7})
    assert checkpoints.wait() is None
    checkpoints.close()
    again = Checkpoints(disk / "checkpoints", {}, keep=1, say=said.append)
    found, _, step = again.restore(state(0))
    again.close()
    assert step == 7
    assert np.array_equal(found["x"], state(7)["x"])
    tried(f"{how} disk while saving", "said, retried and saved")


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_what_was_saved_survives_a_crash_on_a_broken_disk(disk, how, tried):
    checkpoints = Checkpoints(disk / "checkpoints", {}, keep=1, say=[].append)
    checkpoints.save(1, state(1), {"step": 1})
    checkpoints.wait()
    break_(disk, how)
    checkpoints.save(2, state(2), {"step": 2})
    assert checkpoints.wait() is not None
    mend(disk, how)
    again = Checkpoints(disk / "checkpoints", {}, keep=1, say=[].append)
    found, _, step = again.restore(state(0))
    again.close()
    assert step == 1
    assert np.array_equal(found["x"], state(1)["x"])
    tried(f"{how} disk, then a crash", "gone on from the last checkpoint")


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_lines_of_metrics_wait_for_the_disk(disk, how, tried):
    said = []
    metrics = _Metrics(disk / "metrics.jsonl", 0, say=said.append)
    metrics.write(1, {"loss": 1.0})
    break_(disk, how)
    for step in range(2, 200):
        metrics.write(step, {"loss": 1.0 / step})
    assert len(said) == 1
    mend(disk, how)
    metrics.write(200, {"loss": 0.0})
    lines = pathlib.Path(disk / "metrics.jsonl").read_text().splitlines()
    assert [int(line.split(",")[0].split(":")[1]) for line in lines] == [*range(1, 201)]
    tried(f"{how} disk while metrics are written", "no line lost")


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_the_last_lines_of_metrics_wait_for_the_disk_too(disk, how, tried):
    said = []
    for mended in (True, False):
        path = disk / f"{mended}" / "metrics.jsonl"
        path.parent.mkdir()
        metrics = _Metrics(path, 0, say=said.append)
        break_(disk, how)
        for step in (1, 2):
            metrics.write(step, {"x" * 5000: 1.0})
        if mended:
            mend(disk, how)
        metrics.close()
        assert path.read_text().count("\n") == (2 if mended else 0)
    assert said[1:][-1] == f"2 lines could not be written to {path}, and are lost"
    assert len(said) == 3
    tried(f"{how} disk at the end of a training", "metrics written, or said to be lost")


def test_a_board_that_cannot_be_written_is_given_up(disk, tried):
    pytest.importorskip("tensorboardX")
    said = []
    metrics = _Metrics(disk / "metrics.jsonl", 0, tensorboard=True, say=said.append)
    break_(disk, "full")
    for step in range(1, 200):
        metrics.write(step, {"loss": 1.0 / step})
    metrics.close()
    given_up = [line for line in said if line.endswith("TensorBoard is told nothing more")]
    assert len(given_up) == 1, said
    tried("full disk while TensorBoard is told", "said once, and given up")
