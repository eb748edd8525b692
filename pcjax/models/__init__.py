"""Models: lightweight students, their teachers, and heads, in Flax NNX.

    module = build("resnet8x4", shape=(32, 32, 3), classes=100, rngs=nnx.Rngs(0))
    features, logits, maps = module(images)    # (n, 256) and (n, 100) in float32, and stage outputs

Images are (n, height, width, channels). `module.train()` and `module.eval()` choose between the
batch's statistics and the running ones in batch normalisation; a new module trains. Parameters are
`nnx.Param`, running statistics `nnx.BatchStat`; both are float32 whatever dtype the model computes
in. The running statistics move by a tenth a step; their variance is the biased one.

`nnx.split(build(...))` works inside `jax.jit`; `nnx.eval_shape(lambda: build(...))` draws no
weights. `pcjax list models` prints every name with its options and its number of parameters.

The CIFAR networks are RepDistiller's and keep their resolution in the stem (MobileNetV2 halves it).
The ImageNet networks are torchvision's. The name says which it is, not the image's size. A ViT
(vision transformer) accepts images of the shape that it was built for, and no others.
"""

import inspect
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import DTypeLike

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models import heads
from pcjax.models.bert import Bert
from pcjax.models.cnn import CNN
from pcjax.models.foreign import from_function, from_linen
from pcjax.models.mlp import MLP
from pcjax.models.mobilenetv2 import MobileNetV2
from pcjax.models.parts import Output, initialised, parameter_count
from pcjax.models.protopnet import ProtoPNet
from pcjax.models.resnet import Basic, Bottleneck, ResNet
from pcjax.models.shufflenetv2 import ShuffleNetV2
from pcjax.models.static import Static
from pcjax.models.vit import ViT
from pcjax.models.wrn import WideResNet

__all__ = [
    "MODELS",
    "Output",
    "build",
    "describe",
    "from_function",
    "from_linen",
    "heads",
    "options_of",
    "parameter_count",
]

_narrow = partial(ResNet, block=Basic, widths=(16, 32, 64), stem=16, imagenet=False)
_fourfold = partial(ResNet, block=Basic, widths=(64, 128, 256), stem=32, imagenet=False)
_wide = partial(ResNet, widths=(64, 128, 256, 512), stem=64)

# (shape, classes, *, rngs, dtype, axis_name, **options) -> module
_CONVOLUTIONAL: dict[str, Callable[..., nnx.Module]] = {
    "cnn": CNN,
    # 6 n + 2 layers: a stem, n blocks of two in each of three stages, a classifier
    **{f"resnet{6 * n + 2}": partial(_narrow, depths=(n, n, n)) for n in (1, 2, 3, 5, 7, 9, 18)},
    **{f"resnet{6 * n + 2}x4": partial(_fourfold, depths=(n, n, n)) for n in (1, 5)},
    **{
        f"wrn{depth}_{width}": partial(WideResNet, depth=depth, width=width)
        for depth in (16, 40)
        for width in (1, 2)
    },
    "mobilenetv2": partial(MobileNetV2, imagenet=False),
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
MODELS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    **_CONVOLUTIONAL,
    "protopnet": partial(ProtoPNet, backbones=_CONVOLUTIONAL),
    "static": Static,
    "bert": Bert,
    "vit": ViT,
    "vit_tiny": partial(ViT, width=192, heads=3),
    "vit_small": partial(ViT, width=384, heads=6),
    "vit_base": partial(ViT, width=768, heads=12),
}


def _installed() -> dict[str, metadata.EntryPoint]:
    """Return the models of other packages, entry points of the group "pcjax.models"."""
    return {entry.name: entry for entry in metadata.entry_points(group="pcjax.models")}


