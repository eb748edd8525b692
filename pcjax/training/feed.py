"""Steps of a training on the batches of a pipeline, or on draws from examples on the devices."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pcjax.data import TrainingBatches
from pcjax.training.parallel import ParallelStep

AT_ONCE = 64


def steps_at_once(weights: Any) -> int:
    """Return how many steps a device may take without Python in between.

    A CPU takes one where there may be convolutions: in a loop XLA computes them ten times as
    slowly.

    Args:
      weights: of the student, the heads and the teacher.
    """
    may_convolve = any(np.ndim(x) > 2 for x in jax.tree.leaves(weights))
    return 1 if may_convolve and jax.default_backend() == "cpu" else AT_ONCE


class Feed:
    """Take steps; the devices work on some while the next are prepared.

    Args:
      batches: the batches.
      parallel: the step.
      drawn: whether the step takes draws in place of batches.
    """

    def __init__(self, batches: TrainingBatches, parallel: ParallelStep, *, drawn: bool):
        self._batches, self._parallel, self._drawn = batches, parallel, drawn
        self._before: Any = ()  # outcomes of the steps taken last

    def take(
        self, frozen: Any, state: Any, count: int
    ) -> tuple[Any, np.ndarray, Mapping[str, Any]]:
        """Take `count` steps, or as many as can be taken at once.

        Returns:
          The state after them, the positions of their examples (steps, b), and their metrics.
        """
        split, index = self.inputs(count)
        if self._parallel.most > 1:
            state, outcomes = self._parallel.several(frozen, state, split, len(index))
        else:
            state, outcomes = self._parallel(frozen, state, split)
        # At most two are under way: one computes, and the inputs of the other are copied.
        jax.block_until_ready(self._before)
        self._before = outcomes
        return state, index, outcomes

    def inputs(self, count: int) -> tuple[dict[str, Any], np.ndarray]:
        """Return the next steps' batches or draws, by device, and their positions (steps, b)."""
        parallel = self._parallel
        if parallel.most == 1:
            batch = self._batches.draw() if self._drawn else next(self._batches)
            return parallel.split(batch), batch["index"][None]
        draws = [self._batches.draw() for _ in range(min(count, parallel.most))]
        filled = draws + draws[-1:] * (parallel.most - len(draws))  # these are ignored
        stacked = {name: np.stack([draw[name] for draw in filled]) for name in draws[0]}
        return parallel.split_stacked(stacked), stacked["index"][: len(draws)]
