"""How many batches a second the data pipeline delivers, beside how many the training step of the same config takes.

    python -m benchmarks.data [--seconds 20] [--data-dir FOLDER] [--out FOLDER]

For configs/digits.py and configs/fashion_mnist.py: the next batch, in one process, and a whole step of the student with
a batch that is there already, in turns. What the teacher says is random, as it costs the same. Fashion-MNIST is read
from the folder where TFDS keeps it prepared, or else is random numbers of that size. Prints a table and writes
data.json to the folder.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from importlib.metadata import version

import jax
import numpy as np

from benchmarks.ranking import environment
from benchmarks.timing import interleaved, spread, timed
from pcjax.config import Config, read
from pcjax.jobs.distill import KnownTeacher, plan_student
from pcjax.jobs.prepare import STUDENT_SEED, load, new_model
from pcjax.training.clock import Clock
from pcjax.training.display import Display
from pcjax.training.loop import Plan

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
NAMES = ("digits", "fashion_mnist")
LEAST, BATCHES = 3, 50  # times as many batches as the steps use; taken at a time


def config_of(name: str, data_dir: str | None, folder: pathlib.Path) -> Config:
    """The config, and where its images come from."""
    config = read(CONFIGS / f"{name}.py")
    if not config.data.source.startswith("tfds:"):
        return config
    if data_dir is not None:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    random = np.random.default_rng(0)
    images, labels = (
        random.integers(0, 256, (60_000, 28, 28, 1), np.uint8),
        random.integers(0, 10, 60_000),
    )
    np.savez(folder / "random.npz", images=images, labels=labels)
    source = f"arrays:{folder / 'random.npz'}"
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))


def planned(config: Config, folder: pathlib.Path) -> Plan:
    """The student's training, by a teacher whose features are random."""
    loaded = load(config)
    random = np.random.default_rng(1)
    width = config.teacher.model.features or 64
    features = {
        part: random.normal(size=(len(examples), width)).astype(np.float32)
        for part, examples in loaded.examples.parts.items()
    }
    first = new_model(config.student, loaded, config.training, STUDENT_SEED)
    return plan_student(
        config, folder, loaded, KnownTeacher(features, None, None), first, Display(), Clock()
    )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    args = parser.parse_args()

    contenders, origin, batch = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            config = config_of(name, args.data_dir, folder)
            plan = planned(config, folder)
            here, state = next(plan.batches), plan.state
            origin[name], batch[name] = config.data.source.partition(":")[0], config.training.batch

            def step(plan: Plan = plan, here: dict = here, at: list = [state]) -> None:  # noqa: B006
                at[0], said = plan.mapped(plan.frozen, at[0], plan.mapped.split(here))
                jax.block_until_ready((at[0], said))

            contenders[f"{name} batch"] = timed(
                lambda plan=plan: [next(plan.batches) for _ in range(BATCHES)]
            )
            contenders[f"{name} step"] = timed(step)
        times = interleaved(contenders, args.seconds)
    rows = {}
    print(
        f"{'':14} {'from':>7} {'batch':>6} {'ms a batch':>11} {'ms a step':>10} {'times as many':>14}"
    )
    for name in NAMES:
        delivered, *quartiles = (value / BATCHES for value in spread(times[f"{name} batch"]))
        used, *quartiles_of_step = spread(times[f"{name} step"])
        rows[name] = {
            "from": origin[name],
            "batch": batch[name],
            "ms": delivered,
            "quartiles": quartiles,
        }
        rows[name] |= {
            "step_ms": used,
            "step_quartiles": quartiles_of_step,
            "times": used / delivered,
        }
        enough = "" if used / delivered >= LEAST else "  TOO SLOW"
        line = f"{name:14} {origin[name]:>7} {batch[name]:6} {delivered:11.2f} {used:10.2f} {used / delivered:14.1f}"
        print(line + enough)
    record = {
        "environment": environment() | {name: version(name) for name in ("numpy", "grain")},
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "data.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
