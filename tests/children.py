"""The command as child processes: one, or two that train together."""

import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from compiling import CACHE, WITHOUT_OPTIMISATIONS
from small import STEPS

from pcjax.training.checkpoint import Checkpoints
from pcjax.training.metrics_log import read_metrics

PCJAX = str(pathlib.Path(sys.executable).with_name("pcjax"))
FORKING = pathlib.Path(__file__).with_name("forking.py")
# Code for `before`: evaluation and report take half of a short run's time, and change no training.
ONLY_TRAIN = "at_call('pcjax.jobs.distill:evaluate', 1, leave)\n"


def environment(**variables):
    """Return the environment of a child: it compiles much and computes little."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "PCJAX_"))
    }
    inherited |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": WITHOUT_OPTIMISATIONS}
    inherited |= {"JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    inherited |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return inherited | {name: str(value) for name, value in variables.items()}


class Child:
    """A forked process that runs the command; like `subprocess.Popen`, with outputs in files."""

    def __init__(self, arguments, env, cwd, stdout, before, fault):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="pcjax-child-"))
        self._status, self._stderr = self._folder / "status", self._folder / "stderr"
        self._stdout = self._folder / "stdout" if stdout is None else pathlib.Path(stdout)
        request = {
            "arguments": [*map(str, arguments)],
            "environment": environment() if env is None else env,
            "cwd": str(cwd or pathlib.Path.cwd()),
            "folder": str(self._folder),
            "stdout": str(self._stdout),
            "stderr": str(self._stderr),
            "before": before,
            "fault": {name: str(value) for name, value in fault.items()},
        }
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self):
        """Return the exit status, or None while the process runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def wait(self, timeout=None):
        """Wait for the end; return the exit status."""
        if not wait_until(lambda: self._status.exists(), seconds=timeout or 600, every=0.01):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.poll()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def output(self):
        """Return what the process has printed so far."""
        return self._stdout.read_text() if self._stdout.is_file() else ""

    def complaint(self):
        """Return what the process has printed to stderr so far."""
        return self._stderr.read_text()

    def end(self):
        """End the process, and remove its outputs."""
        self.kill()
        self.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def _server():
    """Start the program that imports the command once for all children of this process."""
    return subprocess.Popen(
        [sys.executable, FORKING],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


_started = []


def start(*arguments, env=None, cwd=None, stdout=None, before="", fault=()):
    """Start the command; it ends with the test at the latest.

    Args:
      arguments: of the command line.
      env: the child's environment.
      cwd: its working directory.
      stdout: the file that its output goes to.
      before: Python code that runs before the command; see forking.py.
      fault: arguments of faults/injection.py.
    """
    child = Child(arguments, env, cwd, stdout, before, dict(fault))
    _started.append(child)
    return child


def end_all():
    """End all children that still run."""
    while _started:
        _started.pop().end()


def environments_of_two(**variables):
    """Return the environments of two processes of one job, of two devices each by default."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {
        "PCJAX_COORDINATOR": f"localhost:{port}",
        "PCJAX_PROCESSES": 2,
        "JAX_NUM_CPU_DEVICES": 2,
    } | variables
    return [environment(PCJAX_PROCESS=i, **shared) for i in range(2)]


def start_two(*arguments, before=("", ""), **variables):
    """Start two processes of one job; `before` has the code of each."""
    environments = environments_of_two(**variables)
    return [
        start(*arguments, env=env, before=code)
        for env, code in zip(environments, before, strict=True)
    ]


def at_step(step, action):
    """Return code for `before`: act before the steps that hold this one are taken.

    Steps are counted over teacher and student.
    """
    return f"at_step({step}, {action})"


def finish(child, timeout=300):
    """Wait for a child's end; return its status, its output and its complaint."""
    return child.wait(timeout), child.output(), child.complaint()


def pcjax(*arguments, **options):
    """Run a command that must succeed; return its output."""
    status, output, complaint = finish(start(*arguments, **options))
    assert status == 0, complaint
    return output


def wait_until(condition, child=None, seconds=300, every=0.02):
    """Wait until a condition holds or the child has ended; return the condition's last value."""
    deadline = time.monotonic() + seconds
    while (
        not (value := condition())
        and time.monotonic() < deadline
        and (child is None or child.poll() is None)
    ):
        time.sleep(every)
    return value or condition()


def everything_in(folder):
    """Return the contents of all files by their paths."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def steps_saved(run):
    """Return the steps of the complete checkpoints."""
    return sorted(
        int(path.parent.name) for path in (run / "checkpoints").glob("[0-9]*/commit_success.txt")
    )


def checkpoint_of(folder, step):
    """Return the arrays of a checkpoint, and the position in the data."""
    checkpoints = Checkpoints(folder / "checkpoints", {}, read_only=True)
    arrays, position = checkpoints._arrays(step, checkpoints._manifest(step))
    checkpoints.close()
    return arrays, position


def outcome_of(folder, steps=STEPS):
    """Return what must not depend on stops: metrics, final state and position in the data."""
    metrics = [
        {name: value for name, value in record.items() if name != "steps_per_second"}
        for record in read_metrics(folder)
    ]
    arrays, position = checkpoint_of(folder, steps)
    return metrics, {name: array.tobytes() for name, array in arrays.items()}, position
