"""Change one setting of a distillation at a time, and measure what the student keeps.

    python -m benchmarks.ablations --out FOLDER [--config configs/digits.py] [--seeds 3]

Writes FOLDER/ablations.json after every setting, so that the same command goes on where another
one ended, and in the end FOLDER/ablations.md and FOLDER/ablations.svg.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from pcjax import metrics
from pcjax.config import Config, Loss, Model, read_config, recipe
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.jobs.common import build_student, load_data, student_lesson
from pcjax.run import Run
from pcjax.teachers import Teacher, load_teacher
from pcjax.training.embedding import embed
from pcjax.training.loop import train

QUIET = Display(quiet=True)
ALONE, SUM = "perception_coherence", "perception_coherence_list"
BANK, DEFAULT_STEPS = 1024, 500
MEASURES = {"coherence": "coherence", "nearest": "ten nearest kept"}
DIMENSIONS = (4, 8, 16, 32, 64, 128, 256, 512)
WIDTHS = (8, 16, 32, 64, 128, 256)
BATCHES = (16, 32, 64, 128, 256, 512)
TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0)
RANKINGS = ("laplace", "logistic", "permutahedron")
STEPS = (30, 100, 300, 1000, 3000)
AXES = {
    "dimension": "dimension of the student's features",
    "width": "width of the student's hidden layer",
    "batch": "batch",
    "temperature": "temperature",
    "ranking": "method of ranking",
    "steps": "steps",
}
Setting = tuple[str, str, float | str]  # axis, line, value


def settings(config: Config) -> Iterator[tuple[Setting, Config]]:
    """Yield every setting, and the config that has it."""
    change, options = dataclasses.replace, dict(config.student.options)

    def with_losses(losses: tuple[Loss, ...], **training: Any) -> Config:
        return change(config, losses=losses, training=change(config.training, **training))

    def with_student(line: str, **changed: Any) -> Config:
        student = Model(config.student.name, options | changed)
        return change(config, losses=recipe(line), student=student)

    for line in (ALONE, SUM):
        for value in DIMENSIONS:
            yield ("dimension", line, value), with_student(line, features=value)
        for value in WIDTHS:
            yield ("width", line, value), with_student(line, widths=(value,))
        for value in STEPS:
            yield ("steps", line, value), with_losses(recipe(line), steps=value)
    for bank, line in ((0, "without a bank"), (BANK, f"with a bank of {BANK:,}")):
        for value in BATCHES:
            losses = (Loss(ALONE, bank=bank),)
            yield ("batch", line, value), with_losses(losses, batch=value)
    for value in TEMPERATURES:
        losses = (Loss(ALONE, arguments={"temperature": value}),)
        yield ("temperature", ALONE, value), with_losses(losses)
    for value in RANKINGS:
        yield ("ranking", ALONE, value), with_losses((Loss(ALONE, arguments={"ranking": value}),))


def kept(config: Config, dataset: Dataset, teacher: Teacher) -> dict[str, float]:
    """Train a student, and compare its order of the test examples with the teacher's."""
    initial = build_student(config, dataset, QUIET)
    features = teacher.features
    lesson = student_lesson(
        config, dataset, initial, teacher.targets(dataset), features["validation"]
    )
    with tempfile.TemporaryDirectory() as folder:
        student = train(lesson, dataset, Run(pathlib.Path(folder), config, "distill", QUIET))
    own = embed(student, dataset.test, dataset.normalise, config.evaluation.batch).features
    degrees = metrics.coherence(own, features["test"], k=10)
    return {
        "coherence": float(degrees.spearman.value),
        "nearest": float(degrees.neighbours.value),
    }


def measured(config: Config, seeds: int, path: pathlib.Path) -> dict[str, list[dict[str, float]]]:
    """Measure what is missing in a file of results; return all results by setting."""
    results = json.loads(path.read_text()) if path.exists() else {}
    dataset = load_data(config)
    run = Run(path.parent, config, "distill", QUIET)
    teacher = load_teacher(config.teacher, config.data, dataset, run, config.evaluation.batch)
    for setting, changed in settings(config):
        training = changed.training
        if training.steps is None:  # the same number of steps for every batch
            training = dataclasses.replace(training, steps=DEFAULT_STEPS)
        done = results.setdefault(json.dumps(setting), [])
        for seed in range(len(done), seeds):
            own = dataclasses.replace(training, seed=seed, save_every=training.steps, log_every=500)
            done.append(kept(dataclasses.replace(changed, training=own), dataset, teacher))
            path.write_text(json.dumps(results, indent=1))
            print(*setting, seed, {name: round(x, 4) for name, x in done[-1].items()}, flush=True)
    return results


def lines_of(results: dict[str, list[dict[str, float]]], axis: str) -> dict[str, dict[Any, Any]]:
    """Return for every line of an axis the values with their results."""
    lines: dict[str, dict[Any, Any]] = {}
    for key, values in results.items():
        own, line, value = json.loads(key)
        if own == axis:
            lines.setdefault(line, {})[value] = values
    return lines


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return the means over the seeds as Markdown."""
    rows = []
    for axis, title in AXES.items():
        for line, points in lines_of(results, axis).items():
            rows += ["", f"| {title}: {line} | {' | '.join(map(str, points))} |"]
            rows.append("|---|" + "---:|" * len(points))
            for measure, name in MEASURES.items():
                means = [np.mean([x[measure] for x in values]) for values in points.values()]
                rows.append(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(rows[1:]) + "\n"


def draw(results: dict[str, list[dict[str, float]]], path: pathlib.Path) -> None:
    """Draw a panel for every axis: coherence solid, the ten nearest dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"], matplotlib.rcParams["svg.hashsalt"] = "none", "pcjax"
    figure = Figure(figsize=(10, 6), layout="constrained")
    for number, (axis, title) in enumerate(AXES.items(), 1):
        panel, lines = figure.add_subplot(2, 3, number), lines_of(results, axis)
        values = [*next(iter(lines.values()))]
        for (line, points), colour in zip(lines.items(), ("#1d4ed8", "#b45309"), strict=False):
            for measure, style in zip(MEASURES, ("o-", "s--"), strict=True):
                seeds = np.array([[x[measure] for x in point] for point in points.values()])
                label = line if measure == "coherence" else None
                panel.plot(values, seeds.mean(axis=1), style, color=colour, label=label, ms=4)
        if axis != "ranking":
            panel.set_xscale("log")
            panel.set_xticks(values, labels=[f"{value:g}" for value in values], fontsize=8)
            panel.minorticks_off()
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=7)
    figure.suptitle("coherence with the teacher (solid), ten nearest kept (dashed)")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure, and write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("configs/digits.py"))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", ".*pmap.*", DeprecationWarning)
    given.out.mkdir(parents=True, exist_ok=True)
    config = read_config(given.config)
    results = measured(config, given.seeds, given.out / "ablations.json")
    (given.out / "ablations.md").write_text(table(results))
    draw(results, given.out / "ablations.svg")


if __name__ == "__main__":
    main()
