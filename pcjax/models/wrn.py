"""Wide residual networks (arXiv:1605.07146), CIFAR's, with normalisation and activation before the convolutions."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax.models.parts import (
    Output,
    batch_norm,
    classifier,
    conv,
    enter,
    pool,
    require_classes,
    require_images,
)


class PreactivationBlock(nnx.Module):
    """Normalisation, ReLU and a 3x3 convolution, twice.

    A shortcut that changes the number of channels is a 1x1 convolution of the activated input, any other is the
    input itself.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        strides: int,
        *,
        dtype: DTypeLike,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = batch_norm(inputs, dtype=dtype, axis_name=axis_name, rngs=rngs)
        self.conv1 = conv(inputs, width, 3, strides, dtype=dtype, rngs=rngs)
        self.norm2 = batch_norm(width, dtype=dtype, axis_name=axis_name, rngs=rngs)
        self.conv2 = conv(width, width, 3, dtype=dtype, rngs=rngs)
        self.shortcut = (
            None if inputs == width else conv(inputs, width, 1, strides, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        active = nnx.relu(self.norm1(x))
        residual = self.conv2(nnx.relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nnx.Module):
    """A 3x3 stem of 16 channels and three stages of 16, 32 and 64 times `width` channels; mean over positions.

    The maps are the stages' outputs, the features come after one more normalisation and ReLU.

    Args:
      shape: (height, width, channels) of one image.
      classes: of the classifier on the features; None for none.
      depth: 6 k + 4 convolutions, k blocks a stage.
      width: how many times as wide as a residual network.
      dtype: everything up to the pooling computes in it, the classifier in float32.
      axis_name: a mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        depth: int,
        width: int,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.channels, self.dtype = require_images("a wide ResNet", shape), dtype
        require_classes(classes)
        given: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        self.stem = conv(self.channels, 16, 3, dtype=dtype, rngs=rngs)
        self.stages, inputs = nnx.List(), 16
        for i, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            blocks = []
            for j in range((depth - 4) // 6):
                blocks.append(
                    PreactivationBlock(inputs, outputs, 2 if i > 0 and j == 0 else 1, **given)
                )
                inputs = outputs
            self.stages.append(nnx.Sequential(*blocks))
        self.norm = batch_norm(inputs, **given)
        self.classify = classifier(inputs, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Features, logits and the stages' outputs of a batch of images."""
        x = self.stem(enter(x, (None, None, self.channels), self.dtype))
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        features = pool(nnx.relu(self.norm(x)))
        return Output(features, None if self.classify is None else self.classify(features), maps)
