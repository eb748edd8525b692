"""How many batches a second the data pipeline delivers, in one process.

    python -m benchmarks.data [--batch 256] [--seconds 20] [--data-dir FOLDER] [--out FOLDER]

Digits (8 x 8) as they come, Fashion-MNIST (28 x 28, moved by up to 2 pixels; random numbers of that size unless the
folder has it prepared by TFDS), and 32 x 32 colour images (moved by up to 4 pixels and flipped), all normalised.
Prints a table, beside how long a training step takes on two cores, and writes data.json to the folder.
"""

import argparse
import json
import pathlib
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks.ranking import environment
from benchmarks.timing import interleaved, spread, timed
from pcjax.data import Examples, TrainingBatches, load, statistics, training_batches
from pcjax.data.examples import Arrays, whole

STEPS = {"digits": 6.0, "Fashion-MNIST": 60.0, "colour 32 x 32": 150.0}  # milliseconds of a training step on two cores
LEAST = 3  # times as many batches as the steps use


def examples(name: str, data_dir: str | None) -> tuple[Examples, str]:
    """What is read, and from where."""
    if name == "digits":
        return load("digits").train, "scikit-learn"
    if name == "Fashion-MNIST" and data_dir is not None:
        return load("tfds:fashion_mnist", data_dir=data_dir).train, "TFDS"
    shape = (28, 28, 1) if name == "Fashion-MNIST" else (32, 32, 3)
    return whole(Arrays(np.random.default_rng(0).integers(0, 256, (50_000, *shape), np.uint8), None), None), "random"


def batches(name: str, given: Examples, batch: int) -> TrainingBatches:
    """The pipeline that is measured."""
    changes: dict[str, Any] = {"digits": {}, "Fashion-MNIST": {"crop": 2}}.get(name, {"crop": 4, "flip": True})
    return training_batches(given, batch=batch, seed=0, normalise=statistics(given), **changes)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    args = parser.parse_args()

    origin, contenders = {}, {}
    for name in STEPS:
        given, origin[name] = examples(name, args.data_dir)
        pipeline = batches(name, given, args.batch)
        contenders[name] = timed(lambda pipeline=pipeline: [next(pipeline) for _ in range(20)])
    times = interleaved(contenders, args.seconds)
    rows = {}
    print(f"batch {args.batch}\n{'':16} {'ms a batch':>11} {'batches a second':>17} {'times a step needs':>19}  from")
    for name, step in STEPS.items():
        middle, low, high = (value / 20 for value in spread(times[name]))
        rows[name] = {"ms": middle, "quartiles": [low, high], "from": origin[name], "steps": step / middle}
        enough = "" if step / middle >= LEAST else "  TOO SLOW"
        print(f"{name:16} {middle:11.2f} {1e3 / middle:17.0f} {step / middle:19.1f}  {origin[name]}{enough}")
    record = {
        "environment": environment() | {name: version(name) for name in ("numpy", "grain")},
        "batch": args.batch,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "data.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
