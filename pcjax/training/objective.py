"""The weighted sum of losses that a config asks for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pcjax._checks import RequestError, require, require_name
from pcjax.config import Loss, Ramp
from pcjax.loss_registry import CLASSIFIER, TERMS, Beginning, first_memory, key_of
from pcjax.models import Output, heads, regressors
from pcjax.models.functional import Arrays, Functional, functional
from pcjax.training.neighbour_views import Beside

Shape = tuple[int, ...]


class Head(NamedTuple):
    """How a head is built for the shapes of what it is between, and what it gives beside the student's part."""

    build: Callable[[Shape, Shape, str | None, nnx.Rngs], nnx.Module]
    gives: tuple[str, ...] = ()


def _of_widths(
    kind: Callable[..., nnx.Module],
) -> Callable[[Shape, Shape, str | None, nnx.Rngs], nnx.Module]:
    return lambda student, teacher, axis_name, rngs: kind(student[-1], teacher[-1], rngs=rngs)  # noqa: ARG005


def _conv(student: Any, teacher: Any, axis_name: str | None, rngs: nnx.Rngs) -> nnx.Module:
    return regressors.ConvRegressor(student, teacher, axis_name=axis_name, rngs=rngs)


HEADS = {
    "linear": Head(_of_widths(heads.Linear)),
    "mlp": Head(_of_widths(heads.MLP)),
    "orthogonal": Head(_of_widths(regressors.OrthogonalProjection)),
    "conv": Head(_conv),
    "variational": Head(_of_widths(regressors.VariationalRegressor), ("variance",)),
}


class Moment(NamedTuple):
    """What the losses look at in one step, on one device."""

    student: Output
    teacher: Output | None
    classifier: Mapping[str, Array]  # kernel and bias of the teacher's
    batch: Mapping[str, Array]
    step: Int[Array, ""]
    progress: Float[Array, ""]  # the share of the training that is done
    axis_name: str | None
    beside: Beside | None = None  # for losses on neighbours


class Kept(NamedTuple):
    """What the losses keep beside the student, by their places."""

    heads: dict[str, Arrays]  # learnt
    statistics: dict[str, Arrays]  # of the heads' batch normalisation
    memories: dict[str, Any]


class Objective(NamedTuple):
    """The losses, the heads that some of them look through, and the names of the maps that some of them see."""

    losses: tuple[Loss, ...]
    heads: dict[str, Functional]
    maps: dict[str, tuple[str, str]]
    seed: int

    @property
    def neighbours(self) -> bool:
        """Whether a loss looks at a neighbour of every example."""
        return any(TERMS[loss.name].neighbours for loss in self.losses)

    def names(self) -> list[str]:
        """One for every loss, and none twice."""
        names = [loss.name for loss in self.losses]
        return [
            name if names.count(name) == 1 else f"{name}_{place}"
            for place, name in enumerate(names)
        ]

    def __call__(
        self, moment: Moment, kept: Kept
    ) -> tuple[Float[Array, ""], dict[str, Array], Kept]:
        """The sum, every loss by its name, and what is kept for the next step (the heads as they are)."""
        total, values, statistics, memories = (
            jnp.zeros(()),
            {},
            dict(kept.statistics),
            dict(kept.memories),
        )
        for place, (name, loss) in enumerate(zip(self.names(), self.losses, strict=True)):
            key, term = str(place), TERMS[loss.name]
            student, *teacher = compared(loss.kind, moment, self.maps.get(key))
            given = {"where": moment.batch["mask"], "axis_name": moment.axis_name}
            given |= {argument: moment.batch[column] for argument, column in term.columns.items()}
            if term.classifier:
                given |= {
                    part: moment.classifier[part]
                    for part in CLASSIFIER
                    if part in moment.classifier
                }
            if term.random:
                given["key"] = key_of(self.seed, place, moment.step)
            if key in self.heads:
                output, statistics[key] = self._through(key, student, kept)
                gives = HEADS[loss.head].gives
                student, *more = output if gives else (output,)
                given |= dict(zip(gives, more, strict=True))
            if term.neighbours and moment.beside is not None:
                near, theirs, mixtures, given["share"] = moment.beside
                given["student_neighbours"] = self._through(key, near.features, kept)[0]
                given["student_mixtures"] = self._through(key, mixtures.features, kept)[0]
                given["teacher_neighbours"] = theirs.features
            arguments = {what: at(value, moment.progress) for what, value in loss.arguments.items()}
            given |= {what: value for what, value in arguments.items() if what in term.own}
            memory, before = term.memory, kept.memories.get(key)
            if memory is not None and before is not None:
                memories[key] = memory.move(before, student, *teacher, **(given | arguments))
                given[memory.argument] = memory.given(
                    memories[key] if memory.holds_the_batch else before
                )
            values[name] = term.function(student, *teacher, **given)
            total = total + at(loss.weight, moment.progress) * values[name]
        return total, values, kept._replace(statistics=statistics, memories=memories)

    def _through(self, key: str, x: Array, kept: Kept) -> tuple[Any, Arrays]:
        """What the head at that place makes of the student's part, and its statistics; as it is, if there is none."""
        if key not in self.heads:
            return x, {}
        return self.heads[key].apply(kept.heads[key], kept.statistics[key], x, train=True)


