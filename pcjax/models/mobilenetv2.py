"""MobileNetV2 (arXiv:1801.04381) in the two forms in which it is compared.

                                    "cifar", RepDistiller's                "imagenet", torchvision's
    strides, stem and seven stages  2 1 1 2 2 1 2 1: 16 in all             2 1 2 2 2 1 2 1: 32 in all
    channels, after width           rounded down                           to the nearest multiple of 8
    the first stage's blocks        expand from c channels to c, 1x1       do not expand
    activation                      ReLU                                   ReLU6

Torchvision's has dropout before its classifier; this one leaves that to the training.
"""

from typing import Any

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

# Of each stage: how many times its blocks expand their channels, its own channels, its blocks, its stride.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# What is worth looking at: the last stage of each resolution that RepDistiller's maps come from.
MAPS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nnx.Module):
    """A 1x1 convolution to more channels, a 3x3 one in each, and a linear 1x1 one to fewer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        *,
        expansion: int,
        expand: bool,
        activation: Any,
        **given: Any,
    ):
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner, 1, activation=activation, **given) if expand else None
        self.depthwise = ConvNorm(
            inner, inner, 3, strides, groups=inner, activation=activation, **given
        )
        self.project = ConvNorm(inner, outputs, 1, activation=None, **given)
        self.residual = strides == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        y = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return x + y if self.residual else y


def _channels(count: int, width: float, imagenet: bool) -> int:
    if not imagenet:
        return int(count * width)
    nearest = max(8, int(count * width + 4) // 8 * 8)
    # The reference's rule: no rounding takes away more than a tenth.
    return nearest if nearest >= 0.9 * count * width else nearest + 8


class MobileNetV2(nnx.Module):
    """A stem, seven stages of inverted residuals, a 1x1 convolution to 1280 channels and the mean over positions.

    Args:
      shape: (height, width, channels) of one image.
      classes: of the classifier on the features; None for none.
      imagenet: whether torchvision's form is meant, not RepDistiller's.
      width: multiplies the channels of all but the last convolution, and of that too if it is above 1.
      dtype: everything up to the pooling computes in it, the classifier in float32.
      axis_name: a mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        imagenet: bool,
        width: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.channels, self.dtype = require_images("MobileNetV2", shape), dtype
        require_classes(classes)
        _checks.require_positive("width", width)
        _checks.require(
            int(16 * width) >= 1,
            f"got width {width}: expected at least 1/16, a channel in every stage",
        )
        activation = nnx.relu6 if imagenet else nnx.relu
        given = {"activation": activation, "dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        inputs = _channels(32, width, imagenet)
        self.stem = ConvNorm(self.channels, inputs, 3, 2, **given)
        self.stages = nnx.List()
        for i, (expansion, count, depth, strides) in enumerate(STAGES):
            strides = 1 if i == 1 and not imagenet else strides
            expand = expansion != 1 or not imagenet
            outputs, blocks = _channels(count, width, imagenet), []
            for j in range(depth):
                block = InvertedResidual(
                    inputs,
                    outputs,
                    strides if j == 0 else 1,
                    expansion=expansion,
                    expand=expand,
                    **given,
                )
                blocks.append(block)
                inputs = outputs
            self.stages.append(nnx.Sequential(*blocks))
        last = _channels(1280, max(1.0, width), imagenet)
        self.last = ConvNorm(inputs, last, 1, **given)
        self.classify = classifier(last, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Features, logits and the stages' outputs of a batch of images."""
        x = self.stem(enter(x, (None, None, self.channels), self.dtype))
        maps = {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in MAPS:
                maps[MAPS[i]] = x
        features = pool(self.last(x))
        return Output(features, None if self.classify is None else self.classify(features), maps)
