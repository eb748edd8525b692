"""A model with its initial weights, as a config asks for it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pcjax import models
from pcjax._checks import RequestError
from pcjax.config import Model, Training
from pcjax.data import Dataset
from pcjax.models.functional import functional, functional_shapes
from pcjax.training.embedding import FrozenModel
from pcjax.training.step import AXIS

STUDENT_STREAM, TEACHER_STREAM = 0, 1  # streams of random numbers for the initial weights


def build_model(
    model: Model,
    dataset: Dataset,
    training: Training,
    stream: int,
    *,
    classifier: bool = True,
    shapes_only: bool = False,
) -> FrozenModel:
    """Build a model for the examples of a data set.

    Args:
      model: the architecture and its options.
      dataset: gives the examples' shape and the number of classes.
      training: gives the seed, on which alone the weights depend, and the precision.
      stream: STUDENT_STREAM or TEACHER_STREAM.
      classifier: whether the model also predicts the classes, where there are any.
      shapes_only: return the arrays' shapes in place of weights; nothing is computed.
    """
    classes = dataset.class_count if classifier else None
    options = tuple(sorted(options_for(model, dataset).items()))
    build = _builder(model.name, dataset.train.shape, classes, training.compute, options)
    if shapes_only:
        return FrozenModel(*functional_shapes(build))
    return FrozenModel(*functional(build, 2 * training.seed + stream))


def options_for(model: Model, dataset: Dataset) -> dict[str, Any]:
    """Return a model's options, with those that the tokenizer of a data set of texts decides."""
    options: dict[str, Any] = dict(model.options)
    if dataset.vocabulary is None:
        return options
    known = models.options_of(model.name)
    if "vocabulary" not in known:
        raise RequestError(f"The model {model.name} does not read texts; use static or bert.")
    decided = {"vocabulary": dataset.vocabulary.size, "unknown": dataset.vocabulary.unknown}
    return options | {name: value for name, value in decided.items() if name in known}


@functools.lru_cache(maxsize=64)
def _builder(
    name: str, shape: tuple[int, ...], classes: int | None, dtype: str, options: tuple[Any, ...]
) -> Callable[[Any], nnx.Module]:
    def build(seed: Any) -> nnx.Module:
        return models.build(
            name,
            shape=shape,
            classes=classes,
            rngs=nnx.Rngs(jax.random.key(seed)),
            dtype=jnp.dtype(dtype),
            axis_name=AXIS,
            **dict(options),
        )

    return build
