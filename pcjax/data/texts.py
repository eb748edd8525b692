"""Texts from files: `load("text:PATH")`.

PATH is a file or a folder of files:

    .txt            one text a line
    .csv, .tsv      with a header; the column `text_column`, and `label_column` where there is one
    .jsonl          one JSON object a line, with the same names
    .parquet        the same columns

In a folder, files named train, validation or test, or ending with .train, .validation or .test
before their suffix, are these splits; all others are training texts. Blank texts are left out, and
a text that appears again is kept once: first among the test texts, last among the training texts.
All files are UTF-8.
"""

import array
import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pcjax._checks import RequestError, printable
from pcjax.data.examples import SPLITS, Splits, array_parts, digest

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
CHUNK = 16_384  # rows that are read at a time
Label = int | str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts in memory, as one array of bytes.

    content: all texts in UTF-8, one after the other.
    ends: (n,) where each ends.
    known_labels: (n,) int32, -1 where one is unknown; None without labels.
    lines: (n,) the number of each among all texts of its files, blank and repeated ones included.
    total: the number of all these.
    """

    content: np.ndarray
    ends: np.ndarray
    known_labels: np.ndarray | None
    lines: np.ndarray
    total: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a text: it is one thing."""
        return ()

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what `read` returns."""
        return np.dtype(object)

    @property
    def fingerprint(self) -> str:
        """A hash of the texts and labels, of samples where they are large."""
        labels = () if self.known_labels is None else (self.known_labels,)
        arrays = (self.content, self.ends, *labels)
        return digest(part for each in arrays for part in array_parts(each))

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the texts of these rows, and their labels."""
        texts = np.array([self.text(row) for row in rows.tolist()], object)
        return texts, None if self.known_labels is None else self.known_labels[rows]

    def text(self, row: int) -> str:
        """Return one text."""
        start = int(self.ends[row - 1]) if row else 0
        return self.content[start : self.ends[row]].tobytes().decode()

    def labels(self) -> np.ndarray | None:
        """Return all labels."""
        return self.known_labels


def in_memory(texts: Iterable[str]) -> Texts:
    """Return texts, all of them in their order."""
    content = [text.encode() for text in texts]
    ends = np.cumsum([len(each) for each in content]).astype(np.int64)
    joined = np.frombuffer(b"".join(content), np.uint8)
    return Texts(joined, ends, None, np.arange(len(ends)), len(ends))


def read(path: str, *, text_column: str = "text", label_column: str = "label") -> Splits:
    """Read the texts of a file or a folder; see this module for what they look like.

    Args:
      path: the file or the folder.
      text_column: name of the column of texts.
      label_column: name of the column of classes, numbers or names; it may be absent.
    """
    root = pathlib.Path(path).expanduser()
    files = _files(root)
    seen: set[int] = set()
    columns = (text_column, label_column)
    # A text of the test texts is no training text.
    read_splits = {
        split: _read(files[split], columns, seen) for split in reversed(SPLITS) if split in files
    }
    names = _class_names(label for _, labels in read_splits.values() for label in labels)
    stores = {
        split: dataclasses.replace(store, known_labels=_numbers(labels, names))
        for split, (store, labels) in read_splits.items()
    }
    if "train" not in stores or not len(stores["train"]):
        raise RequestError(f"{root}: there are no training texts; give a file with some")
    classes = None if names is None or not isinstance(names, tuple) else names
    return Splits(stores["train"], stores.get("validation"), stores.get("test"), classes)


