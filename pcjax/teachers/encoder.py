"""A model of others, and how it reads examples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pcjax.data import Dataset, Examples
from pcjax.training.embedding import FrozenModel, embed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Encoder:
    """A model of others; each kind says in a class of its own how it reads examples.

    name: of the model, for messages and the model card.
    width: the number of its features.
    model: the model; None where it is a function that JAX cannot see into.
    licence: of the weights, where it is known.
    """

    name: str
    width: int
    model: FrozenModel | None
    licence: str | None = None

    @property
    def digest(self) -> str:
        """Hash the weights."""
        if self.model is None:
            raise NotImplementedError
        return self.model.digest

    def check(self, dataset: Dataset) -> None:
        """Refuse examples that the model cannot read, before anything is computed."""
        raise NotImplementedError

    def view(self, dataset: Dataset) -> Dataset:
        """Return a data set as the model reads it."""
        raise NotImplementedError

    def settings(self) -> Mapping[str, Any]:
        """Return everything but the weights and the examples that the features depend on."""
        raise NotImplementedError

    def features(
        self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
    ) -> np.ndarray:
        """Compute the features of examples of a data set that `view` returned."""
        if self.model is None:
            raise NotImplementedError
        return embed(self.model, examples, normalise, batch).features
