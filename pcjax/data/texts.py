"""Texts from files: `load("text:PATH")`.

PATH is a file or a folder of files:

    .txt            one text a line
    .csv            with a header; the column `text_column`, and `label_column` where there is one
    .tsv            the same columns between tabs, one text a line
    .jsonl          one JSON object a line, with the same names
    .parquet        the same columns

In a .csv file, a field that begins with a quote ends with one, and may hold commas and ends of
lines. In a .tsv file, quotes are part of a text, which holds neither tabs nor ends of lines.

In a folder, files named train, validation or test, or ending with .train, .validation or .test
before their suffix, are these splits; all others are training texts. Shards of the Hugging Face
hub have these names too: test-00000-of-00001.parquet. Names such as val, and folders inside the
folder, are refused.

Labels are whole numbers or names; NaN is an unknown one. Blank texts are left out, and a text that
appears again is kept once: first among the test texts, last among the training texts. All files are
UTF-8.
"""

import array
import csv
import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pcjax._checks import RequestError, printable
from pcjax.data.examples import SPLITS, Splits, digest, hashed

SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
CHUNK = 16_384  # rows that are read at a time
MAX_FIELD = 2**27  # characters of a field of a .csv file
MAX_NAME = 60  # characters of a column's name in an error
# "mine.test", and the shards "test-00000-of-00001" of the Hugging Face hub
SPLIT_NAME = re.compile(r"(?:.*\.)?([^.]+?)(?:-\d+-of-\d+(?:-[0-9a-f]+)?)?", re.DOTALL)
MISNAMED = ("val", "valid", "dev", "eval")  # names that others give to validation
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
        """A hash of all texts and labels."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        labels = () if self.known_labels is None else (self.known_labels,)
        return digest(array.data for array in (self.content, self.ends, *labels))

    def __len__(self) -> int:
        return len(self.ends)

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash each of these texts."""
        return hashed((self.text(row).encode(),) for row in rows.tolist())

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
    content = [encoded(text, f"texts[{number}]") for number, text in enumerate(texts)]
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
    names = class_names(label for _, labels in read_splits.values() for label in labels)
    try:
        stores = {
            split: dataclasses.replace(store, known_labels=class_numbers(labels, names))
            for split, (store, labels) in read_splits.items()
        }
    except RequestError as error:
        raise RequestError(f"{root}: {error}") from error
    _require_training_texts(root, stores)
    classes = None if names is None or not isinstance(names, tuple) else names
    return Splits(stores["train"], stores.get("validation"), stores.get("test"), classes)


def _require_training_texts(root: pathlib.Path, stores: dict[str, Texts]) -> None:
    if "train" not in stores:
        only = " and ".join(name for name in SPLITS if name in stores)
        raise RequestError(
            f"{root}: there are no training texts, only {only}; add a file such as train.txt"
        )
    if not len(stores["train"]):
        if any(map(len, stores.values())):
            raise RequestError(
                f"{root}: there are no training texts, since all are blank or repeat texts of the "
                "other splits; give others"
            )
        raise RequestError(f"{root}: there are no training texts; give a file with some")


