"""Images from files: `load("images:PATH", image_size=224)`.

PATH is one of these:

    a folder        all .jpg, .jpeg, .png, .webp, .bmp, .tif and .tiff under it; where there are
                    none, all .parquet or all .tar under it
    a .txt file     one path a line, absolute or relative to the file's folder; a label may follow
                    after a tab
    a .parquet file a column "image" of encoded images, as bytes or as the struct of Hugging Face
    a .tar file     a shard of WebDataset: KEY.jpg (or .jpeg, .png, .webp), and KEY.cls for a label

The sub-folders train, validation (or val) and test of a folder are these splits; all other files
are training images. A parquet or tar file may also name its split, such as
"validation-00000-of-00002.parquet" or "imagenet1k-test-03.tar".

No label is read from the names of folders unless `image_labels` is "folders", nor from parquet
unless `label_column` names its column.

**Broken files.** A folder of many images has a few that nobody can decode. They show only when
they are decoded, at any time of a run. The order of the examples must not depend on that time: a
teacher's outputs, the splits and a resumed run refer to the order. A broken image therefore keeps
its row, and the nearest good image before it stands in, of the same class where classes are known.
The choice depends on the files alone: it is the same in every process, at every size, for teacher
and student. The first ten broken images are named, one a line. Broken images that exceed both ten
and 1 %, or half of all images, are refused.

Links that lead out of a folder are not followed, and no archive is extracted.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import os
import pathlib
import stat
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from pcjax._checks import RequestError, printable
from pcjax.data import texts
from pcjax.data.examples import (
    ENCODED_WHOLE,
    SPLITS,
    Splits,
    array_parts,
    digest,
    hashed,
    sampled,
)
from pcjax.data.listing import Names, ending, first_part, scan
from pcjax.data.pictures import decoded
from pcjax.data.shards import Column, read_tars

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SHARDS = (".parquet", ".tar")
SPLIT_NAMES = {split: split for split in SPLITS} | {"val": "validation"}
FOLDERS = "folders"
IN_MEMORY = 2**30  # bytes; images that take no more are decoded once
MAX_BYTES = 2**29  # a larger file counts as broken
MAX_SIDE = 4096
MAX_LINE = 2**14  # bytes in a line of a .txt list
AT_ONCE = 4  # images in one task of a thread
FEW, SHARE, NAMED = 10, 100, 10  # up to 10 broken files, or 1 in 100, are accepted; 10 are named
log = logging.getLogger(__name__)


@runtime_checkable
class Encoded(Protocol):
    """Encoded images, read one at a time."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Name an image in messages."""
        ...

    def read(self, row: int) -> bytes:
        """Read an image's bytes."""
        ...

    def key(self, row: int) -> bytes:
        """Return bytes that identify an image: its contents; in a large set, its file and time."""
        ...

    def parts(self) -> Iterable[bytes]:
        """Yield bytes that identify all images, wherever their files lie."""
        ...


Part = tuple[Encoded, list[texts.Label] | None]


