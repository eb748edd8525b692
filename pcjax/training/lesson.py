"""One training, and the refusal of an impossible one from shapes alone."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pcjax._checks import RequestError
from pcjax.config import MAX_INT32, Loss, Ramp, Training
from pcjax.data import Augmentation, Dataset
from pcjax.losses.registry import LOSSES
from pcjax.training.embedding import FrozenModel, output_shapes
from pcjax.training.neighbour_views import NeighbourViews
from pcjax.training.objective import (
    LossContext,
    Objective,
    TeacherTargets,
    build_objective,
    with_memories,
)
from pcjax.training.parallel import choose_devices


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One training: which model, with which losses, under which teacher, and how.

    name: "student" or "teacher".
    section: the config section of `training`, for error messages.
    model: the model with its initial weights.
    losses: the losses.
    targets: the teacher, if there is one.
    training: the length, the optimiser and so on.
    augmentation: of training images.
    evaluate: computes validation metrics of a model, a "score" (higher is better) among them; it
      calls its second argument after every batch.
    """

    name: str
    section: str
    model: FrozenModel
    losses: tuple[Loss, ...]
    targets: TeacherTargets
    training: Training
    augmentation: Augmentation
    evaluate: Callable[[FrozenModel, Callable[[], None]], Mapping[str, float]]


def steps_of(training: Training, examples: int, section: str = "training") -> int:
    """Return the number of steps of a training."""
    if training.batch > examples:
        raise RequestError(
            f"{section}.batch={training.batch} exceeds the {examples} training examples; lower it."
        )
    steps = training.steps or training.epochs * (examples // training.batch)
    if steps > MAX_INT32:
        raise RequestError(f"{section}.epochs={training.epochs} makes {steps} steps; lower it.")
    return steps


def check_lesson(lesson: Lesson, dataset: Dataset) -> None:
    """Refuse a training that is impossible, from shapes alone."""
    shape, training = dataset.train.shape, lesson.training
    augmentation = lesson.augmentation
    if (augmentation.crop or augmentation.flip) and len(shape) != 3:
        raise RequestError(
            f"data.crop and data.flip need images, but the examples have shape {shape}; "
            "remove them."
        )
    if augmentation.crop and augmentation.crop > min(shape[:2]):
        raise RequestError(f"data.crop={augmentation.crop} exceeds the images' side; lower it.")
    if training.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise RequestError(
            f"{lesson.section}.tensorboard needs tensorboardX; install it with "
            '`pip install "pcjax[tensorboard]"`.'
        )
    steps_of(training, len(dataset.train), lesson.section)
    choose_devices(training.devices, training.batch, lesson.section)
    for loss in lesson.losses:
        if loss.needs_labels and dataset.train.labels is None:
            raise RequestError(
                f"The loss {loss.name} needs labels, and {dataset.source} has none; remove it."
            )
        if LOSSES[loss.name].classifier and "kernel" not in lesson.targets.classifier:
            raise RequestError(
                f"The loss {loss.name} uses the teacher's last layer (classify/kernel), and this "
                "teacher has none; remove the loss, or take another teacher."
            )
    check_losses_trace(lesson, dataset)


def check_losses_trace(lesson: Lesson, dataset: Dataset) -> None:
    """Trace the losses on shapes, so that they refuse before anything is trained."""
    batch, training = lesson.training.batch, lesson.training
    student, teacher = output_shapes(lesson.model, dataset), lesson.targets.shapes
    objective, state = build_objective(lesson.losses, student, teacher, seed=None)
    counts = (len(dataset.train), dataset.train.labels)
    state = with_memories(state, objective, (student, teacher), training.seed, counts)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), tree)

    index = jax.ShapeDtypeStruct((batch,), jnp.int32)
    columns = {
        "mask": jax.ShapeDtypeStruct((batch,), jnp.bool_),
        "label": index,
        "index": index,
    }
    scalars = (jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32))
    outputs = (rows(student), None if teacher is None else rows(teacher))

    def trace(objective: Objective) -> None:
        def total(outputs, classifier, columns, step, progress, state):
            student, teacher = outputs
            views = None
            if objective.neighbours:
                views = NeighbourViews(student, teacher, student, jnp.ones(batch))
            context = LossContext(
                student, teacher, classifier, columns, step, progress, views=views
            )
            return objective(context, state)

        jax.eval_shape(total, outputs, dict(lesson.targets.classifier), columns, *scalars, state)

    # A ramp has no value while it is traced: its start and its end are checked in its place.
    variants = [lesson.losses]
    if _fixed_ramps(lesson.losses, "start") != lesson.losses:
        variants = [_fixed_ramps(lesson.losses, end) for end in ("start", "end")] + variants
    try:
        for losses in variants:
            trace(objective._replace(losses=losses))
    except (TypeError, ValueError) as error:
        names = ", ".join(objective.names())
        raise RequestError(
            f"The losses ({names}) cannot be computed: {str(error).splitlines()[0]}"
        ) from error


def _fixed_ramps(losses: tuple[Loss, ...], end: str) -> tuple[Loss, ...]:
    def fixed(loss: Loss) -> Loss:
        ramps = {n: getattr(x, end) for n, x in loss.arguments.items() if isinstance(x, Ramp)}
        if not ramps:
            return loss
        return dataclasses.replace(loss, arguments=loss.arguments | ramps)

    return tuple(map(fixed, losses))
