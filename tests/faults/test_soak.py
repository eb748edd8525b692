"""A long training that is killed again and again: nothing grows, and nothing is compiled anew."""

import json
import os
import pathlib
import random
import statistics
import time
from typing import NamedTuple

import pytest
from children import environment, start

pytestmark = pytest.mark.nightly

STEPS, SAVE_EVERY = 20_000, 100
SITTINGS = 4
MAX_GROWTH = 0.02


class Sample(NamedTuple):
    """The state of a process while it trains the student."""

    step: int
    memory: int  # bytes that are resident
    files: int
    compiled: int  # programs so far


def sample(child, run):
    """Return the state of a process; None before it trains the student and after its end."""
    try:
        own = pathlib.Path("/proc") / str(child.pid)
        pages, files = int((own / "statm").read_text().split()[1]), len([*(own / "fd").iterdir()])
    except OSError:
        return None
    saved = [int(path.name) for path in (run / "checkpoints").glob("[0-9]*")]
    compiled = child.complaint().count("Compiling ")
    return (
        Sample(max(saved), pages * os.sysconf("SC_PAGE_SIZE"), files, compiled) if saved else None
    )


def sit(run, kill_after):
    """Start the command and kill it after so many seconds of the student's training.

    Return its exit status and the samples of that time.
    """
    words = ["--training.steps", STEPS, "--training.save-every", SAVE_EVERY, "--workdir", run]
    child = start("distill", *words, env=environment(JAX_LOG_COMPILES=1, XLA_FLAGS=""))
    samples, first, began = [], None, None
    while child.poll() is None:
        time.sleep(0.2)
        now = sample(child, run)
        if now is None:
            continue
        first = now.step if first is None else first
        if now.step > first:  # an earlier sitting's checkpoints show nothing of this one
            began = began or time.monotonic()
            samples.append(now)
        if began and kill_after is not None and time.monotonic() - began > kill_after:
            child.kill()
    return child.wait(), samples


def growth(values):
    """Return by how much the last quarter exceeds the first."""
    part = max(len(values) // 4, 1)
    return statistics.median(values[-part:]) / statistics.median(values[:part]) - 1


def test_memory_files_and_compiled_programs_stay(tmp_path, tried):
    random_ = random.Random(0)  # noqa: S311
    run, sittings = tmp_path / "run", []
    for place in range(SITTINGS):
        kill_after = 15 + 15 * random_.random() if place < SITTINGS - 1 else None
        status, samples = sit(run, kill_after)
        # The first saves warm it up, and the evaluation at the end compiles its own programs.
        warm = [s for s in samples if samples[0].step + 5 * SAVE_EVERY <= s.step < STEPS]
        if len(warm) >= 20:
            compiled = warm[-1].compiled - warm[0].compiled
            grown = growth([s.memory for s in warm]), growth([s.files for s in warm])
            sittings.append((*grown, compiled))
            print(f"sitting {place}: memory {grown[0]:+.2%}, files {grown[1]:+.2%}", flush=True)
        if status == 0:
            break
        assert status == -9
        tried("soak: kill -9", "resumed")
    assert json.loads((run / "result.json").read_text())["steps"] == STEPS
    assert sittings
    for memory, files, compiled in sittings:
        assert memory < MAX_GROWTH
        assert files < MAX_GROWTH
        assert compiled == 0
    tried("soak: steps", "memory and files flat, nothing compiled", STEPS)
