"""Encoded images in WebDataset's tar shards, and in columns of parquet files.

Nothing is extracted to disk. A member of a tar is read at its offset. Parquet has no offsets: a
row is read with its row group, and the row groups used last stay in memory.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import tarfile
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcjax import _io
from pcjax._checks import RequestError, printable
from pcjax.data import texts
from pcjax.data.examples import ENCODED_WHOLE, array_parts, sampled
from pcjax.data.listing import CACHED_FROM, Names, Record, cached

MEMBERS = (b".jpg", b".jpeg", b".png", b".webp")
LABEL = b".cls"
MAX_LABEL = 1000  # bytes
COLUMN = "image"
GROUPS_BYTES = 2**30  # of row groups in memory
MAX_GROUP = 2**29  # bytes of an image or of a row group
SAMPLED_ROWS = 64
SAMPLED_GROUPS = 16  # of which rows enter the fingerprint of large files


def _state(file: pathlib.Path) -> str:
    """Return what tells a large file from others: its path, size and time of change."""
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """Members of tar files.

    shards: the files.
    shard_names: their paths relative to the folder.
    names: (n,) of the members.
    shard: (n,) position of each one's shard.
    offsets, sizes: (n,) of the members' contents.
    """

    shards: list[pathlib.Path]
    shard_names: list[bytes]
    names: Names
    shard: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def _size(self) -> int:
        return int(self.sizes.sum())

    @functools.cached_property
    def _states(self) -> list[str]:
        return [_state(shard) for shard in self.shards]

    def name(self, row: int) -> str:
        """Name an image in messages."""
        shard = self.shards[int(self.shard[row])]
        return f"{shard}: {printable(os.fsdecode(self.names[row]))}"

    def read(self, row: int) -> bytes:
        """Read the encoded image of a row."""
        size = int(self.sizes[row])
        if size > MAX_GROUP:
            raise RequestError(f"it has {size:,} bytes, over {MAX_GROUP:,}")
        with self.shards[int(self.shard[row])].open("rb") as file:
            file.seek(int(self.offsets[row]))
            return file.read(size)

    def key(self, row: int) -> bytes:
        """Return an image's bytes; in a large set, its position and its file's time of change."""
        size, shard = int(self.sizes[row]), int(self.shard[row])
        if self._size <= ENCODED_WHOLE:
            return self.read(row) if size <= MAX_GROUP else b""
        return f"{self._states[shard]} {self.offsets[row]} {size}".encode()

    def parts(self) -> Iterable[bytes]:
        """Yield names, sizes and contents; of a large set, times of change and some contents."""
        yield from self.shard_names
        if self._size > ENCODED_WHOLE:
            yield np.array([path.stat().st_mtime_ns for path in self.shards]).tobytes()
        for array in (self.names.content, self.names.ends, self.shard, self.sizes):
            yield from array_parts(array)
        rows = sampled(len(self), self._size, ENCODED_WHOLE)
        readable = rows[self.sizes[rows] <= MAX_GROUP]
        yield from (self.read(row) for row in readable.tolist())


def read_tars(
    shards: Sequence[pathlib.Path], names: Sequence[bytes]
) -> tuple[Members, list[texts.Label]]:
    """List the images of tar files, and their labels where KEY.cls has one.

    A long list is cached until the size or the time of change of a shard differs.
    """
    state = np.array([[s.st_size, s.st_mtime_ns] for s in map(os.stat, shards)], np.int64)

    def make() -> tuple[Record, bool]:
        indices = [_index(path) for path in shards]
        rows = [row for index in indices for row in index]
        packed, labels = Names.pack([row.name for row in rows]), Names.pack([r.label for r in rows])
        record = {
            "names": packed.content,
            "ends": packed.ends,
            "shard": np.repeat(np.arange(len(shards)), [len(index) for index in indices]),
            "offsets": np.array([row.offset for row in rows], np.int64),
            "sizes": np.array([row.size for row in rows], np.int64),
            "labels": labels.content,
            "label_ends": labels.ends,
            "state": state,
        }
        return record, len(rows) >= CACHED_FROM

    record = cached(
        _io.digest(["tar", [os.path.realpath(path) for path in shards]]),
        ("names", "ends", "shard", "offsets", "sizes", "labels", "label_ends", "state"),
        lambda record: bool(np.array_equal(record["state"], state)),
        make,
    )
    packed = Names(record["names"], record["ends"])
    places = (record["shard"], record["offsets"], record["sizes"])
    labels = Names(record["labels"], record["label_ends"]).unpack()
    members = Members([*shards], [*names], packed, *places)
    return members, [label.decode() or None for label in labels]


class _Row(NamedTuple):
    """A member of a tar file, and the content of the label beside it; b"" without one."""

    name: bytes
    offset: int
    size: int
    label: bytes = b""


def _index(path: pathlib.Path) -> list[_Row]:
    """Read the headers of a tar file, and the contents of its labels."""
    rows: list[_Row] = []
    labels: dict[bytes, bytes] = {}
    size, position = path.stat().st_size, -1
    try:
        with tarfile.open(path, "r:") as opened, path.open("rb") as file:
            tar: Any = opened  # its type lacks `members`
            while (member := tar.next()) is not None:
                tar.members.clear()  # or they all stay in memory
                end = member.offset_data + member.size * member.isreg()
                if not position < member.offset_data <= end <= size:
                    raise tarfile.ReadError("unexpected end of data")
                position = member.offset_data
                name = os.fsencode(member.name)
                key, suffix = _key(name)
                if not member.isreg() or member.issparse() or key.rpartition(b"/")[2] == b"":
                    continue
                if suffix == LABEL:
                    file.seek(position)
                    labels[key] = file.read(min(member.size, MAX_LABEL)).strip()
                    labels[key].decode()
                elif suffix in MEMBERS:
                    rows.append(_Row(name, position, member.size))
    except UnicodeError as error:
        raise RequestError(f"{path}: a .cls member is not UTF-8 ({error}): convert it") from error
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:100]
        raise RequestError(
            f"{path} cannot be read after {len(rows):,} images ({reason}): write it again, without "
            "compression"
        ) from error
    return [row._replace(label=labels.get(_key(row.name)[0], b"")) for row in rows]


def _key(name: bytes) -> tuple[bytes, bytes]:
    """Split a member's name at the first dot of its last part, as WebDataset does."""
    folder, slash, last = name.rpartition(b"/")
    key, dot, suffix = last.partition(b".")
    return folder + slash + key, (dot + suffix).lower()


