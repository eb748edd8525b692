"""Images from folders and lists: against Pillow and NumPy, whatever the files look like."""

import io
import logging
import os
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pcjax.data import (
    Dataset,
    Sampling,
    evaluation_batches,
    images,
    listing,
    load,
    pictures,
    statistics,
    training_batches,
)
from pcjax.data.fitted import fitted, sized


def picture(seed=0, size=(30, 20), mode="RGB"):
    """Return a smooth random picture of (width, height)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, len(Image.new(mode, (1, 1)).getbands())), np.uint8)
    coarse = coarse[..., 0] if coarse.shape[-1] == 1 else coarse
    return Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(zlib.crc32(path.name.encode()))).save(path, **options)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def middle(image, side):
    """Return the middle square of an image, scaled to a side by Pillow."""
    fitting = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(fitting.convert("RGB")).astype(int)


def indexed(numbers):
    """Return a palette's image of 20 x 20, with a quarter of each number."""
    pixels = np.kron(numbers, np.ones((10, 10))).astype(np.uint8)
    return Image.frombytes("P", (20, 20), pixels.tobytes())


def take(examples, indices=None):
    return examples.take(np.arange(len(examples)) if indices is None else np.array(indices))


def names(store):
    return [os.fsdecode(name) for name in store.encoded.names.unpack()]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(30, 20), (20, 31), (64, 64), (9, 8)])
def test_the_middle_is_cut_out_and_resized_as_pillow_does(kind, size):
    content = encoded(picture(1, size), kind)
    expected = middle(Image.open(io.BytesIO(content)), 16)
    fraction = kind == "JPEG" and size == (64, 64)
    assert np.abs(pictures.decoded(content, 16) - expected).max() <= (8 if fraction else 1)


def test_a_large_jpeg_is_nearly_the_same_at_a_fraction():
    content = encoded(picture(2, (1201, 903)), "JPEG", quality=95)
    expected = middle(Image.open(io.BytesIO(content)), 32)
    assert np.abs(pictures.decoded(content, 32) - expected).max() <= 4
    assert np.abs(pictures.decoded(content, 32) - expected).mean() < 0.6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_exif_is_applied_once(kind, orientation):
    upright = picture(3, (41, 24))
    # These undo what EXIF's values say.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = encoded(stored, kind, exif=exif, **({"lossless": True} | options))
    assert np.abs(pictures.decoded(content, 24) - middle(upright, 24)).max() <= 4


def test_damaged_exif_does_not_make_an_image_broken():
    content = encoded(picture(), "JPEG", exif=b"Exif\0\0MM" + bytes(range(99)))
    plain = encoded(picture(), "JPEG")
    assert np.array_equal(pictures.decoded(content, 16), pictures.decoded(plain, 16))


def test_grey_palettes_and_cmyk_become_colours():
    grey = picture(4, mode="L")
    assert np.array_equal(pictures.decoded(encoded(grey, "PNG"), 20), middle(grey, 20))
    colours = indexed([[0, 1], [2, 3]])
    colours.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    square = pictures.decoded(encoded(colours, "PNG"), 20)
    assert square[::19, ::19].tolist() == [
        [[255, 0, 0], [0, 255, 0]],
        [[0, 0, 255], [9, 8, 7]],
    ]
    bits = Image.fromarray(np.kron([[0, 1], [1, 0]], np.ones((10, 10))).astype(bool))
    square = pictures.decoded(encoded(bits, "PNG"), 20)
    assert square[::19, ::19, 0].tolist() == [[0, 255], [255, 0]]
    ink = Image.new("CMYK", (20, 20), (0, 255, 255, 0))  # cyan, magenta, yellow, black
    red = pictures.decoded(encoded(ink, "JPEG", quality=100), 8).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode):
    given = np.asarray(picture(5, (20, 20), mode)).astype(float)
    colour, alpha = given[..., :-1], given[..., -1:] / 255
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (20, 20, 3))
    result = pictures.decoded(encoded(Image.fromarray(given.astype(np.uint8)), "PNG"), 20)
    assert np.abs(result - expected).max() <= 1


