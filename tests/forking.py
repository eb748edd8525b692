"""A program that imports the command once and forks a child for every request of children.py.

A request is a line of JSON: the arguments, the environment and where the outputs go. The child
takes over the interpreter as the command finds it after its imports, and ends as the command does.
Its exit status goes to FOLDER/status, negative after a signal, as `subprocess` has it.

A request may hold Python code to run before the command: `at_call` is there for it.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

IMPORTED = (
    *("pcjax.overrides", "pcjax.export.safetensors", "pcjax.report.run_page", "matplotlib.figure"),
    *(f"pcjax.jobs.{job}" for job in ("distill", "compare", "evaluate", "embed")),
)


def serve() -> dict[str, Any]:
    """Fork for every line of standard input; return the request in the child."""
    wake, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    folders: dict[int, pathlib.Path] = {}
    partial = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)
        while folders and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            write_status(folders.pop(ended[0]), os.waitstatus_to_exitcode(ended[1]))
        if 0 not in ready:
            continue
        data = os.read(0, 65536)
        if not data:  # the tests have ended
            for pid in folders:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        *lines, partial = (partial + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return request
            folders[pid] = pathlib.Path(request["folder"])
            os.write(1, f"{pid}\n".encode())


def write_status(folder: pathlib.Path, status: int) -> None:
    (folder / "status.new").write_text(str(status))
    (folder / "status.new").replace(folder / "status")


def become(request: dict[str, Any]) -> None:
    """Take over the environment and the outputs of a request."""
    import jax

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, request["stdout"]), (2, request["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # JAX read its variables when it was imported.
    for name, text in request["environment"].items():
        option = name.lower()
        if option in jax.config.values:
            kind = type(jax.config.values[option])
            jax.config.update(option, json.loads(text) if kind in (int, bool, float) else text)
    # A killed child can leave half an entry of the compilation cache behind.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def at_call(function: str, number: int, action: Callable[[], Any]) -> None:
    """Do something before a certain call of a function, "module:name" or "module:Class.name"."""
    module, _, path = function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def at_step(number: int, action: Callable[[], Any]) -> None:
    """Do something before a certain step, or before the steps taken at once that hold it."""
    from pcjax.training.feed import Feed

    original, taken = Feed.take, 0

    def patched(feed: Feed, frozen: Any, state: Any, count: int) -> Any:
        nonlocal taken
        last = taken + min(count, feed._parallel.most)
        if taken < number <= last:
            action()
        taken = last
        return original(feed, frozen, state, count)

    Feed.take = patched


def stop(number: int) -> Callable[[], None]:
    """Return an action that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def fail() -> None:
    """Fail as a bug does."""
    raise RuntimeError("a bug")


def leave() -> None:
    """End the command here, as if it were done."""
    sys.exit(0)


def hang_with_the_interpreter() -> None:
    """Sleep in C code that holds the interpreter's lock."""
    ctypes.PyDLL(None).sleep(600)


def wait_for(path: str) -> Callable[[], None]:
    """Return an action that waits until a file exists."""

    def wait() -> None:
        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    return wait


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child then does not go through all of it when it ends
    request = serve()
    become(request)
    if request["fault"]:
        from faults.injection import inject

        inject(**request["fault"])
    exec(request["before"])  # noqa: S102
    sys.argv = ["pcjax", *request["arguments"]]
    from pcjax import cli

    cli.command()
