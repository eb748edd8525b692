"""List the files of a folder with many: quickly, once, and in little memory."""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.data import arrays

CACHED_FROM = 10_000  # files; fewer are listed in less time than a cache takes
SETTLED = 2e9  # nanoseconds; a folder that changed later may change again at the same time
Record = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Names:
    """Names as one array of bytes: a million take some 30 MB.

    content: all names, one after the other.
    ends: (n,) where each ends.
    """

    content: np.ndarray
    ends: np.ndarray

    @classmethod
    def pack(cls, names: Collection[bytes]) -> "Names":
        """Keep names in their order."""
        ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
        return cls(np.frombuffer(b"".join(names), np.uint8), ends)

    def unpack(self) -> list[bytes]:
        """Return all names."""
        content, start, names = self.content.tobytes(), 0, []
        for end in self.ends.tolist():
            names.append(content[start:end])
            start = end
        return names

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:
        start = int(self.ends[row - 1]) if row else 0
        return self.content[start : self.ends[row]].tobytes()


def scan(root: pathlib.Path, suffixes: tuple[str, ...]) -> list[bytes]:
    """List the files under a folder that have one of the suffixes, in order.

    A long list is cached until the time of change of any folder differs. Names that begin with a
    dot are left out, as are links to folders and links that lead out of `root`.

    Args:
      root: the folder.
      suffixes: in small letters; those of the files may be large.

    Returns:
      The paths relative to `root`, with "/" between folders.
    """
    place = os.fsencode(root)
    key = _io.digest([os.path.realpath(root), suffixes])

    def is_current(record: Record) -> bool:
        folders = Names(record["folders"], record["folder_ends"]).unpack()
        times = record["times"].tolist()
        return all(
            os.stat(_joined(place, folder)).st_mtime_ns == changed  # noqa: PTH116, bytes
            for folder, changed in zip(folders, times, strict=True)
        )

    def walk() -> tuple[Record, bool]:
        start = time.time_ns()
        names, folders = _walk(place, tuple(map(os.fsencode, suffixes)))
        packed, packed_folders = Names.pack(names), Names.pack([*folders])
        record = {
            "names": packed.content,
            "ends": packed.ends,
            "folders": packed_folders.content,
            "folder_ends": packed_folders.ends,
            "times": np.array([*folders.values()], np.int64),
        }
        settled = max(folders.values()) < start - SETTLED
        return record, settled and len(names) >= CACHED_FROM

    record = cached(key, ("names", "ends", "folders", "folder_ends", "times"), is_current, walk)
    return Names(record["names"], record["ends"]).unpack()


def _walk(root: bytes, suffixes: tuple[bytes, ...]) -> tuple[list[bytes], dict[bytes, int]]:
    """Return the files, and all folders with the time when each changed."""
    names: list[bytes] = []
    folders: dict[bytes, int] = {}
    pending, outside = [b""], 0
    inside = os.path.realpath(root).rstrip(b"/") + b"/"
    while pending:
        folder = pending.pop()
        place, prefix = _joined(root, folder), folder and folder + b"/"
        try:
            # Before it is listed, so that a change in between is seen the next time.
            folders[folder] = os.stat(place).st_mtime_ns  # noqa: PTH116, bytes
            with os.scandir(place) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(b"."):
                        continue
                    if entry.is_symlink():
                        target = os.path.realpath(entry.path)
                        if not target.startswith(inside):
                            outside += 1
                        elif name.lower().endswith(suffixes) and os.path.isfile(target):  # noqa: PTH113
                            names.append(prefix + name)
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(prefix + name)
                    elif name.lower().endswith(suffixes) and entry.is_file(follow_symlinks=False):
                        names.append(prefix + name)
        except OSError as error:
            raise RequestError(
                f"{os.fsdecode(place)} cannot be listed ({error.strerror}): make it readable"
            ) from error
    if outside and not names:
        raise RequestError(
            f"{os.fsdecode(root)} holds only links that lead out of it, {outside} of them: give "
            "the folder that they lead to, or a .txt file that lists the images"
        )
    names.sort()
    return names, folders


def _joined(root: bytes, folder: bytes) -> bytes:
    return root + b"/" + folder if folder else root


def cached(
    key: str,
    names: Collection[str],
    is_current: Callable[[Record], bool],
    make: Callable[[], tuple[Record, bool]],
) -> Record:
    """Return the arrays kept under a key, or make them and keep them where `make` says True."""
    path = _io.user_cache("images") / f"{key}.npz"
    # A damaged or outdated entry is made anew.
    with contextlib.suppress(OSError, RequestError, KeyError, ValueError):
        if path.is_file():
            record = arrays.members(path, names, ", ".join(names))
            if is_current(record):
                return record
    record, kept = make()
    keywords: Any = record
    if kept:
        with contextlib.suppress(OSError):  # a full or read-only disk costs only the next scan
            path.parent.mkdir(parents=True, exist_ok=True)
            with _io.atomic_path(path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, **keywords)
    return record


def first_part(name: bytes) -> bytes:
    """Return the first folder of a relative path; b"" where it has none."""
    first, slash, _ = name.partition(b"/")
    return first if slash else b""


def ending(names: Iterable[bytes], suffixes: Iterable[str]) -> list[bytes]:
    """Return the names that end with one of the suffixes, in small or large letters."""
    ends = tuple(map(os.fsencode, suffixes))
    return [name for name in names if name.lower().endswith(ends)]
