"""Learnable heads: they bring a model's features into the dimension that a loss needs."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcjax import _checks
from pcjax._checks import RequestError


class Linear(nnx.Module):
    """A linear map with a bias, x W + b, in float32.

    Args:
      inputs: dimension of the incoming features.
      outputs: dimension of the outgoing features.
      rngs: for the initial weights.

    >>> head = Linear(3, 5, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 3))).shape
    (2, 5)
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.map = _linear(inputs, outputs, rngs)

    def __call__(self, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """Bring the features into their new dimension."""
        return self.map(_enter(features, self.map))


class MLP(nnx.Module):
    """Two linear maps with a ReLU between them, relu(x W + b) V + c, in float32: a projection head.

    It has no batch normalisation, so that a head's only state is its weights.

    Args:
      inputs: dimension of the incoming features.
      outputs: dimension of the outgoing features.
      hidden: dimension between the two; None: that of the incoming features.
      rngs: for the initial weights.

    >>> head = MLP(3, 5, hidden=16, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 3))).shape
    (2, 5)
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int | None = None, rngs: nnx.Rngs):
        hidden = inputs if hidden is None else hidden
        self.first, self.second = _linear(inputs, hidden, rngs), _linear(hidden, outputs, rngs)

    def __call__(self, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """Bring the features into their new dimension."""
        return self.second(nnx.relu(self.first(_enter(features, self.first))))


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    _checks.require_whole("dimension", inputs, 1, context=" of the incoming features")
    _checks.require_whole("dimension", outputs, 1, context=" of the outgoing features")
    return nnx.Linear(inputs, outputs, rngs=rngs)


def _enter(features: Array, layer: nnx.Linear) -> Array:
    _checks.require_features("features", features)
    if features.shape[1] != layer.in_features:
        raise RequestError(
            f"got features of shape {jnp.shape(features)}: this head was built for "
            f"(n, {layer.in_features})"
        )
    return _checks.at_least_float32(features)
