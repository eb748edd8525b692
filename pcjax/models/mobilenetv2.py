"""MobileNetV2 (arXiv:1801.04381) in the two forms in which it is compared.

                                    RepDistiller's, for CIFAR         torchvision's, for ImageNet
    strides, stem and seven stages  2 1 1 2 2 1 2 1: 16 in all        2 1 2 2 2 1 2 1: 32 in all
    channels, after width           rounded down                      nearest multiple of 8
    blocks of the first stage       a 1x1 convolution of c to c       none before the depthwise one
    activation                      ReLU                              ReLU6

torchvision's has dropout before its classifier, which is left out here.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import ConvNorm, Network, Output

# Each stage's expansion of channels within its blocks, output channels, blocks and stride.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# RepDistiller's maps: the last stage of each resolution.
MAPS = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}


class InvertedResidual(nnx.Module):
    """A 1x1 convolution to more channels, a depthwise 3x3 one, and a linear 1x1 one to fewer."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int,
        *,
        expansion: int,
        expand: bool,
        activation: Any,
        **options: Any,
    ):
        inner = inputs * expansion
        active = {"activation": activation, **options}
        self.expand = ConvNorm(inputs, inner, 1, **active) if expand else None
        self.depthwise = ConvNorm(inner, inner, 3, strides, groups=inner, **active)
        self.project = ConvNorm(inner, outputs, 1, activation=None, **options)
        self.residual = strides == 1 and inputs == outputs

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        """Compute the block's output."""
        y = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        return x + y if self.residual else y


def _channels(count: int, width: float, imagenet: bool) -> int:
    if not imagenet:
        return int(count * width)
    nearest = max(8, int(count * width + 4) // 8 * 8)
    # The reference's rule: rounding removes at most a tenth.
    return nearest if nearest >= 0.9 * count * width else nearest + 8


class MobileNetV2(Network):
    """A stem, seven stages of inverted residuals, a 1x1 convolution to 1280 channels, mean.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      imagenet: True: torchvision's form; False: RepDistiller's.
      width: factor of all channels; those of the last convolution are never fewer than 1280. None:
        0.5 in RepDistiller's form, 1 in torchvision's.
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
        width: float | None = None,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        channels = self._start_images(shape, dtype)
        width = (1.0 if imagenet else 0.5) if width is None else width
        _checks.require_positive("width", width)
        if int(16 * width) < 1:
            raise RequestError(
                f"got width {width}: expected at least 1/16, one channel in every stage"
            )
        options: dict[str, Any] = {"dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        options["activation"] = nnx.relu6 if imagenet else nnx.relu
        inputs = _channels(32, width, imagenet)
        self.stem = ConvNorm(channels, inputs, 3, 2, **options)
        self.stages = nnx.List()
        for i, (expansion, count, depth, stage_strides) in enumerate(STAGES):
            outputs, blocks = _channels(count, width, imagenet), []
            block = {"expansion": expansion, "expand": expansion != 1 or not imagenet, **options}
            for j in range(depth):
                strides = stage_strides if j == 0 and (i != 1 or imagenet) else 1
                blocks.append(InvertedResidual(inputs, outputs, strides, **block))
                inputs = outputs
            self.stages.append(nnx.Sequential(*blocks))
        last = _channels(1280, max(1.0, width), imagenet)
        self.last = ConvNorm(inputs, last, 1, **options)
        self._end(last, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the stages' outputs of a batch of images."""
        x, maps = self.stem(self._enter(x)), {}
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in MAPS:
                maps[MAPS[i]] = x
        return self._output(self.last(x), maps)
