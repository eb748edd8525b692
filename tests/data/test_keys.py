"""Keys of examples: equal where the examples are, whatever set, order or labels they come with."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from small_texts import SENTENCES, wordpiece

from pcjax.data import augment, images, texts, tokens
from pcjax.data.augment import Augmentation
from pcjax.data.corrupt import corrupted_examples
from pcjax.data.examples import Arrays, Examples, keys_of, whole
from pcjax.data.fitted import Fitted

N = 6  # the last example equals the third
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 9, 9, 3)).astype(np.uint8)
PIXELS[N - 1] = PIXELS[2]


def encoded(row):
    file = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(file, "PNG")
    return file.getvalue()


def files(folder):
    for row in range(N):
        (folder / f"{row}.png").write_bytes(encoded(row))
    return images.read(str(folder), image_size=9).train


def tar(folder):
    with tarfile.open(folder / "x.tar", "w") as shard:
        for row in range(N):
            info = tarfile.TarInfo(f"{row}.png")
            info.size = len(encoded(row))
            shard.addfile(info, io.BytesIO(encoded(row)))
    return images.read(str(folder), image_size=9).train


def parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    written = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": [encoded(row) for row in range(N)]})
    written.write_table(table, folder / "x.parquet", row_group_size=4)
    return images.read(str(folder), image_size=9).train


def of_texts(_):
    return texts.in_memory([*SENTENCES[: N - 1], SENTENCES[2]])


def of_tokens(_):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = tokens.vocabulary(wordpiece(), limit=None, width=3, where="it")
    return tokens.tokens_of(of_texts(None).read(np.arange(N))[0].tolist(), vocabulary)


def arrays(_):
    return Arrays(PIXELS, np.arange(N, dtype=np.int32))


STORES = {
    "arrays": arrays,
    "features": lambda _: Arrays(PIXELS.reshape(N, -1).astype(np.float32), None),
    "files": files,
    "tar": tar,
    "parquet": parquet,
    "texts": of_texts,
    "tokens": of_tokens,
    "resized": lambda folder: Fitted(arrays(folder), (4, 4, 3)),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(params=STORES)
def store(request, tmp_path):
    (tmp_path / "all").mkdir()
    return STORES[request.param](tmp_path / "all")


def test_keys_are_equal_where_examples_are(store):
    keys = keys_of(store, np.arange(N))
    assert keys.dtype == "S16"
    assert len({*keys.tolist()}) == N - 1
    assert keys[2] == keys[N - 1]
    rows = np.array([5, 0, 0, 3])
    assert np.array_equal(keys_of(store, rows), keys[rows])
    assert len(keys_of(store, np.arange(0))) == 0


def test_keys_of_the_same_contents_in_other_sizes_and_types_differ(tmp_path):
    stores = [files(tmp_path), arrays(None), STORES["features"](None), STORES["resized"](None)]
    stores += [stores[0].at_size(5), Fitted(stores[1], (4, 4, 3), cut=True)]
    keys = [keys_of(store, np.arange(N - 1)) for store in stores]
    assert len(np.unique(keys)) == len(stores) * (N - 1)


def test_views_have_keys_of_their_pixels():
    """Shifts and flips are drawn by position: an example's view is the same example again."""
    own, flips = Augmentation(crop=2, flip=True, views=2), Augmentation(flip=True, views=1)
    padded = Arrays(np.pad(PIXELS, ((0, 40 - N), (0, 0), (0, 0), (0, 0)), "wrap"), None)
    examples = whole(padded, None)
    views = [augment.view_of(examples, own, 0), augment.view_of(examples, own, 1)]
    views += [augment.view_of(examples, flips, 0), augment.view_of(examples, own, 0, 0.5)]
    pixels = np.concatenate([view.take(np.arange(40)) for view in views]).reshape(160, -1)
    keys = np.concatenate([keys_of(view.store, np.arange(40)) for view in views])
    for key in np.unique(keys):
        alike = pixels[keys == key]
        assert (alike == alike[0]).all()
    # Of flips alone there are two of each; an image that is not flipped is the plain one.
    assert set(keys_of(padded, np.arange(40))) & set(keys[80:120])
    assert len(np.unique(keys[80:120])) == len(np.unique(pixels[80:120], axis=0))
    assert len(np.unique(keys)) > 60


def test_corrupted_examples_have_keys_of_their_own():
    examples = whole(arrays(None), None)
    changed = corrupted_examples(examples, "gaussian_noise", 3, examples)
    keys = [keys_of(each.store, np.arange(N - 1)) for each in (examples, changed)]
    assert len(np.unique(keys)) == 2 * (N - 1)


@pytest.mark.parametrize("kind", ["files", "tar", "parquet"])
def test_many_pictures_are_known_by_their_time_of_change(kind, tmp_path, monkeypatch):
    module = "images" if kind == "files" else "shards"
    monkeypatch.setattr(f"pcjax.data.{module}.ENCODED_WHOLE", 9)
    STORES[kind](tmp_path)
    known = []
    for time in (1, 1, 2):
        for path in tmp_path.glob("*.*"):
            if kind != "files" or path.name == "3.png":
                os.utime(path, (time, time))
        known.append(keys_of(images.read(str(tmp_path), image_size=9).train, np.arange(N)))
    first, again, changed = known
    assert len(np.unique(first)) == N
    assert np.array_equal(first, again)
    assert (first != changed).tolist() == [kind != "files" or row == 3 for row in range(N)]


def test_a_broken_picture_has_the_key_of_the_one_in_its_place(tmp_path):
    store = files(tmp_path)
    (tmp_path / "4.png").write_bytes(encoded(4)[:60])
    store = images.read(str(tmp_path), image_size=9).train
    before = keys_of(store, np.arange(N))
    store.read(np.arange(N))
    after = keys_of(store, np.arange(N))
    assert after[4] == before[3]
    assert (after != before).tolist() == [row == 4 for row in range(N)]


def test_examples_do_not_need_labels_or_all_rows():
    one, two = Arrays(PIXELS, None), Arrays(PIXELS[::-1], np.arange(N, dtype=np.int32))
    part = Examples(two, np.arange(4))
    assert np.array_equal(keys_of(part.store, part.rows), keys_of(one, np.arange(N)[::-1])[:4])
