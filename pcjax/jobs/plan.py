"""`pcjax distill --dry-run`: print what a training needs on each device; train nothing."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np

from pcjax import _sorting, config
from pcjax._checks import RequestError, require_name
from pcjax.config import Config
from pcjax.data.examples import Dataset, Examples
from pcjax.display import Display
from pcjax.jobs.common import load_data, student_lesson, student_shapes
from pcjax.run import open_run
from pcjax.teachers import teacher_shapes
from pcjax.teachers.trained import teacher_lesson
from pcjax.training.build import TEACHER_STREAM, build_model
from pcjax.training.lesson import Lesson
from pcjax.training.objective import TeacherTargets
from pcjax.training.plan import Plan, plan_training

GB = 1e9
DEVICES = {  # bytes of memory
    "v4": 32 * GB,
    "v5e": 16 * GB,
    "v5p": 95 * GB,
    "v6e": 32 * GB,
    "a100-40": 40 * GB,
    "a100-80": 80 * GB,
    "h100": 80 * GB,
    "h200": 141 * GB,
}
# Training examples, channels and classes of data sets that are large to prepare.
KNOWN = {"tfds:imagenet2012": (1_281_167, 3, 1000)}


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `--dry-run` besides the config.

    devices: how many devices share a batch.
    device: the kind of device, or its memory as in 32GB.
    """

    devices: int = 8
    device: str = "v4"


def plan(config: Config, folder: pathlib.Path, display: Display, options: Options) -> None:
    """Print the shapes, the bytes on each device, the traffic and the arithmetic of a step."""
    memory = _memory(options.device)
    dataset = _zeros(config.data) if config.data.source in KNOWN else load_data(config)
    lessons = []
    if config.teacher.is_trained_here:
        batch = config.evaluation.batch
        given = (config.teacher, config.data, dataset, batch)
        lessons.append(teacher_lesson(*given, shapes_only=True))
    lessons.append(_student_lesson(config, dataset, folder, display))
    for lesson in lessons:
        share, rest = divmod(lesson.training.batch, options.devices)
        if rest:
            raise RequestError(
                f"{lesson.section}.batch={lesson.training.batch} cannot be split evenly over "
                f"{options.devices} devices; give --devices that divide it."
            )
        result = plan_training(lesson, dataset, options.devices)
        blocks = ranking_bytes(lesson, share, memory)
        _show(lesson, result, blocks, memory, options, display)


def _memory(device: str) -> float:
    """Return the bytes of a kind of device, or of an amount such as 32GB."""
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB", device, re.IGNORECASE)
    if amount:
        return float(amount[1]) * GB
    require_name("device", device, DEVICES, " or its memory, as in 32GB")
    return DEVICES[device]


@dataclasses.dataclass(frozen=True, eq=False)
class _Zeros:
    """Examples of which only the number and the shape are known."""

    count: int
    shape: tuple[int, ...]
    fingerprint: str = "zeros"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.count

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return np.zeros((len(rows), *self.shape), self.dtype), np.zeros(len(rows), np.int32)

    def labels(self) -> np.ndarray | None:
        return np.zeros(self.count, np.int32)


def _zeros(section: config.Data) -> Dataset:
    """Return a known data set by its shape: it need not be prepared here."""
    count, channels, classes = KNOWN[section.source]
    if section.image_size is None:
        raise RequestError(f"{section.source} has images of all sizes; give --data.image-size.")
    store = _Zeros(count, (section.image_size, section.image_size, channels))
    names = tuple(map(str, range(classes)))
    held = round(section.validation * count)
    parts = (np.arange(held, count), np.arange(held), np.arange(held))
    return Dataset(section.source, *(Examples(store, rows, names) for rows in parts))


def _student_lesson(
    config: Config, dataset: Dataset, folder: pathlib.Path, display: Display
) -> Lesson:
    """Return the student's training, with shapes in place of arrays."""
    run = open_run(folder, config, "distill", display)
    teacher = config.teacher
    shapes, classifier = teacher_shapes(teacher, config.data, dataset, run)
    targets = TeacherTargets(shapes=shapes, classifier=classifier)
    if teacher.live and teacher.is_trained_here:
        model = build_model(
            teacher.model, dataset, teacher.training, TEACHER_STREAM, shapes_only=True
        )
        arrays = (model.parameters, model.statistics)
        targets = targets._replace(function=model.function, arrays=arrays)
    return student_lesson(config, dataset, student_shapes(config, dataset), targets)


def ranking_bytes(lesson: Lesson, share: int, memory: float) -> int:
    """Return the bytes of ranking a block of anchors, the largest of the losses'."""
    points, sizes = lesson.training.batch, [0]
    for loss in lesson.losses:
        if loss.name == "perception_coherence":
            rows = _sorting.accelerator_rows(points + loss.bank, int(memory))
            chunk: Any = loss.arguments.get("chunk_size") or share
            rows = min(share, rows, chunk)
            sizes.append(_sorting.ARRAYS * rows * (points + loss.bank) * 4)
    return max(sizes)


def _show(
    lesson: Lesson,
    result: Plan,
    blocks: int,
    memory: float,
    options: Options,
    display: Display,
) -> None:
    """Print the plan of one training."""
    training = lesson.training
    share = training.batch // options.devices
    display.say(
        f"{lesson.name}: {training.batch} examples a step, {share} on each of {options.devices} "
        f"devices; {sum(x.size for x in jax.tree.leaves(lesson.model.parameters)):,} parameters"
    )
    rows = [[f"{name} (on all devices)", _amount(size)] for name, size in result.replicated.items()]
    rows += [[f"batch: {name} (split)", _amount(size)] for name, size in result.split.items()]
    rows += [
        ["kept for the backward pass (split)", _amount(result.kept)],
        ["gathered from all devices", _amount(result.gathered)],
        ["ranking a block of examples", _amount(blocks)],
        ["all", _amount(result.total + blocks)],
    ]
    display.table(
        "memory of each device", ["part", "size"], [row for row in rows if row[1] != "0 B"]
    )
    display.say(
        f"a step: {result.flops / 1e12:.3g} TFLOP of products on each device; it receives "
        f"{_amount(result.gathered)} of features, and averages {_amount(result.reduced)}"
    )
    needed = result.total + blocks
    verdict = "fits" if needed <= 0.9 * memory else "does not fit"
    display.say(
        f"it {verdict} a device of {_amount(memory)} ({options.device}): {needed / memory:.0%} of "
        "it, by shapes alone. XLA may keep less, by computing again, or need more to convert."
    )


def _amount(size: int | float) -> str:
    """Format bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
