"""An exported student as a function of what its users have."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from pcjax.export.safetensors import Exported
from pcjax.models.text import SMALLEST_NORM

EMBEDDING, LOGITS = "embedding", "logits"
Function = Callable[[Any], dict[str, Any]]


def of_stored(model: Exported, *, normalise: bool) -> Function:
    """Return a function of stored examples: uint8 images, floats, or token ids padded with -1.

    Args:
      model: the student.
      normalise: whether its features are scaled to length 1.

    Returns:
      A function to {"embedding": ...} and, with a classifier, "logits".
    """

    def outputs(examples: Any) -> dict[str, Any]:
        tokens = model.inputs.dtype == "int32"
        return _outputs(model, examples if tokens else model.prepare(examples), normalise)

    return outputs


def of_scaled(model: Exported, *, normalise: bool) -> Function:
    """Return a function of examples in float32, images on the scale of 0 to 1; see `of_stored`."""
    inputs = model.inputs
    subtract, multiply = (jnp.asarray(x, jnp.float32) for x in (inputs.subtract, inputs.multiply))

    def outputs(examples: Any) -> dict[str, Any]:
        stored = examples * inputs.full_scale
        return _outputs(model, (stored - subtract) * multiply, normalise)

    return outputs


def _outputs(model: Exported, x: Any, normalise: bool) -> dict[str, Any]:
    module: Any = model.module
    output = module(x)
    features = output.features
    if normalise:
        squares = jnp.sum(features**2, axis=1, keepdims=True)
        features = features / jnp.sqrt(jnp.maximum(squares, SMALLEST_NORM**2))
    named = {EMBEDDING: features, LOGITS: output.logits}
    return {name: x for name, x in named.items() if x is not None}
