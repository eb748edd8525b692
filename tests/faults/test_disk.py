"""A disk that is full or read-only: what was saved stays, and later saves work."""

import os
import subprocess

import numpy as np
import pytest

from pcjax.training.checkpoint import Checkpoints, UnsavedError
from pcjax.training.metrics_log import MetricsLog, read_metrics

pytestmark = pytest.mark.gate


def state(step):
    return {"step": np.int32(step), "x": np.random.default_rng(step).normal(size=20_000)}


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 900 kB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "none", tmp_path]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def break_(disk, how):
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return
    with (disk / "filling").open("wb") as file:
        while True:
            try:
                os.write(file.fileno(), bytes(4096))
            except OSError:
                return


def mend(disk, how):
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    else:
        (disk / "filling").unlink()


def save(checkpoints, step):
    checkpoints.try_save(step, state(step), {"step": step})
    checkpoints.wait()


def restored_from(folder):
    checkpoints = Checkpoints(folder, {}, say=[].append)
    restored, _, step = checkpoints.restore(state(0))
    checkpoints.close()
    assert np.array_equal(restored["x"], state(step)["x"])
    return step


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_save_that_fails_leaves_earlier_ones(how, disk, tried):
    folder = disk / "checkpoints"
    checkpoints = Checkpoints(folder, {}, keep=1, say=[].append)
    save(checkpoints, 1)
    break_(disk, how)
    for step in (2, 3):
        with pytest.raises(UnsavedError, match="a checkpoint could not be saved"):
            save(checkpoints, step)
    mend(disk, how)
    assert restored_from(folder) == 1  # as after a crash
    save(checkpoints, 4)
    checkpoints.close()
    assert restored_from(folder) == 4
    tried(f"{how} disk while saving", "reported, earlier ones kept, saved later", 2)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_metrics_that_cannot_be_written_are_reported_once(how, disk, tried):
    lines = []
    log = MetricsLog(disk, 0, lines.append)
    log.write(1, {"loss": 1.0})
    break_(disk, how)
    for step in range(2, 200):
        log.write(step, {"loss": 1.0 / step})
    mend(disk, how)
    log.write(200, {"loss": 0.0})
    log.close()
    assert len(lines) == 1
    assert "cannot be written" in lines[0]
    steps = [record["step"] for record in read_metrics(disk)]
    assert (steps[0], steps[-1]) == (1, 200)
    tried(f"{how} disk while metrics are written", "reported once, the training continues")
