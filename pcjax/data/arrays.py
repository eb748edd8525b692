"""Examples from NumPy's files: `load("arrays:PATH")`.

PATH is a .npz file, a .npy file of images or features alone, or a folder with train.npz and,
optionally, validation.npz and test.npz (or .npy). A .npz file, as np.savez writes it, has these
arrays:

    images    (n, height, width, channels) or (n, height, width), or features (n, features), of
              integers or floats; "features" and "x" are other names for it
    labels    (n,) integers from 0, -1 where one is unknown; "y" is another name. Optional
    classes   names of the classes, np.array(["cat", "dog"]). Optional

A single .npz file may also have test_images, test_labels, validation_images and validation_labels.

    np.savez("mine.npz", images=x, labels=y, test_images=test_x, test_labels=test_y)
    data = pcjax.data.load("arrays:mine.npz")

Nothing in a file is executed, and no memory is allocated for what a header merely claims.
"""

import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from pcjax._checks import RequestError
from pcjax.data.examples import SPLITS, Arrays, Splits, Store, blocks, in_memory, sampled
from pcjax.data.fitted import Fitted

IMAGES = ("images", "features", "x")
LABELS = ("labels", "y")
CLASSES = "classes"
PREFIXES = {"train": "", "validation": "validation_", "test": "test_"}
KEYS = '"images" (or "features" or "x"), optionally "labels" (or "y") and "classes"'
IN_MEMORY = 2**30  # bytes; larger arrays are mapped where the file allows it
MAX_HEADER = 2**14  # bytes; NumPy itself refuses headers of more than 10,000
MAX_CLASSES = 2**20  # larger labels do not number classes
MAX_EXPANSION = 100  # times; large members that expand more are refused as bombs


def read(path: str, *, image_size: int | None = None) -> Splits:
    """Read a .npz file, a .npy file, or a folder with one such file for every split.

    Args:
      path: the file or the folder; see this module for the names of the arrays.
      image_size: height and width of the images: the shorter side is scaled to it and the middle
        is cut out.
    """
    root = pathlib.Path(path).expanduser()
    if root.is_dir():
        files = {split: file for split in SPLITS if (file := _split_file(root, split))}
        if "train" not in files:
            raise RequestError(f"{root}: no train.npz in this folder: expected one, with {KEYS}")
        arrays = {split: _read(file) for split, file in files.items()}
        stores = {split: _store(arrays[split], "", file) for split, file in files.items()}
        names = arrays["train"].get(CLASSES)
    elif root.is_file():
        members = _read(root, [*PREFIXES.values()])
        stores = {
            split: _store(members, prefix, root)
            for split, prefix in PREFIXES.items()
            if split == "train" or any(name.startswith(prefix) for name in members)
        }
        names = members.get(CLASSES)
    else:
        raise RequestError(
            f"{root}: no such file or folder: expected a .npz or .npy file, or a folder"
        )
    train = stores["train"]
    for split, store in stores.items():
        if (store.shape, store.dtype) != (train.shape, train.dtype):
            raise RequestError(
                f"{root}: {split} examples are {store.dtype} {store.shape}, those for training "
                f"{train.dtype} {train.shape}: make them alike"
            )
    classes = None if names is None else _class_names(names, [*stores.values()], root)
    sized = {split: _resize(store, image_size, root) for split, store in stores.items()}
    return Splits(sized["train"], sized.get("validation"), sized.get("test"), classes)


def _split_file(folder: pathlib.Path, split: str) -> pathlib.Path | None:
    candidates = [folder / f"{split}.npz", folder / f"{split}.npy"]
    files = [path for path in candidates if path.is_file()]
    for path in files:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise RequestError(
                f"{path} is a symbolic link out of its folder: give the folder that it leads to"
            )
    if len(files) == 2:
        names = " and ".join(path.name for path in files)
        raise RequestError(f"{folder}: both {names}: leave one of them")
    return files[0] if files else None


def _read(path: pathlib.Path, prefixes: Collection[str] = ("",)) -> dict[str, np.ndarray]:
    """Read a file's arrays by name; the array of a .npy file is named "images"."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {IMAGES[0]: _parse(path, lambda: _map(path, 0, path.stat().st_size))}
    if suffix != ".npz":
        raise RequestError(f"{path}: expected a file named .npz or .npy, written by NumPy")
    expected = {prefix + key for prefix in prefixes for key in (*IMAGES, *LABELS)} | {CLASSES}
    more = ', and the same with "test_" or "validation_" before' if len(prefixes) > 1 else ""
    return members(path, expected, KEYS + more)


def members(path: pathlib.Path, expected: Collection[str], listed: str) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name; refuse others than the expected ones.

    `listed` names the expected ones in the error.
    """
    with _parse(path, lambda: zipfile.ZipFile(path)) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        unknown = ", ".join(repr(name) for name in [*names][:9] if name not in expected)
        if unknown:
            raise RequestError(
                f"{path}: unknown arrays {unknown}: expected {listed}; rename or leave out others"
            )
        if len(names) != len(archive.infolist()):
            raise RequestError(f"{path}: an array stands in it twice: write the file again")
        return {
            name: _parse(f"{path}: {name!r}", lambda info=info: _member(path, archive, info))
            for name, info in names.items()
        }


