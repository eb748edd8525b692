"""Models: lightweight students, their teachers, and heads, in Flax NNX.

    module = build("resnet8x4", shape=(32, 32, 3), classes=100, rngs=nnx.Rngs(0))
    features, logits, maps = module(images)         # (n, 256) and (n, 100) in float32, the stages' outputs by name

Images are (n, height, width, channels). `module.train()` and `module.eval()` decide whether batch normalisation uses
the batch's statistics and moves the running ones, or uses the running ones; a new module trains. Parameters are
`nnx.Param`, running statistics `nnx.BatchStat`; both are float32 whatever dtype the model computes in. The running
statistics move by a tenth a step, and their variance is the biased one.

`nnx.split(build(...))` works inside `jax.jit`, and `nnx.eval_shape(lambda: build(...))` draws no weights.

    name                                 parameters                          options
    mlp                                  by its options                      widths, features
    cnn                                  by its options                      widths, features
    with 100 classes
    resnet8, 14, 20, 32                  83,892  181,108  278,324  472,756
    resnet44, 56, 110                    667,188  861,620  1,736,564
    resnet8x4, resnet32x4                1,233,540  7,433,860
    wrn16_1, wrn16_2, wrn40_1, wrn40_2   180,916  703,284  569,780  2,255,156
    mobilenetv2                          812,836 of width 0.5                width
    shufflenetv2                         1,355,528                           width
    resnet18_cifar, 34, 50               11,220,132  21,328,292  23,705,252
    with 1000 classes
    resnet18, 34, 50                     11,689,512  21,797,672  25,557,032
    mobilenetv2_imagenet                 3,504,872                           width
    shufflenetv2_imagenet                2,278,604                           width

`load("RUN/student.safetensors")` gives back what `pcjax export RUN` wrote, in evaluation mode, with its normalisation.

The CIFAR networks are RepDistiller's and keep their resolution in the stem (MobileNetV2 halves it); ImageNet's are
torchvision's. No stem is chosen by the image's size: its name says which it is.
"""

from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike

from pcjax import _checks
from pcjax.models import heads
from pcjax.models.cnn import CNN
from pcjax.models.foreign import from_function, from_linen
from pcjax.models.mlp import MLP
from pcjax.models.mobilenetv2 import MobileNetV2
from pcjax.models.parts import Output, initialised, parameter_count
from pcjax.models.resnet import Basic, Bottleneck, ResNet
from pcjax.models.shufflenetv2 import ShuffleNetV2
from pcjax.models.wrn import WideResNet

__all__ = [
    "MODELS",
    "OPTIONS",
    "Output",
    "build",
    "from_function",
    "from_linen",
    "heads",
    "parameter_count",
    "require_known",
]

_narrow = partial(ResNet, block=Basic, widths=(16, 32, 64), stem=16, imagenet=False)
_fourfold = partial(ResNet, block=Basic, widths=(64, 128, 256), stem=32, imagenet=False)
_wide = partial(ResNet, widths=(64, 128, 256, 512), stem=64)

# (shape, classes, *, rngs, dtype, axis_name, **options) -> module
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    # 6 n + 2 layers: a stem, n blocks of two in each of three stages, a classifier
    **{f"resnet{6 * n + 2}": partial(_narrow, depths=(n, n, n)) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": partial(_fourfold, depths=(n, n, n)) for n in (1, 5)},
    **{
        f"wrn{depth}_{width}": partial(WideResNet, depth=depth, width=width)
        for depth in (16, 40)
        for width in (1, 2)
    },
    "mobilenetv2": partial(MobileNetV2, imagenet=False, width=0.5),
    "mobilenetv2_imagenet": partial(MobileNetV2, imagenet=True),
    "shufflenetv2": partial(ShuffleNetV2, imagenet=False),
    "shufflenetv2_imagenet": partial(ShuffleNetV2, imagenet=True),
    "resnet18": partial(_wide, block=Basic, depths=(2, 2, 2, 2), imagenet=True),
    "resnet34": partial(_wide, block=Basic, depths=(3, 4, 6, 3), imagenet=True),
    "resnet50": partial(_wide, block=Bottleneck, depths=(3, 4, 6, 3), imagenet=True),
    "resnet18_cifar": partial(_wide, block=Basic, depths=(2, 2, 2, 2), imagenet=False),
    "resnet34_cifar": partial(_wide, block=Basic, depths=(3, 4, 6, 3), imagenet=False),
    "resnet50_cifar": partial(_wide, block=Bottleneck, depths=(3, 4, 6, 3), imagenet=False),
}
# What may be chosen of a model beside its shape, classes and dtype; of the others, nothing.
OPTIONS: dict[str, tuple[str, ...]] = {
    "mlp": ("widths", "features"),
    "cnn": ("widths", "features"),
    "mobilenetv2": ("width",),
    "mobilenetv2_imagenet": ("width",),
    "shufflenetv2": ("width",),
    "shufflenetv2_imagenet": ("width",),
}


def require_known(name: Any) -> None:
    """Refuses what is no model: neither one of `MODELS` nor of an installed package."""
    ours = isinstance(name, str) and name in MODELS
    _checks.require_name("model", name, MODELS if ours else [*MODELS, *_installed()])


def _installed() -> dict[str, metadata.EntryPoint]:
    """Models of other packages, which name them as entry points of the group "pcjax.models"."""
    return {entry.name: entry for entry in metadata.entry_points(group="pcjax.models")}


def build(
    name: str,
    *,
    shape: tuple[int, ...],
    classes: int | None,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    **options: Any,
) -> nnx.Module:
    """The model of that name, with new weights, called as module(x) -> Output.

    Args:
      name: one of `MODELS`, or of an installed package's entry points of the group "pcjax.models": functions
        (shape, classes, *, rngs, dtype, axis_name) -> module.
      shape: of one example, (height, width, channels), or (d,) for "mlp". Convolutional networks take images of any
        other height and width too.
      classes: how many the classifier tells apart; None leaves it out, and the logits are None.
      rngs: for the initial weights.
      dtype: what the model computes in, such as jnp.bfloat16; what it keeps and returns, maps apart, is float32.
      axis_name: a mapped axis of `jax.pmap` or `jax.shard_map` over which batch normalisation shares its statistics
        while training. Evaluation needs no such axis.
      **options: the architecture's own, see `OPTIONS`.

    Returns:
      An `nnx.Module`, in training mode.

    >>> module = nnx.eval_shape(lambda: build("resnet20", shape=(32, 32, 3), classes=100, rngs=nnx.Rngs(0)))
    >>> parameter_count(module)
    278324
    """
    require_known(name)
    known = OPTIONS.get(name, ())
    for option in options:
        expected = (
            "one of " + ", ".join(map(repr, known))
            if known
            else "none, all of this model is in its name"
        )
        _checks.require(
            option in known, f"unknown option {option!r} of the model {name!r}: expected {expected}"
        )
    floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    _checks.require(
        floating,
        f"got dtype {dtype}: expected a floating-point one, such as jnp.float32 or jnp.bfloat16",
    )
    given = {"dtype": dtype, "axis_name": axis_name, **options}
    if name not in MODELS:
        return _installed()[name].load()(tuple(shape), classes, rngs=rngs, **given)
    abstract = nnx.eval_shape(
        lambda: MODELS[name](tuple(shape), classes, rngs=nnx.Rngs(0), **given)
    )
    return initialised(abstract, rngs.params())