class Column:
    """Images in the column "image" of parquet files: bytes, or a struct with the field "bytes"."""

    def __init__(self, files: Sequence[pathlib.Path], names: Sequence[bytes]):
        self.files, self.names = [*files], [*names]
        self._metadata, self._columns, groups = [], [], []
        for position, file in enumerate(self.files):
            metadata, column = _schema(file)
            self._metadata.append(metadata)
            self._columns.append(column)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                size = _column_bytes(group, column)
                if size > MAX_GROUP:
                    raise RequestError(
                        f"{file}: row group {number} has {size:,} bytes of images, and is read "
                        "whole for each: write the file again with row groups of 100 rows"
                    )
                groups.append((position, number, group.num_rows, size))
        self._groups = np.array(groups, np.int64).reshape(-1, 4)
        self._ends = np.cumsum(self._groups[:, 2])
        self._is_small = self._groups[:, 3].sum() <= ENCODED_WHOLE
        self._loaded: collections.OrderedDict[int, concurrent.futures.Future] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @functools.cached_property
    def _states(self) -> list[str]:
        return [_state(file) for file in self.files]

    def name(self, row: int) -> str:
        """Name an image in messages."""
        group, position = self._place(row)
        file = int(self._groups[group, 0])
        before = self._groups[:group]
        start = int(before[before[:, 0] == file, 2].sum())
        return f"{self.files[file]}: row {start + position}"

    def read(self, row: int) -> bytes:
        """Read the encoded image of a row."""
        group, position = self._place(row)
        content = self._group(group)[position].as_py()
        if not isinstance(content, bytes):
            raise RequestError("it holds no bytes")
        return content

    def key(self, row: int) -> bytes:
        """Return an image's bytes; in a large set, its position and its file's time of change."""
        group, position = self._place(row)
        if self._is_small:
            content = self._group(group)[position].as_py()
            return content if isinstance(content, bytes) else b""
        file, number = self._groups[group, :2].tolist()
        return f"{self._states[file]} {number} {position}".encode()

    def parts(self) -> Iterable[bytes]:
        """Yield names, sizes and contents; of a large set, times of change and some contents."""
        yield from self.names
        yield from array_parts(self._groups[:, [0, 2, 3]])
        whole = self._is_small
        if not whole:
            yield np.array([file.stat().st_mtime_ns for file in self.files]).tobytes()
        step = 1 if whole else max(1, -(-len(self._groups) // SAMPLED_GROUPS))
        for group in range(0, len(self._groups), step):
            rows = self._group(group)
            most = len(rows) if whole else min(len(rows), SAMPLED_ROWS)
            yield from (rows[i].as_py() or b"" for i in range(most))

    def _place(self, row: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, row, "right"))
        return group, row - int(self._ends[group] - self._groups[group, 2])

    def _group(self, group: int) -> Any:
        """Return the images of a row group; the first thread that wants it reads it."""
        with self._lock:
            future = self._loaded.get(group)
            is_first = future is None
            if future is None:
                future = self._loaded[group] = concurrent.futures.Future()
            self._loaded.move_to_end(group)
            while self._groups[[*self._loaded], 3].sum() > GROUPS_BYTES and len(self._loaded) > 1:
                self._loaded.popitem(last=False)
        if is_first:
            try:
                future.set_result(self._load(group))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def _load(self, group: int) -> Any:
        file, number, rows, _ = self._groups[group].tolist()
        path, column = self.files[file], self._columns[file]
        parquet = texts.parquet_module(path)
        import pyarrow

        try:
            with parquet.ParquetFile(path, metadata=self._metadata[file]) as opened:
                images = opened.read_row_group(number, columns=[column]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            raise RequestError(_unreadable(path, error)) from error
        if len(images) != rows:
            raise RequestError(f"{path} changed while it was read: start again")
        images = images.combine_chunks()
        return images.field("bytes") if column != COLUMN else images


def _schema(file: pathlib.Path) -> tuple[Any, str]:
    """Return a parquet file's metadata, and the column of bytes."""
    parquet = texts.parquet_module(file)
    import pyarrow

    try:
        with parquet.ParquetFile(file) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError(_unreadable(file, error)) from error
    if COLUMN not in schema.names:
        names = ", ".join(repr(printable(str(name))) for name in schema.names[:20])
        raise RequestError(f"{file} has no column {COLUMN!r}: it has {names or 'none'}")
    kind = schema.field(COLUMN).type
    column = COLUMN
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, column = kind.field("bytes").type, f"{COLUMN}.bytes"
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise RequestError(
            f"{file}: the column {COLUMN!r} holds {printable(str(kind))[:80]}: expected bytes, or "
            "a struct of bytes and path"
        )
    return metadata, column


def _column_bytes(group: Any, column: str) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(one.total_uncompressed_size for one in chunks if one.path_in_schema == column)


def _unreadable(file: pathlib.Path, error: Exception) -> str:
    return f"{file} cannot be read: {printable(' '.join(str(error).split()))[:200]}"
