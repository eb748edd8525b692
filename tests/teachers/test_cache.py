"""The cache of a teacher's features: computed once, by what decides them, and never relied on."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax.data import images as data_images
from pcjax.data import load, tokens
from pcjax.data.examples import Examples
from pcjax.display import Display
from pcjax.models import build
from pcjax.models.functional import functional_shapes
from pcjax.teachers import Teacher, cache, encoder
from pcjax.teachers.sentence_transformers import TextEncoder
from pcjax.training.embedding import FrozenModel

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import SENTENCES, VOCABULARY, uncut, wordpiece

BLOCK = 3
TABLE = np.random.default_rng(0).normal(size=(len(VOCABULARY), 4)).astype(np.float32)
OPTIONS = {"vocabulary": len(VOCABULARY), "features": 4, "normalise": False}
MANIFEST = {"name": "a-model", "teacher": "0123", "max_tokens": 8}
PLAIN = (np.zeros(1), np.ones(1))
QUIET = Display(quiet=True)


def _function(_):
    return build("static", shape=(8,), classes=None, rngs=nnx.Rngs(0), **OPTIONS)


FUNCTION = functional_shapes(_function)[0]


def model(table=TABLE):
    return FrozenModel(FUNCTION, {"table/embedding": jnp.asarray(table)}, {})


def text_encoder(**changed):
    own = {"name": "a-model", "kind": "static", "options": OPTIONS, "model": model(), "width": 4}
    own |= {"tokenizer": wordpiece(), "max_tokens": 8}
    return TextEncoder(**own | changed)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Have a cache of the test's own, with small blocks; return its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "BLOCK", BLOCK)
    return tmp_path / "cache/pcjax/teachers"


@pytest.fixture
def computed(monkeypatch):
    """Return a list of how many examples each call computes."""
    calls, embed = [], encoder.embed

    def counted(model, examples, *rest):
        calls.append(len(examples))
        return embed(model, examples, *rest)

    monkeypatch.setattr(encoder, "embed", counted)
    return calls


@pytest.fixture
def examples():
    vocabulary = tokens.vocabulary(wordpiece(), limit=8, width=8, where="it")
    store = tokens.tokens_of(SENTENCES, vocabulary)
    return Examples(store, np.array([0, 1, 2, 4, 5, 6, 7]))


def features(examples, table=TABLE, **changed):
    compute = functools.partial(text_encoder(model=model(table)).features, normalise=PLAIN, batch=4)
    return cache.cached_features(compute, 4, examples, MANIFEST | changed, QUIET)


def expected(examples, table=TABLE):
    tokenizer = uncut(wordpiece())
    tokenizer.enable_truncation(8)
    texts = [SENTENCES[row] for row in examples.rows]
    return np.stack([table[tokenizer.encode(text).ids].mean(axis=0) for text in texts])


def blocks(folder):
    """Return the files in the order in which they were written."""
    return sorted(folder.rglob("*.npz"), key=lambda path: path.stat().st_mtime_ns)


def stored(path):
    """Return the arrays of a file."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def write(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_a_second_call_computes_nothing(examples, computed, folder):
    first = features(examples)
    np.testing.assert_allclose(first, expected(examples), rtol=1e-5, atol=1e-6)
    assert first.dtype == np.float32
    assert computed == [3, 3, 1]
    assert [len(stored(path)["keys"]) for path in blocks(folder)] == [3, 3, 1]
    np.testing.assert_array_equal(features(examples), first)
    assert computed == [3, 3, 1]
    # The blocks are what is read.
    changed = np.full((1, 4), 5, np.float32)
    write(blocks(folder)[2], stored(blocks(folder)[2]) | {"features": changed})
    np.testing.assert_array_equal(features(examples), np.concatenate([first[:6], changed]))


def test_only_new_examples_are_computed_in_any_order(examples, computed):
    first = features(examples)
    rows = np.array([7, 3, 0, 2, 2, 6])  # 3 is new
    np.testing.assert_array_equal(
        features(dataclasses.replace(examples, rows=rows))[[0, 2, 3, 4, 5]], first[[6, 0, 2, 2, 5]]
    )
    assert computed == [3, 3, 1, 1]
    everything = dataclasses.replace(examples, rows=np.arange(8))
    np.testing.assert_allclose(features(everything), expected(everything), rtol=1e-5, atol=1e-6)
    assert computed == [3, 3, 1, 1]


