"""One step of training, written for one device of a named axis."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from pcjax.models import Output
from pcjax.training.functional import Functional
from pcjax.training.objective import Objective, enqueue
from pcjax.training.state import State

AXIS = "batch"
Batch = Mapping[str, Array]
Step = Callable[[Any, State, Batch], tuple[State, dict[str, Array]]]


def make_step(
    student: Functional,
    teacher: Callable[[Any, Batch], Output] | None,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    steps: int,
) -> Step:
    """(frozen, state, batch) -> (state, metrics), the teacher being a function of what is frozen and the batch.

    A step whose loss or gradient is not finite is not taken: the state stays as it is, and `skipped` counts it.
    """

    def step(frozen: Any, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        seen = None if teacher is None else lax.stop_gradient(teacher(frozen, batch))
        progress = state.step / steps

        def loss_of(trained: tuple[Any, Any]) -> tuple[Array, Any]:
            output, statistics = student.apply(trained[0], state.statistics, batch["image"], train=True)
            total, parts = objective(output, seen, batch, trained[1], state.banks, progress, AXIS)
            return total, (parts, statistics, output.features)

        trained = (state.student, state.heads)
        (loss, aside), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        parts, statistics, features = aside
        gradients, loss, parts = lax.pmean((gradients, loss, parts), AXIS)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        updates, optimiser_state = optimiser.update(gradients, state.optimiser, trained)
        new_student, new_heads = cast(tuple[Any, Any], optax.apply_updates(trained, updates))
        banks = {
            key: enqueue(bank, objective.seen(key, features, state.heads), seen.features, AXIS)
            for key, bank in state.banks.items()
            if seen is not None
        }
        changed = (new_student, statistics, new_heads, banks, optimiser_state)
        kept = (state.student, state.statistics, state.heads, state.banks, state.optimiser)
        student_now, statistics, heads, banks, optimiser_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, kept
        )
        metrics = {"loss": loss, **parts, "gradient_norm": norm, "count": jnp.ones(())}
        sums = {name: total + jnp.where(finite, metrics[name], 0) for name, total in state.sums.items()}
        skipped = state.skipped + jnp.where(finite, 0, 1)
        taken = State(state.step + 1, student_now, statistics, heads, banks, optimiser_state, sums, skipped)
        return taken, metrics

    return step


def metric_names(objective: Objective) -> list[str]:
    """What a step reports."""
    return ["loss", *objective.names(), "gradient_norm", "count"]
