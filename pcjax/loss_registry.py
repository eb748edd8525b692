"""The losses that a config can name, and what each is given.

A term says what it needs; `pcjax.training.objective` brings it: what of the models' output is compared, the columns of
the batch, a random key, the teacher's classifier, what is remembered of earlier steps.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from pcjax import losses
from pcjax.losses import Queue

# What a loss can be compared on, in the order in which a config chooses where several are possible.
KINDS = ("features", "maps", "logits", "labels")
# A loss's arguments that a config does not set, and where in a step they come from.
COLUMNS = {"labels": "label", "indices": "index"}
CLASSIFIER = ("kernel", "bias")
BESIDE = ("student_neighbours", "teacher_neighbours", "student_mixtures", "share")
_BROUGHT = {
    *(
        "student",
        "teacher",
        "where",
        "axis_name",
        "reduce_fn",
        "references",
        "queue",
        "memory",
        "key",
        "variance",
    ),
    *("teacher_gradient", *COLUMNS, *CLASSIFIER, *BESIDE),
}


class Beginning(NamedTuple):
    """What a memory is begun with."""

    size: int  # how many past examples it is to hold
    widths: tuple[
        int, int
    ]  # of what is compared: the student's, through its head, and the teacher's
    key: Array
    examples: int  # in the training set
    labels: np.ndarray | None


class Memory(NamedTuple):
    """What a loss remembers of earlier steps: how it begins, what the loss is given of it, how a step changes it."""

    argument: str
    begin: Callable[..., Any]  # (Beginning, **its own arguments)
    move: Callable[
        ..., Any
    ]  # (memory, student, teacher, **what the loss is given and its own arguments)
    given: Callable[[Any], Any] = lambda memory: memory
    sized: bool = True  # by the config's `bank`
    required: bool = True
    holds_the_batch: bool = False  # moved before the loss is computed, else after it
    arguments: tuple[str, ...] = ()  # its own, that a config may set


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss, and what it needs."""

    function: Callable[..., Array]
    kinds: tuple[str, ...] = ("features",)
    memory: Memory | None = None
    head: str | None = None  # the only one it can do with
    alone: bool = True  # whether it can be a config's only loss

    @property
    def _takes(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.function).parameters

    @property
    def own(self) -> tuple[str, ...]:
        """The function's arguments that a config may set."""
        return tuple(name for name in self._takes if name not in _BROUGHT)

    @property
    def arguments(self) -> tuple[str, ...]:
        """All that a config may set."""
        return (*self.own, *(self.memory.arguments if self.memory else ()))

    @property
    def required(self) -> tuple[str, ...]:
        """Those among them that have no default."""
        return tuple(
            name for name in self.own if self._takes[name].default is inspect.Parameter.empty
        )

    @property
    def numbers(self) -> dict[str, float]:
        """Those among them that are numbers by default, and these."""
        defaults = {name: self._takes[name].default for name in self.own}
        return {
            name: x
            for name, x in defaults.items()
            if isinstance(x, (int, float)) and not isinstance(x, bool)
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """Those among them that are True or False."""
        begins = inspect.signature(self.memory.begin).parameters if self.memory else {}
        takes = {**self._takes, **begins}
        return tuple(
            name
            for name in self.arguments
            if name in takes and isinstance(takes[name].default, bool)
        )

    @property
    def columns(self) -> dict[str, str]:
        """Arguments that are columns of the batch."""
        return {name: column for name, column in COLUMNS.items() if name in self._takes}

    @property
    def labelled(self) -> bool:
        """Whether it always looks at labels."""
        return "labels" in self._takes

    @property
    def random(self) -> bool:
        """Whether it takes a random key."""
        return "key" in self._takes

    @property
    def classifier(self) -> bool:
        """Whether it reads with the teacher's classifier."""
        return "kernel" in self._takes

    @property
    def neighbours(self) -> bool:
        """Whether it looks at a neighbour of every example."""
        return "student_neighbours" in self._takes

    def kind(self, maps: bool) -> str:
        """What is compared; of losses that take either, maps where a config names some."""
        return "maps" if maps and "maps" in self.kinds else self.kinds[0]


def _begin_pairs(start: Beginning) -> Queue:
    return losses.empty_queue(start.size, start.widths)


def _begin_teachers(start: Beginning) -> Queue:
    return losses.empty_queue(start.size, start.widths[1])


def _move_pairs(
    queue: Queue,
    student: Array,
    teacher: Array,
    *,
    where: Array,
    axis_name: str | None,
    **rest: Any,
) -> Queue:
    return losses.enqueue(queue, (student, teacher), where=where, axis_name=axis_name)


def _move_teachers(
    queue: Queue,
    student: Array,
    teacher: Array,
    *,
    where: Array,
    axis_name: str | None,
    **rest: Any,
) -> Queue:
    return losses.enqueue(queue, teacher, where=where, axis_name=axis_name)


def _begin_either(start: Beginning, *, pairs: bool = True) -> Queue:
    return _begin_pairs(start) if pairs else _begin_teachers(start)


def _move_either(
    queue: Queue, student: Array, teacher: Array, *, pairs: bool = True, **given: Any
) -> Queue:
    return (_move_pairs if pairs else _move_teachers)(queue, student, teacher, **given)


def _begin_crd(
    start: Beginning, *, class_aware: bool = False, momentum: float = 0.5
) -> losses.CRDMemory:
    labels = start.labels if class_aware else None
    return losses.crd_memory(start.key, start.examples, start.widths[1], labels=labels)


def _move_crd(
    memory: losses.CRDMemory, student: Array, teacher: Array, **given: Any
) -> losses.CRDMemory:
    return losses.crd_update(
        memory, student, teacher, **{k: v for k, v in given.items() if k != "class_aware"}
    )


_REFERENCES = Memory(
    "references",
    _begin_pairs,
    _move_pairs,
    given=lambda queue: (*queue.points, losses.valid(queue)),
    required=False,
)
_PAIRS_OR_TEACHERS = Memory("queue", _begin_either, _move_either, arguments=("pairs",))
_TEACHERS = Memory("queue", _begin_teachers, _move_teachers)
_CRD = Memory("memory", _begin_crd, _move_crd, sized=False, arguments=("momentum", "class_aware"))

_LOSSES = (
    Term(losses.perception_coherence, memory=_REFERENCES),
    Term(losses.spearman),
    Term(losses.rkd_distance),
    Term(losses.rkd_angle),
    Term(losses.similarity_preserving),
    Term(losses.pkt),
    Term(losses.correlation_congruence),
    Term(losses.darkrank_hard),
    Term(losses.darkrank_soft),
    Term(losses.pairwise_ranking),
    Term(losses.cka),
    Term(losses.info_nce, memory=_TEACHERS._replace(required=False)),
    # As published: every example finds its own embedding in the queue.
    Term(losses.relational_representation, memory=_TEACHERS._replace(holds_the_batch=True)),
    Term(losses.similarity_kl, memory=_PAIRS_OR_TEACHERS),
    Term(losses.crd, memory=_CRD),
    Term(losses.bingo, memory=_TEACHERS),
    Term(losses.hint, ("features", "maps")),
    Term(losses.variational_information, ("features", "maps"), head="variational"),
    Term(losses.embed_distill),
    Term(losses.orthogonal_projection),
    Term(losses.procrustes),
    Term(losses.locality_preserving, alone=False),
    Term(losses.attention_transfer, ("maps",)),
    Term(losses.neuron_selectivity, ("maps",)),
    Term(losses.kd, ("logits",)),
    Term(losses.dkd, ("logits",)),
    Term(losses.dist, ("logits",)),
    Term(losses.shared_classifier),
    Term(losses.simkd, ("features", "maps")),
    Term(losses.cross_entropy, ("labels",)),
)
TERMS: dict[str, Term] = {term.function.__name__: term for term in _LOSSES}
# What of `pcjax.losses` is no term, and why.
UNNAMED = {
    "proto2proto": "compares networks of prototypes, and no model here is one; hint with head 'conv' compares maps"
}


def needs_labels(term: Term, arguments: Mapping[str, Any]) -> bool:
    """Whether a loss with these arguments looks at labels."""
    return term.labelled or bool(arguments.get("class_aware"))


def first_memory(term: Term, start: Beginning, arguments: Mapping[str, Any]) -> Any:
    """What a loss remembers before the first step, or None if nothing."""
    memory = term.memory
    if memory is None or (memory.sized and not start.size):
        return None
    return memory.begin(
        start, **{name: arguments[name] for name in memory.arguments if name in arguments}
    )


def key_of(seed: int, place: int, step: Array | int) -> Array:
    """The random key of a loss in a step: drawn from the seed, so that there is nothing to be stored."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), place), step)
