"""Residual networks (arXiv:1512.03385), for CIFAR and for ImageNet.

Where a block changes the channels or the resolution, its shortcut is a 1x1 convolution with batch
normalisation: the paper's option B, as in RepDistiller's CIFAR networks and torchvision's. The
paper's own CIFAR networks pad with zeros (option A) and have some thousands of parameters fewer.
Bottlenecks stride in their 3x3 convolution, like torchvision's.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax.models.parts import ConvNorm, Network, Output, max_pool


def _shortcut(inputs: int, outputs: int, strides: int, options: dict[str, Any]) -> ConvNorm | None:
    if strides == 1 and inputs == outputs:
        return None
    return ConvNorm(inputs, outputs, 1, strides, activation=None, **options)


def _add(x: Array, residual: Array, shortcut: ConvNorm | None) -> Array:
    return nnx.relu(residual + (x if shortcut is None else shortcut(x)))


class Basic(nnx.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, strides: int, **options: Any):
        self.conv1 = ConvNorm(inputs, width, 3, strides, **options)
        self.conv2 = ConvNorm(width, width, 3, activation=None, **options)
        self.shortcut = _shortcut(inputs, width, strides, options)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Compute the block's output."""
        return _add(x, self.conv2(self.conv1(x)), self.shortcut)


class Bottleneck(nnx.Module):
    """A 1x1 convolution to fewer channels, a 3x3 one, and a 1x1 one to four times as many."""

    expansion = 4

    def __init__(self, inputs: int, width: int, strides: int, **options: Any):
        self.conv1 = ConvNorm(inputs, width, 1, **options)
        self.conv2 = ConvNorm(width, width, 3, strides, **options)
        self.conv3 = ConvNorm(width, 4 * width, 1, activation=None, **options)
        self.shortcut = _shortcut(inputs, 4 * width, strides, options)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Compute the block's output."""
        return _add(x, self.conv3(self.conv2(self.conv1(x))), self.shortcut)


class ResNet(Network):
    """A stem, stages of residual blocks, each but the first of stride 2, mean over positions.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      block: `Basic` or `Bottleneck`.
      depths: number of blocks of each stage.
      widths: channels of the stages' 3x3 convolutions. A stage's output has block.expansion times
        as many.
      stem: channels of the stem.
      imagenet: True: the stem is a 7x7 convolution of stride 2 and max pooling; False: it is a 3x3
        convolution.
      features: width of a last linear layer; None: the features are the pooled channels.
      dtype: dtype up to the pooling; later layers compute in float32.
      axis_name: mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        block: type[Basic] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        stem: int,
        imagenet: bool,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        channels, self.imagenet = self._start_images(shape, dtype), imagenet
        options = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        size, strides = (7, 2) if imagenet else (3, 1)
        self.stem = ConvNorm(channels, stem, size, strides, **options)
        self.stages, inputs = nnx.List(), stem
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1, **options))
                inputs = block.expansion * width
            self.stages.append(nnx.Sequential(*blocks))
        self._end(inputs, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the stages' outputs of a batch of images."""
        x = self.stem(self._enter(x))
        x = max_pool(x) if self.imagenet else x
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        return self._output(x, maps)
