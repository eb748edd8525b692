"""The losses that a config can name, and what each needs.

The facts about a loss stand above it, in the `loss` decorator. Everything else is derived from
them: the config's checks, `pcjax list losses`, the recipes of `--losses`, and the laws' test cases.

    @loss(weight=2.0, head="linear")
    def my_loss(student, teacher, *, where=None, axis_name=None, reduce_fn=jnp.mean): ...

A package adds its own loss by an entry point of the group "pcjax.losses" that names the function.
"""

import dataclasses
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from pcjax.losses.memory import Queue, empty_queue, enqueue, valid

F = TypeVar("F", bound=Callable[..., Any])

# Arguments that a train step provides: from the batch, the teacher's classifier, both models'
# prototypes, a neighbour of every example, or the state. A config sets the others.
COLUMNS = {"labels": "label", "indices": "index"}
CLASSIFIER = ("kernel", "bias")
PROTOTYPES = ("student_prototypes", "teacher_prototypes")
NEIGHBOUR_VIEWS = ("student_neighbours", "teacher_neighbours", "student_mixtures", "share")
PROVIDED = {
    *("student", "teacher", "where", "axis_name", "reduce_fn", "references", "queue", "memory"),
    *("key", "variance", "teacher_gradient", *COLUMNS, *CLASSIFIER, *PROTOTYPES),
    *NEIGHBOUR_VIEWS,
}


class MemoryInit(NamedTuple):
    """The inputs from which a memory is created."""

    size: int  # number of past examples
    widths: tuple[int, int]  # the student's features, behind its head, and the teacher's
    key: Array
    examples: int  # in the training set
    labels: np.ndarray | None


class Memory(NamedTuple):
    """A loss's memory of earlier steps: how to create, update and read it."""

    argument: str  # of the loss
    create: Callable[..., Any]  # (MemoryInit, **own arguments) -> memory
    update: Callable[..., Any]  # (memory, student, teacher, **arguments) -> memory
    read: Callable[[Any], Any] = lambda memory: memory  # the loss's argument
    sized: bool = True  # by the config's `bank`
    required: bool = True
    update_first: bool = False  # before the loss is computed, else after it
    arguments: tuple[str, ...] = ()  # its own, which a config may set


class Law(NamedTuple):
    """How the laws of tests/losses/test_laws.py call a loss, where that is not obvious."""

    same_width: bool = False  # student and teacher must have as many features
    per_example: bool = True  # it is a mean over examples
    least_at_teacher: bool = True  # a student equal to the teacher pays the least, 0
    arguments: Mapping[str, Any] = {}


class RecipeTerm(NamedTuple):
    """One loss of a recipe, as it was published or is recommended."""

    loss: str
    weight: float = 1.0
    head: str = "none"
    bank: int = 0
    arguments: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """A loss and the facts about it."""

    function: Callable[..., Array]
    kinds: tuple[str, ...] = ("features",)
    head: str | None = None
    memory: Memory | None = None
    alone: bool = True
    law: Law = dataclasses.field(default_factory=Law)

    @property
    def name(self) -> str:
        """Return the function's name."""
        return self.function.__name__

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Return the function's parameters."""
        return inspect.signature(self.function).parameters

    @property
    def own_arguments(self) -> tuple[str, ...]:
        """Return the function's arguments that a config may set."""
        return tuple(name for name in self.parameters if name not in PROVIDED)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Return all arguments that a config may set, the memory's too."""
        return (*self.own_arguments, *(self.memory.arguments if self.memory else ()))

    @property
    def required(self) -> tuple[str, ...]:
        """Return the arguments without a default."""
        empty = inspect.Parameter.empty
        return tuple(n for n in self.own_arguments if self.parameters[n].default is empty)

    @property
    def number_defaults(self) -> dict[str, int | float]:
        """Return the arguments whose defaults are numbers, and these."""
        defaults = {name: self.parameters[name].default for name in self.own_arguments}
        return {
            name: default
            for name, default in defaults.items()
            if isinstance(default, (int, float)) and not isinstance(default, bool)
        }

    @property
    def flags(self) -> tuple[str, ...]:
        """Return the arguments that are True or False."""
        create = self.memory.create if self.memory else lambda: None
        parameters = {**self.parameters, **inspect.signature(create).parameters}
        return tuple(
            name
            for name in self.arguments
            if name in parameters and isinstance(parameters[name].default, bool)
        )

    @property
    def columns(self) -> dict[str, str]:
        """Return the arguments that are columns of the batch, and these columns."""
        return {name: column for name, column in COLUMNS.items() if name in self.parameters}

    @property
    def uses_labels(self) -> bool:
        """Return whether the loss always uses labels."""
        return "labels" in self.parameters

    @property
    def random(self) -> bool:
        """Return whether the loss takes a random key."""
        return "key" in self.parameters

    @property
    def classifier(self) -> bool:
        """Return whether the loss uses the teacher's last layer."""
        return "kernel" in self.parameters

    @property
    def prototypes(self) -> bool:
        """Return whether the loss compares networks of prototypes: these, and their patches."""
        return "student_prototypes" in self.parameters

    @property
    def neighbours(self) -> bool:
        """Return whether the loss uses a neighbour of every example."""
        return "student_neighbours" in self.parameters

    def kind(self, maps: bool) -> str:
        """Return which output is compared: maps where a config names some, else the first kind."""
        return "maps" if maps and "maps" in self.kinds else self.kinds[0]