def _parse(where: Any, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:  # a damaged file makes NumPy and zipfile raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "write the file again"
        if "objects" in reason:
            remedy = "objects are refused, save it with a dtype of numbers"
        raise RequestError(f"{where}: cannot be read ({reason}): {remedy}") from error


def _member(path: pathlib.Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED and info.file_size > IN_MEMORY:
        with path.open("rb") as file:  # a local header: 30 bytes, and two fields of given lengths
            file.seek(info.header_offset + 26)
            start = info.header_offset + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
        return _map(path, start, info.file_size)
    stored = min(info.compress_size, path.stat().st_size)
    if info.file_size > max(IN_MEMORY, MAX_EXPANSION * stored):
        raise ValueError(f"it expands from {stored} to {info.file_size} bytes, np.savez it")
    with archive.open(info) as file:
        _header(file, info.file_size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _map(path: pathlib.Path, start: int, size: int) -> np.ndarray:
    """Map the array that lies, like a .npy file of this size, from `start` in a file."""
    with path.open("rb") as file:
        file.seek(start)
        shape, fortran, dtype, offset = _header(file, size)
    return np.memmap(path, dtype, "r", start + offset, shape, "F" if fortran else "C")


def _header(file: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, order, dtype and offset of an array; refuse one not as long as it claims."""
    # NumPy allocates what a header claims before it compares it with the file.
    start = io.BytesIO(file.read(MAX_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NumPy's format {version} is not supported")
    header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = header(start)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    claimed = start.tell() + math.prod(shape) * dtype.itemsize
    if claimed != size:
        raise ValueError(f"its header claims {claimed} bytes, and it has {size}")
    return shape, fortran, dtype, start.tell()


def _store(arrays: dict[str, np.ndarray], prefix: str, path: pathlib.Path) -> Arrays:
    keys = [prefix + key for key in IMAGES if prefix + key in arrays]
    if len(keys) != 1:
        names = ", ".join(map(repr, arrays)) or "none"
        raise RequestError(
            f"{path} has the arrays {names}: expected one of "
            f"{', '.join(repr(prefix + key) for key in IMAGES)}"
        )
    images, name = arrays[keys[0]], f"{path}: {keys[0]!r}"
    if images.dtype.kind not in "uif":
        raise RequestError(
            f"{name} has dtype {images.dtype}: expected integers or floats, convert it (astype)"
        )
    if images.ndim not in (2, 3, 4) or 0 in images.shape:
        raise RequestError(
            f"{name} has shape {images.shape}: expected (n, height, width, channels), "
            "(n, height, width) or (n, features), none of them 0"
        )
    _require_finite(images, name)
    images = images[..., None] if images.ndim == 3 else images
    keys = [prefix + key for key in LABELS if prefix + key in arrays]
    if len(keys) == 2:
        raise RequestError(f"{path}: both {keys}: expected labels once, leave one of them")
    labels = _labels(arrays[keys[0]], len(images), f"{path}: {keys[0]!r}") if keys else None
    return Arrays(images, labels)


def _require_finite(images: np.ndarray, name: str) -> None:
    """Check all examples where they fit into memory, and samples where they do not."""
    if images.dtype.kind != "f":
        return
    for rows in blocks(sampled(len(images), images.nbytes, IN_MEMORY), images):
        with np.errstate(over="ignore"):
            finite = np.isfinite(images[rows].astype(np.float32)).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise RequestError(
                f"{name} holds NaN, or infinity in float32, first in example "
                f"{rows[np.argmin(finite)]}: leave such examples out"
            )


def _labels(labels: np.ndarray, n: int, name: str) -> np.ndarray:
    if labels.shape != (n,):
        raise RequestError(f"{name} has shape {labels.shape}: expected a label an example, ({n},)")
    if labels.dtype.kind not in "ui":
        raise RequestError(
            f"{name} has dtype {labels.dtype}: expected integers, number the classes from 0"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= MAX_CLASSES:
        raise RequestError(
            f"{name} goes from {low} to {high}: expected classes numbered from 0, below "
            f"{MAX_CLASSES}, and -1 for an unknown one"
        )
    return labels.astype(np.int32)


def _class_names(names: np.ndarray, stores: list[Arrays], path: pathlib.Path) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind != "U":
        raise RequestError(
            f"{path}: {CLASSES!r} is {names.dtype} {names.shape}: expected names, np.array([...]) "
            "of strings"
        )
    labels = [store.known_labels for store in stores if store.known_labels is not None]
    highest = max((int(array.max()) for array in labels), default=-1)
    if highest >= len(names):
        raise RequestError(f"{path}: {len(names)} classes and a label {highest}: name every class")
    return tuple(map(str, names))


def _resize(store: Arrays, image_size: int | None, path: pathlib.Path) -> Store:
    if image_size is None:
        return store
    if len(store.shape) != 3:
        raise RequestError(
            f"{path} holds features {store.shape}, no images: remove image_size={image_size}"
        )
    shape = (image_size, image_size, store.shape[2])
    return store if store.shape == shape else in_memory(Fitted(store, shape, cut=True), IN_MEMORY)