def test_labels_and_order_decide_nothing(examples, computed):
    first = features(examples)
    tokens = examples.store
    labelled = dataclasses.replace(tokens.texts, known_labels=np.arange(8, dtype=np.int32))
    store = dataclasses.replace(tokens, texts=labelled)
    turned = Examples(store, examples.rows[::-1])
    assert turned.labels is not None
    np.testing.assert_array_equal(features(turned), first[::-1])
    assert computed == [3, 3, 1]


def test_a_stopped_command_is_resumed(examples, computed, folder, monkeypatch):
    def stopped(*_):
        if len(computed) == 2:
            raise KeyboardInterrupt
        return counted(*_)

    counted = encoder.embed
    monkeypatch.setattr(encoder, "embed", stopped)
    with pytest.raises(KeyboardInterrupt):
        features(examples)
    monkeypatch.setattr(encoder, "embed", counted)
    np.testing.assert_allclose(features(examples), expected(examples), rtol=1e-5, atol=1e-6)
    assert computed == [3, 3, 1]


def test_the_manifest_is_kept_and_a_name_decides_nothing(examples, computed, folder):
    features(examples)
    assert json.loads((blocks(folder)[0].parent / cache.MANIFEST).read_text()) == MANIFEST
    features(examples, name="another name")
    assert len(computed) == 3
    features(examples, max_tokens=9)
    assert len(computed) == 6
    assert len([*folder.iterdir()]) == 2


def test_a_broken_pictures_stand_in_is_not_kept_as_its_own(tmp_path, folder):
    """Two broken files of equal contents, as a server's error page makes them."""
    images = pytest.importorskip("PIL.Image")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        images.new("RGB", (8, 8), (30 * number,) * 3).save(pictures / f"{number}.png")

    def seen():
        store = data_images.read(str(pictures), image_size=8).train
        return cache.cached_features(
            lambda part: part.take(np.arange(len(part)))[:, 0, 0, :1].astype(np.float32),
            *(1, Examples(store, np.arange(8)), MANIFEST, QUIET),
        )[:, 0].tolist()

    for number in (3, 5):
        (pictures / f"{number}.png").write_text("not found")
    expected = [0, 30, 60, 60, 120, 120, 180, 210]
    assert seen() == expected
    assert sum(len(stored(path)["keys"]) for path in blocks(folder)) == 6
    assert seen() == expected
    # Another picture stands in, and the broken ones follow it.
    images.new("RGB", (8, 8), (99,) * 3).save(pictures / "4.png")
    assert seen() == [0, 30, 60, 60, 99, 99, 180, 210]


def damage(path, how):
    content = path.read_bytes()
    if how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "deleted":
        path.unlink()
    elif how == "pickled":
        write(path, stored(path) | {"features": np.full((3, 4), None)})
    elif how == "another shape":
        write(path, stored(path) | {"features": np.zeros((3, 1), np.float32)})
    elif how == "another dtype":
        write(path, stored(path) | {"keys": np.zeros(3)})
    elif how == "one array":
        write(path, {"keys": stored(path)["keys"]})
    elif how == "one bit":
        place = content.index(stored(path)["features"].tobytes()) + 9
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    elif how == "another array's file":
        features = stored(path)["features"]
        with path.open("wb") as file:
            np.save(file, features)
    else:
        cut = {
            "empty": b"",
            "half": content[: len(content) // 2],
            "a header": content[:50],
            "one byte less": content[:-1],
            "text": b"no numbers",
        }
        path.write_bytes(cut[how])


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "half", "a header", "one byte less", "text", "deleted"),
        *("pickled", "another shape", "another dtype", "one array", "one bit"),
        *("another array's file", "a folder"),
    ],
)
def test_a_corrupt_block_is_computed_again(how, examples, computed, folder):
    first = features(examples)
    damaged = blocks(folder)[1]
    damage(damaged, how)
    np.testing.assert_array_equal(features(examples), first)
    assert computed == [3, 3, 1, 3]
    if how == "a folder":  # it cannot be replaced
        assert damaged.is_dir()
        return
    np.testing.assert_array_equal(stored(damaged)["features"], first[3:6])
    features(examples)
    assert computed == [3, 3, 1, 3]


