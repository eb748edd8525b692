"""A long training that is killed again and again: its memory and files stay as they are, and nothing is compiled anew.

It is not run unless PCJAX_FAULTS=full.
"""

import json
import os
import pathlib
import random
import statistics
import time
from typing import NamedTuple

import pytest
from children import environment, start
from counts import FULL

STEPS = 20_000
SAVE_EVERY = 100
SITTINGS = 4
MOST_GROWTH = 0.02
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="PCJAX_FAULTS=full runs it")]


class Sample(NamedTuple):
    """A look at a process while it trains the student."""

    step: int
    memory: int  # bytes that are resident
    files: int
    compiled: int  # programs so far


def look(process, run, complaint):
    """Nothing before the student is trained, or once the process has ended."""
    try:
        own = pathlib.Path("/proc") / str(process.pid)
        pages, files = int((own / "statm").read_text().split()[1]), len([*(own / "fd").iterdir()])
    except OSError:
        return None
    saved = [int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    compiled = complaint.read_text().count("Compiling ")
    return (
        Sample(max(saved, default=0), pages * os.sysconf("SC_PAGE_SIZE"), files, compiled)
        if saved
        else None
    )


def sitting(run, place, kill_after):
    """One start of the command, looked at until it ends or is killed; the samples of its student's training."""
    complaint, said = (run.with_name(f"{name}{place}") for name in ("complaint", "said"))
    samples, began = [], None
    with said.open("w") as out, complaint.open("w") as error:
        process = start(
            *(
                "distill",
                "--training.steps",
                STEPS,
                "--training.save-every",
                SAVE_EVERY,
                "--workdir",
                run,
            ),
            env=environment(JAX_LOG_COMPILES=1, XLA_FLAGS=""),
            stdout=out,
            stderr=error,
        )
        first = None
        while process.poll() is None:
            time.sleep(0.2)
            sample = look(process, run, complaint)
            if sample is None:
                continue
            # What an earlier sitting has saved says nothing of this one.
            first = sample.step if first is None else first
            if sample.step > first:
                began = began or time.monotonic()
                samples.append(sample)
            if began and kill_after is not None and time.monotonic() - began > kill_after:
                process.kill()
                process.wait()
                return process.returncode, samples
    return process.returncode, samples


def growth(values):
    """Of the last quarter over the first one."""
    part = max(len(values) // 4, 1)
    return statistics.median(values[-part:]) / statistics.median(values[:part]) - 1


def test_memory_files_and_compiled_programs_stay_as_they_are(tmp_path, tried, record_property):
    random_ = random.Random(0)  # noqa: S311
    run, all_growths = tmp_path / "run", []
    for place in range(100):
        kill_after = 15 + 15 * random_.random() if place < SITTINGS - 1 else None
        status, samples = sitting(run, place, kill_after)
        # A few saves and validations warm it up; what is judged at the end compiles programs of its own.
        warm = [one for one in samples if samples[0].step + 5 * SAVE_EVERY <= one.step < STEPS]
        if len(warm) >= 20:
            memory, files = (
                growth([one.memory for one in warm]),
                growth([one.files for one in warm]),
            )
            compiled = warm[-1].compiled - warm[0].compiled
            all_growths.append((memory, files, compiled))
            print(
                f"sitting {place}: steps {warm[0].step} to {warm[-1].step}, memory {warm[0].memory / 2**20:.1f} to "
                f"{warm[-1].memory / 2**20:.1f} MiB ({memory:+.2%}), files {warm[0].files} to {warm[-1].files} "
                f"({files:+.2%}), {compiled} programs compiled",
                flush=True,
            )
        if status == 0:
            break
        assert status == -9, (run.with_name(f"complaint{place}")).read_text()[-2000:]
        tried("soak: kill -9", "gone on")
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == STEPS
    assert all_growths
    for memory, files, compiled in all_growths:
        assert memory < MOST_GROWTH
        assert files < MOST_GROWTH
        assert compiled == 0
    tried("soak: steps", "memory and files flat, nothing compiled", STEPS)
