"""A multilayer perceptron, for flat features and for small images."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax.models.parts import Network, Output, batch_norm, require_widths


class MLP(Network):
    """Hidden layers of linear, batch normalisation and ReLU; then a linear layer to the features.

    Args:
      shape: shape of one example, which is flattened.
      classes: number of classes; None builds no classifier.
      widths: widths of the hidden layers; their outputs are the maps, (n, width).
      features: width of the last linear layer; None: the features are the last hidden layer's.
      dtype: dtype of the hidden layers; later layers compute in float32.
      axis_name: mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        widths: Sequence[int] = (256, 256),
        features: int | None = 64,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        require_widths(widths)
        sizes = (self._start_flat(shape, dtype), *widths)
        self.layers, self.norms = nnx.List(), nnx.List()
        for inputs, outputs in itertools.pairwise(sizes):
            self.layers.append(nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs))
            self.norms.append(batch_norm(outputs, dtype=dtype, axis_name=axis_name, rngs=rngs))
        self._end(sizes[-1], features, classes, rngs)

    def __call__(self, x: Float[Array, "n ..."]) -> Output:
        """Compute features, logits and the hidden layers' outputs of a batch."""
        x = self._enter(x)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        maps = {}
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), 1):
            x = maps[f"stage{i}"] = nnx.relu(norm(layer(x)))
        return self._output(x, maps)
