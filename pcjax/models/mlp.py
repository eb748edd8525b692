"""A multilayer perceptron, for flat features and for images small enough to be taken as such."""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks
from pcjax.models.parts import Output, batch_norm, classifier, enter, require_classes


class MLP(nnx.Module):
    """Hidden layers of linear, batch normalisation and ReLU; then a linear layer to the features.

    Args:
      shape: of one example; all its numbers are taken as one vector.
      classes: of the classifier on the features; None for none.
      widths: of the hidden layers; their outputs are the maps, (n, width).
      features: the representation's dimension.
      dtype: the hidden layers compute in it; what comes after them computes in float32.
      axis_name: a mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        widths: Sequence[int] = (256, 256),
        features: int = 64,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        _checks.require(
            len(shape) > 0,
            "got shape (): expected that of one example, such as (64,) or (28, 28, 1)",
        )
        for size in shape:
            _checks.require_whole("size", size, 1, context=f" in shape {shape}")
        for width in widths:
            _checks.require_whole("width", width, 1, context=f" in widths {tuple(widths)}")
        _checks.require_whole("features", features, 1)
        require_classes(classes)
        self.shape, self.dtype = tuple(shape), dtype
        sizes = (math.prod(shape), *widths)
        self.layers, self.norms = nnx.List(), nnx.List()
        for inputs, outputs in itertools.pairwise(sizes):
            self.layers.append(nnx.Linear(inputs, outputs, use_bias=False, dtype=dtype, rngs=rngs))
            self.norms.append(batch_norm(outputs, dtype=dtype, axis_name=axis_name, rngs=rngs))
        self.embed = nnx.Linear(sizes[-1], features, rngs=rngs)
        self.classify = classifier(features, classes, rngs)

    def __call__(self, x: Float[Array, "n ..."]) -> Output:
        """Features, logits and the hidden layers' outputs of a batch."""
        x = enter(x, self.shape, self.dtype).reshape(x.shape[0], math.prod(self.shape))
        maps = {}
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True), 1):
            x = maps[f"stage{i}"] = nnx.relu(norm(layer(x)))
        features = self.embed(_checks.at_least_float32(x))
        return Output(features, None if self.classify is None else self.classify(features), maps)