class _Registry(Mapping[str, Any]):
    """Losses of this package, and of installed packages once another name is requested."""

    def __init__(self):
        self.own: dict[str, Any] = {}
        self._complete = False

    def _load(self) -> None:
        if not self._complete:
            self._complete = True
            for entry in importlib.metadata.entry_points(group="pcjax.losses"):
                entry.load()  # its decorator registers it

    def __getitem__(self, name: str) -> Any:
        if name not in self.own:
            self._load()
        return self.own[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self.own)

    def __len__(self) -> int:
        self._load()
        return len(self.own)


LOSSES: Mapping[str, LossSpec] = _Registry()
RECIPES: Mapping[str, tuple[RecipeTerm, ...]] = _Registry()


def loss(
    *,
    weight: float = 1.0,
    head: str | None = None,
    bank: int = 0,
    needs_head: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Callable[[F], F]:
    """Register a loss; return the function unchanged.

    Args:
      weight: its published weight.
      head: the head it was published with.
      bank: the number of past examples it was published with.
      needs_head: the only head that it works with.
      arguments: the arguments it was published with, where they are not its defaults.
      **facts: `kinds`, `memory`, `alone` and `law`, see `LossSpec`.
    """

    def register(function: F) -> F:
        name = function.__name__
        LOSSES.own[name] = LossSpec(function, head=needs_head, **facts)  # pyright: ignore
        recipe(name, RecipeTerm(name, weight, needs_head or head or "none", bank, arguments or {}))
        return function

    return register


def recipe(name: str, *terms: RecipeTerm) -> None:
    """Register a sum of losses under a name that `--losses` knows."""
    RECIPES.own[name] = terms  # pyright: ignore


def needs_labels(spec: LossSpec, arguments: Mapping[str, Any]) -> bool:
    """Return whether a loss with these arguments uses labels."""
    return spec.uses_labels or bool(arguments.get("class_aware"))


def init_memory(spec: LossSpec, init: MemoryInit, arguments: Mapping[str, Any]) -> Any:
    """Create a loss's memory before the first step; None if it has none."""
    memory = spec.memory
    if memory is None or (memory.sized and not init.size):
        return None
    own = {name: arguments[name] for name in memory.arguments if name in arguments}
    return memory.create(init, **own)


def step_key(seed: Array | int, position: int, step: Array | int) -> Array:
    """Return the random key of a loss in a step; it follows from the seed, nothing is stored."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), position), step)


def _create_pairs(init: MemoryInit) -> Queue:
    return empty_queue(init.size, init.widths)


def _create_teachers(init: MemoryInit) -> Queue:
    return empty_queue(init.size, init.widths[1])


def _update_pairs(queue: Queue, student: Array, teacher: Array, **options: Any) -> Queue:
    return enqueue(
        queue, (student, teacher), where=options["where"], axis_name=options["axis_name"]
    )


def _update_teachers(queue: Queue, student: Array, teacher: Array, **options: Any) -> Queue:
    del student
    return enqueue(queue, teacher, where=options["where"], axis_name=options["axis_name"])


def _create_either(init: MemoryInit, *, pairs: bool = True) -> Queue:
    return _create_pairs(init) if pairs else _create_teachers(init)


def _update_either(
    queue: Queue, student: Array, teacher: Array, *, pairs: bool = True, **options: Any
) -> Queue:
    return (_update_pairs if pairs else _update_teachers)(queue, student, teacher, **options)


# Queues of past examples: as references, of the teacher alone, and of either.
REFERENCES = Memory(
    "references",
    _create_pairs,
    _update_pairs,
    read=lambda queue: (*queue.points, valid(queue)),
    required=False,
)
TEACHER_QUEUE = Memory("queue", _create_teachers, _update_teachers)
PAIR_OR_TEACHER_QUEUE = Memory("queue", _create_either, _update_either, arguments=("pairs",))
