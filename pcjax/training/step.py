"""One step of training, written for one device of a named axis."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from pcjax.losses.registry import step_key
from pcjax.models import Output
from pcjax.models.functional import Functional
from pcjax.training.neighbour_views import embed_views
from pcjax.training.objective import LossContext, LossState, Objective, TeacherTargets
from pcjax.training.resident import batch_of
from pcjax.training.state import State

AXIS = "batch"
MAX_METRIC = 1e29  # a hundred million of them add up to a finite float32
Batch = Mapping[str, Array]
Step = Callable[[Any, State, Batch], tuple[State, dict[str, Array]]]


class FrozenInputs(NamedTuple):
    """The arrays that a step reads and never changes."""

    teacher: Any = ()  # the arrays of a live teacher
    classifier: Mapping[str, Array] = {}  # the teacher's last layer, for losses that use it
    seed: Any = 0  # int32
    data: Any = None  # the `Resident` examples, if the step makes its batches of them


def make_loss(
    student: Functional, targets: TeacherTargets, objective: Objective, steps: int
) -> Callable[..., tuple[Array, Any]]:
    """Return the function (trained, frozen inputs, state, batch) -> (loss, auxiliary outputs).

    The auxiliary outputs are the parts by name, the student's statistics and the losses' state.

    Args:
      student: the model that is trained.
      targets: the teacher's shapes and function; its arrays come with the frozen inputs.
      objective: the losses.
      steps: the training's length, which ramps refer to.
    """

    def loss_of(
        trained: tuple[Any, Any], frozen: FrozenInputs, state: State, batch: Batch
    ) -> tuple[Array, Any]:
        teacher = lax.stop_gradient(targets.look(frozen.teacher, batch))

        def see(images: Array) -> tuple[Output, Any]:
            return student.apply(trained[0], state.statistics, images, train=True)

        output, statistics = see(batch["image"])
        views = None
        if objective.neighbours and teacher is not None:
            key = step_key(frozen.seed, len(objective.losses), state.step)
            views = embed_views(
                lambda images: see(images)[0],
                lambda rows: cast(Output, targets.look(frozen.teacher, rows)),
                batch,
                key,
            )
        context = LossContext(
            student=output,
            teacher=teacher,
            classifier=frozen.classifier,
            batch=batch,
            step=state.step,
            progress=state.step / steps,
            seed=frozen.seed,
            axis_name=AXIS,
            views=views,
        )
        losses = LossState(trained[1], state.head_statistics, state.memories)
        total, parts, losses = objective(context, losses)
        return total, (parts, statistics, losses)

    return loss_of


def make_step(
    student: Functional,
    targets: TeacherTargets,
    objective: Objective,
    optimiser: optax.GradientTransformation,
    steps: int,
) -> Step:
    """Return the function (frozen inputs, state, batch) -> (state, metrics).

    A step is skipped if its loss, its gradient or the new state is not finite. Then only the step's
    number and the counts of skips change in the state.

    Args:
      student: the model that is trained.
      targets: the teacher's shapes and function; its arrays come with the frozen inputs.
      objective: the losses.
      optimiser: applied to the student and the heads.
      steps: the training's length, which ramps refer to.
    """
    loss_of = make_loss(student, targets, objective, steps)

    def step(frozen: FrozenInputs, state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        trained = (state.student, state.heads)
        (loss, auxiliary), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trained, frozen, state, batch
        )
        parts, statistics, losses = auxiliary
        gradients, loss, parts = lax.pmean((gradients, loss, parts), AXIS)
        norm = optax.tree.norm(gradients)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, trained)
        new_student, new_heads = cast(tuple[Any, Any], optax.apply_updates(trained, updates))
        new = state._replace(
            student=new_student,
            statistics=statistics,
            heads=new_heads,
            head_statistics=losses.statistics,
            memories=losses.memories,
            optimiser=optimiser_state,
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _all_finite(new)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        metrics = {"loss": loss, **parts, "gradient_norm": norm, "count": jnp.ones(())}
        sums = {
            name: total + jnp.where(finite, jnp.clip(metrics[name], -MAX_METRIC, MAX_METRIC), 0)
            for name, total in state.sums.items()
        }
        skips = jnp.where(finite, 0, state.consecutive_skips + 1)
        new = new._replace(
            step=state.step + 1,
            sums=sums,
            skipped=state.skipped + jnp.where(finite, 0, 1),
            consecutive_skips=skips,
        )
        return new, {**metrics, "finite": finite, "consecutive_skips": skips}

    return step


def from_draws(step: Step, padding: int) -> Step:
    """Return a step that takes a draw, and makes the batch of the examples on its device.

    Args:
      step: the step.
      padding: rows and columns of zeros around an image that is shifted.
    """

    def draw_step(
        frozen: FrozenInputs, state: State, draw: Batch
    ) -> tuple[State, dict[str, Array]]:
        return step(frozen, state, batch_of(frozen.data, draw, padding))

    return draw_step


def _all_finite(tree: Any) -> Array:
    """Return whether all floats are finite: a finite gradient can still overflow a parameter."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def metric_names(objective: Objective) -> list[str]:
    """Return the names of the metrics that a step reports."""
    return ["loss", *objective.names(), "gradient_norm", "count"]
