"""Residual networks of "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), for CIFAR and for ImageNet.

Where a block changes the number of channels or the resolution its shortcut is a 1x1 convolution with batch
normalisation: the paper's option B. So do RepDistiller's CIFAR networks and torchvision's, while the paper's own CIFAR
networks pad with zeros (option A) and are some thousands of parameters smaller. Bottlenecks stride in their 3x3
convolution, as torchvision's do.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax.models.parts import (
    ConvNorm,
    Output,
    classifier,
    enter,
    max_pool,
    pool,
    require_classes,
    require_images,
)


def _shortcut(inputs: int, outputs: int, strides: int, given: dict[str, Any]) -> ConvNorm | None:
    if strides == 1 and inputs == outputs:
        return None
    return ConvNorm(inputs, outputs, 1, strides, activation=None, **given)


class Basic(nnx.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, strides: int, **given: Any):
        self.conv1 = ConvNorm(inputs, width, 3, strides, **given)
        self.conv2 = ConvNorm(width, width, 3, activation=None, **given)
        self.shortcut = _shortcut(inputs, width, strides, given)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        residual = self.conv2(self.conv1(x))
        return nnx.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """A 1x1 convolution to fewer channels, a 3x3 one, and a 1x1 one to four times as many."""

    expansion = 4

    def __init__(self, inputs: int, width: int, strides: int, **given: Any):
        self.conv1 = ConvNorm(inputs, width, 1, **given)
        self.conv2 = ConvNorm(width, width, 3, strides, **given)
        self.conv3 = ConvNorm(width, 4 * width, 1, activation=None, **given)
        self.shortcut = _shortcut(inputs, 4 * width, strides, given)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        residual = self.conv3(self.conv2(self.conv1(x)))
        return nnx.relu(residual + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, each but the first halving the image, and the mean over positions.

    Args:
      shape: (height, width, channels) of one image.
      classes: of the classifier on the features; None for none.
      block: `Basic` or `Bottleneck`.
      depths: how many blocks each stage has.
      widths: of the stages' 3x3 convolutions; the features have block.expansion times the last.
      stem: the channels the stem makes.
      imagenet: whether the stem is a 7x7 convolution of stride 2 and max pooling, not a 3x3 convolution.
      dtype: everything up to the pooling computes in it, the classifier in float32.
      axis_name: a mapped axis over which the batch statistics are shared.
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
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.channels, self.imagenet, self.dtype = (
            require_images("a ResNet", shape),
            imagenet,
            dtype,
        )
        require_classes(classes)
        given = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        size, strides = (7, 2) if imagenet else (3, 1)
        self.stem = ConvNorm(self.channels, stem, size, strides, **given)
        self.stages, inputs = nnx.List(), stem
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1, **given))
                inputs = block.expansion * width
            self.stages.append(nnx.Sequential(*blocks))
        self.classify = classifier(inputs, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Features, logits and the stages' outputs of a batch of images."""
        x = self.stem(enter(x, (None, None, self.channels), self.dtype))
        x = max_pool(x) if self.imagenet else x
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        features = pool(x)
        return Output(features, None if self.classify is None else self.classify(features), maps)
