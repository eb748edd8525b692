"""Plan a training from shapes alone: memory, traffic and arithmetic of each device."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from pcjax.data import Dataset
from pcjax.training.embedding import output_shapes
from pcjax.training.lesson import Lesson, steps_of
from pcjax.training.objective import build_objective, with_memories
from pcjax.training.state import initial_state, make_optimiser
from pcjax.training.step import AXIS, FrozenInputs, make_loss, make_step, metric_names


class Plan(NamedTuple):
    """The bytes on each device, and what a step sends and computes there.

    replicated: bytes of what every device holds in whole, by name.
    split: bytes of each device's part of a batch, by name.
    kept: bytes of the forward pass's values that the backward pass reads, before XLA saves any.
    gathered: bytes that a device receives of the others' features in a step.
    reduced: bytes of the gradients and statistics that are averaged over devices.
    flops: operations of matrix products and convolutions.
    """

    replicated: dict[str, int]
    split: dict[str, int]
    kept: int
    gathered: int
    reduced: int
    flops: int

    @property
    def total(self) -> int:
        """The sum of the bytes that are needed at once."""
        parts = (*self.replicated.values(), *self.split.values())
        return sum(parts) + self.kept + self.gathered


def plan_training(lesson: Lesson, dataset: Dataset, devices: int) -> Plan:
    """Trace a step over so many devices; nothing is computed, and none of them is needed.

    Args:
      lesson: the training; its model and a live teacher may be shapes in place of arrays.
      dataset: the examples' shape and number; they are not read.
      devices: how many devices share every batch.
    """
    training, targets, model = lesson.training, lesson.targets, lesson.model
    outputs = (output_shapes(model, dataset), targets.shapes)
    objective, losses = build_objective(lesson.losses, *outputs, seed=None, axis_name=AXIS)
    losses = with_memories(
        losses, objective, outputs, training.seed, (len(dataset.train), dataset.train.labels)
    )
    steps = steps_of(training, len(dataset.train), lesson.section)
    optimiser = make_optimiser(training, steps)
    state = initial_state(
        model.parameters,
        model.statistics,
        losses,
        lambda trained: jax.eval_shape(optimiser.init, trained),
        metric_names(objective),
    )
    frozen = FrozenInputs(targets.arrays, dict(targets.classifier), np.int32(0))
    share = training.batch // devices
    batch = _batch_shapes(lesson, dataset, share)
    mesh = AbstractMesh((devices,), (AXIS,))
    loss = make_loss(model.function, targets, objective, steps)

    def kept(frozen: Any, state: Any, batch: Any) -> Any:
        trained = (state.student, state.heads)
        _, backward, _ = jax.vjp(
            lambda trained: loss(trained, frozen, state, batch), trained, has_aux=True
        )
        return jax.tree.map(lambda x: jnp.asarray(x)[None], backward)

    whole = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] * devices, *x.shape[1:]), x.dtype), batch
    )
    specs: Any = {"mesh": mesh, "in_specs": (P(), P(), P(AXIS)), "check_vma": False}
    mapped = jax.shard_map(kept, out_specs=P(AXIS), **specs)
    values = size_of(jax.eval_shape(mapped, frozen, state, whole)) // devices
    trained = size_of((state.student, state.heads))
    step = make_step(model.function, targets, objective, optimiser, steps)
    taken = jax.shard_map(step, out_specs=(P(), P()), **specs)
    counts = count_traffic(jax.make_jaxpr(taken)(frozen, state, whole).jaxpr)
    return Plan(
        replicated={
            "student and heads": trained,
            "gradients": trained,
            "optimiser": size_of(state.optimiser),
            "statistics and memories": size_of(
                (state.statistics, state.head_statistics, state.memories)
            ),
            "live teacher": size_of(targets.arrays),
        },
        split={name: size_of(x) for name, x in batch.items()},
        # The parameters are among the values that the backward pass reads.
        kept=max(0, values - trained),
        gathered=counts["all_gather"],
        reduced=counts["psum"],
        flops=counts["flops"],
    )


def size_of(tree: Any) -> int:
    """Return the bytes of the arrays, or shapes, of a tree."""
    return sum(math.prod(np.shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _batch_shapes(lesson: Lesson, dataset: Dataset, share: int) -> dict[str, Any]:
    examples, shapes = dataset.train, lesson.targets.shapes
    kinds = {
        "image": (examples.shape, examples.input_dtype),
        "label": ((), np.int32),
        "index": ((), np.int32),
        "mask": ((), np.bool_),
    }
    if shapes is not None and lesson.targets.function is None:
        kinds["teacher"] = (shapes.features.shape[1:], shapes.features.dtype)
        if shapes.logits is not None:
            kinds["teacher_logits"] = (shapes.logits.shape[1:], shapes.logits.dtype)
    return {
        name: jax.ShapeDtypeStruct((share, *shape), dtype) for name, (shape, dtype) in kinds.items()
    }


def count_traffic(jaxpr: Any) -> dict[str, int]:
    """Count a program's products, and the bytes that it gathers and reduces over devices.

    Returns:
      "flops" of matrix products and convolutions, and the bytes of "all_gather" and "psum".
    """
    total = {"flops": 0, "all_gather": 0, "psum": 0}
    for equation in jaxpr.eqns:
        name, out = equation.primitive.name, [x.aval for x in equation.outvars]
        if name in ("dot_general", "conv_general_dilated"):
            total["flops"] += _flops(equation)
        for kind in ("all_gather", "psum"):
            if name.startswith(kind):
                total[kind] += size_of(out)
        times = equation.params["length"] if name == "scan" else 1
        for inner in _inner(equation.params):
            for kind, number in count_traffic(inner).items():
                total[kind] += times * number
    return total


def _inner(params: Any) -> Iterator[Any]:
    """Yield the programs inside an equation; of a condition's branches, all."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(each, "eqns"):
                yield each
            elif hasattr(each, "jaxpr") and hasattr(each.jaxpr, "eqns"):
                yield each.jaxpr


def _flops(equation: Any) -> int:
    """Count two operations for every multiplication and addition of a product."""
    left, right = (x.aval.shape for x in equation.invars[:2])
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * out * math.prod(left[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    features = right[numbers.rhs_spec[0]]  # of the output
    return 2 * out * math.prod(right) // features
