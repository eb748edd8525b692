"""Examples from NumPy's files. Nothing in them is executed, and what is wrong with one is said with its name."""

import math
import pathlib
import zipfile
from collections.abc import Collection
from typing import IO, Any

import numpy as np

from pcjax import _checks
from pcjax.data.examples import Arrays, Splits, blocks, sampled

IMAGES = ("images", "features", "x")
LABELS = ("labels", "y")
CLASSES = "classes"
PARTS = ("train", "validation", "test")
IN_MEMORY = 2**30  # bytes; larger arrays are mapped where the file allows it
LONGEST_HEADER = 10_000  # bytes, as NumPy has it
MOST_CLASSES = 2**20  # beyond, labels are not numbers of classes but of something else
EXPANDS = 100  # times; what is larger than IN_MEMORY and grows more than that is taken for an attack on the memory


def read(path: str) -> Splits:
    """The examples of a .npy file, a .npz file, or a folder with one such file for every part."""
    given = pathlib.Path(path).expanduser()
    if given.is_dir():
        files = {
            part: _only([given / f"{part}.npz", given / f"{part}.npy"], given) for part in PARTS
        }
        trained = files["train"] is not None
        _checks.require(
            trained, f"{given}: no train.npz in this folder: expected one, with {_keys()}"
        )
        members = {part: _members(file) for part, file in files.items() if file is not None}
        found = {part: _store(arrays, "", files[part]) for part, arrays in members.items()}
    else:
        _checks.require(
            given.is_file(),
            f"{given}: no such file or folder: expected a .npz or .npy file, or a folder",
        )
        members = {"train": _members(given, prefixes=("", "validation_", "test_"))}
        prefixes = {"train": "", "validation": "validation_", "test": "test_"}
        there = {
            part: p
            for part, p in prefixes.items()
            if any(key.startswith(p) for key in members["train"])
        }
        found = {
            part: _store(members["train"], prefix, given)
            for part, prefix in ({"train": ""} | there).items()
        }
    train = found["train"]
    for part, store in found.items():
        same = (store.shape, store.dtype) == (train.shape, train.dtype)
        got = f"{given}: {part} examples are {store.dtype} {store.shape}"
        _checks.require(
            same, f"{got}, those for training {train.dtype} {train.shape}: make them alike"
        )
    names = members["train"].get(CLASSES)
    classes = None if names is None else _classes(names, list(found.values()), given)
    return Splits(train, found.get("validation"), found.get("test"), classes)


def _keys() -> str:
    return f'"{IMAGES[0]}" (or {" or ".join(IMAGES[1:])}) and optionally "{LABELS[0]}" (or {LABELS[1]}) and "{CLASSES}"'


def _only(candidates: list[pathlib.Path], folder: pathlib.Path) -> pathlib.Path | None:
    there = [path for path in candidates if path.is_file()]
    for path in there:
        out = not path.resolve().is_relative_to(folder.resolve())
        _checks.require(
            not out,
            f"{path} is a symbolic link out of its folder: give the folder that it leads to",
        )
    names = " and ".join(path.name for path in there)
    _checks.require(len(there) < 2, f"{folder}: both {names}: leave one of them")
    return there[0] if there else None


