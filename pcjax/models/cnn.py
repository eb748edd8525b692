"""A small convolutional network, for a laptop and for the first test of an idea."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax._checks import RequestError
from pcjax.models.parts import ConvNorm, Network, Output, require_widths


class CNN(Network):
    """A 3x3 convolution a stage, each but the first of stride 2; then the mean over positions.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      widths: channels of the stages.
      features: width of the last linear layer; None: the features are the pooled channels.
      dtype: dtype of the convolutions; later layers compute in float32.
      axis_name: mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        widths: Sequence[int] = (32, 64, 128),
        features: int | None = 64,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        inputs = self._start_images(shape, dtype)
        if not len(widths):
            raise RequestError("got widths (): expected one for each stage, such as (32, 64, 128)")
        require_widths(widths)
        self.stages = nnx.List()
        for i, width in enumerate(widths):
            strides = 1 if i == 0 else 2
            self.stages.append(
                ConvNorm(inputs, width, 3, strides, dtype=dtype, axis_name=axis_name, rngs=rngs)
            )
            inputs = width
        self._end(inputs, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the stages' outputs of a batch of images."""
        x = self._enter(x)
        maps = {}
        for i, stage in enumerate(self.stages, 1):
            x = maps[f"stage{i}"] = stage(x)
        return self._output(x, maps)
