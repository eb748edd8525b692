"""Meet a fault at a chosen call of the file system, in the process of the command.

Calls that write are counted from the first that names `inside`/`first`. They come in the same
order in every run: the fault needs no luck to meet a phase of a save.
"""

import errno
import os
import signal
import sys
import threading
import time

CALLS = (
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"),
    "shutil.rmtree",
)
WRITES = os.O_WRONLY | os.O_RDWR


def inject(inside, first="", at=0, files=0, errors=0, hangs=0):
    """Kill this process before a call of the file system, or let calls fail or hang.

    Args:
      inside: a folder; only calls below it count.
      first: the name in it with which counting begins.
      at: the number of the call at which the fault happens.
      files: kill later, once there are so many files below the first name.
      errors: let so many calls fail as on a broken disk, in place of a kill.
      hangs: let the call last so many seconds, in place of a kill.
    """
    at, files, errors, hangs = int(at), int(files), int(errors), int(hangs)
    name = f"{inside.rstrip('/')}/{first}"
    lock, count = threading.RLock(), -1

    def look(event, arguments):
        nonlocal count
        if event not in CALLS:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        paths = arguments[: 2 if event in ("os.rename", "os.link") else 1]
        paths = [os.fspath(path) for path in paths if isinstance(path, (str, os.PathLike))]
        with lock:
            if count < 0 and not any(path.startswith(name) for path in paths):
                return
            # Names inside a folder that is being removed come without it. Scores are written while
            # a checkpoint is: their calls have no fixed place among the others.
            own = [path for path in paths if path.startswith(inside) or path[:1] != "/"]
            if not own or "scores.json" in own[0]:
                return
            count += 1
            if errors:
                if at <= count < at + errors:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), paths[0])
            elif count == at and hangs:
                time.sleep(hangs)
            elif count == at and files:
                threading.Thread(target=kill_at_files, daemon=True).start()
            elif count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def kill_at_files():
        while sum(len(result) for _, _, result in os.walk(name)) < files:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
