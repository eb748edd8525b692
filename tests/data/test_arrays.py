"""NumPy files: every layout is read, and every kind of damage is refused in one line."""

import io
import re
import zipfile

import numpy as np
import pytest

from pcjax.data import arrays, examples, load, statistics

RANDOM = np.random.default_rng(2)
IMAGES = RANDOM.integers(0, 255, size=(30, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3
FEATURES = RANDOM.normal(size=(30, 6)).astype(np.float32)


def everything(part):
    return part.take(np.arange(len(part)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("image_key", "label_key"), [("images", "labels"), ("x", "y"), ("features", "labels")]
)
def test_a_file_of_everything(save, image_key, label_key, tmp_path):
    path = tmp_path / "data.npz"
    rest = {f"test_{image_key}": IMAGES[:7], f"test_{label_key}": LABELS[:7].astype(np.uint8)}
    save(path, **{image_key: IMAGES, label_key: LABELS}, **rest, classes=np.array(["a", "b", "ü"]))
    data = load(f"arrays:{path}", validation=0.2)
    assert data.source == f"arrays:{path}"
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 7)
    assert data.train.classes == ("a", "b", "ü")
    assert np.array_equal(everything(data.test), IMAGES[:7])
    assert np.array_equal(data.test.labels, LABELS[:7])
    for part in (data.train, data.validation):
        assert np.array_equal(everything(part), IMAGES[part.rows])
        assert np.array_equal(part.labels, LABELS[part.rows])
        assert part.labels.dtype == np.int32


def test_validation_examples_of_its_own_are_used(tmp_path):
    np.savez(tmp_path / "data.npz", x=FEATURES, validation_x=FEATURES[:3], test_x=FEATURES[:2])
    data = load(f"arrays:{tmp_path / 'data.npz'}")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 3, 2)
    assert data.train.labels is None


def test_a_folder(tmp_path):
    np.savez(tmp_path / "train.npz", x=FEATURES, y=LABELS)
    data = load(f"arrays:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (22, 2, 6)
    np.save(tmp_path / "test.npy", FEATURES[:4])
    np.savez(tmp_path / "validation.npz", x=FEATURES[:5], y=LABELS[:5])
    data = load(f"arrays:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 5, 4)
    assert data.test.labels is None
    assert np.array_equal(everything(data.test), FEATURES[:4])


def test_one_array_is_mapped(tmp_path):
    for name, given in (("c", FEATURES), ("fortran", np.asfortranarray(FEATURES))):
        np.save(tmp_path / f"{name}.npy", given)
        data = load(f"arrays:{tmp_path / name}.npy")
        assert isinstance(data.train.store.images, np.memmap)
        assert type(everything(data.train)) is np.ndarray
        assert np.array_equal(everything(data.train), FEATURES[data.train.rows])
        assert len(data.train) + len(data.validation) + len(data.test) == 30


def test_large_uncompressed_members_are_mapped(tmp_path, monkeypatch):
    path = tmp_path / "data.npz"
    np.savez(path, images=IMAGES, labels=LABELS, test_images=np.asfortranarray(IMAGES[:7]))
    expected = load(f"arrays:{path}")
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    data = load(f"arrays:{path}")
    for part, other in ((data.train, expected.train), (data.test, expected.test)):
        assert isinstance(part.store.images, np.memmap)
        assert not isinstance(other.store.images, np.memmap)
        assert np.array_equal(everything(part), everything(other))
        assert part.fingerprint == other.fingerprint


def test_a_mapped_member_is_as_long_as_its_header_says(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "IN_MEMORY", 100)
    buffer = io.BytesIO()
    np.save(buffer, FEATURES)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue()[:-400])
        archive.writestr("y.npy", buffer.getvalue())
    with pytest.raises(
        ValueError, match=r"'x': cannot be read \(its header claims 848 bytes, and it has 448\)"
    ):
        load(f"arrays:{tmp_path / 'data.npz'}")
    np.savez(tmp_path / "data.npz", x=np.full((30, 9), None))
    with pytest.raises(ValueError, match="objects are refused"):
        load(f"arrays:{tmp_path / 'data.npz'}")


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        ("u1", "u1"),
        ("f2", "f2"),
        ("f4", "f4"),
        ("f8", "f8"),
        (">f4", ">f4"),
        ("i8", "f4"),
        ("u2", "f4"),
        ("i1", "f4"),
    ],
)
def test_kinds_of_numbers(dtype, read_as, tmp_path):
    np.save(tmp_path / "x.npy", IMAGES[:, 0, 0].astype(dtype))
    train = load(f"arrays:{tmp_path / 'x.npy'}").train
    assert train.dtype == everything(train).dtype == np.dtype(read_as)
    assert np.array_equal(everything(train), IMAGES[train.rows, 0, 0].astype(dtype))
    assert np.isfinite(statistics(train)).all()


