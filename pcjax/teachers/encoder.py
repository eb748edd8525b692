"""A model of others, and how it reads examples."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from pcjax import models
from pcjax.data import Dataset, Examples
from pcjax.models.functional import Functional, functional_shapes
from pcjax.training.embedding import FrozenModel, embed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Encoder(abc.ABC):
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
    @abc.abstractmethod
    def digest(self) -> str:
        """Hash the weights."""

    @abc.abstractmethod
    def check(self, dataset: Dataset) -> None:
        """Refuse examples that the model cannot read, before anything is computed."""

    @abc.abstractmethod
    def view(self, dataset: Dataset) -> Dataset:
        """Return a data set as the model reads it."""

    @abc.abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """Return everything but the weights and the examples that the features depend on."""

    @abc.abstractmethod
    def features(
        self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
    ) -> np.ndarray:
        """Compute the features of examples of a data set that `view` returned."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ModelEncoder(Encoder):
    """A model of others that JAX computes."""

    model: FrozenModel

    @property
    def digest(self) -> str:
        """Hash the weights."""
        return self.model.digest

    def features(
        self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
    ) -> np.ndarray:
        """Compute the features of examples of a data set that `view` returned."""
        return embed(self.model, examples, normalise, batch).features


def function_of(
    kind: str, shape: tuple[int, ...], options: Mapping[str, Any]
) -> tuple[Functional, dict[str, Any], dict[str, Any]]:
    """Return a model without a classifier as a function; equal models share one.

    Args:
      kind: its architecture, of `pcjax.models.MODELS`.
      shape: of one example.
      options: of the architecture.

    Returns:
      The function, and the shapes of its parameters and of its statistics by path.
    """
    return _function_of(kind, shape, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=16)
def _function_of(
    kind: str, shape: tuple[int, ...], options: tuple[tuple[str, Any], ...]
) -> tuple[Functional, dict[str, Any], dict[str, Any]]:
    def build(_: Any) -> nnx.Module:
        return models.build(kind, shape=shape, classes=None, rngs=nnx.Rngs(0), **dict(options))

    return functional_shapes(build)
