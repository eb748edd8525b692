"""The state that a training step changes, as one pytree, and the optimiser."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from pcjax.config import Training
from pcjax.models.functional import Arrays
from pcjax.training.objective import LossState


class State(NamedTuple):
    """Everything that a step reads and writes; the teacher is not in it."""

    step: Int[Array, ""]
    student: Arrays
    statistics: Arrays  # of the student's batch normalisation
    heads: dict[str, Arrays]  # trained with the student, by the position of their loss
    head_statistics: dict[str, Arrays]  # of the heads' batch normalisation
    memories: dict[str, Any]  # of past examples, by the position of their loss
    optimiser: Any
    sums: dict[str, Float[Array, ""]]  # of metrics since they were last logged, and their "count"
    skipped: Int[Array, ""]  # number of skipped steps
    consecutive_skips: Int[Array, ""]


def initial_state(
    student: Any,
    statistics: Any,
    losses: LossState,
    init_optimiser: Callable[[Any], Any],
    metrics: Iterable[str],
) -> State:
    """Return the state before the first step; of shapes in place of arrays, its shapes."""
    return State(
        step=np.zeros((), np.int32),  # pyright: ignore
        student=student,
        statistics=statistics,
        heads=losses.heads,
        head_statistics=losses.statistics,
        memories=losses.memories,
        optimiser=init_optimiser((student, losses.heads)),
        sums={name: np.zeros((), np.float32) for name in metrics},  # pyright: ignore
        skipped=np.zeros((), np.int32),  # pyright: ignore
        consecutive_skips=np.zeros((), np.int32),  # pyright: ignore
    )


def make_optimiser(training: Training, steps: int) -> optax.GradientTransformation:
    """Build the optimiser, with its learning rate scheduled over `steps`."""
    warmup = round(training.warmup * steps)
    rate, rest = training.learning_rate, max(steps - warmup, 1)
    drops = {round(rest * share): 0.1 for share in (0.625, 0.75, 0.875)}
    decay = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, rest),
        "steps": optax.piecewise_constant_schedule(rate, drops),
    }[training.schedule]
    rise = optax.linear_schedule(0.0, rate, max(warmup, 1))
    schedule = optax.join_schedules([rise, decay], [warmup])

    def matrices(tree: Any) -> Any:
        # Biases, and the scales and shifts of normalisations, are not decayed.
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    if training.optimiser == "adamw":
        chain: list[Any] = [
            optax.adamw(schedule, weight_decay=training.weight_decay, mask=matrices)
        ]
    else:
        chain = [
            optax.add_decayed_weights(training.weight_decay, mask=matrices),
            optax.sgd(schedule, momentum=training.momentum),
        ]
    if training.clip is not None:
        chain.insert(0, optax.clip_by_global_norm(training.clip))
    return optax.chain(*chain)