def test_grey_images_get_a_channel(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES[..., 0])
    train = load(f"arrays:{tmp_path / 'x.npy'}").train
    assert train.shape == (4, 5, 1)
    assert np.array_equal(everything(train)[..., 0], IMAGES[train.rows, ..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("lazy", [False, True])
def test_images_are_resized_and_their_middle_is_cut_out(dtype, lazy, tmp_path, monkeypatch):
    # 8 x 12: four blocks of 4 x 4, and two columns on each side. Half the middle's size is 4 x 4.
    blocks = np.kron([[10, 20], [30, 40]], np.ones((4, 4)))
    image = np.pad(blocks, ((0, 0), (2, 2)), mode="edge")[..., None]
    np.savez(tmp_path / "x.npz", x=np.tile(image, (9, 1, 1, 1)).astype(dtype), y=np.arange(9) % 2)
    source = f"arrays:{tmp_path / 'x.npz'}"
    if lazy:
        monkeypatch.setattr(arrays, "IN_MEMORY", 0)
    data = load(source, image_size=4, validation=0.0)
    assert isinstance(data.train.store, examples.Arrays) != lazy
    images = everything(data.train)
    assert data.train.shape == images.shape[1:] == (4, 4, 1)
    assert data.train.dtype == images.dtype == dtype
    assert np.allclose(images[:, ::3, ::3, 0], [[10, 20], [30, 40]])
    assert np.allclose(images[:, 1, 1, 0], 14 if dtype == np.uint8 else 13.75)
    assert np.array_equal(data.train.labels, data.train.rows % 2)
    assert load(source, image_size=2, validation=0.0).train.fingerprint != data.train.fingerprint
    np.save(tmp_path / "x.npy", FEATURES)
    with pytest.raises(ValueError, match=r"holds features \(6,\), no images: remove image_size=4"):
        load(f"arrays:{tmp_path / 'x.npy'}", image_size=4)


def test_a_label_may_be_unknown(tmp_path):
    np.savez(tmp_path / "data.npz", x=FEATURES, y=np.where(LABELS == 2, -1, LABELS))
    assert set(load(f"arrays:{tmp_path / 'data.npz'}").train.labels) == {-1, 0, 1}


def test_infinity_is_found_wherever_the_examples_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "IN_MEMORY", FEATURES.nbytes)
    features = FEATURES.copy()
    features[17, 2] = np.inf
    np.save(tmp_path / "x.npy", features)
    with pytest.raises(ValueError, match="first in example 17"):
        load(f"arrays:{tmp_path / 'x.npy'}")


# Damage: (name of the file, function that writes it, part of the error)
def npz(**members):
    return lambda path: np.savez(path, **members)


def compressed(**members):
    return lambda path: np.savez_compressed(path, **members)


def npy(array):
    return lambda path: np.save(path, array, allow_pickle=True)


def cut(write, keep):
    def cut_write(path):
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return cut_write


def flipped(write, where):
    """Flip one bit."""

    def flipped_write(path):
        write(path)
        content = bytearray(path.read_bytes())
        content[int(len(content) * where)] ^= 1
        path.write_bytes(content)

    return flipped_write


def shortened(write):
    """Let the header claim fewer examples than the file has."""

    def shortened_write(path):
        write(path)
        content = path.read_bytes()
        assert content.count(b"(3000, 6)") == 1
        path.write_bytes(content.replace(b"(3000, 6)", b"(2000, 6)"))

    return shortened_write


def raw_member(content):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)

    return write


