"""What disks do to checkpoints: another command is at work there, a file has grown, an error says this or that."""

import errno
import fcntl
import os
import pathlib
import weakref

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


class Lock:
    """What one command alone holds of a folder until it ends, however it does.

    Where the disk has no such thing, as some that machines share, nothing is held.
    """

    def __init__(self, folder: pathlib.Path):
        place = os.open(folder, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, place)
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            raise RequestError(
                f"another command is at work in {folder.parent}: wait for its end, or choose another --workdir"
            ) from error
        except OSError:
            pass


def grown(checkpoint: pathlib.Path) -> str | None:
    """Why there is no reading of it: what is read whole must be of a size that memory holds."""
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
