"""Vectors that any other model computed, in place of a model."""

import pathlib

import numpy as np

from pcjax._checks import RequestError, printable
from pcjax.data import Dataset
from pcjax.data.texts import CHUNK, Texts, parquet_module
from pcjax.data.tokens import texts_of
from pcjax.teachers.features import read_features

TEXT, EMBEDDING = "text", "embedding"
# Types of columns, as pyarrow names them.
TEXTS = ("string", "large_string", "string_view", "dictionary")
LISTS = ("list", "large_list", "fixed_size_list")


def read_vectors(name: str, dataset: Dataset) -> dict[str, np.ndarray]:
    """Read the vectors of all examples from a file.

    Args:
      name: a .parquet file, or a folder of them, with the columns "text" and "embedding"; or a .npy
        file with one row a text, in the order of the source's files.
      dataset: the texts.
    """
    path = pathlib.Path(name).expanduser()
    if not path.exists():
        raise RequestError(f"There is no file {path} (teacher.source).")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if files and all(file.suffix == ".parquet" for file in files):
        return _by_text(path, files, dataset)
    if path.is_dir():
        raise RequestError(f"{path} (teacher.source) has no .parquet file.")
    return read_features(path, dataset, field="teacher.source")


def _by_text(
    path: pathlib.Path, files: list[pathlib.Path], dataset: Dataset
) -> dict[str, np.ndarray]:
    """Look up every text's vector; other texts in the file do not matter."""
    wanted: dict[str, list[tuple[str, int]]] = {}
    for part, examples in dataset.parts.items():
        texts: Texts = texts_of(examples)
        for position, row in enumerate(examples.rows.tolist()):
            wanted.setdefault(texts.text(row), []).append((part, position))
    features: dict[str, np.ndarray] = {}
    filled = {part: np.zeros(len(examples), bool) for part, examples in dataset.parts.items()}
    for file in files:
        for texts_read, vectors in _rows(file):
            if not features:
                features = {
                    part: np.zeros((len(examples), vectors.shape[1]), np.float32)
                    for part, examples in dataset.parts.items()
                }
            width = features["train"].shape[1]
            if vectors.shape[1] != width:
                raise RequestError(
                    f"{file} (teacher.source) has vectors of {vectors.shape[1]} numbers, others "
                    f"have {width}; compute them with one model."
                )
            for text, vector in zip(texts_read, vectors, strict=True):
                for part, position in wanted.get(text, ()):
                    features[part][position] = vector
                    filled[part][position] = True
    missing = sum(int(np.sum(~known)) for known in filled.values())
    total = sum(map(len, filled.values()))
    if missing:
        text = next(t for t, places in wanted.items() if not all(filled[p][i] for p, i in places))
        raise RequestError(
            f"{path} (teacher.source) has no vector for {missing:,} of {total:,} "
            f"texts, such as {printable(text[:60])!r}; compute the vectors of these texts."
        )
    for part, rows in features.items():
        if not np.isfinite(rows).all():
            raise RequestError(
                f"{path} (teacher.source) has NaN or infinite {part} vectors; compute them anew."
            )
    return features


def _rows(file: pathlib.Path):
    """Yield texts and their vectors, some thousand at a time."""
    parquet = parquet_module(file)
    import pyarrow.compute

    try:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        for column in (TEXT, EMBEDDING):
            if column not in names:
                raise RequestError(
                    f"{file} (teacher.source) has no column {column!r}; it has {', '.join(names)}."
                )
        for column, kinds in ((TEXT, TEXTS), (EMBEDDING, LISTS)):
            kind = opened.schema_arrow.field(column).type
            if not any(getattr(pyarrow.types, f"is_{name}")(kind) for name in kinds):
                expected = "texts" if column == TEXT else "lists of numbers"
                raise RequestError(
                    f"{file} (teacher.source): {column!r} must hold {expected}, and it holds {kind}"
                )
        for batch in opened.iter_batches(batch_size=CHUNK, columns=[TEXT, EMBEDDING]):
            lists = batch.column(EMBEDDING)
            lengths = pyarrow.compute.list_value_length(lists).unique().to_pylist()  # pyright: ignore
            if not lengths:
                continue
            if len(lengths) > 1 or not lengths[0]:  # None where an embedding is missing
                raise RequestError(
                    f"{file} (teacher.source): every embedding must have the same length."
                )
            numbers = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float32)
            yield batch.column(TEXT).to_pylist(), numbers.reshape(-1, lengths[0])
    except (pyarrow.ArrowException, OSError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{file} (teacher.source) cannot be read: {reason}.") from error
