"""Processes of one job end together: what one is told, fails with or dies of, the others learn within seconds.

A training stops by agreement, after the same step (`stopping`). All else that ends a process goes through here: it
leaves word for the others, which obey the same signal, or end with status 1 and one line.
"""

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

import jax

LEFT = (
    "pcjax/left/"  # where the coordination service keeps the status of every process that has left
)
GRACE = 5.0  # seconds for the main thread to end by itself; it may wait for a process that has left
WAIT = 8.0  # seconds that the first process stays for others that are told, who learn nothing without it
WAIT_FAILED = 2.0  # and where something failed: the others end with status 1 either way
EVERY = 0.5
GO_ON = "what was saved stays, and the same command goes on"

_ended = threading.Event()


def begin() -> None:
    """From now on this process ends when another one of its job does."""
    atexit.register(_ended.set)
    if threading.current_thread() is threading.main_thread():
        # JAX has taken SIGTERM for its own notice of preemption, which nobody looks at outside of a training.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    threading.Thread(target=_watch, name="together", daemon=True).start()
    # When a process has died, JAX aborts the others from a thread of its own.
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, type(_aborted)), ctypes.c_void_p
    libc.signal(signal.SIGABRT, _aborted)


def joined() -> bool:
    """Whether this is one of several processes that know of each other."""
    return _client() is not None and jax.process_count() > 1


def leave(status: int) -> None:
    """Ends this process without waiting for the others, which are told; does nothing in a job of one."""
    if not joined() or _ended.is_set():
        return
    _ended.set()
    _exit(status)


def part() -> None:
    """Takes leave of the others, who wait for it, where this process is to end without its usual end."""
    _ended.set()
    if joined():
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def left_by_others() -> int | None:
    """The status that another process left with, if one has."""
    own, client = f"{LEFT}{jax.process_index()}", _client()
    found = [] if client is None else client.key_value_dir_get(LEFT)
    return next((int(status) for name, status in found if name != own), None)


def why(status: int | None) -> tuple[str, int]:
    """What to say when another process has left with that status, or died without a word; and this one's status."""
    if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        name = signal.Signals(status - 128).name
        return f"stopped by {name}, which another process of the job was given; {GO_ON}", status
    how = "was lost" if status is None else f"ended with status {status}"
    return f"another process of the job {how}; {GO_ON}", 1


def _watch() -> None:
    failures = 0
    while not _ended.wait(EVERY):
        try:
            status = left_by_others()
        except Exception:  # the first process cannot be reached, and JAX will say so too
            failures += 1
            if failures < 2:
                continue
            status = None
        else:
            if status is None:
                failures = 0
                continue
        if status is not None:
            if status in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                os.kill(os.getpid(), status - 128)
            if _ended.wait(GRACE):
                return
        _say_and_exit(*why(status))


def _say_and_exit(line: str, status: int) -> None:
    _ended.set()
    os.write(2, f"pcjax: {line}\n".encode())
    _exit(status)


def _exit(status: int) -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    client = _client()
    with contextlib.suppress(Exception):
        client.key_value_set(f"{LEFT}{jax.process_index()}", str(status))
        until = time.monotonic() + (WAIT_FAILED if status == 1 else WAIT)
        while jax.process_index() == 0 and time.monotonic() < until:
            if len(client.key_value_dir_get(LEFT)) == jax.process_count():
                time.sleep(EVERY)  # what is told last has ended by then
                break
            time.sleep(EVERY / 5)
    os._exit(status)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    line, status = why(None)
    if not _ended.is_set():
        os.write(2, f"pcjax: {line}\n".encode())
    os._exit(status)


def _client() -> Any:
    # JAX has no other way to its coordination service.
    from jax._src import distributed

    return distributed.global_state.client