@pytest.mark.parametrize("how", ["a file", "no rights", "a full disk"])
def test_an_unwritable_cache_does_no_harm(how, examples, computed, folder, monkeypatch):
    if how == "a file":  # where the folder would be
        folder.parent.parent.mkdir()
        folder.parent.write_text("a file")
    elif how == "no rights":
        # As root, permissions refuse nothing; the kernel's own files do.
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
        if not pathlib.Path("/proc/self").is_dir():
            pytest.skip("there is no /proc")
    else:
        full = pathlib.Path("/dev/full")
        if not full.exists():
            pytest.skip("there is no /dev/full")
        features(examples)
        for path in blocks(folder):
            path.unlink()
            path.with_name(path.name + ".unfinished").symlink_to(full)
        computed.clear()
    for _ in range(2):
        made = features(examples)
        np.testing.assert_allclose(made, expected(examples), rtol=1e-5, atol=1e-6)
    if how == "a full disk":
        # The unfinished files were deleted, so that the second call stored its own.
        assert len(blocks(folder)) == 3
    assert len(computed) == 6


def test_without_examples_there_are_no_features(examples, computed):
    none = dataclasses.replace(examples, rows=np.zeros(0, np.int64))
    assert features(none).shape == (0, 4)
    assert computed == []


@pytest.fixture
def data(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(f"{text} {n}" for n in "abc" for text in SENTENCES))
    return load(f"text:{tmp_path / 'x.txt'}")


ENCODER = text_encoder()


def test_whatever_decides_the_features_has_its_own_folder(data, computed, folder, tmp_path):
    def teach(encoder=ENCODER, dataset=data):
        """Return how many folders and how many examples are new."""
        before, done = {*folder.glob("*")}, sum(computed)
        Teacher.from_encoder(encoder, dataset, batch=8, display=QUIET)
        return len({*folder.glob("*")} - before), sum(computed) - done

    change = dataclasses.replace
    tokenizer = wordpiece(VOCABULARY | {"[MASK]": VOCABULARY["z"], "z": VOCABULARY["[MASK]"]})
    folders, every = teach()
    assert folders == 1
    assert every > 2 * len(SENTENCES)
    for other in (
        ENCODER,
        change(ENCODER, name="another name"),
        change(ENCODER, licence="mit"),
    ):
        assert teach(other) == (0, 0)
    for other in (
        change(ENCODER, model=model(TABLE + 1)),
        change(ENCODER, max_tokens=7),
        change(ENCODER, prompt="the "),
        change(ENCODER, lower=True),
        change(ENCODER, tokenizer=tokenizer),
    ):
        assert teach(other)[0] == 1
    path = tmp_path / "x.txt"
    path.write_text(path.read_text().replace("cats at sea a", "mats at sea a"))
    assert teach(dataset=load(f"text:{path}")) == (0, 1)
    assert teach(dataset=load(f"text:{path}", validation=0.2)) == (0, 0)


def test_a_teacher_has_the_features_of_all_parts(data, computed, folder):
    teacher = Teacher.from_encoder(ENCODER, data, batch=8, display=QUIET)
    tokenizer = uncut(wordpiece())
    tokenizer.enable_truncation(8)
    for part, examples in data.parts.items():
        texts = examples.take(np.arange(len(examples)))
        rows = np.stack([TABLE[tokenizer.encode(text).ids].mean(axis=0) for text in texts])
        np.testing.assert_allclose(teacher.features[part], rows, rtol=1e-5, atol=1e-6)
    count = len(computed)
    again = Teacher.from_encoder(ENCODER, data, batch=2, display=QUIET)
    assert len(computed) == count
    assert again.digest == teacher.digest
    shutil.rmtree(folder)
    small = Teacher.from_encoder(ENCODER, data, batch=2, display=QUIET)
    for part, rows in teacher.features.items():
        np.testing.assert_allclose(small.features[part], rows, rtol=1e-5, atol=1e-6)