def read(
    name: str,
    *,
    image_size: int | None = None,
    image_labels: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Read a folder, a list, parquet files or tar shards of images; see this module.

    Args:
      name: the file or the folder.
      image_size: height and width of the images: the shorter side is scaled to it and the middle
        is cut out.
      image_labels: "folders": the first sub-folder, below that of the split, is the class.
      label_column: name of the column of classes in parquet files, numbers or names.
    """
    root = pathlib.Path(name).expanduser()
    if image_size is None:
        raise RequestError(
            f"images:{name}: images differ in size: give image_size, the side that all are brought "
            "to, such as 224"
        )
    if image_size > MAX_SIDE:
        raise RequestError(f"images:{name}: image_size {image_size} exceeds {MAX_SIDE}; lower it")
    if image_labels not in (None, FOLDERS):
        raise RequestError(f"got image_labels {image_labels!r}: expected {FOLDERS!r}, or leave it")
    kind, parts = _parts(root, label_column, image_labels)
    if image_labels is not None and kind != "folder":
        raise RequestError(f"{root}: only a folder of images takes image_labels; leave it out")
    if label_column is not None and kind != ".parquet":
        raise RequestError(f"{root}: only parquet files take label_column; leave it out")
    if not len(parts.get("train", ((), None))[0]):
        raise RequestError(f"{root}: there are no training images; give a folder or file with some")
    known = [label for _, labels in parts.values() for label in labels or () if label is not None]
    names = tuple(sorted({*map(str, known)})) if image_labels else texts.class_names(known)
    stores = {
        split: Images(encoded, _numbers(labels, names), image_size, Broken(encoded))
        for split, (encoded, labels) in parts.items()
    }
    classes = names if isinstance(names, tuple) else None
    return Splits(stores["train"], stores.get("validation"), stores.get("test"), classes)


def _parts(
    root: pathlib.Path, label_column: str | None, image_labels: str | None
) -> tuple[str, dict[str, Part]]:
    """Return the kind of files, and the images and labels of every split."""
    if root.is_dir():
        paths = scan(root, (*SUFFIXES, *SHARDS))
        images = ending(paths, SUFFIXES)
        if images and len(images) < len(paths):
            raise RequestError(
                f"{root}: {len(images):,} images and {len(paths) - len(images):,} files of "
                ".parquet or .tar lie together; name the folder of one kind"
            )
        if images:
            return "folder", _folder(root, images, image_labels)
        kinds = {kind for kind in SHARDS if ending(paths, (kind,))}
        if len(kinds) != 1:
            names = ", ".join(SUFFIXES)
            raise RequestError(
                f"{root}: no file under this folder ends with {names}; with none of them, expected "
                "either .parquet or .tar"
            )
        kind = kinds.pop()
    elif not root.is_file():
        raise RequestError(f"{root}: no such file or folder; expected images")
    else:
        kind, paths = root.suffix.lower(), [os.fsencode(root.name)]
        if kind == ".txt":
            return kind, {"train": _list(root)}
        if kind not in SHARDS:
            raise RequestError(f"{root}: expected a folder, or a .txt, .parquet or .tar file")
    splits: dict[str, list[bytes]] = {}
    for path in paths:
        split = _split_of(path) if root.is_dir() else "train"
        splits.setdefault(split, []).append(path)
    folder = root if root.is_dir() else root.parent
    parts = {}
    for split, names in splits.items():
        files = [folder / os.fsdecode(path) for path in names]
        parts[split] = (
            read_tars(files, names)
            if kind == ".tar"
            else (Column(files, names), _column_labels(files, label_column))
        )
    return kind, parts


def _split_of(path: bytes) -> str:
    """Return the split of a shard, by its folder or by a word of its name."""
    folder = os.fsdecode(first_part(path)).lower()
    if folder in SPLIT_NAMES:
        return SPLIT_NAMES[folder]
    stem = os.fsdecode(path.rpartition(b"/")[2].rpartition(b".")[0]).lower()
    words = stem.replace("-", ".").replace("_", ".").split(".")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def _folder(
    root: pathlib.Path, paths: Sequence[bytes], image_labels: str | None
) -> dict[str, Part]:
    splits: dict[str, list[bytes]] = {}
    labels: dict[str, list[texts.Label]] = {}
    names = {os.fsencode(name): split for name, split in SPLIT_NAMES.items()}
    for path in paths:
        folder, below, rest = path.partition(b"/")
        split = names.get(folder.lower()) if below else None
        splits.setdefault(split or "train", []).append(path)
        if image_labels is not None:
            label = first_part(rest if split else path)
            labels.setdefault(split or "train", []).append(_text(label) or None)
    top = {first_part(path) for path in paths} - {b""}
    of_splits = sorted(folder for folder in top if folder.lower() in names)
    if image_labels is not None and of_splits and len(of_splits) < len(top):
        one, other = (os.fsdecode(min(x)) for x in (of_splits, top - {*of_splits}))
        raise RequestError(
            f"{root}: the folder {printable(one)!r} is a split and {printable(other)!r} a class: "
            "put the classes below train, or rename a class that is called like a split"
        )
    if image_labels is not None and not any(label for each in labels.values() for label in each):
        raise RequestError(
            f"{root}: image_labels is {FOLDERS!r}, and there are no sub-folders of images: leave "
            "it out, or sort the images into a folder a class"
        )
    return {
        split: (Files(root, Names.pack(each)), labels.get(split)) for split, each in splits.items()
    }


def _list(file: pathlib.Path) -> Part:
    """Read a list of paths."""
    paths: list[bytes] = []
    labels: list[texts.Label] = []
    with file.open("rb") as lines:
        while line := lines.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE or b"\0" in line:
                raise RequestError(
                    f"{file}: line {len(paths) + 1} is no path: expected a list of images"
                )
            path, _, label = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").partition(b"\t")
            if path.strip():
                paths.append(path)
                labels.append(_text(label.strip()) or None)
    files = Files(file.parent, Names.pack(paths))
    tried = sampled(len(paths), 1, 0)[:: max(1, len(paths) // 100)].tolist()
    if tried and not any(os.path.isfile(files.path(row)) for row in tried):  # noqa: PTH113, bytes
        raise RequestError(
            f"{file}: {printable(os.fsdecode(files.path(0)))} is no file: expected a list of "
            "images, one a line, absolute or relative to the list's folder"
        )
    return files, labels if any(label is not None for label in labels) else None


def _column_labels(files: Sequence[pathlib.Path], column: str | None) -> list[texts.Label] | None:
    if column is None:
        return None
    return [
        texts.checked_label(file, number, column, label)
        for file in files
        for number, (label,) in texts.numbered_rows(file, (column,))
    ]


def _numbers(
    labels: list[texts.Label] | None, names: tuple[str, ...] | str | None
) -> np.ndarray | None:
    return None if labels is None else texts.class_numbers(labels, names)


@functools.lru_cache(maxsize=4096)
def _text(name: bytes) -> str:
    """Decode the name of a class; the cache keeps one string for all of its images."""
    return printable(os.fsdecode(name))


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """Image files, by their paths from `root`."""

    root: pathlib.Path
    names: Names

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> bytes:
        """Return the path of a file."""
        return os.path.join(os.fsencode(self.root), self.names[row])  # noqa: PTH118, bytes

    def name(self, row: int) -> str:
        """Name an image in messages."""
        return printable(os.fsdecode(self.path(row)))

    def read(self, row: int) -> bytes:
        """Read an image's bytes."""
        path = self.path(row)
        status = os.stat(path)  # noqa: PTH116, bytes
        if not stat.S_ISREG(status.st_mode):
            raise RequestError("it is no file")
        if status.st_size > MAX_BYTES:
            raise RequestError(f"it has {status.st_size:,} bytes, over {MAX_BYTES:,}")
        with open(path, "rb") as file:  # noqa: PTH123, bytes
            return file.read()

    @functools.cached_property
    def _state(self) -> np.ndarray:
        """The size and time of change of every file."""
        state = [_size_and_time(self.path(row)) for row in range(len(self))]
        return np.array(state, np.int64).reshape(-1, 2)

    @functools.cached_property
    def _size(self) -> int:
        return int(self._state[:, 0].sum())

    @functools.cached_property
    def _place(self) -> bytes:
        return os.path.realpath(os.fsencode(self.root))

    def key(self, row: int) -> bytes:
        """Return an image's bytes; in a large set, its path, size and time of change."""
        content = self._content(row) if self._size <= ENCODED_WHOLE else b""
        return content or b"%b/%b" % (self._place, self.names[row]) + self._state[row].tobytes()

    def parts(self) -> Iterable[bytes]:
        """Yield names, sizes and contents; of a large set, times of change and some contents."""
        yield from (self.names.content.tobytes(), self.names.ends.tobytes())
        yield (self._state[:, 0] if self._size <= ENCODED_WHOLE else self._state).tobytes()
        for row in sampled(len(self), self._size, ENCODED_WHOLE).tolist():
            yield self._content(row)

    def _content(self, row: int) -> bytes:
        try:
            return self.read(row)
        except (OSError, ValueError):
            return b""


def _size_and_time(path: bytes) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116, bytes
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


class Broken:
    """Images that cannot be decoded; the stores of all sizes share one such list."""

    def __init__(self, encoded: Encoded):
        self._encoded, self._lock = encoded, threading.Lock()
        self._reasons: dict[int, str] = {}
        self.replaced: dict[int, int] = {}
        n = len(encoded)
        self.limit = min(max(FEW, n // SHARE), n // 2)

    def stand_in(self, row: int) -> int:
        """Return the row to read for an image: its own, or the row of its stand-in."""
        return self.replaced.get(row, row)

    def add(self, row: int, reason: str) -> None:
        """Count an image, and name the first ones; refuse too many."""
        with self._lock:
            is_new = row not in self._reasons
            self._reasons[row] = reason
            count = len(self._reasons)
            first = [*self._reasons.items()][:3]
        if count > self.limit:
            named = ", ".join(f"{self._encoded.name(each)} ({why})" for each, why in first)
            raise RequestError(
                f"more than {self.limit:,} of {len(self._encoded):,} images cannot be read, such "
                f"as {named}: remove or replace them, or give a .txt file that lists the good ones"
            )
        if is_new and count <= NAMED:
            more = "; others are not named" if count == NAMED else ""
            name = self._encoded.name(row)
            log.warning("%s: %s; a neighbour takes its place%s", name, reason, more)


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Encoded images, decoded at every reading, or only once where all of them fit into memory."""

    encoded: Encoded
    known_labels: np.ndarray | None
    side: int
    broken: Broken

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.side, self.side, 3

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what `read` returns."""
        return np.dtype(np.uint8)

    @property
    def fingerprint(self) -> str:
        """A hash of the names, labels, size and contents; of a sample where there are many."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        labels = () if self.known_labels is None else array_parts(self.known_labels)
        head = f"images {len(self)} {self.side}".encode()
        return digest([head, *labels, *self.encoded.parts()])

    def __len__(self) -> int:
        return len(self.encoded)

    def labels(self) -> np.ndarray | None:
        """Return all labels."""
        return self.known_labels

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash each image as it is stored, or its stand-in, together with the size."""
        side = str(self.side).encode()
        return hashed((side, self.encoded.key(self.broken.stand_in(row))) for row in rows.tolist())

    def at_size(self, side: int) -> "Images":
        """Return the same images, decoded at another size."""
        return self if side == self.side else dataclasses.replace(self, side=side)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read and decode the images of these rows; read their labels."""
        labels = None if self.known_labels is None else self.known_labels[rows]
        if self._kept is None:
            distinct, inverse = np.unique(rows, return_inverse=True)
            if len(distinct) < len(rows):  # such as the padding of a last batch
                return self._decoded(distinct)[inverse], labels
            return self._decoded(rows), labels
        images, present = self._kept
        absent = np.unique(rows[~present[rows]])
        images[absent] = self._decoded(absent)
        present[absent] = True
        return images[rows], labels

    @functools.cached_property
    def _kept(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Memory for all decoded images, filled as they are read, and flags of the filled ones."""
        n = len(self)
        if n * self.side**2 * 3 > IN_MEMORY:
            return None
        return np.empty((n, *self.shape), np.uint8), np.zeros(n, bool)

    def _decoded(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.shape), np.uint8)

        def decode(start: int) -> None:
            for position in range(start, min(start + AT_ONCE, len(rows))):
                images[position] = self._image(int(rows[position]))

        # Pillow decodes without the interpreter lock.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(decode, range(0, len(rows), AT_ONCE)))  # list raises the threads' errors
        return images

    def _image(self, row: int) -> np.ndarray:
        """Decode an image; if it is broken, decode and remember a stand-in."""
        try:
            return self._one(self.broken.stand_in(row))
        except RequestError as error:
            self.broken.add(row, str(error))
        for other in self._neighbours(row):
            try:
                image = self._one(int(other))
            except RequestError as error:
                self.broken.add(int(other), str(error))
            else:
                self.broken.replaced[row] = int(other)
                return image
        raise RequestError(f"{self.encoded.name(row)}: no good image is left to take its place")

    def _one(self, row: int) -> np.ndarray:
        try:
            return decoded(self.encoded.read(row), self.side)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise RequestError(str(error.strerror)) from error
        except OSError as error:  # of the disk or the process: the file may be good
            raise OSError(error.errno, error.strerror, self.encoded.name(row)) from error

    def _neighbours(self, row: int) -> np.ndarray:
        """Return all other rows, counted down from this one; those of the same class come first."""
        n = len(self)
        others = (row - np.arange(1, n)) % n
        if self.known_labels is None:
            return others
        alike = self.known_labels[others] == self.known_labels[row]
        return np.concatenate([others[alike], others[~alike]])
