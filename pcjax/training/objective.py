"""The weighted sum of losses that a student minimises."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pcjax._checks import RequestError, require_name
from pcjax.config import Loss, Ramp
from pcjax.data.batches import Column
from pcjax.losses.registry import (
    CLASSIFIER,
    LOSSES,
    PROTOTYPES,
    MemoryInit,
    init_memory,
    step_key,
)
from pcjax.models import Output, heads, regressors
from pcjax.models.functional import Arrays, Functional, functional, functional_shapes
from pcjax.training.neighbour_views import NeighbourViews

Shape = tuple[int, ...]


class Head(NamedTuple):
    """How a head is built between two shapes, and whether it returns more than its output."""

    build: Callable[[Shape, Shape, str | None, nnx.Rngs], nnx.Module]
    returns: tuple[str, ...] = ()


def _between_widths(
    kind: Callable[..., nnx.Module],
) -> Callable[[Shape, Shape, str | None, nnx.Rngs], nnx.Module]:
    def between(student, teacher, axis_name, rngs):
        return kind(student[-1], teacher[-1], rngs=rngs)

    return between


def _conv(student: Any, teacher: Any, axis_name: str | None, rngs: nnx.Rngs) -> nnx.Module:
    return regressors.ConvRegressor(student, teacher, axis_name=axis_name, rngs=rngs)


HEADS = {
    "linear": Head(_between_widths(heads.Linear)),
    "mlp": Head(_between_widths(heads.MLP)),
    "orthogonal": Head(_between_widths(regressors.OrthogonalProjection)),
    "conv": Head(_conv),
    "variational": Head(_between_widths(regressors.VariationalRegressor), ("variance",)),
}


class TeacherTargets(NamedTuple):
    """The teacher as a train step sees it. Without fields there is none.

    digest: hash of the teacher.
    arrays: parameters and statistics of a live teacher.
    function: a live teacher's function of these and of images; None reads columns of the batch.
    shapes: its outputs' shapes for one example.
    classifier: kernel and bias of its last layer, for the losses that use them.
    features: its features of the plain training images, by which neighbours are found.
    columns: outputs that come with every batch, by name.
    """

    digest: str = ""
    arrays: Any = ()
    function: Any = None  # a `Functional`, or another hashable object with its `apply`
    shapes: Output | None = None
    classifier: Mapping[str, Any] = {}
    features: np.ndarray | None = None
    columns: Mapping[str, Column] = {}

    def look(self, arrays: Any, batch: Mapping[str, Array]) -> Output | None:
        """Return the teacher's outputs for a batch."""
        if self.shapes is None:
            return None
        if self.function is not None:
            parameters, statistics = arrays
            return self.function.apply(parameters, statistics, batch["image"], train=False)[0]
        return Output(batch["teacher"], batch.get("teacher_logits"), {})


class LossContext(NamedTuple):
    """Everything the losses see in one step, on one device."""

    student: Output
    teacher: Output | None
    classifier: Mapping[str, Array]  # kernel and bias of the teacher's
    batch: Mapping[str, Array]
    step: Int[Array, ""]
    progress: Float[Array, ""]  # share of the training that is done
    seed: Int[Array, ""] | int = 0
    axis_name: str | None = None
    views: NeighbourViews | None = None  # for losses that use neighbours


class LossState(NamedTuple):
    """Everything the losses keep between steps, keyed by their positions."""

    heads: dict[str, Arrays]  # trained
    statistics: dict[str, Arrays]  # of the heads' batch normalisation
    memories: dict[str, Any]


