"""Images from tar shards and parquet files: the bytes that were put in, wherever they lie."""

import io
import os
import sys
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from pcjax.data import images, load, pictures, shards

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(seed, kind="PNG"):
    """Return the bytes of a random picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_parquet(path, contents, struct=False, rows=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    if struct:
        contents = [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)]
    table = pyarrow.table({"image": contents} | columns)
    parquet.write_table(table, path, row_group_size=rows)


def check(store, seeds):
    """Compare all images, read in another order, with those of these seeds."""
    order = np.random.default_rng(0).permutation(len(seeds))
    expected = [pictures.decoded(encoded(seeds[row]), 8) for row in order]
    assert np.array_equal(store.read(order)[0], expected)
    assert len(store) == len(seeds)


# Tar


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_images_with_their_labels(kind, tmp_path):
    deep = "a/" * 40 + "é"
    members = [
        ("./000.png", encoded(0)),
        ("./000.cls", b"7\n"),
        ("sub.dir/b.x.png", b"another file of b"),
        ("sub.dir/b.PNG", encoded(1)),
        ("000.json", b"{}"),
        (f"{deep}.cls", b"2"),
        (f"{deep}.png", encoded(2)),
        (".hidden.png", b"no image"),
    ]
    write_tar(tmp_path / "x.tar", members, kind)
    for path in (tmp_path / "x.tar", tmp_path):
        splits = images.read(str(path), image_size=8)
        check(splits.train, [0, 1, 2])
        assert splits.train.labels().tolist() == [7, -1, 2]
        assert splits.classes is None
        assert splits.train.encoded.name(1) == f"{tmp_path}/x.tar: sub.dir/b.PNG"


def test_other_members_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (
            ("folder.png", tarfile.DIRTYPE),
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("device.png", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    with pytest.raises(ValueError, match="there are no training images"):
        images.read(str(tmp_path), image_size=8)


def test_shards_have_splits_by_folder_or_name(tmp_path):
    names = ["train/0.tar", "imagenet1k-train-0001.tar", "val/2.tar", "mine_test_3.tar", "4.tar"]
    names += ["x-validation-05-of-06.tar", "latest.tar"]
    for seed, name in enumerate(names):
        write_tar(tmp_path / name, [("a.png", encoded(seed)), ("a.cls", b"owl")])
    splits = images.read(str(tmp_path), image_size=8)
    check(splits.train, [4, 1, 6, 0])
    check(splits.validation, [2, 5])
    check(splits.test, [3])
    assert splits.classes == ("owl",)
    assert splits.test.labels().tolist() == [0]
    single = load(f"images:{tmp_path}/mine_test_3.tar", image_size=8, validation=0.0)
    assert (len(single.train), len(single.test)) == (1, 0)


def test_an_index_is_cached_until_a_shard_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CACHED_FROM", 2)
    read = []
    index = shards._index
    monkeypatch.setattr(shards, "_index", lambda path: read.append(path.name) or index(path))
    for shard in (0, 1):
        members = [(f"{n}.png", encoded(10 * shard + n)) for n in range(3)]
        write_tar(tmp_path / f"{shard}.tar", [*members, ("1.cls", b"\xc3\xa9")])
    for _ in range(2):
        splits = images.read(str(tmp_path), image_size=8)
        check(splits.train, [0, 1, 2, 10, 11, 12])
        assert splits.train.labels().tolist() == [-1, 0, -1, -1, 0, -1]
        assert splits.classes == ("é",)
        assert read == ["0.tar", "1.tar"]
    write_tar(tmp_path / "1.tar", [("5.png", encoded(5))])
    splits = images.read(str(tmp_path), image_size=8)
    check(splits.train, [0, 1, 2, 5])
    assert len(read) == 4


def test_a_tar_is_read_in_place(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", [("../../up.png", encoded(0)), ("/abs.png", encoded(1))])
    before = sorted(os.walk(tmp_path))
    check(images.read(str(tmp_path / "x.tar"), image_size=8).train, [0, 1])
    assert sorted(os.walk(tmp_path)) == before


def test_faults_of_tars_are_refused_in_one_line(tmp_path):
    write_tar(tmp_path / "good.tar", [("a.png", encoded(0)), ("b.png", encoded(1))])
    good = (tmp_path / "good.tar").read_bytes()
    huge = bytearray(good)
    huge[124:136] = b"77777777777\0"  # the size of the first member
    huge[148:156] = f"{sum(huge[:148]) + 8 * 32 + sum(huge[156:512]):06o}\0 ".encode()
    negative = bytearray(good)
    negative[124:136] = b"\xff" * 12
    total = sum(negative[:148]) + 8 * 32 + sum(negative[156:512])
    negative[148:156] = f"{total:06o}\0 ".encode()
    compressed = io.BytesIO()
    with tarfile.open(fileobj=compressed, mode="w:gz") as tar:
        tar.add(tmp_path / "good.tar", "a.png")
    latin = io.BytesIO()
    with tarfile.open(fileobj=latin, mode="w") as tar:
        info = tarfile.TarInfo("a.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"\xff"))
    for content, reason in {
        good[:600]: "cannot be read after 0 images .*: write it again, without compression",
        good[:1600]: r"cannot be read after 1 images \(unexpected end of data\)",
        bytes(huge): "cannot be read after 0 images",
        bytes(negative): "cannot be read after 0 images",
        compressed.getvalue(): "cannot be read after 0 images",
        b"no tar" * 200: "cannot be read after 0 images",
        latin.getvalue(): r"a \.cls member is not UTF-8",
        b"": "cannot be read after 0 images|there are no training images",
        bytes(10240): "there are no training images",
    }.items():
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(ValueError, match=reason) as refusal:
            images.read(str(tmp_path / "x.tar"), image_size=8)
        assert str(tmp_path / "x.tar") in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_the_fingerprint_of_a_tar_is_of_its_members(tmp_path):
    def fingerprint(folder, members):
        write_tar(tmp_path / folder / "x.tar", members)
        return images.read(str(tmp_path / folder), image_size=8).train.fingerprint

    one, two = ("a.png", encoded(0)), ("b.png", encoded(1))
    first = fingerprint("one", [one, two])
    assert fingerprint("copy", [one, two]) == first
    others = [[two, one], [one], [one, ("c.png", encoded(1))], [one, ("b.png", encoded(2))]]
    others += [[one, two, ("b.cls", b"1")]]
    assert len({first, *(fingerprint("two", members) for members in others)}) == 6


# Parquet


@pytest.mark.parametrize("struct", [False, True])
@pytest.mark.parametrize("rows", [None, 3])
def test_columns_of_bytes_are_read_back(struct, rows, tmp_path):
    for shard, split in enumerate(("train", "test")):
        for part in (0, 1):
            seeds = [20 * shard + 10 * part + n for n in range(7)]
            path = tmp_path / f"data/{split}-0000{part}-of-00002.parquet"
            write_parquet(path, map_list(seeds), struct, rows, label=seeds, other=["x"] * 7)
    splits = images.read(str(tmp_path), image_size=8)
    check(splits.train, [*range(7), *range(10, 17)])
    check(splits.test, [*range(20, 27), *range(30, 37)])
    assert (splits.train.labels(), splits.classes) == (None, None)
    name = splits.train.encoded.name(11)
    assert name == f"{tmp_path}/data/train-00001-of-00002.parquet: row 4"
    labelled = images.read(str(tmp_path), image_size=8, label_column="label")
    assert labelled.train.labels().tolist() == [*range(7), *range(10, 17)]
    assert labelled.train.fingerprint != splits.train.fingerprint != splits.test.fingerprint


def map_list(seeds):
    return [encoded(seed) for seed in seeds]


def test_names_of_classes_in_parquet(tmp_path):
    write_parquet(tmp_path / "x.parquet", map_list(range(3)), kind=["owl", None, "cat"])
    splits = images.read(str(tmp_path / "x.parquet"), image_size=8, label_column="kind")
    assert splits.classes == ("cat", "owl")
    assert splits.train.labels().tolist() == [1, -1, 0]


def test_row_groups_used_last_stay_in_memory(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", map_list(range(12)), rows=3)
    loads = []
    load_group = shards.Column._load
    counting = lambda self, group: loads.append(group) or load_group(self, group)
    monkeypatch.setattr(shards.Column, "_load", counting)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    store = images.read(str(tmp_path / "x.parquet"), image_size=8).train
    for _ in range(2):
        check(store, range(12))
    assert sorted(loads) == [0, 1, 2, 3]
    # room for two of the four
    monkeypatch.setattr(shards, "GROUPS_BYTES", int(store.encoded._groups[:2, 3].sum()) + 9)
    loads.clear()
    store.encoded._loaded.clear()
    for row in (0, 3, 0, 6, 0, 3, 9):
        assert store.encoded.read(row) == encoded(row)
        assert len(store.encoded._loaded) <= 2
    assert loads == [0, 1, 2, 1, 3]


def test_threads_read_a_row_group_once(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", map_list(range(8)))
    column = images.read(str(tmp_path / "x.parquet"), image_size=8).train.encoded
    loads, started = [], threading.Event()
    load_group = shards.Column._load

    def slowly(self, group):
        loads.append(group)
        assert started.wait(10)
        return load_group(self, group)

    monkeypatch.setattr(shards.Column, "_load", slowly)
    contents = {}
    threads = [
        threading.Thread(target=lambda row=row: contents.update({row: column.read(row)}))
        for row in range(4)
    ]
    for thread in threads:
        thread.start()
    started.set()
    for thread in threads:
        thread.join(10)
    assert loads == [0]
    assert contents == {row: encoded(row) for row in range(4)}


def test_rows_without_an_image_are_broken(tmp_path, caplog):
    for struct in (False, True):
        contents = [encoded(0), None, encoded(2), b"text", encoded(4)]
        write_parquet(tmp_path / "x.parquet", contents, struct)
        pixels, _ = images.read(str(tmp_path / "x.parquet"), image_size=8).train.read(np.arange(5))
        assert np.array_equal(pixels[1], pixels[0])
        assert np.array_equal(pixels[3], pixels[2])
    reasons = {record.getMessage().partition(": ")[2] for record in caplog.records}
    assert reasons == {
        "row 1: it holds no bytes; a neighbour takes its place",
        "row 3: it is no image; a neighbour takes its place",
    }


def test_faults_of_parquet_are_refused_in_one_line(tmp_path, monkeypatch):
    good = tmp_path / "good.parquet"
    write_parquet(good, map_list(range(4)), label=[0, 1, 2, 3])
    contents = {
        "cut": good.read_bytes()[:-9],
        "empty": b"",
        "text": b"PAR1 is how a parquet file begins",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    parquet.write_table(pyarrow.table({"picture": [b"x"]}), tmp_path / "column.parquet")
    write_parquet(tmp_path / "texts.parquet", ["a text"])
    write_parquet(tmp_path / "lists.parquet", [[1, 2]])
    write_parquet(tmp_path / "none.parquet", pyarrow.array([], pyarrow.binary()), label=[])
    write_parquet(tmp_path / "labels.parquet", [encoded(0)], label=[0.5])
    for name, reason in {
        "cut": "cannot be read: ",
        "empty": "cannot be read: ",
        "text": "cannot be read: ",
        "column": "has no column 'image': it has 'picture'$",
        "texts": "the column 'image' holds string: expected bytes, or a struct of bytes and path$",
        "lists": "the column 'image' holds list<.*: expected bytes",
        "none": "there are no training images",
        "labels": r"'label' must hold whole numbers or names, and it holds 0\.5",
    }.items():
        with pytest.raises(ValueError, match=reason) as refusal:
            images.read(str(tmp_path / f"{name}.parquet"), image_size=8, label_column="label")
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="has no column 'kind': it has 'image', 'label'"):
        images.read(str(good), image_size=8, label_column="kind")
    monkeypatch.setattr(shards, "MAX_GROUP", 1000)
    with pytest.raises(ValueError, match=r"row group 0 has .* write the file again with row gr"):
        images.read(str(good), image_size=8)


def test_a_damaged_row_group_is_named(tmp_path):
    write_parquet(tmp_path / "x.parquet", map_list(range(4)))
    store = images.read(str(tmp_path / "x.parquet"), image_size=8).train
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:40] = bytes(36)
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"more than 2 of 4 images .*x\.parquet cannot be read: "):
        store.read(np.arange(4))


def test_a_folder_of_tar_and_parquet_is_ambiguous(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.png", encoded(0))])
    write_parquet(tmp_path / "x.parquet", [encoded(1)])
    with pytest.raises(ValueError, match=r"expected either \.parquet or \.tar"):
        images.read(str(tmp_path), image_size=8)
    (tmp_path / "a.png").write_bytes(encoded(2))
    with pytest.raises(ValueError, match="1 images and 2 files of"):
        images.read(str(tmp_path), image_size=8)


def test_without_pyarrow_the_remedy_is_named(tmp_path, monkeypatch):
    write_parquet(tmp_path / "x.parquet", [encoded(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="needs pyarrow: `pip install pyarrow`"):
        images.read(str(tmp_path), image_size=8)


def test_the_fingerprint_of_parquet_is_of_contents(tmp_path):
    def fingerprint(folder, seeds, **options):
        write_parquet(tmp_path / folder / "x.parquet", map_list(seeds), **options)
        return images.read(str(tmp_path / folder), image_size=8).train.fingerprint

    first = fingerprint("one", [0, 1, 2])
    assert fingerprint("copy", [0, 1, 2]) == first
    others = [fingerprint("two", seeds) for seeds in ([0, 2, 1], [0, 1], [0, 1, 3])]
    assert len({first, *others}) == 4