def _members(path: pathlib.Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """The file's arrays by name; those of a .npy file are images."""
    suffix = path.suffix.lower()
    _checks.require(
        suffix in (".npy", ".npz"), f"{path}: expected a file named .npz or .npy, written by NumPy"
    )
    if suffix == ".npy":
        return {IMAGES[0]: _parsed(path, lambda: _file(path))}
    expected = {prefix + key for prefix in prefixes for key in (*IMAGES, *LABELS)} | {CLASSES}
    return members(
        path,
        expected,
        _keys() + (' and those with "test_" or "validation_" before' if len(prefixes) > 1 else ""),
    )


def members(path: pathlib.Path, expected: Collection[str], listed: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; others than the expected ones, as listed in words, are refused."""
    with _parsed(path, lambda: zipfile.ZipFile(path)) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        unknown = ", ".join(repr(name) for name in [*names][:9] if name not in expected)
        _checks.require(
            not unknown,
            f"{path}: unknown arrays {unknown}: expected {listed}, rename or leave out others",
        )
        once = len(names) == len(archive.infolist())
        _checks.require(once, f"{path}: an array stands in it twice: write the file again")
        return {
            name: _parsed(path, lambda info=info: _member(path, archive, info))
            for name, info in names.items()
        }


def _parsed(path: pathlib.Path, read: Any) -> Any:
    try:
        return read()
    except Exception as error:  # a damaged file makes NumPy and zipfile raise nearly anything
        objects = "pickle" in str(error) or "Python objects" in str(error)
        remedy = (
            "objects are refused, save it with a dtype of numbers"
            if objects
            else "write the file again"
        )
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _checks.RequestError(f"{path}: cannot be read ({reason}): {remedy}") from error


def _file(path: pathlib.Path) -> np.ndarray:
    with path.open("rb") as file:
        _header(file)
    array = np.lib.format.open_memmap(path, mode="r")
    if array.offset + array.nbytes != path.stat().st_size:
        raise ValueError("it is longer than its header says")
    return array


def _member(path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED and info.file_size > IN_MEMORY:
        return _mapped(path, info)
    if info.file_size > max(IN_MEMORY, EXPANDS * info.compress_size):
        raise ValueError(
            f"{info.filename} grows from {info.compress_size} to {info.file_size} bytes, np.savez it"
        )
    with archive.open(info) as file:
        shape, _, dtype = _header(file)
        if file.tell() + math.prod(shape) * dtype.itemsize > info.file_size and not dtype.hasobject:
            raise ValueError(f"{info.filename} is not as long as its header says")
    with archive.open(info) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # to the end, however long the header says it is: only there is the checksum compared
        return array


def _mapped(path: pathlib.Path, info: zipfile.ZipInfo) -> np.ndarray:
    """An uncompressed member: a .npy file as it is, after a header of 30 bytes and two fields of given lengths."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
        file.seek(start)
        shape, fortran, dtype = _header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("Python objects")
    if offset + math.prod(shape) * dtype.itemsize != start + info.file_size:
        raise ValueError(f"{info.filename} is not as long as its header says")
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    start = file.tell()
    version = np.lib.format.read_magic(file)
    known = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in known:
        raise ValueError(f"NumPy's format {version} is not read here")
    # NumPy makes room for what a header claims to be before it looks at how long one may be.
    if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > LONGEST_HEADER:
        raise ValueError("its header is longer than any")
    file.seek(start)
    np.lib.format.read_magic(file)
    return known[version](file)


def _store(members: dict[str, np.ndarray], prefix: str, path: pathlib.Path | None) -> Arrays:
    keys = [prefix + key for key in IMAGES if prefix + key in members]
    there = ", ".join(repr(name) for name in members)
    _checks.require(
        len(keys) == 1,
        f"{path}: found the arrays {there or 'none'}: expected one of {prefix}{_keys()}",
    )
    images, name = members[keys[0]], f"{path}: {keys[0]!r}"
    numeric = images.dtype.kind in "uif"
    _checks.require(
        numeric,
        f"{name} has dtype {images.dtype}: expected integers or floats, convert it (astype)",
    )
    shaped = images.ndim in (2, 3, 4) and 0 not in images.shape
    expected = "expected (n, height, width, channels), (n, height, width) or (n, features)"
    _checks.require(shaped, f"{name} has shape {images.shape}: {expected}, none of them 0")
    _require_finite(images, name)
    images = images[..., None] if images.ndim == 3 else images
    keys = [prefix + key for key in LABELS if prefix + key in members]
    _checks.require(len(keys) < 2, f"{path}: both {keys}: expected labels once, leave one of them")
    labels = _labels(members[keys[0]], len(images), name, f"{path}: {keys[0]!r}") if keys else None
    return Arrays(images, labels)


def _require_finite(images: np.ndarray, name: str) -> None:
    """Looks at all of what fits into memory and at samples of what does not."""
    if images.dtype.kind != "f":
        return
    for rows in blocks(sampled(len(images), images.nbytes, IN_MEMORY), images):
        with np.errstate(over="ignore"):
            finite = np.isfinite(images[rows].astype(np.float32)).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            first = rows[np.argmin(finite)]
            raise _checks.RequestError(
                f"{name} holds NaN, or infinity in float32, first in example {first}: leave such examples out"
            )


def _labels(labels: np.ndarray, n: int, images: str, name: str) -> np.ndarray:
    got = f"{name} has shape {labels.shape} and {images} {n} examples"
    _checks.require(labels.shape == (n,), f"{got}: expected one label per example, ({n},)")
    whole = labels.dtype.kind in "ui"
    _checks.require(
        whole, f"{name} has dtype {labels.dtype}: expected integers, number the classes from 0"
    )
    low, high = int(labels.min()), int(labels.max())
    fits = low >= -1 and high < MOST_CLASSES
    expected = f"expected classes numbered from 0, below {MOST_CLASSES}, and -1 for an unknown one"
    _checks.require(fits, f"{name} goes from {low} to {high}: {expected}")
    return labels.astype(np.int32)


def _classes(
    classes: np.ndarray, stores: list[Arrays], path: pathlib.Path | None
) -> tuple[str, ...]:
    named = classes.ndim == 1 and classes.dtype.kind == "U"
    got = f"{path}: {CLASSES!r} is {classes.dtype} {classes.shape}"
    _checks.require(named, f"{got}: expected names, np.array([...]) of strings")
    most = max(
        (int(s.known_labels.max()) for s in stores if s.known_labels is not None), default=-1
    )
    _checks.require(
        most < len(classes), f"{path}: {len(classes)} classes and a label {most}: name every class"
    )
    return tuple(str(name) for name in classes)
