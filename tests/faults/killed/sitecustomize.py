"""Put on the path of a child process: kills it before a chosen one of the file system's calls.

PCJAX_KILL_IN is a folder, PCJAX_KILL_FROM what lies in it: calls are counted from the first that names that.
PCJAX_KILL_AT is the number of the call before which the process ends; with PCJAX_KILL_FILES, it ends after it, as soon
as there are so many files in what was named, whoever writes them. With PCJAX_KILL_ERRORS it is not killed: so many
calls, from that one on, fail as they do on a broken disk. With PCJAX_KILL_HANGS, that call lasts so many seconds.
"""

import errno
import os
import signal
import sys
import threading
import time

FOLDER = os.environ.get("PCJAX_KILL_IN", "")
FROM = f"{FOLDER.rstrip('/')}/{os.environ.get('PCJAX_KILL_FROM', '')}"
NUMBERS = ("AT", "FILES", "ERRORS", "HANGS")
AT, FILES, ERRORS, HANGS = (int(os.environ.get(f"PCJAX_KILL_{name}", "0")) for name in NUMBERS)
CALLS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
)
WRITES = os.O_WRONLY | os.O_RDWR

lock = threading.RLock()
count, counting = 0, False


def look(event, arguments):
    global count, counting
    if event not in CALLS or (
        event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES)
    ):
        return
    given = arguments[: 2 if event in ("os.rename", "os.link") else 1]
    names = [os.fspath(one) for one in given if isinstance(one, (str, os.PathLike))]
    with lock:
        counting = counting or any(name.startswith(FROM) for name in names)
        # Of what is within a folder that is removed, names come without it.
        if not counting or not any(
            name.startswith(FOLDER) or not name.startswith("/") for name in names
        ):
            return
        count += 1
        if ERRORS:
            if AT < count <= AT + ERRORS:
                raise OSError(errno.EIO, os.strerror(errno.EIO), names[0])
        elif count == AT + 1 and HANGS:
            time.sleep(HANGS)
        elif count == AT + 1 and FILES:
            threading.Thread(target=kill_at_files, daemon=True).start()
        elif count == AT + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at_files():
    while sum(len(files) for _, _, files in os.walk(FROM)) < FILES:
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if FOLDER:
    sys.addaudithook(look)
