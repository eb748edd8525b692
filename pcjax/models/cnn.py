"""A small convolutional network, for a laptop and for the first run of an idea."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks
from pcjax.models.parts import (
    ConvNorm,
    Output,
    classifier,
    enter,
    pool,
    require_classes,
    require_images,
)


class CNN(nnx.Module):
    """One 3x3 convolution a stage, halving the image from the second on; mean; a linear layer to the features.

    Args:
      shape: (height, width, channels) of one image.
      classes: of the classifier on the features; None for none.
      widths: of the stages.
      features: the representation's dimension.
      dtype: the convolutions compute in it; what comes after them computes in float32.
      axis_name: a mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        widths: Sequence[int] = (32, 64, 128),
        features: int = 64,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.channels, self.dtype = require_images("cnn", shape), dtype
        _checks.require(
            len(widths) > 0, "got widths (): expected one for each stage, such as (32, 64, 128)"
        )
        for width in widths:
            _checks.require_whole("width", width, 1, context=f" in widths {tuple(widths)}")
        _checks.require_whole("features", features, 1)
        require_classes(classes)
        self.stages, inputs = nnx.List(), self.channels
        for i, width in enumerate(widths):
            strides = 1 if i == 0 else 2
            self.stages.append(
                ConvNorm(inputs, width, 3, strides, dtype=dtype, axis_name=axis_name, rngs=rngs)
            )
            inputs = width
        self.embed = nnx.Linear(inputs, features, rngs=rngs)
        self.classify = classifier(features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Features, logits and the stages' outputs of a batch of images."""
        x = enter(x, (None, None, self.channels), self.dtype)
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        features = self.embed(pool(x))
        return Output(features, None if self.classify is None else self.classify(features), maps)
