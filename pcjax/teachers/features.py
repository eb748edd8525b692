"""A teacher's features from a file, in place of a model."""

import pathlib
import zipfile

import numpy as np

from pcjax._checks import RequestError
from pcjax.data import Dataset, Examples
from pcjax.data.arrays import members
from pcjax.data.texts import Texts
from pcjax.data.tokens import Tokens, texts_of

FINGERPRINT = "fingerprint"
EXAMPLE = "an example of the source"


def read_features(
    path: pathlib.Path, dataset: Dataset, field: str = "teacher.features"
) -> dict[str, np.ndarray]:
    """Read a teacher's features for every part of a data set.

    Args:
      path: a .npy file with one row an example, in the order in which the source holds them (its
        training examples, then its own validation and test examples where it has them), or a .npz
        file with one such array a part ("train", "validation", "test", and "unseen" where classes
        are left out), as `pcjax embed` writes.
      dataset: the data set, which says how the source's examples are split.
      field: the config's field that names the file, for errors.
    """
    where = f"{path} ({field})"
    if not path.is_file():
        raise RequestError(f"There is no file {where}; `pcjax embed RUN` writes one.")
    try:
        if path.suffix == ".npz":
            features = _read_parts(path, dataset)
        elif path.suffix == ".npy":
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(rows, np.ndarray):
                raise RequestError("it is a .npz file with the name of a .npy file; rename it")
            features = _split_rows(rows, dataset)
        else:
            raise RequestError("it is neither a .npy nor a .npz file")
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"{where} cannot be used: {str(error).rstrip('.')}.") from error
    for part, rows in features.items():
        if not np.isfinite(rows).all():
            raise RequestError(f"{where} has NaN or infinite {part} features; compute them anew.")
    return features


def _read_parts(path: pathlib.Path, dataset: Dataset) -> dict[str, np.ndarray]:
    names = (*dataset.parts, "unseen", FINGERPRINT)
    arrays = members(path, names, "what `pcjax embed` writes")
    if FINGERPRINT in arrays and str(arrays[FINGERPRINT]) != dataset.fingerprint:
        raise RequestError("it belongs to other data or another split; repeat `pcjax embed`")
    missing = [part for part in dataset.parts if part not in arrays]
    if missing:
        raise RequestError(f"it has no array {missing[0]!r}")
    return {
        part: _numbers(arrays[part], len(examples), f"array {part!r}")
        for part, examples in dataset.parts.items()
    }


def _split_rows(rows: np.ndarray, dataset: Dataset) -> dict[str, np.ndarray]:
    """Take each part's rows from an array in the source's own order."""
    starts: dict[int, int] = {}  # store -> its first row; several parts may share a store
    total = 0
    for examples in dataset.parts.values():
        if id(examples.store) not in starts:
            starts[id(examples.store)] = total
            total += _count(examples)
    every = EXAMPLE
    if isinstance(dataset.train.store, (Texts, Tokens)):
        every = "a text of the source, blank and repeated ones included"
    rows = _numbers(rows, total, "array", every)
    return {
        part: np.ascontiguousarray(rows[starts[id(examples.store)] + _numbers_of(examples)])
        for part, examples in dataset.parts.items()
    }


def _count(examples: Examples) -> int:
    """Return how many examples the files hold, repeated texts included."""
    return (
        texts_of(examples).total
        if isinstance(examples.store, (Texts, Tokens))
        else len(examples.store)
    )


def _numbers_of(examples: Examples) -> np.ndarray:
    """Return the position of every example in the files."""
    rows = examples.rows
    return texts_of(examples).lines[rows] if isinstance(examples.store, (Texts, Tokens)) else rows


def _numbers(rows: np.ndarray, count: int, name: str, every: str = EXAMPLE) -> np.ndarray:
    if rows.dtype.kind not in "uif" or rows.ndim != 2 or len(rows) != count:
        raise RequestError(
            f"its {name} has dtype {rows.dtype} and shape {rows.shape}, expected numbers of shape "
            f"({count}, features), one row {every}"
        )
    return np.asarray(rows, np.float32)