WRONG_SHAPE = "expected (n, height, width, channels), (n, height, width) or (n, features)"
TALL = np.tile(FEATURES, (100, 1))
nan = FEATURES.copy()
nan[4, 1] = np.nan
BAD = {
    "none at all": (
        "x.npy",
        lambda path: None,
        "no such file or folder: expected a .npz or .npy file, or a folder",
    ),
    "another kind": (
        "x.csv",
        lambda path: path.write_text("1,2"),
        "expected a file named .npz or .npy",
    ),
    "empty": ("x.npy", lambda path: path.write_bytes(b""), "cannot be read (EOF"),
    "not an array": (
        "x.npy",
        lambda path: path.write_bytes(b"hello, world" * 9),
        "cannot be read (the magic string",
    ),
    "objects": (
        "x.npy",
        npy(np.array([{}, 1])),
        "objects are refused, save it with a dtype of numbers",
    ),
    "objects within": (
        "x.npz",
        npz(x=np.array([[1], [2, 3]], object)),
        "objects are refused, save it with a dtype",
    ),
    "a pickle": (
        "x.npy",
        lambda path: path.write_bytes(b"\x80\x04K\x01." + b" " * 99),
        "cannot be read",
    ),
    "truncated": (
        "x.npy",
        cut(npy(FEATURES), 0.6),
        "cannot be read (its header claims 848 bytes, and it has 508)",
    ),
    "truncated header": ("x.npy", cut(npy(FEATURES), 0.05), "cannot be read (EOF"),
    "truncated archive": (
        "x.npz",
        cut(npz(x=FEATURES), 0.7),
        "cannot be read (File is not a zip file)",
    ),
    "not an archive": (
        "x.npz",
        lambda path: path.write_bytes(b"hello"),
        "cannot be read (File is not a zip file)",
    ),
    "one bit flipped in what is compressed": (
        "x.npz",
        flipped(compressed(x=IMAGES), 0.5),
        "cannot be read (",
    ),
    "one bit flipped": (
        "x.npz",
        flipped(npz(x=FEATURES), 0.5),
        "cannot be read (Bad CRC-32 for file 'x.npy')",
    ),
    "a shorter header": (
        "x.npy",
        shortened(npy(TALL)),
        "cannot be read (its header claims 48128 bytes, and it has 72128)",
    ),
    "a shorter header within": (
        "x.npz",
        shortened(npz(x=TALL)),
        "cannot be read (its header claims 48128 bytes, and it has 72128)",
    ),
    "bad header": (
        "x.npz",
        raw_member(b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"),
        "cannot be read",
    ),
    "huge header": (
        "x.npz",
        raw_member(
            b"\x93NUMPY\x01\x00\x46\x00"
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999,)}"
        ),
        "cannot be read",
    ),
    "no array": ("x.npz", npz(), "has the arrays none: expected one of"),
    "no examples": (
        "x.npz",
        npz(y=LABELS),
        "has the arrays 'y': expected one of 'images', 'features', 'x'",
    ),
    "no training examples": (
        "x.npz",
        npz(test_x=FEATURES),
        "has the arrays 'test_x': expected one of",
    ),
    "two of them": (
        "x.npz",
        npz(x=FEATURES, images=IMAGES),
        "has the arrays 'x', 'images': expected one of",
    ),
    "a misspelt name": (
        "x.npz",
        npz(x=FEATURES, test_image=IMAGES),
        "unknown arrays 'test_image': expected",
    ),
    "text": (
        "x.npy",
        npy(np.array([["a", "b"]])),
        "'images' has dtype <U1: expected integers or floats, convert it",
    ),
    "complex numbers": (
        "x.npz",
        npz(x=FEATURES * 1j),
        "'x' has dtype complex64: expected integers or floats",
    ),
    "booleans": ("x.npz", npz(x=FEATURES > 0), "'x' has dtype bool: expected integers or floats"),
    "records": ("x.npy", npy(np.zeros(3, "f4,i4")), "expected integers or floats"),
    "one number": ("x.npy", npy(np.float32(1)), f"'images' has shape (): {WRONG_SHAPE}"),
    "one axis": ("x.npy", npy(FEATURES[0]), f"'images' has shape (6,): {WRONG_SHAPE}"),
    "five axes": (
        "x.npy",
        npy(IMAGES[None]),
        f"'images' has shape (1, 30, 4, 5, 3): {WRONG_SHAPE}",
    ),
    "nobody": (
        "x.npy",
        npy(FEATURES[:0]),
        f"'images' has shape (0, 6): {WRONG_SHAPE}, none of them 0",
    ),
    "not a number": (
        "x.npz",
        npz(x=nan),
        "'x' holds NaN, or infinity in float32, first in example 4: leave such",
    ),
    "too large": ("x.npy", npy(np.full((3, 2), 1e300)), "infinity in float32, first in example 0"),
    "too few labels": (
        "x.npz",
        npz(x=FEATURES, y=LABELS[:9]),
        "'y' has shape (9,): expected a label an example, (30,)",
    ),
    "labels as columns": (
        "x.npz",
        npz(x=FEATURES, y=np.eye(30)),
        "'y' has shape (30, 30): expected a label",
    ),
    "labels with fractions": (
        "x.npz",
        npz(x=FEATURES, y=LABELS / 2),
        "'y' has dtype float64: expected integers",
    ),
    "labels as text": (
        "x.npz",
        npz(x=FEATURES, y=LABELS.astype(str)),
        "expected integers, number the classes from 0",
    ),
    "labels below -1": (
        "x.npz",
        npz(x=FEATURES, y=LABELS - 2),
        "'y' goes from -2 to 0: expected classes numbered",
    ),
    "labels above all": (
        "x.npz",
        npz(x=FEATURES, y=LABELS + 2**40),
        "expected classes numbered from 0",
    ),
    "labels that are ids": (
        "x.npz",
        npz(x=FEATURES, y=LABELS + 2 * 10**9),
        "classes numbered from 0, below 1048576",
    ),
    "labels twice": (
        "x.npz",
        npz(x=FEATURES, y=LABELS, labels=LABELS),
        "expected labels once, leave one of them",
    ),
    "too few names": (
        "x.npz",
        npz(x=FEATURES, y=LABELS, classes=np.array(["a", "b"])),
        "2 classes and a label 2",
    ),
    "names in numbers": (
        "x.npz",
        npz(x=FEATURES, classes=np.arange(3)),
        "'classes' is int64 (3,): expected names",
    ),
    "another shape": (
        "x.npz",
        npz(x=FEATURES, test_x=FEATURES[:, :2]),
        "test examples are float32 (2,), those for",
    ),
    "another dtype": (
        "x.npz",
        npz(x=IMAGES, test_x=IMAGES / 255),
        "test examples are float64 (4, 5, 3), those for",
    ),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_damaged_file_is_refused_in_one_line_with_its_name(wrong, tmp_path):
    name, write, message = BAD[wrong]
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load(f"arrays:{path}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) * 2 + 250


def test_a_damaged_folder_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"no train.npz in this folder: expected one, with \"images\""
    ):
        load(f"arrays:{tmp_path}")
    np.save(tmp_path / "train.npy", FEATURES)
    np.savez(tmp_path / "test.npz", x=FEATURES, test_x=FEATURES)
    with pytest.raises(ValueError, match=r"test.npz: unknown arrays 'test_x'"):
        load(f"arrays:{tmp_path}")
    np.savez(tmp_path / "train.npz", x=FEATURES)
    with pytest.raises(ValueError, match=r"both train.npz and train.npy: leave one of them"):
        load(f"arrays:{tmp_path}")
