"""Compare the batches a second of the data pipeline with the training steps a second.

    python -m benchmarks.data [--seconds 20] [--data-dir FOLDER] [--out FOLDER]

For configs/digits.py and configs/fashion_mnist.py, alternating in one process: the next batch, and
a whole step of the student on a given batch. The teacher's features are random, which costs the
same. Fashion-MNIST is read from the folder where TFDS keeps it; without one, its images are random.
Prints a table and writes data.json to the folder.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.ranking import environment
from benchmarks.timing import interleaved, spread, timed
from pcjax.config import Config, read_config
from pcjax.data import Augmentation, Sampling, TrainingBatches, training_batches
from pcjax.display import Display
from pcjax.jobs.common import build_student, load_data, student_lesson
from pcjax.teachers import Teacher
from pcjax.training.parallel import ParallelStep
from pcjax.training.prepare import prepare
from pcjax.training.state import State
from pcjax.training.step import FrozenInputs

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
NAMES = ("digits", "fashion_mnist")
ENOUGH = 3  # times as many batches as the steps use
BATCHES = 50  # fetched at a time
TEACHER_FEATURES = 64


class Student(NamedTuple):
    """The parts of a student's training."""

    batches: TrainingBatches
    parallel: ParallelStep
    state: State
    frozen: FrozenInputs


def config_of(name: str, data_dir: str | None, folder: pathlib.Path) -> Config:
    """Return a config with its images, real or random."""
    config = read_config(CONFIGS / f"{name}.py")
    if not config.data.source.startswith("tfds:"):
        return config
    if data_dir is not None:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=data_dir))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    np.savez(folder / "random.npz", images=images, labels=random.integers(0, 10, 60_000))
    source = f"arrays:{folder / 'random.npz'}"
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))


def student_of(config: Config) -> Student:
    """Prepare the student's training under a teacher of random features."""
    dataset = load_data(config)
    random = np.random.default_rng(1)
    features = {
        part: random.normal(size=(len(examples), TEACHER_FEATURES)).astype(np.float32)
        for part, examples in dataset.parts.items()
    }
    teacher = Teacher.from_features(features)
    model = build_student(config, dataset, Display(quiet=True))
    lesson = student_lesson(config, dataset, model, teacher.targets(dataset))
    batches = training_batches(
        dataset.train,
        Sampling(config.training.batch, config.training.seed),
        augmentation=Augmentation(config.data.crop, config.data.flip),
        normalise=dataset.normalise,
        columns=lesson.targets.columns,
    )
    parallel, state, frozen = prepare(lesson, dataset)
    return Student(batches, parallel, parallel.place(state), frozen)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path())
    arguments = parser.parse_args()

    contenders, rows = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            folder = pathlib.Path(temporary) / name
            folder.mkdir()
            config = config_of(name, arguments.data_dir, folder)
            student = student_of(config)
            origin = config.data.source.partition(":")[0]
            rows[name] = {"from": origin, "batch": config.training.batch}

            def fetch(student: Student = student) -> None:
                for _ in range(BATCHES):
                    next(student.batches)

            def step(
                student: Student = student,
                batch: Any = next(student.batches),  # noqa: B008
                states: list[State] = [student.state],  # noqa: B006
            ) -> None:
                split = student.parallel.split(batch)
                states[0], outcome = student.parallel(student.frozen, states[0], split)
                jax.block_until_ready((states[0], outcome))

            contenders[f"{name} batch"], contenders[f"{name} step"] = timed(fetch), timed(step)
        times = interleaved(contenders, arguments.seconds)
    columns = ("from", "batch", "ms a batch", "ms a step", "times as many")
    print(f"{'':14} {columns[0]:>7} {columns[1]:>6} " + " ".join(f"{c:>13}" for c in columns[2:]))
    for name, row in rows.items():
        fetched, *quartiles = (value / BATCHES for value in spread(times[f"{name} batch"]))
        used, *step_quartiles = spread(times[f"{name} step"])
        row |= {"ms": fetched, "quartiles": quartiles, "times": used / fetched}
        row |= {"step_ms": used, "step_quartiles": step_quartiles}
        line = f"{name:14} {row['from']:>7} {row['batch']:6}"
        line += f" {fetched:13.2f} {used:13.2f} {used / fetched:13.1f}"
        print(line + ("" if used / fetched >= ENOUGH else "  TOO SLOW"))
    packages = {name: version(name) for name in ("numpy", "grain")}
    record = {"environment": environment() | packages, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "data.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
