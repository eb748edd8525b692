"""Check and time everything that an accelerator runs, the most valuable first.

    python -m benchmarks.accelerator [--minutes 9] [--out FOLDER] [--sizes 256 1024 ...] [--table]

Every result is written to the folder as soon as it is there. The same command goes on where another
one ended, and starts nothing that would end after the minutes. It writes accelerator.md and
accelerator.png too; `--table` makes them anew without measuring. The parts:

    correct  ranks, loss and gradient against float64 on the host, for every ranking method and by
             every candidate of the sort and of the recurrences; ties and far outliers
    loss     loss and gradient of pcjax and of peers, in turns; memory, and seconds to compile
    choice   the candidates of the sort and of the recurrences, in turns
    training images a second of `pcjax distill`, and of a bare loop of the same step
    profile  which kernels take the time; bytes a second of the recurrences and of a copy

On a CPU it takes smaller sizes, to be tried out.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from benchmarks import accelerator_parts as parts
from benchmarks.accelerator_table import plot, table
from benchmarks.ranking import environment
from pcjax._sorting import CANDIDATES

SIZES = (256, 1024, 2048, 4096, 8192, 16384, 32768)
ON_CPU = (256, 1024)
RESULTS = "accelerator.jsonl"


class Task(NamedTuple):
    """One measurement: a name of its own, an estimate of its seconds, and what does it."""

    name: str
    seconds: float
    run: Callable[[], Any]


def tasks(sizes: tuple[int, ...], folder: pathlib.Path) -> Iterator[Task]:
    """Yield the measurements in the order of their worth."""
    few, many = [n for n in sizes if n <= 4096], [n for n in sizes if n > 4096]
    names = [n for n in CANDIDATES if n != "kernels" or jax.default_backend() == "gpu"]

    def correct(name: str, n: int) -> Task:
        return Task(f"correct {name} n={n}", 20, lambda: parts.errors(name, n))

    yield correct("library", 256)
    for n in few:
        yield Task(f"loss n={n}", 25, lambda n=n: parts.losses(n))
    yield from (correct(name, 256) for name in names if name == "kernels")
    yield Task("training resnet20", 60, lambda: parts.training("resnet20", folder))
    yield Task(f"choice n={max(few)}", 40, lambda: parts.choices(max(few)))
    for n in many:
        yield Task(f"loss n={n}", 30, lambda n=n: parts.losses(n))
    yield Task("profile", 25, lambda: parts.profile(max(few), folder))
    if max(few) > 256:
        yield correct("library", max(few))
    for n in [*many, *few[:-1]]:
        yield Task(f"choice n={n}", 40, lambda n=n: parts.choices(n))
    yield from (correct(name, 256) for name in names if name not in ("library", "kernels"))
    if jax.default_backend() != "cpu":  # hours there
        yield Task("training resnet50", 90, lambda: parts.training("resnet50", folder))


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read the results by name; a line that was cut short is dropped."""
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        results[record["task"]] = record
    return results


def measure(sizes: tuple[int, ...], folder: pathlib.Path, end: float) -> None:
    """Run the tasks that have no result yet, until the time is over."""
    path = folder / RESULTS
    done = read(path)
    # Estimates are a GPU's; a task that took longer corrects those of its kind.
    slow: dict[str, float] = {}
    for task in tasks(sizes, folder):
        if task.name in done:
            continue
        kind = task.name.split()[0]
        expected = slow.get(kind, 1) * task.seconds
        if time.monotonic() + expected > end:
            print(f"{task.name}: left out, it may take {expected:.0f} s")
            continue
        start = time.monotonic()
        try:
            record = {"result": task.run()}
        except Exception as error:
            # A peer or a kernel may fail on a device that nobody has tried; the rest is measured.
            record = {"error": f"{type(error).__name__}: {error}"[:2000]}
        seconds = time.monotonic() - start
        if "result" in record:
            slow[kind] = max(1, seconds / task.seconds)
        line = {"task": task.name, "seconds": round(seconds, 1), **record, **environment()}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{task.name}: {seconds:.0f} s  {str(record.get('error', ''))[:200]}", flush=True)


def main() -> None:
    """Measure, and write the table and the plot."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmark-results"))
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    sizes = tuple(arguments.sizes or (ON_CPU if jax.default_backend() == "cpu" else SIZES))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        measure(sizes, arguments.out, start + 60 * arguments.minutes)
    results = read(arguments.out / RESULTS)
    text = table(results)
    print(text)
    (arguments.out / "accelerator.md").write_text(text + "\n")
    plot(results, arguments.out / "accelerator.png")


if __name__ == "__main__":
    main()
