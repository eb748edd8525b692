"""One step of training, written for one device of a named axis."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from pcjax.data.batches import NEIGHBOUR
from pcjax.loss_registry import key_of
from pcjax.models import Output
from pcjax.models.functional import Functional
from pcjax.training.neighbour_views import look
from pcjax.training.objective import Kept, Moment, Objective
from pcjax.training.state import State

AXIS = "batch"
LARGEST = 1e29  # of a metric; a hundred million of them stay finite
KNOWN_AFTER, REMEMBERED = (
    10,
    100,
)  # steps whose gradients say what is usual: at first, and in the long run
Batch = Mapping[str, Array]
Step = Callable[[Any, State, Batch], tuple[State, dict[str, Array]]]


class Fixed(NamedTuple):
    """What a step needs that no step changes: of the teacher, and its classifier for the losses that read with it."""

    teacher: Any = ()
    classifier: Mapping[str, Any] = {}


def make_step(
    student: Functional,
    teacher: Callable[[Any, Batch], Output] | None,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    steps: int,
    size: float,
    spike: float | None = None,
) -> Step:
    """(fixed, state, batch) -> (state, metrics), the teacher being a function of what is fixed and the batch.

    A step whose loss, gradient or outcome is not finite is not taken: the state stays as it is, and `skipped` counts.
    Nor is one whose gradient is more than `spike` times as long as was ever usual, once that is known: where a model
    has learnt nearly all, the few examples that it has not have gradients far beyond the others. Nor, from the first
    step on, is one whose examples' root mean square is more than `spike` times `size`: where that is what it is over
    all examples, at most one batch in `spike` squared can be such. Nor is one whose examples are all alike, which
    would teach batch normalisations that nothing varies.
    """

    def step(fixed: Fixed, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        seen = None if teacher is None else lax.stop_gradient(teacher(fixed.teacher, batch))

        def loss_of(trained: tuple[Any, Any]) -> tuple[Array, Any]:
            output, statistics = student.apply(
                trained[0], state.statistics, batch["image"], train=True
            )
            moment = Moment(
                output, seen, fixed.classifier, batch, state.step, state.step / steps, AXIS
            )
            if objective.neighbours and teacher is not None:

                def sees(images: Array) -> Output:
                    return student.apply(trained[0], state.statistics, images, train=True)[0]

                key = key_of(objective.seed, len(objective.losses), state.step)
                moment = moment._replace(
                    beside=look(sees, functools.partial(teacher, fixed.teacher), batch, key)
                )
            total, parts, kept = objective(
                moment, Kept(trained[1], state.head_statistics, state.memories)
            )
            return total, (parts, statistics, kept)

        trained = (state.student, state.heads)
        (loss, aside), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        parts, statistics, kept = aside
        gradients, loss, parts = lax.pmean((gradients, loss, parts), AXIS)
        norm = optax.tree.norm(gradients)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, trained)
        new_student, new_heads = cast(tuple[Any, Any], optax.apply_updates(trained, updates))
        taken = state._replace(
            student=new_student,
            statistics=statistics,
            heads=new_heads,
            head_statistics=kept.statistics,
            memories=kept.memories,
            optimiser=optimiser_state,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(taken)
        alike = _all_alike(batch["image"])
        good, large = finite & ~alike, jnp.zeros((), bool)
        if spike is not None:
            images = [batch[name] for name in ("image", f"{NEIGHBOUR}image") if name in batch]
            large = jnp.any(jnp.stack([_root_mean_square(x) for x in images]) > spike * size)
            good &= ~large & (
                (state.gradients < KNOWN_AFTER) | (jnp.log(norm) <= jnp.log(spike) + state.most)
            )
        # A mean of logarithms: one gradient adds little to it, however long it is. One of 0 says nothing.
        counts = norm > 0
        share = jnp.maximum(1 / (state.gradients + 1), 1 / REMEMBERED)
        usual = state.usual + jnp.where(
            counts, share * (jnp.log(jnp.where(counts, norm, 1)) - state.usual), 0
        )
        gradients = state.gradients + counts.astype(jnp.int32)
        most = jnp.where(gradients <= KNOWN_AFTER, usual, jnp.maximum(state.most, usual))
        taken = taken._replace(gradients=gradients, usual=usual, most=most)
        taken = jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, state)
        metrics = {
            "loss": loss,
            **parts,
            "gradient_norm": norm,
            "count": jnp.ones(()),
            "taken": good,
        }
        row = jnp.where(good, 0, state.row + 1)
        metrics |= {"finite": finite, "alike": alike, "large": large, "row": row}
        # Of what is finite the sum must be so too.
        summed = {name: jnp.clip(metrics[name], -LARGEST, LARGEST) for name in state.sums}
        sums = {
            name: total + jnp.where(good, summed[name], 0) for name, total in state.sums.items()
        }
        skipped = state.skipped + jnp.where(good, 0, 1)
        taken = taken._replace(step=state.step + 1, sums=sums, skipped=skipped, row=row)
        return taken, metrics

    return step


def _all_finite(tree: Any) -> Array:
    """A finite gradient can still carry a parameter beyond the largest float32."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def _all_alike(images: Array) -> Array:
    """Whether all examples of all devices are the same."""
    here, first = jnp.all(images == images[:1]), images[0].astype(jnp.float32)
    return (lax.pmin(here.astype(jnp.int32), AXIS) == 1) & jnp.all(
        lax.pmax(first, AXIS) == lax.pmin(first, AXIS)
    )


def _root_mean_square(images: Array) -> Array:
    """Of all numbers of all devices."""
    return jnp.sqrt(lax.pmean(jnp.mean(jnp.square(images.astype(jnp.float32))), AXIS))


def metric_names(objective: Objective) -> list[str]:
    """What a step reports."""
    return ["loss", *objective.names(), "gradient_norm", "count"]