def compared(kind: str, moment: Moment, maps: tuple[str, str] | None) -> tuple[Array, ...]:
    """The part of the student's output that losses of a kind look at, and the teacher's, for those with a teacher."""
    student, teacher = moment.student, moment.teacher
    if kind == "labels":
        return (_there(student.logits),)
    if teacher is None:
        raise RequestError("this loss needs a teacher")
    if kind == "maps" and maps is not None:
        return student.maps[maps[0]], teacher.maps[maps[1]]
    if kind == "logits":
        return _there(student.logits), _there(teacher.logits)
    return student.features, teacher.features


def _there(logits: Array | None) -> Array:
    if logits is None:
        raise RequestError("this loss is about class scores, and the model gives none")
    return logits


def objective(
    losses: tuple[Loss, ...],
    student: Output,
    teacher: Output | None,
    seed: int,
    axis_name: str | None = None,
) -> tuple[Objective, Kept]:
    """The objective for models of these outputs (only their shapes matter), with the first state of its heads."""
    functions, parameters, statistics, maps = {}, {}, {}, {}
    for place, loss in enumerate(losses):
        key = str(place)
        for who, output in (("student", student), ("teacher", teacher)):
            if loss.kind == "logits" and (output is None or output.logits is None):
                raise RequestError(
                    f"the loss {loss.name} compares class scores, and the {who} gives none"
                )
        if loss.kind == "maps" and teacher is not None:
            maps[key] = _maps(loss, student, teacher)
        if loss.head != "none":
            shapes = _shapes(loss, student, teacher, maps.get(key))
            build = _builder(HEADS[loss.head], *shapes, axis_name, seed * 1000 + place)
            functions[key], parameters[key], statistics[key] = functional(build)
    return Objective(losses, functions, maps, seed), Kept(parameters, statistics, {})


def with_memories(
    kept: Kept,
    what: Objective,
    student: Output,
    teacher: Output | None,
    examples: int,
    labels: np.ndarray | None,
) -> Kept:
    """The same with what the losses remember before the first step, of a training set of so many examples."""
    memories = {}
    for place, loss in enumerate(what.losses):
        term, key = TERMS[loss.name], str(place)
        if term.memory is None:
            continue
        own, theirs = (shape[-1] for shape in _shapes(loss, student, teacher, what.maps.get(key)))
        # No step has this number: no other key is the same.
        random = key_of(what.seed, place, 2**31 - 1)
        start = Beginning(
            loss.bank, (own if loss.head == "none" else theirs, theirs), random, examples, labels
        )
        memory = first_memory(term, start, loss.arguments)
        if memory is not None:
            memories[key] = memory
    return kept._replace(memories=memories)


def _maps(loss: Loss, student: Output, teacher: Output) -> tuple[str, str]:
    """The names of the maps that a loss compares."""
    chosen = []
    for who, output, name in zip(
        ("student", "teacher"), (student, teacher), loss.maps or (None, None), strict=True
    ):
        require(bool(output.maps), f"the loss {loss.name} compares maps, and the {who} gives none")
        if name is not None:
            require_name(f"map of the {who}", name, sorted(output.maps))
        chosen.append(max(output.maps) if name is None else name)
    return chosen[0], chosen[1]


def _shapes(
    loss: Loss, student: Output, teacher: Output | None, maps: tuple[str, str] | None
) -> tuple[Shape, Shape]:
    """Of one example's part of what a loss compares."""
    nothing = jnp.zeros(())
    both = compared(loss.kind, Moment(student, teacher, {}, {}, nothing, nothing, None), maps)
    return both[0].shape[1:], both[1].shape[1:]


def _builder(
    head: Head, student: Shape, teacher: Shape, axis_name: str | None, seed: int
) -> Callable[[], nnx.Module]:
    return lambda: head.build(student, teacher, axis_name, nnx.Rngs(seed))


def at(number: Any, progress: Float[Array, ""]) -> Any:
    """A number as it is, a ramp as it stands when that share of the training is done."""
    if not isinstance(number, Ramp):
        return number
    way = jnp.clip(progress / number.until, 0, 1)
    if number.shape == "geometric":
        return number.start * jnp.exp(way * jnp.log(number.end / number.start))
    if number.shape == "cosine":
        way = (1 - jnp.cos(jnp.pi * way)) / 2
    return number.start + (number.end - number.start) * way
