"""The compiled step of a training, its initial state, and the arrays that it only reads."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pcjax import _fields
from pcjax.config import Training
from pcjax.data import Dataset, Sampling, TrainingBatches, training_batches
from pcjax.losses.registry import LOSSES
from pcjax.models.functional import Functional
from pcjax.training.embedding import output_shapes
from pcjax.training.feed import Feed, steps_at_once
from pcjax.training.lesson import Lesson, steps_of
from pcjax.training.neighbour_views import nearest_neighbours
from pcjax.training.objective import build_objective, with_memories
from pcjax.training.parallel import ParallelStep, choose_devices
from pcjax.training.resident import Resident, resident_examples
from pcjax.training.state import State, initial_state, make_optimiser
from pcjax.training.step import AXIS, FrozenInputs, from_draws, make_step, metric_names


def batches_of(lesson: Lesson, dataset: Dataset) -> tuple[TrainingBatches, Resident | None]:
    """Return the batches of a lesson, and all its examples where the devices' memory holds them."""
    uses_neighbours = any(LOSSES[loss.name].neighbours for loss in lesson.losses)
    features, columns = lesson.targets.features, lesson.targets.columns
    sampling = Sampling(
        batch=lesson.training.batch,
        seed=lesson.training.seed,
        neighbours=nearest_neighbours(features)
        if uses_neighbours and features is not None
        else None,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = training_batches(
        dataset.train,
        sampling,
        augmentation=lesson.augmentation,
        normalise=dataset.normalise,
        columns=columns,
    )
    return batches, resident_examples(dataset.train, dataset.normalise, columns)


def prepare(
    lesson: Lesson, dataset: Dataset, resident: Resident | None = None
) -> tuple[ParallelStep, State, FrozenInputs]:
    """Return the step of a lesson over all devices, the initial state and the frozen inputs.

    Lessons that differ only in their seeds and weights share one compiled step.

    Args:
      lesson: the training.
      dataset: its examples.
      resident: the examples for the devices' memory; the step then takes draws in place of batches.
    """
    training, targets, model = lesson.training, lesson.targets, lesson.model
    outputs = (output_shapes(model, dataset), targets.shapes)
    objective, losses = build_objective(lesson.losses, *outputs, seed=training.seed, axis_name=AXIS)
    counts = (len(dataset.train), dataset.train.labels)
    losses = with_memories(losses, objective, outputs, training.seed, counts)
    steps = steps_of(training, len(dataset.train), lesson.section)
    devices = choose_devices(training.devices, training.batch, lesson.section)
    key = _StepKey(
        student=model.function,
        teacher=targets.function,
        shapes=str(targets.shapes),
        losses=json.dumps(_fields.non_default_fields(list(lesson.losses))),
        heads=tuple(sorted(objective.heads.items())),
        maps=tuple(sorted(objective.maps.items())),
        training=dataclasses.replace(training, seed=0),
        steps=steps,
        devices=tuple(devices),
        padding=None if resident is None else lesson.augmentation.crop,
        objective=_Unhashed(objective),
        targets=_Unhashed(targets._replace(features=None, columns={}, arrays=(), classifier={})),
    )
    uses_classifier = any(LOSSES[loss.name].classifier for loss in lesson.losses)
    frozen = FrozenInputs(
        targets.arrays,
        dict(targets.classifier) if uses_classifier else {},
        np.int32(training.seed),
        resident,
    )
    most = 1 if resident is None else steps_at_once((model.parameters, losses, targets.arrays))
    parallel, init_optimiser = _shared_step(key, most)
    names = metric_names(objective)
    state = initial_state(model.parameters, model.statistics, losses, init_optimiser, names)
    return parallel, state, parallel.place(frozen)


class _Unhashed:
    """A value that does not count when keys are compared."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class _StepKey:
    """Everything that a compiled step depends on."""

    student: Functional
    teacher: Any
    shapes: str
    losses: str
    heads: tuple[tuple[str, Functional], ...]
    maps: tuple[tuple[str, tuple[str, str]], ...]
    training: Training
    steps: int
    devices: tuple[Any, ...]
    padding: int | None  # around images that are shifted; None for a step that takes batches
    objective: _Unhashed
    targets: _Unhashed


@functools.lru_cache(maxsize=8)
def _shared_step(key: _StepKey, most: int) -> tuple[ParallelStep, Callable[[Any], Any]]:
    """Build a step over all devices, and the function that initialises its optimiser."""
    optimiser = make_optimiser(key.training, key.steps)
    step = make_step(key.student, key.targets.value, key.objective.value, optimiser, key.steps)
    if key.padding is not None:
        step = from_draws(step, key.padding)
    parallel = ParallelStep(step, list(key.devices), key.training.parallel, most)
    return parallel, jax.jit(optimiser.init)


def temporary_bytes(lesson: Lesson, dataset: Dataset) -> int | None:
    """Return the memory that a step of the lesson needs besides its inputs and outputs.

    The step is the training's, so that the compilation cache has it.
    """
    batches, resident = batches_of(lesson, dataset)
    parallel, state, frozen = prepare(lesson, dataset, resident)
    with contextlib.closing(batches):
        batch, _ = Feed(batches, parallel, drawn=resident is not None).inputs(1)
    return parallel.temporary_bytes(frozen, parallel.place(state), batch)