class Objective(NamedTuple):
    """The losses, their heads, and the names of the maps that they compare."""

    losses: tuple[Loss, ...]
    heads: dict[str, Functional]
    maps: dict[str, tuple[str, str]]

    @property
    def neighbours(self) -> bool:
        """Return whether a loss uses a neighbour of every example."""
        return any(LOSSES[loss.name].neighbours for loss in self.losses)

    def names(self) -> list[str]:
        """Return a name for every loss; repeated ones get their position."""
        names = [loss.name for loss in self.losses]
        return [n if names.count(n) == 1 else f"{n}_{place}" for place, n in enumerate(names)]

    def __call__(
        self, context: LossContext, state: LossState
    ) -> tuple[Float[Array, ""], dict[str, Array], LossState]:
        """Return the sum, every loss by its name, and the new state (the heads as they were)."""
        total, values = jnp.zeros(()), {}
        statistics, memories = dict(state.statistics), dict(state.memories)
        for place, (name, loss) in enumerate(zip(self.names(), self.losses, strict=True)):
            key, spec = str(place), LOSSES[loss.name]
            student, *teacher = compared(loss.kind, context, self.maps.get(key))
            given = {"where": context.batch["mask"], "axis_name": context.axis_name}
            given |= {name: context.batch[column] for name, column in spec.columns.items()}
            if spec.classifier:
                classifier = context.classifier
                given |= {part: classifier[part] for part in CLASSIFIER if part in classifier}
            if spec.prototypes and context.teacher is not None:
                both = (context.student, context.teacher)
                points = (output.maps["prototypes"][0] for output in both)
                given |= dict(zip(PROTOTYPES, points, strict=True))
            if spec.random:
                given["key"] = step_key(context.seed, place, context.step)
            if key in self.heads:
                output, statistics[key] = self._through_head(key, student, state)
                returns = HEADS[loss.head].returns
                student, *more = output if returns else (output,)
                given |= dict(zip(returns, more, strict=True))
            if spec.neighbours and context.views is not None:
                near, teacher_near, mixtures, given["share"] = context.views
                given["student_neighbours"] = self._through_head(key, near.features, state)[0]
                given["student_mixtures"] = self._through_head(key, mixtures.features, state)[0]
                given["teacher_neighbours"] = teacher_near.features
            arguments = {n: ramp_value(x, context.progress) for n, x in loss.arguments.items()}
            given |= {n: value for n, value in arguments.items() if n in spec.own_arguments}
            memory, before = spec.memory, state.memories.get(key)
            if memory is not None and before is not None:
                memories[key] = memory.update(before, student, *teacher, **(given | arguments))
                read = memories[key] if memory.update_first else before
                given[memory.argument] = memory.read(read)
            values[name] = spec.function(student, *teacher, **given)
            total = total + ramp_value(loss.weight, context.progress) * values[name]
        return total, values, state._replace(statistics=statistics, memories=memories)

    def _through_head(self, key: str, x: Array, state: LossState) -> tuple[Any, Arrays]:
        """Apply the head of a loss; return its output and statistics. Without one, return x."""
        if key not in self.heads:
            return x, {}
        return self.heads[key].apply(state.heads[key], state.statistics[key], x, train=True)


def compared(kind: str, context: LossContext, maps: tuple[str, str] | None) -> tuple[Any, ...]:
    """Return the outputs that losses of a kind compare: the student's, and the teacher's."""
    student, teacher = context.student, context.teacher
    if kind == "labels":
        return (_scores(student),)
    if teacher is None:
        raise RequestError("The losses need a teacher.")
    if kind == "maps" and maps is not None:
        return student.maps[maps[0]], teacher.maps[maps[1]]
    if kind == "logits":
        return _scores(student), _scores(teacher)
    return student.features, teacher.features


def _scores(output: Output) -> Any:
    if output.logits is None:
        raise RequestError("A loss compares class scores, and the model gives none.")
    return output.logits


def build_objective(
    losses: tuple[Loss, ...],
    student: Output,
    teacher: Output | None,
    *,
    seed: int | None = 0,
    axis_name: str | None = None,
) -> tuple[Objective, LossState]:
    """Return the objective for models with these outputs' shapes, and its heads' weights.

    Args:
      losses: the losses of the config.
      student: the shapes of the student's outputs for one example.
      teacher: the shapes of the teacher's.
      seed: of the heads' initial weights; None gives shapes in place of weights.
      axis_name: the mapped axis of the train step.
    """
    functions, parameters, statistics, maps = {}, {}, {}, {}
    for place, loss in enumerate(losses):
        key = str(place)
        for name, output in (("student", student), ("teacher", teacher)):
            if loss.kind == "logits" and (output is None or output.logits is None):
                raise RequestError(
                    f"The loss {loss.name} compares class scores, and the {name} gives none."
                )
        if loss.kind == "maps" and teacher is not None:
            if LOSSES[loss.name].prototypes:
                _check_prototypes(loss, student, teacher)
            maps[key] = _map_names(loss, student, teacher)
        if loss.head != "none":
            shapes = _compared_shapes(loss, student, teacher, maps.get(key))
            build = _head_builder(loss.head, *shapes, axis_name)
            built = (
                functional_shapes(build) if seed is None else functional(build, seed * 1000 + place)
            )
            functions[key], parameters[key], statistics[key] = built
    return Objective(losses, functions, maps), LossState(parameters, statistics, {})


