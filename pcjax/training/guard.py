"""Which steps were not taken, and why, learnt without waiting for any step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

MOST = 1000  # steps before their outcomes are looked at


class BadStepsError(Exception):
    """So many steps were not taken that what was learnt is worth nothing, or what is left would be."""


class Skipped(NamedTuple):
    """A step that was not taken."""

    step: int
    examples: list[int]  # positions in the training examples of what its batch held
    why: str


class Guard:
    """Keeps what each step says of itself on the device until metrics are written.

    Args:
      most: so many steps in a row that were not taken are too many, however often the command was given for them.
    """

    def __init__(self, most: int):
        self._most = most
        self._pending: list[tuple[int, dict[str, Any], np.ndarray]] = []
        self.given_up = False

    def note(self, step: int, said: Mapping[str, Any], index: np.ndarray) -> bool:
        """Keeps what a step said of itself; true when it is time to look."""
        self._pending.append(
            (
                step,
                {name: said[name] for name in ("taken", "finite", "alike", "large", "row")},
                index,
            )
        )
        return len(self._pending) >= MOST

    def look(self) -> list[Skipped]:
        """The steps since the last look that were not taken."""
        said = jax.device_get([said for _, said, _ in self._pending])
        skipped = []
        for (step, _, index), outcome in zip(self._pending, said, strict=True):
            self.given_up = self.given_up or outcome["row"] >= self._most
            if not outcome["taken"]:
                skipped.append(Skipped(step, _of_all_processes(index), _why(outcome)))
        self._pending.clear()
        return skipped


def _why(outcome: Mapping[str, Any]) -> str:
    if not outcome["finite"]:
        return "was not finite"
    if outcome["alike"]:
        return "had examples that are all alike"
    if outcome["large"]:
        return "had examples far larger than the others (training.spike)"
    return "had a gradient far beyond those before (training.spike)"


def _of_all_processes(index: np.ndarray) -> list[int]:
    if jax.process_count() > 1:  # every process has seen the same steps fail
        index = multihost_utils.process_allgather(index)
    return np.ravel(index).tolist()
