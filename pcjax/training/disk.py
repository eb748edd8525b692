"""What disks do to runs: another command is at work there, a file has grown, an error says this or that."""

import contextlib
import errno
import fcntl
import os
import pathlib

from pcjax import _checks
from pcjax._checks import RequestError

LARGEST = 2**26  # bytes of a file that is read whole: all but those of arrays
ARRAYS = "d"  # the folders where these lie
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


def let_go() -> None:
    """Of all that is held."""
    while _held:
        os.close(_held.popitem()[1])


def grown(checkpoint: pathlib.Path) -> str | None:
    """Why there is no reading of it: what is read whole must be of a size that memory holds."""
    with contextlib.suppress(FileNotFoundError):  # another command has removed it meanwhile
        for path in checkpoint.rglob("*"):
            if path.parent.name != ARRAYS and path.is_file() and path.stat().st_size > LARGEST:
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