def _files(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    if not root.is_dir():
        require_file(root)
        return {"train": [root]}
    files: dict[str, list[pathlib.Path]] = {}
    for path in sorted(root.iterdir()):
        if path.is_dir():
            _refuse_folder(root, path)
        elif _holds_texts(path):
            match = SPLIT_NAME.fullmatch(path.stem.lower())
            name = match[1] if match else "train"
            if name in MISNAMED:
                raise RequestError(
                    f"{path}: {name!r} is the name of no split; name it validation{path.suffix}"
                )
            files.setdefault(name if name in SPLITS else "train", []).append(path)
    if not files:
        raise RequestError(f"{root}: no file in this folder ends with {', '.join(SUFFIXES)}")
    return files


def _refuse_folder(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Refuse a folder of texts inside another, whose split would have to be guessed."""
    if not folder.name.startswith(".") and any(map(_holds_texts, folder.rglob("*"))):
        raise RequestError(
            f"{folder}: a folder of texts inside {root}; give text:{folder}, or move its files up "
            "and name them train, validation or test"
        )


def _holds_texts(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _read(
    files: list[pathlib.Path], columns: tuple[str, str], seen: set[int]
) -> tuple[Texts, list[Label]]:
    """Read the texts that are not among those already seen, and their labels."""
    content, ends, lines = bytearray(), array.array("q"), array.array("q")
    labels: list[Label] = []
    total = 0
    for file in files:
        for number, (value, label) in numbered_rows(file, columns[:1], columns[1:]):
            total += 1
            if not isinstance(value, str | None):
                raise RequestError(
                    f"{place(file, number)}: {columns[0]!r} must hold texts, and it holds "
                    f"{value!r:.80}"
                )
            text = value or ""
            key = hash(text)
            if key in seen or not text.strip():
                continue
            labels.append(checked_label(file, number, columns[1], label))
            seen.add(key)
            content += text.encode()
            ends.append(len(content))
            lines.append(total - 1)
    # Not copied: ten million texts take 650 MB.
    arrays = (np.frombuffer(content, np.uint8), np.frombuffer(ends, np.int64))
    return Texts(*arrays, None, np.frombuffer(lines, np.int64), total), labels


def checked_label(file: pathlib.Path, number: int, column: str, label: Any) -> Label:
    """Return a label; a whole float is an integer, and NaN an unknown label, as pandas writes."""
    if isinstance(label, int | str | None):
        return label
    if isinstance(label, float):
        if math.isnan(label):
            return None
        if label.is_integer():
            return int(label)
    raise RequestError(
        f"{place(file, number)}: {column!r} must hold whole numbers or names, and it holds "
        f"{label!r:.80}"
    )


def place(file: pathlib.Path, number: int) -> str:
    """Name a row of a file, for an error."""
    return f"{file}, {'row' if file.suffix.lower() == '.parquet' else 'line'} {number}"


def encoded(text: str, where: str) -> bytes:
    """Encode a text as UTF-8, or refuse it."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where} holds half of a surrogate pair; write it as UTF-8") from error


def numbered_rows(
    file: pathlib.Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the number of every row of a file, for `place`, and its values; None is a missing one.

    A .txt file has one column, its lines.
    """
    number = 0
    try:
        for number, values in _rows(file, columns, optional):
            yield number, values
    except UnicodeError as error:
        raise RequestError(
            f"{file} is not UTF-8 after line {number} ({error}); convert it"
        ) from error
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())[:200]  # pyarrow's has lines
        raise RequestError(f"{file} cannot be read: {reason}") from error


def _rows(
    file: pathlib.Path, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from enumerate(_parquet_rows(file, columns, optional), 1)
        return
    with file.open(encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as f:
        if suffix == ".txt":
            for number, line in enumerate(f, 1):
                yield number, (line.rstrip("\n"), *(None for _ in (*columns[1:], *optional)))
        elif suffix == ".jsonl":
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, _json_row(file, number, line, columns, optional)
        else:
            yield from _table_rows(file, f, columns, optional)


def _table_rows(
    file: pathlib.Path, lines: Iterable[str], columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    csv.field_size_limit(max(MAX_FIELD, csv.field_size_limit()))  # one for the whole process
    if file.suffix.lower() == ".csv":
        table = csv.reader(lines, strict=True)
        rule = "quote a text that holds a comma or begins with a quote, and double the quotes in it"
    else:
        table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        rule = "a text of a .tsv file holds no tab"
    number = 1  # where a row begins
    try:
        header = next(table, [])
        _require_columns(str(file), columns, header)
        number = table.line_num + 1
        for fields in table:
            if any(fields[len(header) :]):
                raise RequestError(
                    f"{file}, line {number} has {len(fields)} fields, and the header "
                    f"{len(header)}; {rule}"
                )
            if fields:
                row = dict(zip(header, fields, strict=False))
                yield number, tuple(row.get(name) or None for name in (*columns, *optional))
            number = table.line_num + 1
    except csv.Error as error:
        raise RequestError(f"{file}, line {number}: {error}; {rule}") from error


def _json_row(
    file: pathlib.Path, number: int, line: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[Any, ...]:
    row = _parse(file, number, line)
    _require_columns(place(file, number), columns, row)
    values = tuple(row.get(name) for name in (*columns, *optional))
    if "\\u" in line:
        for value in values:
            if isinstance(value, str):
                encoded(value, place(file, number))
    return values


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
        _require_columns(str(file), columns, names)
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


def _require_columns(where: str, expected: Sequence[str], columns: Collection[str]) -> None:
    for column in expected:
        if column not in columns:
            names = ", ".join(repr(printable(name[:MAX_NAME])) for name in [*columns][:20])
            raise RequestError(f"{where} has no column {column!r}: it has {names or 'none'}")


def require_file(path: pathlib.Path) -> None:
    """Refuse a path that is no file of texts."""
    if not path.is_file():
        raise RequestError(f"{path}: no such file; expected texts")
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(f"{path}: expected a file that ends with {', '.join(SUFFIXES)}")


def class_names(labels: Iterable[Label]) -> tuple[str, ...] | str | None:
    """Return the names of the classes, "numbers" where they are numbers, or None."""
    distinct = {label for label in labels if label is not None}
    if not distinct:
        return None
    if all(isinstance(label, int) or re.fullmatch("-?[0-9]{1,18}", label) for label in distinct):
        return "numbers"
    return tuple(sorted({*map(str, distinct)}))


def class_numbers(labels: list[Label], names: tuple[str, ...] | str | None) -> np.ndarray | None:
    """Return the number of every label's class; -1 is an unknown one."""
    if names is None:
        return None
    if isinstance(names, str):
        numbers = [-1 if label is None else int(label) for label in labels]
    else:
        ids = {name: number for number, name in enumerate(names)}
        numbers = [-1 if label is None else ids[str(label)] for label in labels]
    wrong = [number for number in numbers if not -1 <= number < 2**20]
    if wrong:
        raise RequestError(
            "the labels must be numbers from 0, or names (data.label_column), and one is "
            f"{wrong[0]}"
        )
    return np.array(numbers, np.int32)
