"""Time the loss and its gradient from features, ours and those of peers, alternating in one run.

    python -m benchmarks.ranking [--sizes 128 256 512 1024 2048 4096] [--seconds 120]
        [--also PYTHON ...] [--out FOLDER]

Peers that are not installed are reported and left out. `--also` names other interpreters that have
them; pcjax must be installed there too. Prints a table and writes ranking.json and ranking.png to
the folder.
"""

# pyright: reportMissingImports=false

import argparse
import datetime
import functools
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from benchmarks.contenders import CONTENDERS, REFERENCE
from benchmarks.timing import Elsewhere, Timed, interleaved, serve, spread, timed

STUDENT_FEATURES, TEACHER_FEATURES = 128, 512


def prepare(name: str, n: int) -> Timed:
    """Build a contender at one size."""
    random = np.random.default_rng(0)
    student = random.normal(size=(n, STUDENT_FEATURES)).astype(np.float32)
    teacher = random.normal(size=(n, TEACHER_FEATURES)).astype(np.float32)
    built = CONTENDERS[name][0](student, teacher)
    return Timed(timed(built.step), built.temporary_bytes)


def _prepare_elsewhere(other: Elsewhere, name: str, n: int) -> Timed:
    answer = other.ask(do="prepare", name=name, n=n)
    if "error" in answer:
        absent = answer["error"].startswith(("ImportError", "ModuleNotFoundError"))
        raise (ImportError if absent else RuntimeError)(answer["error"])

    def once() -> float:
        seconds = other.ask(do="time", name=name)
        if isinstance(seconds, dict):
            raise RuntimeError(seconds["error"])
        return seconds

    return Timed(once, answer["temporary_bytes"])


def environment() -> dict[str, str]:
    """Return the device and the versions of the packages."""
    versions = {}
    for package in ("jax", "jaxlib", "torch", "torchsort", "softjax", "rax", "ott-jax"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "python": platform.python_version(),
        **versions,
    }


def measure(sizes: list[int], seconds: float, also: list[str]) -> dict[str, Any]:
    """Time every contender at every size."""
    on_cpu = jax.default_backend() == "cpu"
    others = [Elsewhere(python, "benchmarks.ranking") for python in also]
    results: dict[str, Any] = {
        "environment": environment(),
        "features": [STUDENT_FEATURES, TEACHER_FEATURES],
    }
    results["milliseconds"], results["temporary_bytes"], missing = {}, {}, {}
    for n in sizes:
        ready: dict[str, Timed] = {}
        for name, (_, largest) in CONTENDERS.items():
            if (on_cpu and n > largest) or name in missing:
                continue
            for source in (
                prepare,
                *(functools.partial(_prepare_elsewhere, other) for other in others),
            ):
                try:
                    ready[name] = source(name, n)
                    break
                except Exception as error:
                    # A peer may lack anything, or fail at a size; the others are still timed.
                    failure = f"{type(error).__name__}: {error}".splitlines()[0]
                    if isinstance(error, ImportError):
                        missing.setdefault(name, failure)
                    else:
                        print(f"{name} at n = {n}: {failure}")
            else:
                continue
            missing.pop(name, None)
        times = interleaved(
            {name: contender.call for name, contender in ready.items()},
            seconds / len(sizes),
            failed=lambda name, error, n=n: print(
                f"{name} at n = {n}: {type(error).__name__}: {error}"
            ),
        )
        results["milliseconds"][n] = {name: spread(seconds) for name, seconds in times.items()}
        results["temporary_bytes"][n] = {
            name: contender.temporary_bytes for name, contender in ready.items()
        }
        print(f"n = {n}: done")
    for other in others:
        other.close()
    results["missing"] = missing
    return results


def table(results: dict[str, Any]) -> str:
    """Format medians, quartiles, ratios to the reference and sizes of temporaries."""
    sizes = list(results["milliseconds"])
    lines = [
        "| milliseconds, median (quartiles), times ours, temporaries | "
        + " | ".join(f"n = {n}" for n in sizes)
        + " |"
    ]
    lines.append("|---|" + "---|" * len(sizes))
    for name in CONTENDERS:
        cells = []
        for n in sizes:
            measured = results["milliseconds"][n].get(name)
            if measured is None:
                cells.append("")
                continue
            reference = results["milliseconds"][n].get(REFERENCE)
            ratio = "" if reference is None else f", {measured[0] / reference[0]:.2g} x"
            temporary = results["temporary_bytes"][n][name]
            memory = "" if temporary is None else f", {temporary / 1e6:.3g} MB"
            cells.append(f"{measured[0]:.3g} ({measured[1]:.3g}-{measured[2]:.3g}){ratio}{memory}")
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"not installed: {name} ({reason})" for name, reason in results["missing"].items()]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draw time against n, both logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for name in CONTENDERS:
        points = [
            (n, by_name[name][0])
            for n, by_name in results["milliseconds"].items()
            if name in by_name
        ]
        if points:
            style = {
                "lw": 2.5 if name == REFERENCE else 1,
                "ls": "-" if name.startswith("pcjax") else "--",
            }
            axes.loglog(*zip(*points, strict=True), marker="o", label=name, **style)
    axes.set(xlabel="examples in the batch", ylabel="loss and gradient, milliseconds")
    axes.set_title(results["environment"]["device"])
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark, or serve it to another interpreter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096])
    parser.add_argument(
        "--seconds", type=float, default=120, help="for all sizes together, compilation not counted"
    )
    parser.add_argument("--also", nargs="*", default=[], metavar="PYTHON")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmark-results"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(prepare)
        return
    results = measure(arguments.sizes, arguments.seconds, arguments.also)
    print(table(results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "ranking.json").write_text(json.dumps(results, indent=1))
    plot(results, arguments.out / "ranking.png")


if __name__ == "__main__":
    main()
