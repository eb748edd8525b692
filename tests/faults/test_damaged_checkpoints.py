"""Whatever is done to a checkpoint's files, a run goes on from what was saved or says by name what it left."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from children import change_manifest

from pcjax._checks import RequestError
from pcjax.evaluation.evaluate import versions
from pcjax.training.checkpoint import FORMAT, Checkpoints

pytestmark = pytest.mark.slow

MANIFEST = {
    "role": "student",
    "seed": 0,
    "batch": 32,
    "data": "aa",
    "optimiser": "sgd",
    "config": "bb",
}
SCORES = {1: 0.9, 2: 0.2, 3: 0.5}
VERSIONS = dict.fromkeys(versions(), "1.2")


def state(step=0):
    rng = np.random.default_rng(step)
    student = {
        "embed/kernel": rng.normal(size=(4, 3)).astype(np.float32),
        "embed/bias": np.float32(step),
    }
    return {
        "step": np.int32(step),
        "student": student,
        "optimiser": (np.full(2, step, np.uint32), [rng.normal(size=2)]),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(
        folder / "checkpoints", MANIFEST, keep=2, say=pytest.fail, about={"versions": VERSIONS}
    )
    for step, score in SCORES.items():
        checkpoints.save(step, state(step), {"step": step}, score)
    checkpoints.close()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2", "3"]
    return folder


def opened(folder, said, manifest=MANIFEST, versions=VERSIONS):
    return Checkpoints(
        folder / "checkpoints", manifest, keep=2, say=said.append, about={"versions": versions}
    )


def outcome_of(folder):
    """What a run that goes on from there finds: its step, and whether that is as it was saved; and what it says."""
    said = []
    checkpoints = opened(folder, said)
    found, place, step = checkpoints.restore(state())
    best, _ = checkpoints.chosen_arrays("best")
    checkpoints.close()
    assert place == {"step": step}
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state(step)), strict=True):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    return step, best, said


def files_of(folder, step):
    return sorted(
        path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file()
    )


def judge(folder, damaged, tried, fault):
    """Identical, or the damaged step is named and neither gone on from nor chosen."""
    step, best, said = outcome_of(folder)
    if not said:
        assert (step, best) == (3, 1)
        tried(fault, "unharmed")
    else:
        assert all(line.startswith(f"checkpoint {damaged} ") for line in said)
        left = {number: score for number, score in SCORES.items() if number != damaged}
        assert (step, best) == (max(left), max(left, key=lambda number: left[number]))
        tried(fault, "noticed, named and the next one taken")


def copy_of(saved, tmp_path, name):
    return pathlib.Path(shutil.copytree(saved, tmp_path / str(name)))


@pytest.mark.parametrize("part", range(10))
def test_one_flipped_bit_anywhere(saved, tmp_path, tried, part):
    rng = np.random.default_rng(part)
    sizes = {
        path.relative_to(saved): path.stat().st_size
        for step in (1, 3)
        for path in files_of(saved, step)
    }  # the best and the newest
    names, weights = [*sizes], np.array([*sizes.values()])
    for number in range(100):
        folder = copy_of(saved, tmp_path, number)
        # Every other time any file alike, so that small ones have their turn.
        chance = weights / weights.sum() if number % 2 else np.full(len(names), 1 / len(names))
        name = names[rng.choice(len(names), p=chance)]
        content = bytearray((folder / name).read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(content)
        judge(folder, int(name.parts[1]), tried, "one flipped bit")
        shutil.rmtree(folder)


def damaged(kind, files, rng):
    path = files[rng.integers(len(files))]
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: rng.integers(len(content))])
    elif kind == "deleted":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "swapped":
        other = files[rng.integers(len(files))]
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "grown":
        path.write_bytes(content + rng.bytes(64))
    else:
        path.unlink()
        path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("kind", ["truncated", "deleted", "empty", "swapped", "grown", "linked"])
def test_files_that_are_not_whole(saved, tmp_path, tried, kind):
    rng = np.random.default_rng(7)
    for number in range(12):
        folder, step = copy_of(saved, tmp_path, number), int(rng.choice([1, 3]))
        damaged(kind, files_of(folder, step), rng)
        judge(folder, step, tried, "truncated, deleted, emptied, swapped, grown or linked file")
        shutil.rmtree(folder)


def test_an_empty_newest_step_and_one_without_its_mark(saved, tmp_path, tried):
    (copy_of(saved, tmp_path, "empty") / "checkpoints" / "4").mkdir()
    step, best, said = outcome_of(tmp_path / "empty")
    assert (step, best) == (3, 1)
    assert said == ["checkpoint 4 was never finished, and is removed"]
    (copy_of(saved, tmp_path, "mark") / "checkpoints" / "3" / "commit_success.txt").unlink()
    step, best, said = outcome_of(tmp_path / "mark")
    assert (step, best) == (2, 1)
    assert said == ["checkpoint 3 was never finished, and is removed"]
    tried("empty newest step, missing mark", "noticed, named and the next one taken", 2)


def test_a_whole_step_in_the_place_of_another(saved, tmp_path, tried):
    folder = copy_of(saved, tmp_path, "copy") / "checkpoints"
    shutil.rmtree(folder / "3")
    shutil.copytree(folder / "2", folder / "3")
    step, best, said = outcome_of(tmp_path / "copy")
    assert (step, best) == (2, 1)
    assert "checkpoint 3 is unsound (ValueError: it is that of step 2)" in said[0]
    tried("a step in the place of another", "noticed, named and the next one taken")


def test_what_only_looks_changes_nothing(saved, tmp_path):
    folder = copy_of(saved, tmp_path, "copy")
    (folder / "checkpoints" / "4").mkdir()
    before = sorted(folder.rglob("*"))
    checkpoints = Checkpoints(folder / "checkpoints", MANIFEST, writable=False)
    assert (checkpoints.latest, checkpoints.best) == (3, 1)
    checkpoints.close()
    path = folder / "checkpoints" / "1" / "manifest" / "metadata"
    path.write_text(path.read_text().replace("0.9", "0.1"))
    with pytest.raises(RequestError, match=r"checkpoint 1 in .* is unsound"):
        Checkpoints(folder / "checkpoints", MANIFEST, writable=False)
    assert sorted(folder.rglob("*")) == before


def changes(rng):
    """Sixty ways not to be what was saved: (the manifest's change, the state's change, what must be named)."""
    for number in range(5):
        for name, own in MANIFEST.items():
            other = own + 1 + number if isinstance(own, int) else f"{own}{number}"
            yield {name: other}, lambda s: None, [name, repr(own), repr(other)]
    for number in range(8):
        shape = (5 + number, 3)
        yield (
            {},
            lambda s, x=shape: s["student"].update({"embed/kernel": np.zeros(x, np.float32)}),
            [str(shape), "(4, 3)"],
        )
    for dtype in ("float16", "float64", "int32", "uint8", "bool", "complex64"):
        yield (
            {},
            lambda s, x=dtype: s["student"].update({"embed/bias": np.zeros((), x)}),
            ["student/embed.bias", dtype],
        )
        yield {}, lambda s, x=dtype: s.update(step=np.zeros(1, x)), [dtype, "int32", "for step"]
    for number in range(5):
        name = f"more/{number}"
        yield (
            {},
            lambda s, x=name: s["student"].update({x: np.zeros(1)}),
            [name.replace("/", "."), "nothing"],
        )
    for moments in ((), ("mu",), ("mu", "nu"), ("mu", "nu", "count"), ("trace",)):
        optimiser = {name: np.zeros(2) for name in moments}
        yield {}, lambda s, x=optimiser: s.update(optimiser=x), ["optimiser/", "nothing"]


def test_what_is_not_this_run_is_refused_by_name(saved, tmp_path, tried):
    folder = copy_of(saved, tmp_path, "copy")
    cases = [*changes(np.random.default_rng(0))]
    for change, alter, named in cases:
        like, said = state(), []
        alter(like)
        checkpoints = opened(folder, said, MANIFEST | change)
        with pytest.raises(RequestError, match="choose another --workdir") as caught:
            checkpoints.restore(like)
        checkpoints.close()
        assert all(part in str(caught.value) for part in named), (named, str(caught.value))
        assert not said
    assert len(cases) >= 60
    tried(
        "another shape, dtype, tree, optimiser, seed, batch or data set",
        "refused by name",
        len(cases),
    )
    assert len(VERSIONS) >= 8
    for name in VERSIONS:
        said = []
        checkpoints = opened(folder, said, versions=VERSIONS | {name: "1.3"})
        with pytest.raises(
            RequestError, match=rf"was made with {name} 1\.2, this run has {name} 1\.3: install"
        ):
            checkpoints.restore(state())
        checkpoints.close()
        assert not said
    tried("another version", "refused by name", len(VERSIONS))
    assert outcome_of(folder) == (3, 1, [])


def test_another_format_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("pcjax.training.checkpoint.FORMAT", 99)
    with pytest.raises(RequestError, match=f"was made with format {FORMAT}, this run has 99"):
        opened(copy_of(saved, tmp_path, "copy"), []).restore(state())


@pytest.mark.parametrize(
    "arrays",
    [{"x": ["object", [1], ""]}, {"x": ["float32", [2**60], ""]}, {"../x": ["f4", [1]]}, 3],
)
def test_manifests_made_up_by_someone(saved, tmp_path, arrays):
    folder = copy_of(saved, tmp_path, "copy")
    change_manifest(folder, 3, arrays=arrays)
    said = []
    checkpoints = opened(folder, said)
    try:
        assert checkpoints.restore(state())[2] == 2
        assert "checkpoint 3 is unsound" in said[0]
    except RequestError as refused:
        assert "checkpoint 3" in str(refused)  # noqa: PT017
    checkpoints.close()
