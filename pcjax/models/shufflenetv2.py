"""ShuffleNetV2 (arXiv:1807.11164): RepDistiller's for CIFAR and torchvision's for ImageNet, with another stem."""

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
    max_pool,
    pool,
    require_classes,
    require_images,
)

# Channels of the three stages and of the last convolution, the paper's table 5; 244 and not 224 as it prints, which
# would not double from stage to stage.
WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
DEPTHS = (4, 8, 4)


def _shuffle(left: Array, right: Array) -> Array:
    """One channel of either branch after the other."""
    return jnp.stack((left, right), axis=-1).reshape(*left.shape[:-1], 2 * left.shape[-1])


class Branch(nnx.Module):
    """A 1x1 convolution, a 3x3 one in each channel, and a 1x1 one; activation after the first and the last."""

    def __init__(self, inputs: int, width: int, strides: int, **given: Any):
        self.conv1 = ConvNorm(inputs, width, 1, **given)
        self.depthwise = ConvNorm(width, width, 3, strides, groups=width, activation=None, **given)
        self.conv2 = ConvNorm(width, width, 1, **given)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        return self.conv2(self.depthwise(self.conv1(x)))


class Unit(nnx.Module):
    """One half of the channels goes through a branch, the other stays; then they are shuffled."""

    def __init__(self, channels: int, **given: Any):
        self.branch = Branch(channels // 2, channels // 2, 1, **given)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The unit's output."""
        left, right = jnp.split(x, 2, axis=-1)
        return _shuffle(left, self.branch(right))


class DownUnit(nnx.Module):
    """All channels go through both branches, each of which halves the image; then they are shuffled."""

    def __init__(self, inputs: int, outputs: int, **given: Any):
        self.depthwise = ConvNorm(inputs, inputs, 3, 2, groups=inputs, activation=None, **given)
        self.conv = ConvNorm(inputs, outputs // 2, 1, **given)
        self.branch = Branch(inputs, outputs // 2, 2, **given)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """The block's output."""
        return _shuffle(self.conv(self.depthwise(x)), self.branch(x))


class ShuffleNetV2(nnx.Module):
    """A stem of 24 channels, three stages that each halve the image first, a 1x1 convolution, mean over positions.

    Args:
      shape: (height, width, channels) of one image.
      classes: of the classifier on the features; None for none.
      imagenet: whether the stem is a 3x3 convolution of stride 2 and max pooling, not a 1x1 convolution.
      width: 0.5, 1, 1.5 or 2, the paper's.
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
        self.channels, self.imagenet, self.dtype = (
            require_images("ShuffleNetV2", shape),
            imagenet,
            dtype,
        )
        require_classes(classes)
        _checks.require(
            width in WIDTHS, f"got width {width!r}: expected one of {', '.join(map(str, WIDTHS))}"
        )
        given: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        *widths, last = WIDTHS[width]
        inputs, size, strides = 24, *((3, 2) if imagenet else (1, 1))
        self.stem = ConvNorm(self.channels, inputs, size, strides, **given)
        self.stages = nnx.List()
        for outputs, depth in zip(widths, DEPTHS, strict=True):
            units = [Unit(outputs, **given) for _ in range(depth - 1)]
            self.stages.append(nnx.Sequential(DownUnit(inputs, outputs, **given), *units))
            inputs = outputs
        self.last = ConvNorm(inputs, last, 1, **given)
        self.classify = classifier(last, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Features, logits and the stages' outputs of a batch of images."""
        x = self.stem(enter(x, (None, None, self.channels), self.dtype))
        x = max_pool(x) if self.imagenet else x
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        features = pool(self.last(x))
        return Output(features, None if self.classify is None else self.classify(features), maps)
