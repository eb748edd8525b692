"""The installed command as child processes: one, or two that train together."""

import atexit
import functools
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from compiling import WITHOUT_OPTIMISATIONS

from pcjax._fields import proven
from pcjax.training.checkpoint import Checkpoints

PCJAX = str(pathlib.Path(sys.executable).with_name("pcjax"))
LOST = (
    "pcjax: another process of the job was lost; what was saved stays, and the same command goes on"
)
STEPS = 60
SMALL = [
    *(
        "--teacher.model.widths",
        "24",
        "--teacher.model.features",
        "12",
        "--teacher.training.steps",
        "4",
    ),
    *(
        "--student.widths",
        "8",
        "--student.features",
        "4",
        "--training.steps",
        str(STEPS),
        "--training.batch",
        "64",
    ),
    *("--teacher.training.batch", "64", "--training.save-every", "3", "--training.log-every", "2"),
    # What they are worth is judged again and again: by few examples, yet by so many that the best one is a late one.
    *("--data.part", "0.4", "--data.validation", "0.2"),
]


@functools.cache
def compiled():
    """Where all of them keep what they compile: many are of the same step."""
    folder = tempfile.mkdtemp(prefix="pcjax-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(**given):
    """Of a child process: they compile much and compute little, so without the compiler's optimisations by default."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_", "PCJAX_"))
    }
    kept |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": compiled()}
    kept |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": WITHOUT_OPTIMISATIONS}
    return kept | {name: str(value) for name, value in given.items()}


_started = []


def start(
    *arguments, program=(PCJAX,), env=None, cwd=None, stdout=subprocess.PIPE, stderr=subprocess.PIPE
):
    """The command, or another program; it ends with the test at the latest."""
    command = [*map(str, (*program, *arguments))]
    process = subprocess.Popen(
        command, env=env or environment(), cwd=cwd, stdout=stdout, stderr=stderr, text=True
    )
    _started.append(process)
    return process


def end_all():
    """Ends whatever was started and still runs."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def environments_of_two(**given):
    """Of two processes of one job, with two devices each unless another number is given."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    several = {
        "PCJAX_COORDINATOR": f"localhost:{port}",
        "PCJAX_PROCESSES": 2,
        "JAX_NUM_CPU_DEVICES": 2,
    } | given
    return [environment(PCJAX_PROCESS=i, **several) for i in range(2)]


def start_two(*arguments, program=(PCJAX,), **given):
    """Two processes of one job."""
    return [start(*arguments, program=program, env=env) for env in environments_of_two(**given)]


def fault(**given):
    """What has a child process meet a fault in its calls of the file system, as sitecustomize.py takes it."""
    path = os.pathsep.join(
        [str(pathlib.Path(__file__).parent / "faults" / "killed"), os.environ.get("PYTHONPATH", "")]
    )
    return {"PYTHONPATH": path} | {
        f"PCJAX_KILL_{name.upper()}": str(value) for name, value in given.items()
    }


def everything_in(folder):
    """All files by their paths."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def change_manifest(run, step, **changes):
    """A manifest that says something else, as if it had been written so."""
    path = run / "checkpoints" / f"{step}" / "manifest" / "metadata"
    path.write_text(json.dumps(proven(json.loads(path.read_text()) | changes)))


def steps_saved(run):
    """The steps of the checkpoints that have their mark."""
    return sorted(
        int(path.parent.name) for path in (run / "checkpoints").glob("*/commit_success.txt")
    )


def finish(process, timeout=300):
    """The status, what it said and what it complained of."""
    said, complaint = process.communicate(timeout=timeout)
    return process.returncode, said, complaint


def pcjax(*arguments, **given):
    """What a command says that does what was asked for."""
    status, said, complaint = finish(start(*arguments, **given))
    assert status == 0, complaint
    return said


def wait_until(true, process=None, seconds=200, every=0.05):
    """Until that is true, or the process has ended, or it has taken too long; whether it is true."""
    deadline = time.monotonic() + seconds
    while (
        not (found := true())
        and time.monotonic() < deadline
        and (process is None or process.poll() is None)
    ):
        time.sleep(every)
    return found


def arrays_of(folder, step):
    """What a checkpoint holds, and the place in the data."""
    checkpoints = Checkpoints(folder / "checkpoints", {}, writable=False)
    found = checkpoints.arrays(step)
    checkpoints.close()
    return found


def outcome_of(folder, steps=STEPS):
    """Everything of a run that must be the same: metrics, final state, place in the data."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [
        {name: value for name, value in line.items() if name != "steps_per_second"}
        for line in lines
    ]
    arrays, place = arrays_of(folder, steps)
    return metrics, {name: array.tobytes() for name, array in arrays.items()}, place
