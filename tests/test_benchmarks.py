"""The benchmarks run as a user runs them, and leave out what is missing or fails."""

import json
import pathlib
import subprocess
import sys

import pytest
from children import environment

from benchmarks.ranking import REFERENCE, table
from benchmarks.text import required
from benchmarks.timing import interleaved

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *options):
    """Run a benchmark; return its output."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, options)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(XLA_FLAGS=""),
        capture_output=True,
        text=True,
        check=True,
        timeout=7200,
    )
    return done.stdout


@pytest.mark.nightly
def test_the_ranking_beside_its_peers(tmp_path):
    output = run("ranking", "--sizes", 70, "--seconds", 1, "--out", tmp_path).splitlines()
    rows = {line.split("|")[1].strip(): line for line in output if line.startswith("|")}
    assert {"pcjax laplace", "pcjax permutahedron", "rkd distance"} <= rows.keys()
    assert ", 1 x, " in rows["pcjax laplace"]
    missing = [line for line in output if line.startswith("not installed: ")]
    assert len(rows) - 2 + len(missing) == 11
    record = json.loads((tmp_path / "ranking.json").read_text())
    median, low, high = record["milliseconds"]["70"]["pcjax laplace"]
    assert 0 < low <= median <= high
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
@pytest.mark.parametrize("module", ["data", "display", "parts", "step"])
def test_the_others_run(module, tmp_path):
    options = ["--seconds", 1, *(["--out", tmp_path] if module in ("data", "step") else [])]
    assert run(module, *options)


@pytest.mark.nightly
def test_the_accelerators_benchmark_resumes_and_is_exact(tmp_path):
    """On the CPU: every part has its result, the second command has nothing left to do."""
    options = ("accelerator", "--minutes", 100, "--sizes", 256, "--out", tmp_path)
    first = "correct library n=256"
    assert f"{first}: " in run(*options)
    path = tmp_path / "accelerator.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    done = {record["task"]: record["result"] for record in records}
    assert {first, "loss n=256", "choice n=256", "training resnet20", "profile"} <= {*done}
    checked = [result for name, result in done.items() if name.startswith("correct")]
    assert len(checked) == 5
    for result in checked:
        for name, error in result.items():
            assert error < (1e-5 if name in ("loss", "gradient") else 1e-6), name
    assert done["loss n=256"][REFERENCE]["ms"][0] > 0
    assert done["training resnet20"]["ratio"] > 0
    path.write_text("".join(json.dumps(r) + "\n" for r in records[1:]) + '{"task": "cut sh')
    again = run(*options)
    assert f"{first}: " in again
    assert "loss n=256: " not in again
    assert "| pcjax laplace |" in (tmp_path / "accelerator.md").read_text()
    assert (tmp_path / "accelerator.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.nightly
def test_the_bare_loop_beside_ours():
    assert "ratio: " in run("bare_loop", "--rounds", 1, "--steps", 20)


@pytest.mark.nightly
def test_first_calls_are_timed_in_processes_of_their_own():
    lines = run("compiling", "--sizes", 64, "--repeat", 1).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "perception_coherence, n = 64",
        "rkd_distance, n = 64",
        "metrics.coherence, n = 64",
    ]


def test_a_missing_package_is_one_line():
    with pytest.raises(
        SystemExit, match=r"^benchmarks\.text needs a-package: `pip install a-package`$"
    ):
        required("no_such_module", "a-package")


def test_a_contender_that_fails_is_reported_and_left_out():
    def breaks():
        if len(calls) == 2:
            raise MemoryError("no room")
        calls.append(1)
        return 1e-3

    calls, failed = [], []
    times = interleaved(
        {"good": lambda: 1e-3, "bad": breaks}, 0.01, failed=lambda name, _: failed.append(name)
    )
    assert failed == ["bad"]
    assert [*times] == ["good"]
    assert len(times["good"]) >= 3


def test_the_table_does_without_a_reference_that_failed():
    times = {
        64: {REFERENCE: (2.0, 1.0, 3.0), "rkd distance": (1.0, 1.0, 1.0)},
        128: {"rkd distance": (4.0, 4.0, 4.0)},
    }
    memory = {n: dict.fromkeys(row, 10**6) for n, row in times.items()}
    lines = table({"milliseconds": times, "temporary_bytes": memory, "missing": {}}).splitlines()
    assert lines[-1] == "| rkd distance | 1 (1-1), 0.5 x, 1 MB | 4 (4-4), 1 MB |"
