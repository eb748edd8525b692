"""The losses of a config: frozen dataclasses, checked when they are built."""

import dataclasses
from typing import Literal

from pcjax import _checks, _fields
from pcjax._checks import RequestError
from pcjax.losses.registry import LOSSES, RECIPES, needs_labels

MAX_INT32 = 2**31 - 1  # steps are counted in int32
MAX_BANK = 2**24
HEADS_BY_KIND = {
    "features": ("none", "linear", "mlp", "orthogonal"),
    "maps": ("none", "linear", "mlp", "conv"),
}


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that changes during training."""

    start: float
    end: float
    until: float = 1.0
    """share of the training's steps after which `end` is reached"""
    shape: Literal["linear", "cosine", "geometric"] = "linear"

    def __post_init__(self):
        _fields.check_fields(self)
        if not 0 < self.until <= 1:
            raise RequestError(f"until={self.until} is not a share of the steps, in (0, 1].")
        if self.shape == "geometric" and not (self.start > 0 and self.end > 0):
            raise RequestError(
                f"A geometric ramp from {self.start} to {self.end} needs positive numbers."
            )


@dataclasses.dataclass(frozen=True)
class Loss:
    """One term of the weighted sum that the student minimises."""

    name: str = "perception_coherence"
    """see `pcjax list losses`"""
    weight: float | Ramp = 1.0
    """its factor in the sum"""
    head: Literal["none", "linear", "mlp", "orthogonal", "conv", "variational"] = "none"
    """a learnt map of the student's features or maps into the teacher's dimension"""
    bank: int = 0
    """number of past examples that the loss compares with besides the batch"""
    maps: tuple[str, str] | None = None
    """maps to compare, (student's, teacher's), as ("stage2", "stage3"); None: the last ones, the
    patches where the loss compares prototypes, or the features where the loss takes either"""
    arguments: dict[str, bool | int | float | str | Ramp] = dataclasses.field(default_factory=dict)
    """the loss's own keyword arguments"""

    def __post_init__(self):
        _fields.check_fields(self)
        _checks.require_name("loss", self.name, LOSSES)
        _checks.require_whole("bank", self.bank, 0, MAX_BANK)
        weight = self.weight
        ends = (weight.start, weight.end) if isinstance(weight, Ramp) else (weight,)
        for number in ends:
            if number < 0:
                raise RequestError(f"weight={number} of the loss {self.name} is negative.")
        self._check_memory()
        self._check_maps_and_head()
        self._check_arguments()

    @property
    def kind(self) -> str:
        """Return which output is compared: features, maps, logits or labels."""
        return LOSSES[self.name].kind(self.maps is not None)

    @property
    def needs_labels(self) -> bool:
        """Return whether the loss uses the labels of the examples."""
        return needs_labels(LOSSES[self.name], self.arguments)

    def _check_memory(self) -> None:
        memory = LOSSES[self.name].memory
        sized = memory is not None and memory.sized
        if self.bank and not sized:
            raise RequestError(f"The loss {self.name} has no bank; remove bank={self.bank}.")
        if memory is not None and sized and memory.required and not self.bank:
            raise RequestError(
                f"The loss {self.name} compares with past examples: give a bank of 1024 or more."
            )

    def _check_maps_and_head(self) -> None:
        spec = LOSSES[self.name]
        if self.maps is not None:
            if "maps" not in spec.kinds:
                raise RequestError(
                    f"The loss {self.name} compares {spec.kinds[0]}; remove maps={self.maps}."
                )
            if len(self.maps) != 2:
                raise RequestError(f"maps={self.maps} must name the student's and the teacher's.")
        heads = HEADS_BY_KIND.get(self.kind, ("none",)) if spec.head is None else (spec.head,)
        if self.head not in heads:
            expected = " or ".join(map(repr, heads))
            raise RequestError(
                f"The loss {self.name} cannot use head={self.head!r}: it compares {self.kind} and "
                f"takes {expected}."
            )

    def _check_arguments(self) -> None:
        spec = LOSSES[self.name]
        for name, value in self.arguments.items():
            _checks.require_name(f"argument of {self.name}", name, spec.arguments)
            if name in spec.flags and not isinstance(value, bool):
                raise RequestError(f"{name}={value!r} of the loss {self.name} must be a boolean.")
            if isinstance(value, int) and abs(value) > MAX_INT32:
                raise RequestError(f"{name}={value} of the loss {self.name} exceeds {MAX_INT32}.")
        for name in spec.required:
            if name not in self.arguments:
                raise RequestError(f"The loss {self.name} needs the argument {name}.")


def recipe(name: str) -> tuple[Loss, ...]:
    """Return the losses of a recipe, with the published weights, heads and arguments.

    Args:
      name: a loss of `pcjax list losses`, or a sum of several such as "rkd".
    """
    _checks.require_name("loss", name, RECIPES)
    return tuple(
        Loss(term.loss, term.weight, term.head, term.bank, None, dict(term.arguments))  # pyright: ignore
        for term in RECIPES[name]
    )