@functools.lru_cache(maxsize=64)
def _head_builder(
    name: str, student: Shape, teacher: Shape, axis_name: str | None
) -> Callable[[Any], nnx.Module]:
    return lambda seed: HEADS[name].build(
        student, teacher, axis_name, nnx.Rngs(jax.random.key(seed))
    )


def with_memories(
    state: LossState,
    objective: Objective,
    outputs: tuple[Output, Output | None],
    seed: int,
    examples: tuple[int, np.ndarray | None],
) -> LossState:
    """Return the state with the losses' initial heads and memories.

    Args:
      state: the heads.
      objective: the losses.
      outputs: the shapes of the student's and the teacher's outputs.
      seed: of the random parts of a memory.
      examples: the number of training examples, and their labels.
    """
    memories = {}
    for place, loss in enumerate(objective.losses):
        spec, key = LOSSES[loss.name], str(place)
        if spec.memory is None:
            continue
        shapes = _compared_shapes(loss, *outputs, objective.maps.get(key))
        own, teacher = (shape[-1] for shape in shapes)
        width = own if loss.head == "none" else teacher
        last = 2**31 - 1  # no step has this number, so the key is used nowhere else
        init = MemoryInit(loss.bank, (width, teacher), step_key(seed, place, last), *examples)
        memory = init_memory(spec, init, loss.arguments)
        if memory is not None:
            memories[key] = memory
    return state._replace(memories=memories)


def _map_names(loss: Loss, student: Output, teacher: Output) -> tuple[str, str]:
    names = []
    models = (("student", student), ("teacher", teacher))
    for (model, output), name in zip(models, loss.maps or (None, None), strict=True):
        # Prototypes are of no example; a loss that compares them compares patches besides.
        known = sorted({*output.maps} - {"prototypes"})
        if not known:
            raise RequestError(f"The loss {loss.name} compares maps, and the {model} gives none.")
        known = ["patches"] if LOSSES[loss.name].prototypes else known
        if name is not None:
            require_name(f"map of the {model}", name, known)
        names.append(known[-1] if name is None else name)
    return names[0], names[1]


REMEDIES = {"student": "--student.name protopnet", "teacher": "--teacher.model.name protopnet"}


def _check_prototypes(loss: Loss, student: Output, teacher: Output) -> None:
    """Refuse models without prototypes, or whose prototypes or patches differ in shape."""
    for (model, remedy), output in zip(REMEDIES.items(), (student, teacher), strict=True):
        if not {"prototypes", "patches"} <= output.maps.keys():
            raise RequestError(
                f"The loss {loss.name} compares prototypes, and the {model} has none: "
                f"give a model that has, as {remedy}."
            )
    for name, remedy in (
        ("prototypes", "give both the same number (prototypes) and width (patch_features)"),
        ("patches", "choose backbones that reduce images as often"),
    ):
        own, other = (output.maps[name].shape[1:] for output in (student, teacher))
        if own != other:
            raise RequestError(
                f"The loss {loss.name} needs {name} of one shape, but the student's are {own} and "
                f"the teacher's {other}: {remedy}."
            )


def _compared_shapes(
    loss: Loss, student: Output, teacher: Output | None, maps: tuple[str, str] | None
) -> tuple[Shape, Shape]:
    zero = jax.ShapeDtypeStruct((), jnp.float32)
    context = LossContext(student, teacher, {}, {}, zero, zero)  # pyright: ignore
    outputs = compared(loss.kind, context, maps)
    return outputs[0].shape[1:], outputs[-1].shape[1:]


def ramp_value(number: Any, progress: Float[Array, ""]) -> Any:
    """Return a ramp's value when that share of the training is done; other numbers as they are."""
    if not isinstance(number, Ramp):
        return number
    way = jnp.clip(progress / number.until, 0, 1)
    if number.shape == "geometric":
        return number.start * jnp.exp(way * jnp.log(number.end / number.start))
    if number.shape == "cosine":
        way = (1 - jnp.cos(jnp.pi * way)) / 2
    return number.start + (number.end - number.start) * way
