"""Wide residual networks for CIFAR (arXiv:1605.07146), which normalise before they convolve."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax.models.parts import Network, Output, batch_norm, conv


class PreactivationBlock(nnx.Module):
    """Normalisation, ReLU and a 3x3 convolution, twice.

    A shortcut that changes the number of channels is a 1x1 convolution of the activated input; any
    other is the input itself.
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
        """Compute the block's output."""
        active = nnx.relu(self.norm1(x))
        residual = self.conv2(nnx.relu(self.norm2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Network):
    """A 3x3 stem of 16 channels, three stages of 16, 32 and 64 times `width` channels, mean.

    The maps are the stages' outputs. The features come after one more normalisation and ReLU.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      depth: 6 k + 4 convolutions, with k blocks a stage.
      width: factor by which it is wider than a residual network.
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
        depth: int,
        width: int,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        channels = self._start_images(shape, dtype)
        self.stem = conv(channels, 16, 3, dtype=dtype, rngs=rngs)
        self.stages, inputs = nnx.List(), 16
        for i, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            blocks = []
            for j in range((depth - 4) // 6):
                strides = 2 if i > 0 and j == 0 else 1
                blocks.append(PreactivationBlock(inputs, outputs, strides, **options))
                inputs = outputs
            self.stages.append(nnx.Sequential(*blocks))
        self.norm = batch_norm(inputs, **options)
        self._end(inputs, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the stages' outputs of a batch of images."""
        x = self.stem(self._enter(x))
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        return self._output(nnx.relu(self.norm(x)), maps)