def test_a_transparent_colour_becomes_white():
    image = indexed([[0, 1], [0, 1]])
    image.putpalette([1, 2, 3, 4, 5, 6])
    for transparency, seen in ((0, [255, 255, 255]), (bytes([255, 0]), [1, 2, 3])):
        square = pictures.decoded(encoded(image, "PNG", transparency=transparency), 20)
        assert square[0, 0].tolist() == seen
    grey = Image.new("L", (20, 20), 7)
    assert (pictures.decoded(encoded(grey, "PNG", transparency=7), 20) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_upper_eight(kind):
    given = np.arange(400, dtype=np.uint16).reshape(20, 20) * 164
    square = pictures.decoded(encoded(Image.fromarray(given), kind), 20)
    assert np.array_equal(square, np.repeat((given // 256)[..., None], 3, axis=2))


def png(width, height, depth=8, colour=0):
    """Return a PNG that claims this size and holds next to nothing."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


FLOATS = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
REFUSED = {
    "empty": (b"", "it is no image"),
    "text": (b"These are not the pixels that you look for.\n" * 9, "it is no image"),
    "another kind": (encoded(picture(), "GIF"), "it is no image"),
    "a cut PNG": (encoded(picture(), "PNG")[:-400], "truncated|broken"),
    "a cut JPEG": (encoded(picture(), "JPEG")[:-100], "truncated"),
    "a cut WebP": (encoded(picture(), "WEBP")[:-30], "could not"),
    "a cut TIFF": (encoded(picture(), "TIFF")[:-500], "truncated"),
    "a bomb": (png(60_000, 60_000), r"more than 89,478,485 pixels"),
    "a lesser bomb": (png(10_000, 9_000), "more than 89,478,485 pixels|10000 x 9000 pixels, over"),
    "a claim": (png(1000, 1000), "truncated"),
    "floats": (FLOATS, "32 bits a pixel"),
}


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_images_are_refused_in_one_line(fault):
    content, reason = REFUSED[fault]
    with pytest.raises(ValueError, match=reason) as refusal:
        pictures.decoded(content, 16)
    assert str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


# Folders and lists


def test_a_folder_is_searched_for_images(tmp_path):
    inside = ["a.jpg", "B.JPEG", "deep/er/c.png", "deep/d.Webp", "z.bmp", "é/y.tif", "x y.tiff"]
    for name in inside:
        kind = "TIFF" if name.endswith(("tif", "tiff")) else None
        save(tmp_path / "all" / name, format=kind)
    for name in ("notes.txt", ".hidden.png", ".thumbs/e.png", "a.jpg.json", "jpg"):
        (tmp_path / "all" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "all" / name).write_bytes(encoded(picture(), "PNG"))
    (tmp_path / "all" / "folder.jpg").mkdir()
    store = images.read(str(tmp_path / "all"), image_size=12).train
    assert names(store) == sorted(inside, key=os.fsencode)
    assert (store.shape, store.dtype, store.labels()) == ((12, 12, 3), np.uint8, None)
    pixels, labels = store.read(np.array([3, 0, 3]))
    assert labels is None
    for image, row in zip(pixels, (3, 0, 3), strict=True):
        path = tmp_path / "all" / names(store)[row]
        assert np.abs(image - middle(Image.open(path), 12)).max() <= 1


def test_links_lead_to_files_inside_only(tmp_path):
    save(tmp_path / "all/sub/a.png")
    save(tmp_path / "out/b.png")
    for name, target in {
        "all/c.png": "sub/a.png",
        "all/d.png": "../out/b.png",
        "all/e.png": "nowhere.png",
        "all/round": ".",
        "all/more": "../out",
        "only/f.png": "../out/b.png",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    (tmp_path / "link").symlink_to("all")
    for folder in ("all", "link"):
        store = images.read(str(tmp_path / folder), image_size=8).train
        assert names(store) == ["c.png", "sub/a.png"]
        assert np.array_equal(*store.read(np.arange(2))[0])
    with pytest.raises(ValueError, match="only links that lead out of it, 1 of them: give the fol"):
        images.read(str(tmp_path / "only"), image_size=8)


def test_top_folders_are_splits_and_labels_only_where_wanted(tmp_path):
    for name in (
        *("train/cat/1.png", "train/dog/2.png", "train/dog/old/3.png", "train/4.png"),
        *("Val/dog/5.png", "test/owl/6.png", "test/cat/7.png", "more/test/8.png", "9.png"),
    ):
        save(tmp_path / "all" / name)
    source = f"images:{tmp_path / 'all'}"
    data = load(source, image_size=8)
    assert [len(part) for part in data.parts.values()] == [6, 1, 2]
    assert data.train.labels is None
    assert data.train.classes is None
    (tmp_path / "all/more/test/8.png").unlink()
    labelled = load(source, image_size=8, image_labels="folders")
    assert names(labelled.train.store) == [
        *("9.png", "train/4.png", "train/cat/1.png", "train/dog/2.png", "train/dog/old/3.png")
    ]
    assert labelled.train.classes == ("cat", "dog", "owl")
    assert labelled.train.labels.tolist() == [-1, -1, 0, 1, 1]
    assert labelled.validation.labels.tolist() == [1]
    assert labelled.test.labels.tolist() == [0, 2]
    assert np.array_equal(take(data.test), take(labelled.test))


def test_a_folder_without_splits_is_divided_by_class(tmp_path):
    for label in "abc":
        for number in range(20):
            save(tmp_path / "all" / label / f"{number}.jpg")
    data = load(f"images:{tmp_path / 'all'}", image_size=8, image_labels="folders", validation=0.25)
    for part, count in zip(data.parts.values(), (12, 4, 4), strict=True):
        assert np.bincount(part.labels).tolist() == [count] * 3
    rows = np.concatenate([part.rows for part in data.parts.values()])
    assert sorted(rows.tolist()) == [*range(60)]
    mean, std = statistics(data.train)
    pixels = take(data.train).reshape(-1, 3) / 255
    assert np.allclose(mean, pixels.mean(0))
    assert np.allclose(std, pixels.std(0))


def test_a_list_names_its_images(tmp_path):
    for name in ("lists/a.png", "far/b.png", "far/c.png"):
        save(tmp_path / name)
    listed = tmp_path / "lists" / "mine.txt"
    content = f"\ufeffa.png\r\n\n../far/b.png\tdog\n{tmp_path}/far/c.png\t cat \na.png"
    listed.write_bytes(content.encode())
    splits = images.read(str(listed), image_size=8)
    assert names(splits.train) == ["a.png", "../far/b.png", f"{tmp_path}/far/c.png", "a.png"]
    assert splits.train.labels().tolist() == [-1, 1, 0, -1]
    assert splits.classes == ("cat", "dog")
    pixels = splits.train.read(np.arange(4))[0]
    assert np.array_equal(pixels[0], pixels[3])
    assert np.abs(pixels[2] - middle(Image.open(tmp_path / "far/c.png"), 8)).max() <= 1
    listed.write_text("a.png\t3\n../far/b.png\t0\n")
    splits = images.read(str(listed), image_size=8)
    assert (splits.train.labels().tolist(), splits.classes) == ([3, 0], None)
    listed.write_text("a.png\n../far/b.png")
    assert images.read(str(listed), image_size=8).train.labels() is None


# Scans


def test_a_long_list_is_cached_until_a_folder_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "CACHED_FROM", 3)
    walks = []
    walk = listing._walk
    monkeypatch.setattr(listing, "_walk", lambda *given: walks.append(given) or walk(*given))
    root = tmp_path / "all"

    def scanned():
        return [os.fsdecode(name) for name in listing.scan(root, (".png",))]

    def settle():
        for folder in (root, root / "a", root / "b"):
            os.utime(folder, ns=(10**18, folder.stat().st_mtime_ns - 10**10))

    for name in ("a/1.png", "a/2.png", "b/3.png"):
        save(root / name)
    assert scanned() == scanned() == ["a/1.png", "a/2.png", "b/3.png"]
    assert len(walks) == 2  # the folder might change again within the resolution of its time
    settle()
    assert scanned() == scanned() == ["a/1.png", "a/2.png", "b/3.png"]
    assert len(walks) == 3
    save(root / "b/0.png")
    assert scanned() == scanned() == ["a/1.png", "a/2.png", "b/0.png", "b/3.png"]
    settle()
    assert scanned() == scanned() == ["a/1.png", "a/2.png", "b/0.png", "b/3.png"]
    assert len(walks) == 6
    assert [os.fsdecode(name) for name in listing.scan(root, (".jpg",))] == []  # another list
    [kept] = (tmp_path / "cache/pcjax/images").glob("*.npz")
    for damaged in (kept.read_bytes()[:-30], b"", b"PK no archive"):
        kept.write_bytes(damaged)
        assert scanned() == ["a/1.png", "a/2.png", "b/0.png", "b/3.png"]
        assert len(kept.read_bytes()) > 100
    (root / "a/1.png").unlink()
    (root / "a/2.png").unlink()
    (root / "a").rmdir()
    assert scanned() == ["b/0.png", "b/3.png"]


def test_names_are_kept_as_they_are():
    given = [b"a", b"", b"new\nline", b"\xff\x00", "é".encode()]
    packed = listing.Names.pack(given)
    assert packed.unpack() == [packed[row] for row in range(len(packed))] == given
    assert listing.Names.pack([]).unpack() == []


def test_the_fingerprint_is_of_names_contents_labels_and_size(tmp_path):
    def fingerprint(folder, **options):
        return images.read(
            str(tmp_path / folder), **({"image_size": 8} | options)
        ).train.fingerprint

    for folder in ("one", "copy", "renamed", "changed"):
        for name in ("a/1.png", "b/2.png"):
            save(tmp_path / folder / name)
    (tmp_path / "renamed/b/2.png").rename(tmp_path / "renamed/b/3.png")
    save(tmp_path / "changed/b/2.png", picture(99))
    os.utime(tmp_path / "copy/a/1.png", (1, 1))
    assert fingerprint("one") == fingerprint("copy")
    assert fingerprint("one", image_labels="folders") != fingerprint("one")
    others = [fingerprint("renamed"), fingerprint("changed"), fingerprint("one", image_size=9)]
    assert len({fingerprint("one"), *others}) == 4


def test_a_class_that_is_called_like_a_split_is_refused(tmp_path):
    for name in ("train/a.png", "car/b.png", "bus/c.png"):
        save(tmp_path / name)
    assert len(images.read(str(tmp_path), image_size=8).train) == 3
    with pytest.raises(ValueError, match="'train' is a split and 'bus' a class"):
        images.read(str(tmp_path), image_size=8, image_labels="folders")


@pytest.mark.parametrize("kind", ["files", "tar", "parquet"])
def test_of_many_pictures_the_time_of_change_counts(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(f"pcjax.data.{'images' if kind == 'files' else 'shards'}.ENCODED_WHOLE", 9)
    content = encoded(picture(), "PNG")
    if kind == "files":
        path = tmp_path / "a.png"
        path.write_bytes(content)
    elif kind == "tar":
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("a.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = tmp_path / "x.parquet"
        parquet.write_table(pa.table({"image": [content]}), path)
    prints = []
    for time in (1, 1, 2):
        os.utime(path, (time, time))
        prints.append(images.read(str(tmp_path), image_size=2).train.fingerprint)
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("kind", ["files", "tar", "parquet"])
def test_one_pixel_of_one_of_many_pictures_changes_the_fingerprint(tmp_path, kind):
    def contents(value):
        colours = [(row % 256, row // 256, 0) for row in range(1100)]
        colours[896] = (128, 3, value)  # a sample of 1,024 leaves it out
        files = {}
        for row, colour in enumerate(colours):
            content = io.BytesIO()
            Image.new("RGB", (2, 2), colour).save(content, "bmp")
            files[f"{row:04}.png"] = content.getvalue()  # read as it is, whatever its name
        return files

    def fingerprint(value):
        root = tmp_path / str(value)
        root.mkdir()
        files = contents(value)
        if kind == "files":
            for name, content in files.items():
                (root / name).write_bytes(content)
        elif kind == "tar":
            with tarfile.open(root / "x.tar", "w") as tar:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        else:
            pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            table = pa.table({"image": [*files.values()]})
            parquet.write_table(table, root / "x.parquet", row_group_size=550)
        return images.read(str(root), image_size=2).train.fingerprint

    assert fingerprint(0) != fingerprint(1)


# Batches


@pytest.fixture
def forty(tmp_path):
    for number in range(40):
        size = (20 + number, 33 - number % 5)
        save(tmp_path / f"forty/{number % 4}/{number:02}.jpg", picture(number, size))
    return f"images:{tmp_path / 'forty'}"


@pytest.mark.parametrize("in_memory", [2**30, 0])
def test_batches_are_the_same_in_memory_and_from_files(in_memory, forty, monkeypatch):
    monkeypatch.setattr(images, "IN_MEMORY", in_memory)
    data = load(forty, image_size=16, image_labels="folders")
    everything = take(data.train)
    batches = training_batches(data.train, Sampling(8))
    for _ in range(6):
        batch = next(batches)
        assert np.allclose(batch["image"] * 255, everything[batch["index"]], atol=1e-3)
        assert np.array_equal(batch["label"], data.train.labels[batch["index"]])
    batches.close()
    seen = [*evaluation_batches(data.test, batch=5)]
    pixels = np.concatenate([batch["image"][batch["mask"]] for batch in seen])
    assert np.allclose(pixels * 255, take(data.test), atol=1e-3)


def test_files_are_read_once_where_they_fit_into_memory(forty, monkeypatch):
    reads = []
    read = images.Files.read
    monkeypatch.setattr(
        images.Files, "read", lambda self, row: reads.append(row) or read(self, row)
    )
    store = images.read(forty.partition(":")[2], image_size=16).train
    for rows in ([3, 4, 3], [4, 5], [3]):
        store.read(np.array(rows))
    assert sorted(reads) == [3, 4, 5]
    reads.clear()
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    store = images.read(forty.partition(":")[2], image_size=16).train
    pixels, _ = store.read(np.array([7, 7, 2, 7]))
    assert sorted(reads) == [2, 7]  # a padded batch repeats its last image
    assert np.array_equal(pixels[0], pixels[3])


def test_another_size_is_decoded_from_the_originals(forty):
    data = load(forty, image_size=8, image_labels="folders")
    data = Dataset(data.source, data.train, data.validation, data.test, data.test, "tokens")
    larger = sized(data, (20, 20, 3))
    assert sized(data, (8, 8, 3)) is data
    assert (larger.train.shape, larger.vocabulary) == ((20, 20, 3), "tokens")
    assert len({id(part.store) for part in larger.parts.values()}) == 1
    direct = load(forty, image_size=20, image_labels="folders")
    for name in ("train", "validation", "test"):
        part, expected = larger.parts[name], direct.parts[name]
        assert np.array_equal(take(part), take(expected))
        assert np.array_equal(part.labels, expected.labels)
        assert part.fingerprint == expected.fingerprint != data.parts[name].fingerprint
    assert np.array_equal(take(larger.unseen), take(larger.test))
    blurred = take(fitted(data, (20, 20, 3)).test).astype(int)
    assert np.abs(blurred - take(larger.test)).mean() > 1
    grey = sized(data, (20, 20, 1))
    luminance = take(larger.test) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(take(grey.test)[..., 0] - luminance).max() <= 0.6
    assert sized(data, (10, 20, 3)).train.shape == (10, 20, 3)


# Broken files


def folder_with_broken(folder, good, broken):
    """Write images of which the first one and the last ones are good."""
    for number in range(good + broken):
        save(folder / f"{number:03}.png", picture(number))
    for number in range(min(good, 1), min(good, 1) + broken):
        path = folder / f"{number:03}.png"
        path.write_bytes(path.read_bytes()[:60])
    return images.read(str(folder), image_size=8).train


@pytest.mark.parametrize("in_memory", [2**30, 0])
def test_a_neighbour_takes_the_place_of_a_broken_image(in_memory, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "IN_MEMORY", in_memory)
    store = folder_with_broken(tmp_path / "all", 18, 2)
    first = store.read(np.array([2, 1, 0, 3]))[0]
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(first[1], first[2])
    assert not np.array_equal(first[3], first[2])
    larger = store.at_size(12)
    assert np.array_equal(*larger.read(np.array([0, 2]))[0])
    lines = [record.getMessage() for record in caplog.records]
    assert sorted(line.partition(":")[0] for line in lines) == [
        str(tmp_path / "all/001.png"),
        str(tmp_path / "all/002.png"),
    ]
    assert all(line.endswith("; a neighbour takes its place") for line in lines)
    again = images.read(str(tmp_path / "all"), image_size=8).train
    assert np.array_equal(again.read(np.arange(4))[0], first[[2, 1, 0, 3]])
    assert again.fingerprint == store.fingerprint


def test_the_neighbour_is_of_the_same_class(tmp_path):
    for name in ("a/0.png", "b/1.png", "b/2.png", "b/3.png", "c/4.png"):
        save(tmp_path / "all" / name)
    for name in ("b/1.png", "c/4.png"):
        (tmp_path / "all" / name).write_text("no image")
    store = images.read(str(tmp_path / "all"), image_size=8, image_labels="folders").train
    pixels, labels = store.read(np.arange(5))
    assert labels.tolist() == [0, 1, 1, 1, 2]
    assert np.array_equal(pixels[1], pixels[3])  # none before it, so the last one
    assert np.array_equal(pixels[4], pixels[3])  # none of its class


@pytest.mark.parametrize(("good", "broken", "limit"), [(14, 11, 10), (3, 4, 3), (0, 1, 0)])
def test_too_many_broken_images_are_an_error(good, broken, limit, tmp_path, caplog):
    store = folder_with_broken(tmp_path / "all", good, broken)
    with pytest.raises(ValueError, match=f"more than {limit} of {good + broken} images") as refusal:
        store.read(np.arange(len(store)))
    assert "all/00" in str(refusal.value)
    assert "remove or replace them" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=f"more than {limit} of"):
        store.at_size(9).read(np.arange(len(store)))
    assert len(caplog.records) <= 10


def test_missing_and_strange_files_are_broken(tmp_path, caplog):
    save(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    lines = ["a.png", "gone.png", "folder.png", "pipe.png", "a.png/b.png", "a.png"]
    (tmp_path / "x.txt").write_text("\n".join(lines * 2))
    store = images.read(str(tmp_path / "x.txt"), image_size=8).train
    caplog.set_level(logging.WARNING)
    pixels = store.read(np.array([1, 2, 3]))[0]
    assert (pixels == store.read(np.array([0]))[0]).all()
    reasons = sorted(record.getMessage() for record in caplog.records)
    assert [reason.rpartition("/")[2] for reason in reasons] == [
        "folder.png: it is no file; a neighbour takes its place",
        "gone.png: No such file or directory; a neighbour takes its place",
        "pipe.png: it is no file; a neighbour takes its place",
    ]


def test_an_error_of_the_disk_is_no_broken_image(tmp_path, monkeypatch):
    store = folder_with_broken(tmp_path / "all", 4, 0)

    def fails(self, row):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(images.Files, "read", fails)
    with pytest.raises(OSError, match=r"Input/output error: .*all/000\.png"):
        store.read(np.array([0]))


# Refusals


def test_paths_without_images_are_refused(tmp_path):
    save(tmp_path / "test/a.png")
    save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text("text")
    files = {
        "prose.txt": "It is a truth\nuniversally acknowledged\n",
        "empty.txt": "\n \n",
        "long.txt": "x" * 99_999,
        "zero.txt": "a.png\0",
        "x.csv": "a.png",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for path, reason in {
        "nothing": "nothing: no such file or folder; expected images",
        "empty": r"no file under this folder ends with \.jpg, .*\.tiff; with none of them, exp",
        "texts": r"no file under this folder ends with \.jpg",
        "prose.txt": "It is a truth is no file: expected a list of images, one a line",
        "empty.txt": "there are no training images; give a folder or file with some",
        "long.txt": "line 1 is no path: expected a list of images",
        "zero.txt": "line 1 is no path: expected a list of images",
        "x.csv": r"x\.csv: expected a folder, or a \.txt, \.parquet or \.tar file",
    }.items():
        with pytest.raises(ValueError, match=reason) as refusal:
            load(f"images:{tmp_path / path}", image_size=8)
        assert "\n" not in str(refusal.value)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="there are no training images; give a folder or file"):
        load(f"images:{tmp_path}", image_size=8)


@pytest.mark.bad_input
def test_options_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a.png")
    for path, options, reason in (
        ("", {"image_size": None}, "images differ in size: give image_size"),
        ("", {"image_size": 0}, "got image_size 0: expected an integer of at least 1"),
        (
            "",
            {"image_labels": "names"},
            "got image_labels 'names': expected 'folders', or leave it",
        ),
        ("", {"image_labels": "folders"}, "there are no sub-folders of images: leave it out"),
        ("", {"label_column": "y"}, "only parquet files take label_column; leave it out"),
        ("a.txt", {"label_column": "y"}, "only parquet files take label_column; leave it out"),
        ("a.txt", {"image_labels": "folders"}, "only a folder of images takes image_labels; leave"),
        ("", {"text_column": "y"}, "takes no text_column; remove text_column='y'"),
    ):
        with pytest.raises(ValueError, match=reason) as refusal:
            load(f"images:{tmp_path / path}", **({"image_size": 8} | options))
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="'digits' takes no image_labels; remove"):
        load("digits", image_labels="folders")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    save(tmp_path / "all/a.png")

    def refuses(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuses)
    with pytest.raises(
        ValueError, match=r"all cannot be listed \(Permission denied\): make it rea"
    ):
        images.read(str(tmp_path / "all"), image_size=8)
