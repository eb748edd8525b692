"""ShuffleNetV2 (arXiv:1807.11164): RepDistiller's for CIFAR and torchvision's for ImageNet.

They differ in the stem.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax._checks import RequestError
from pcjax.models.parts import ConvNorm, Network, Output, max_pool

# Channels of the three stages and of the last convolution, table 5 of the paper. It prints 224 for
# 244, which would not double from stage to stage.
WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
DEPTHS = (4, 8, 4)


def _shuffle(left: Array, right: Array) -> Array:
    """Interleave the channels of two branches."""
    return jnp.stack((left, right), axis=-1).reshape(*left.shape[:-1], 2 * left.shape[-1])


class Branch(nnx.Module):
    """A 1x1 convolution, a depthwise 3x3 one and a 1x1 one; both 1x1 ones are activated."""

    def __init__(self, inputs: int, width: int, strides: int, **options: Any):
        self.conv1 = ConvNorm(inputs, width, 1, **options)
        self.depthwise = ConvNorm(
            width, width, 3, strides, groups=width, activation=None, **options
        )
        self.conv2 = ConvNorm(width, width, 1, **options)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Compute the branch's output."""
        return self.conv2(self.depthwise(self.conv1(x)))


class Unit(nnx.Module):
    """A branch for one half of the channels; the other half is kept, and both are shuffled."""

    def __init__(self, channels: int, **options: Any):
        self.branch = Branch(channels // 2, channels // 2, 1, **options)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Compute the unit's output."""
        left, right = jnp.split(x, 2, axis=-1)
        return _shuffle(left, self.branch(right))


class DownUnit(nnx.Module):
    """Two branches for all channels, both of stride 2; their outputs are shuffled."""

    def __init__(self, inputs: int, outputs: int, **options: Any):
        self.depthwise = ConvNorm(inputs, inputs, 3, 2, groups=inputs, activation=None, **options)
        self.conv = ConvNorm(inputs, outputs // 2, 1, **options)
        self.branch = Branch(inputs, outputs // 2, 2, **options)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Compute the unit's output."""
        return _shuffle(self.conv(self.depthwise(x)), self.branch(x))


class ShuffleNetV2(Network):
    """A stem of 24 channels, three stages that begin with stride 2, a 1x1 convolution, mean.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      imagenet: True: the stem is a 3x3 convolution of stride 2 and max pooling; False: it is a 1x1
        convolution.
      width: 0.5, 1, 1.5 or 2, as in the paper.
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
        imagenet: bool,
        width: float = 1.0,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        channels, self.imagenet = self._start_images(shape, dtype), imagenet
        if width not in WIDTHS:
            raise RequestError(f"got width {width!r}: expected {', '.join(map(str, WIDTHS))}")
        options: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        *widths, last = WIDTHS[width]
        inputs, size, strides = 24, *((3, 2) if imagenet else (1, 1))
        self.stem = ConvNorm(channels, inputs, size, strides, **options)
        self.stages = nnx.List()
        for outputs, depth in zip(widths, DEPTHS, strict=True):
            units = [Unit(outputs, **options) for _ in range(depth - 1)]
            self.stages.append(nnx.Sequential(DownUnit(inputs, outputs, **options), *units))
            inputs = outputs
        self.last = ConvNorm(inputs, last, 1, **options)
        self._end(last, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the stages' outputs of a batch of images."""
        x = self.stem(self._enter(x))
        x = max_pool(x) if self.imagenet else x
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        return self._output(self.last(x), maps)
