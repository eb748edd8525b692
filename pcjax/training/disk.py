"""What disks do to runs: another command is at work there, a file has grown, an error says this or that."""

import contextlib
import errno
import fcntl
import os
import pathlib
import stat
import time
from collections.abc import Callable, Iterator

import jax

from pcjax import _checks
from pcjax._checks import RequestError

LARGEST = 2**26  # bytes of a file that is read whole: all but those of arrays
ARRAYS = "d"  # the folders where these lie
UNFINISHED = ".unfinished"  # behind the name of a file that is being written
SEEN_AFTER = 10.0  # seconds, at most, until a disk shows here what another machine has written
# What a machine in trouble answers, whatever lies on its disk.
PASSING = (
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


_held: dict[str, int] = {}  # folders that this process holds, and the files that it does so by


def hold(folder: pathlib.Path) -> None:
    """Has a folder for this process alone, until it lets go or ends, however it does.

    Where the disk has no such thing, as some that machines share, nothing is held.
    """
    name = os.path.realpath(folder)
    if name in _held:
        return
    place = os.open(name, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise RequestError(
            f"another command is at work in {folder}: wait for its end, or choose another --workdir"
        ) from error
    except OSError:
        os.close(place)
    else:
        _held[name] = place


def let_go(folder: pathlib.Path | None = None) -> None:
    """Of a folder, if it is held; of all without one."""
    for name in [*_held] if folder is None else [os.path.realpath(folder)]:
        if name in _held:
            os.close(_held.pop(name))


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write what takes the path's place once it is whole; what cannot be written is removed, and named."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def replace(path: pathlib.Path, text: str) -> None:
    """The file appears whole or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def seen_soon(there: Callable[[], bool]) -> bool:
    """Whether what the first process has written is seen here, on a disk that may tell of it late."""
    until = time.monotonic() + SEEN_AFTER
    while not (found := there()) and jax.process_index() > 0 and time.monotonic() < until:
        time.sleep(0.2)
    return found


def unreadable(checkpoint: pathlib.Path) -> str | None:
    """Why there is no reading of it: links lead elsewhere, pipes never end, and memory must hold what is read whole."""
    for path in (checkpoint, *checkpoint.rglob("*")):
        try:
            there = path.lstat()
        except FileNotFoundError:  # another command has removed it meanwhile
            continue
        if stat.S_ISLNK(there.st_mode):
            return f"{path.name} is a symbolic link"
        if not stat.S_ISREG(there.st_mode) and not stat.S_ISDIR(there.st_mode):
            return f"{path.name} is no file"
        if path.parent.name != ARRAYS and stat.S_ISREG(there.st_mode) and there.st_size > LARGEST:
            return f"{path.name} is larger than any that is read whole"
    return None


def of_the_machine(error: BaseException) -> int | None:
    """The number of an error that says nothing of the file that was read; None of any other."""
    for one in _checks.behind(error):
        if isinstance(one, MemoryError):
            return errno.ENOMEM
        if isinstance(one, OSError) and one.errno in PASSING:
            return one.errno
        # TensorStore tells them by their names only.
        found = [number for number in PASSING if os.strerror(number) in str(one)]
        if found:
            return found[0]
    return None


def line(error: Exception) -> str:
    """What it is and says, in one line that is not too long."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