def model_class(name: Any) -> Callable[..., nnx.Module]:
    """Return the function or class that builds a model; refuse an unknown name."""
    if isinstance(name, str) and name in MODELS:
        return MODELS[name]
    installed = _installed()
    _checks.require_name("model", name, [*MODELS, *installed])
    return installed[name].load()


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Return a model's own keyword arguments: those that its name does not fix.

    >>> {option: p.default for option, p in options_of("cnn").items()}
    {'widths': (32, 64, 128), 'features': 64}
    """
    build_model = model_class(name)
    fixed = {"self", "shape", "classes", "rngs", "dtype", "axis_name"}
    fixed |= set(getattr(build_model, "keywords", ()))
    function = getattr(build_model, "func", build_model)
    function = function.__init__ if inspect.isclass(function) else function
    return {
        option: parameter
        for option, parameter in inspect.signature(function).parameters.items()
        if option not in fixed and parameter.kind == parameter.KEYWORD_ONLY
    }


# Parameters of images with 3 channels and 100 classes; of the ImageNet models, 1000 classes.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn16_1": 180_916,
    "wrn16_2": 703_284,
    "wrn40_1": 569_780,
    "wrn40_2": 2_255_156,
    "mobilenetv2": 812_836,
    "mobilenetv2_imagenet": 3_504_872,
    "shufflenetv2": 1_355_528,
    "shufflenetv2_imagenet": 2_278_604,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet18_cifar": 11_220_132,
    "resnet34_cifar": 21_328_292,
    "resnet50_cifar": 23_705_252,
    "vit_tiny": 5_717_416,
    "vit_small": 22_050_664,
    "vit_base": 86_567_656,
}


def describe() -> tuple[str, list[str], list[list[str]]]:
    """Return a table of all models: title, columns and rows."""
    rows = []
    for name in [*MODELS, *_installed()]:
        count = f"{PARAMETERS[name]:,}" if name in PARAMETERS else "by its options"
        options = [f"{option} [{p.default}]" for option, p in options_of(name).items()]
        rows.append([name, count, ", ".join(options)])
    title = "models (parameters with 100 classes; ImageNet's with 1000)"
    return title, ["name", "parameters", "options"], rows


class _OneKey(nnx.Rngs):
    """One key for every layer of a model whose weights are drawn afterwards.

    A counter of Flax costs more under a trace than the layers themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.key = jax.random.key(0)

    def params(self) -> Any:
        """Return the key."""
        return self.key


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
    """Build a model with initial weights, called as module(x) -> Output.

    Args:
      name: one of `MODELS`, or an entry point of the group "pcjax.models" of an installed package:
        a function (shape, classes, *, rngs, dtype, axis_name, **options) -> module.
      shape: shape of one example, (height, width, channels), or (d,) for "mlp". Convolutional
        networks also accept images of other heights and widths.
      classes: number of classes; None builds no classifier, and the logits are None.
      rngs: for the initial weights.
      dtype: dtype in which the model computes, such as jnp.bfloat16. Its parameters, features and
        logits are float32; its maps have this dtype.
      axis_name: mapped axis of `jax.pmap` or `jax.shard_map` over which batch normalisation shares
        its statistics while training. Evaluation needs no such axis.
      **options: the architecture's own keyword arguments, see `options_of`.

    Returns:
      An `nnx.Module`, in training mode.

    >>> def resnet20():
    ...     return build("resnet20", shape=(32, 32, 3), classes=100, rngs=nnx.Rngs(0))
    >>> parameter_count(nnx.eval_shape(resnet20))
    278324
    """
    known = options_of(name)
    for option in options:
        if not known:
            raise RequestError(f"The model {name!r} has no options; remove {option!r}.")
        _checks.require_name(f"option of {name}", option, known)
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise RequestError(f"dtype={dtype} is not a floating-point type like jnp.float32.")
    shape, options = tuple(shape), {"dtype": dtype, "axis_name": axis_name, **options}
    try:
        if name not in MODELS:
            return model_class(name)(shape, classes, rngs=rngs, **options)
        abstract = nnx.eval_shape(lambda: MODELS[name](shape, classes, rngs=_OneKey(), **options))
    except RequestError as error:
        raise RequestError(f"model {name!r}: {error}") from error
    return initialised(abstract, rngs.params())
