"""The benchmarks run as a user runs them, and go on without what is not there or fails."""

import json
import pathlib
import subprocess
import sys

import pytest
from children import environment

from benchmarks.ranking import REFERENCE, table
from benchmarks.timing import interleaved

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_of_the_ranking(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.ranking",
        "--sizes",
        "70",
        "--seconds",
        "1",
        "--out",
        tmp_path,
    ]
    env = environment(XLA_FLAGS="")
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=300
    )
    lines = {
        line.split("|")[1].strip(): line
        for line in done.stdout.splitlines()
        if line.startswith("|")
    }
    assert {"pcjax laplace", "pcjax permutahedron", "rkd distance"} <= lines.keys()
    assert ", 1 x, " in lines["pcjax laplace"]
    missing = [line for line in done.stdout.splitlines() if line.startswith("not installed: ")]
    assert len(lines) - 2 + len(missing) == 11
    found = json.loads((tmp_path / "ranking.json").read_text())
    low, middle, high = (found["milliseconds"]["70"]["pcjax laplace"][place] for place in (1, 0, 2))
    assert 0 < low <= middle <= high
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_who_fails_is_told_and_left_out():
    def breaks():
        if len(calls) == 2:
            raise MemoryError("no room")
        calls.append(1)
        return 1e-3

    calls, told = [], []
    times = interleaved(
        {"good": lambda: 1e-3, "bad": breaks}, 0.01, failed=lambda name, error: told.append(name)
    )
    assert told == ["bad"]
    assert [*times] == ["good"]
    assert len(times["good"]) >= 3


def test_the_table_does_without_a_reference_that_failed():
    times = {
        64: {REFERENCE: (2.0, 1.0, 3.0), "rkd distance": (1.0, 1.0, 1.0)},
        128: {"rkd distance": (4.0, 4.0, 4.0)},
    }
    memory = {n: dict.fromkeys(found, 10**6) for n, found in times.items()}
    told = table({"milliseconds": times, "temporary_bytes": memory, "missing": {}}).splitlines()
    assert told[-1] == "| rkd distance | 1 (1-1), 0.5 x, 1 MB | 4 (4-4), 1 MB |"