def _files(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    if not root.is_dir():
        require_file(root)
        return {"train": [root]}
    files: dict[str, list[pathlib.Path]] = {}
    for file in sorted(root.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            last = file.stem.rpartition(".")[2].lower()
            files.setdefault(last if last in SPLITS else "train", []).append(file)
    if not files:
        raise RequestError(f"{root}: no file in this folder ends with {', '.join(SUFFIXES)}")
    return files


def _read(
    files: list[pathlib.Path], columns: tuple[str, str], seen: set[int]
) -> tuple[Texts, list[Label]]:
    """Read the texts that are not among those already seen, and their labels."""
    content, ends, lines = bytearray(), array.array("q"), array.array("q")
    labels: list[Label] = []
    total = 0
    for file in files:
        try:
            for value, label in rows(file, columns[:1], columns[1:]):
                total += 1
                text = _require_text(file, columns[0], value)
                key = hash(text)
                if key in seen or not text.strip():
                    continue
                if not isinstance(label, int | str | None):
                    raise RequestError(
                        f"{file}: {columns[1]!r} must hold numbers or names, and it holds {label!r}"
                    )
                seen.add(key)
                content += text.encode()
                ends.append(len(content))
                lines.append(total - 1)
                labels.append(label)
        except UnicodeError as error:
            raise RequestError(
                f"{file} is not UTF-8 after {total} texts ({error}); convert it"
            ) from error
        except OSError as error:
            reason = " ".join(str(error.strerror or error).split())[:200]  # pyarrow's has lines
            raise RequestError(f"{file} cannot be read: {reason}") from error
    arrays = (np.frombuffer(bytes(content), np.uint8), np.array(ends, np.int64))
    return Texts(*arrays, None, np.array(lines, np.int64), total), labels


def rows(
    file: pathlib.Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield the values of these columns in every row of a file; None for a missing one.

    A .txt file has one column, its lines.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(file, columns, optional)
        return
    with file.open(encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as f:
        if suffix == ".txt":
            for line in f:
                yield (line.rstrip("\n"), *(None for _ in (*columns[1:], *optional)))
        elif suffix == ".jsonl":
            for number, line in enumerate(f, 1):
                if line.strip():
                    row = _parse(file, number, line)
                    _require_columns(file, columns, row)
                    yield tuple(row.get(name) for name in (*columns, *optional))
        else:
            table = csv.DictReader(f, delimiter="," if suffix == ".csv" else "\t")
            try:
                _require_columns(file, columns, table.fieldnames or ())
                for row in table:
                    yield tuple(row.get(name) or None for name in (*columns, *optional))
            except csv.Error as error:
                raise RequestError(f"{file}, after line {table.line_num}: {error}") from error


def _parse(file: pathlib.Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file}, line {number} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise RequestError(f"{file}, line {number} is not a JSON object")
    return row


def _parquet_rows(
    file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    parquet = parquet_module(file)
    import pyarrow

    try:
        opened = parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        _require_columns(file, columns, names)
        present = [name for name in (*columns, *optional) if name in names]
        for batch in opened.iter_batches(batch_size=CHUNK, columns=present):
            columns_read = batch.to_pydict()
            nothing = [None] * len(batch)
            yield from zip(
                *(columns_read.get(n, nothing) for n in (*columns, *optional)), strict=True
            )
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{file} cannot be read: {reason}") from error


def parquet_module(file: pathlib.Path) -> Any:
    """Return the reader of parquet files."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise RequestError(f"{file} needs pyarrow: `pip install pyarrow`") from error
    return pyarrow.parquet


def _require_text(file: pathlib.Path, column: str, value: Any) -> str:
    if not isinstance(value, str | None):
        raise RequestError(f"{file}: {column!r} must hold texts, and it holds {value!r:.80}")
    return value or ""


def _require_columns(file: pathlib.Path, expected: Sequence[str], columns: Iterable[str]) -> None:
    for column in expected:
        if column not in columns:
            names = ", ".join(repr(printable(str(name))) for name in [*columns][:20])
            raise RequestError(f"{file} has no column {column!r}: it has {names or 'none'}")


def require_file(path: pathlib.Path) -> None:
    """Refuse a path that is no file of texts."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file; expected texts")
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")


def _class_names(labels: Iterable[Label]) -> tuple[str, ...] | str | None:
    """Return the names of the classes, "numbers" where they are numbers, or None."""
    distinct = {label for label in labels if label is not None}
    if not distinct:
        return None
    if all(isinstance(label, int) or re.fullmatch("-?[0-9]{1,18}", label) for label in distinct):
        return "numbers"
    return tuple(sorted({*map(str, distinct)}))


def _numbers(labels: list[Label], names: tuple[str, ...] | str | None) -> np.ndarray | None:
    """Return the number of every label's class; -1 is an unknown one."""
    if names is None:
        return None
    if isinstance(names, str):
        numbers = [-1 if label is None else int(label) for label in labels]
    else:
        ids = {name: number for number, name in enumerate(names)}
        numbers = [-1 if label is None else ids[str(label)] for label in labels]
    if numbers and not -1 <= min(numbers) <= max(numbers) < 2**20:
        raise RequestError("the labels must be numbers from 0, or names (data.label_column)")
    return np.array(numbers, np.int32)
