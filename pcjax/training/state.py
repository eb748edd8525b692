"""What training changes, as one pytree."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pcjax.config import Training
from pcjax.models.functional import Arrays
from pcjax.training.objective import Kept


class State(NamedTuple):
    """Everything a step reads and writes; the teacher, which stays as it is, is not in it."""

    step: Int[Array, ""]
    student: Arrays
    statistics: Arrays  # of the student's batch normalisation
    heads: dict[str, Arrays]  # learnt beside the student, by the place of the loss they belong to
    head_statistics: dict[str, Arrays]  # of their batch normalisation
    memories: dict[str, Any]  # what losses remember of past examples, by their places
    optimiser: Any
    sums: dict[
        str, Array
    ]  # of metrics, and the "count" of steps, since they were last written down
    skipped: Int[Array, ""]  # steps that were not taken: not finite, a spike, or all examples alike
    row: Int[Array, ""]  # of these, how many came one after the other up to now
    gradients: Int[Array, ""]  # of steps that were taken and had one that is not 0
    usual: Float[Array, ""]  # the logarithm of their usual norm: a running mean
    most: Float[Array, ""]  # what that was at most


def start(
    student: Arrays,
    statistics: Arrays,
    kept: Kept,
    optimiser: optax.GradientTransformation,
    metrics: Iterable[str],
) -> State:
    """The state before the first step."""
    return State(
        jnp.zeros((), jnp.int32),
        student,
        statistics,
        *kept,
        optimiser.init((student, kept.heads)),
        {name: jnp.zeros(()) for name in metrics},
        skipped=jnp.zeros((), jnp.int32),
        row=jnp.zeros((), jnp.int32),
        gradients=jnp.zeros((), jnp.int32),
        usual=jnp.zeros(()),
        most=jnp.zeros(()),
    )


def make_optimiser(training: Training, steps: int) -> optax.GradientTransformation:
    """The optimiser that a config asks for, its learning rate scheduled over that many steps."""
    warmup = round(training.warmup * steps)
    rate, rest = training.learning_rate, max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(rate),
        "cosine": optax.cosine_decay_schedule(rate, rest),
        "steps": optax.piecewise_constant_schedule(
            rate, {round(rest * s): 0.1 for s in (0.625, 0.75, 0.875)}
        ),
    }[training.schedule]
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, rate, max(warmup, 1)), after], [warmup]
    )

    def only_matrices(tree: Any) -> Any:
        # Biases, and the scales and shifts of normalisations, are not decayed.
        return jax.tree.map(lambda x: x.ndim > 1, tree)

    if training.optimiser == "adamw":
        chain: list[optax.GradientTransformation] = [
            optax.adamw(schedule, weight_decay=training.weight_decay, mask=only_matrices)
        ]
    else:
        decay = optax.add_decayed_weights(training.weight_decay, mask=only_matrices)
        chain = [decay, optax.sgd(schedule, momentum=training.momentum)]
    if training.clip is not None:
        chain.insert(0, optax.clip_by_global_norm(training.clip))
    return optax.chain(*chain)
