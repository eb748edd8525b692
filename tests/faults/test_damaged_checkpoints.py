"""A checkpoint whose files were damaged is named, and the one before it is restored.

tests/training/test_checkpoint.py flips bits; here files are cut, lost, swapped and forged.
"""

import json
import os
import shutil

import chex
import numpy as np
import pytest

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.gate

IDENTITY = {"role": "student", "seed": 0}
SCORES = {1: 0.9, 2: 0.2, 3: 0.5}  # the best is another one than the latest
FLIPS = 1000


def state(step=0):
    rng = np.random.default_rng(step)
    return {
        "step": np.int32(step),
        "student": {"kernel": rng.normal(size=(4, 3)).astype(np.float32)},
        "optimiser": (np.full(2, step, np.uint32), [rng.normal(size=2)]),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, IDENTITY, keep=2, say=pytest.fail)
    for step, score in SCORES.items():
        checkpoints.set_score(step, score)
        checkpoints.try_save(step, state(step), {"step": step})
    checkpoints.wait()
    checkpoints.close()
    return folder


def files_of(folder, step):
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def check_restored(folder, damaged):
    """Assert that what is restored is what was saved; return whether damage was noticed."""
    lines = []
    checkpoints = Checkpoints(folder, IDENTITY, keep=2, say=lines.append)
    restored, position, step = checkpoints.restore(state())
    best = checkpoints.best_of(checkpoints.steps())
    checkpoints.close()
    assert position == {"step": step}
    chex.assert_trees_all_equal(restored, state(step), strict=True)
    expected = 2 if damaged == 3 and step != 3 else 3
    assert (step, best) == (expected, 1)
    assert all(line.startswith(f"checkpoint {damaged} is corrupt (") for line in lines)
    return step != 3


def cut(path, other, rng):
    os.truncate(path, rng.integers(max(path.stat().st_size, 1)))


def delete(path, other, rng):
    path.unlink()


def swap(path, other, rng):
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)


def grow(path, other, rng):
    path.write_bytes(path.read_bytes() + rng.bytes(64))


def link(path, other, rng):
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("damage", [cut, delete, swap, grow, link])
def test_any_file_of_the_latest_checkpoint(damage, saved, tmp_path, tried):
    rng, noticed = np.random.default_rng(7), 0
    folder = tmp_path / "checkpoints"
    for number in range(len(files_of(saved, 3))):
        shutil.copytree(saved, folder)
        files = files_of(folder, 3)
        damage(files[number], files[number - 1], rng)
        if (folder / "3" / "commit_success.txt").exists():
            noticed += check_restored(folder, 3)
        shutil.rmtree(folder)
        tried(f"a file of a checkpoint: {damage.__name__}", "harmless, or named and not used")
    assert noticed


@pytest.mark.nightly
def test_a_flipped_bit_anywhere(saved, tmp_path, tried):
    rng, folder = np.random.default_rng(0), tmp_path / "checkpoints"
    for _ in range(FLIPS):
        shutil.copytree(saved, folder)
        files = [path for path in files_of(folder, 3) if path.stat().st_size]
        path = files[rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        noticed = check_restored(folder, 3)
        shutil.rmtree(folder)
        tried("one flipped bit", "named and not used" if noticed else "harmless")


def test_a_checkpoint_in_the_place_of_another(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    shutil.rmtree(folder / "3")
    shutil.copytree(folder / "2", folder / "3")
    assert check_restored(folder, 3)


@pytest.mark.parametrize(
    "arrays",
    [{"x": ["object", [1], ""]}, {"x": ["float32", [2**60], ""]}, {"../x": ["f4", [1], ""]}, 3],
)
def test_forged_manifests(arrays, saved, tmp_path):
    """With a digest that fits: nothing is allocated, read elsewhere or restored."""
    folder = shutil.copytree(saved, tmp_path / "checkpoints")
    path = folder / "3" / "manifest" / "metadata"
    manifest = json.loads(path.read_text()) | {"arrays": arrays}
    del manifest["digest"]
    path.write_text(json.dumps(manifest | {"digest": _io.digest(manifest)}))
    checkpoints = Checkpoints(folder, IDENTITY, say=lambda line: None)
    try:
        assert checkpoints.restore(state())[2] == 2
    except RequestError as error:
        assert "Checkpoint 3" in str(error)  # noqa: PT017
    checkpoints.close()
