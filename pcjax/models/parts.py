"""Building blocks of all architectures: output, convolution, normalisation, start and end."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.scipy.special import ndtr
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks
from pcjax._checks import RequestError


class Output(NamedTuple):
    """A model's outputs for a batch of n examples.

    features: (n, d), the representation that is transferred; float32.
    logits: (n, classes) in float32, or None from a model built without a classifier.
    maps: the stages' outputs before any pooling, "stage1" the first, in the computing dtype. Of a
      network of prototypes also "patches", and "prototypes" with a leading axis of 1.
    """

    features: Float[Array, "n d"]
    logits: Float[Array, "n classes"] | None
    maps: dict[str, Array]


class Network(nnx.Module):
    """The start and the end that all architectures share.

    The start checks a batch and casts it to the dtype that the model computes in. The end is a
    linear layer to the features, where one is requested, and the classifier; both compute in
    float32.
    """

    shape: tuple[int | None, ...]  # of one example; None: any size
    dtype: DTypeLike
    pooled: int  # numbers that the pooling returns
    embed: nnx.Linear | None
    classify: nnx.Linear | None
    # In place of the mean over positions; it also returns further maps.
    pool: Callable[[Array], tuple[Array, dict[str, Array]]] | None = None

    def _start_images(self, shape: tuple[int, ...], dtype: DTypeLike) -> int:
        """Accept images of any height and width; return their channels."""
        if len(shape) != 3:
            raise RequestError(
                f"got shape {shape}: expected images, (height, width, channels); give their shape, "
                "or choose 'mlp' for flat features"
            )
        _require_sizes(shape)
        self.shape, self.dtype = (None, None, shape[2]), dtype
        return shape[2]

    def _start_flat(self, shape: tuple[int, ...], dtype: DTypeLike) -> int:
        """Accept examples of this shape only; return how many numbers each has."""
        if not shape:
            raise RequestError(
                "got shape (): expected the shape of one example, such as (64,) or (28, 28, 1)"
            )
        _require_sizes(shape)
        self.shape, self.dtype = shape, dtype
        return math.prod(shape)

    def _end(self, inputs: int, features: int | None, classes: int | None, rngs: nnx.Rngs) -> None:
        """Build the layers after the pooling; None leaves one out."""
        if features is not None:
            _checks.require_whole("features", features, 1)
        if classes is not None:
            _checks.require_whole("classes", classes, 1, context=" (None builds no classifier)")
        self.pooled, size = inputs, inputs if features is None else features
        self.embed = None if features is None else nnx.Linear(inputs, size, rngs=rngs)
        self.classify = None if classes is None else nnx.Linear(size, classes, rngs=rngs)

    def _enter(self, x: Array) -> Array:
        """Check a batch and cast it to the dtype that the model computes in."""
        if len(x.shape) != 1 + len(self.shape) or not all(
            expected in (size, None) for size, expected in zip(x.shape[1:], self.shape, strict=True)
        ):
            expected = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise RequestError(
                f"got a batch of shape {x.shape}: this model was built for examples of shape "
                f"({expected})"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise RequestError(
                f"got a batch of dtype {x.dtype}: expected floating-point numbers; normalise it "
                "first"
            )
        return x.astype(self.dtype)

    def _output(self, x: Array, maps: dict[str, Array]) -> Output:
        """Pool the last maps, in float32 at least, and compute features and logits."""
        if self.pool is not None:
            x, more = self.pool(x)
            maps = maps | more
        x = _checks.at_least_float32(x)
        x = jnp.mean(x, axis=(1, 2)) if x.ndim == 4 else x
        features = x if self.embed is None else self.embed(x)
        return Output(features, None if self.classify is None else self.classify(features), maps)


def _require_sizes(shape: tuple[int, ...]) -> None:
    for size in shape:
        _checks.require_whole("size", size, 1, context=f" in shape {shape}")


def require_widths(widths: Any) -> None:
    """Refuse widths that are not integers of at least 1."""
    for width in widths:
        _checks.require_whole("width", width, 1, context=f" in widths {tuple(widths)}")


def batch_norm(
    channels: int, *, dtype: DTypeLike, axis_name: str | None, rngs: nnx.Rngs
) -> nnx.BatchNorm:
    """Build a batch normalisation that computes in float32 at least and returns `dtype`."""
    layer = nnx.BatchNorm(
        channels,
        momentum=0.9,
        dtype=dtype,
        axis_name=axis_name,
        promote_dtype=_at_least_float32,
        rngs=rngs,
    )
    layer.mean, layer.var = Statistic(layer.mean[...]), Statistic(layer.var[...])
    return layer


class Statistic(nnx.BatchStat):
    """A running mean or variance, replaced whole.

    Flax asks a traced value for its sharding before. That takes half the time of tracing a network.
    """

    def __setitem__(self, index: Any, value: Any) -> None:
        """Replace the value, or a part of it."""
        if index is Ellipsis:
            self.set_value(value)
        else:
            super().__setitem__(index, value)


def _at_least_float32(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    # Flax would round the running mean and variance to bfloat16 before it subtracts and divides.
    wide = jnp.promote_types(dtype, jnp.float32)
    return tuple(None if array is None else array.astype(wide) for array in arrays)


def conv(
    inputs: int,
    outputs: int,
    size: int,
    strides: int = 1,
    groups: int = 1,
    *,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Build a convolution without bias, padded by half its size on both sides."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=(strides, strides),
        # "SAME" pads one side only where the stride is 2; published weights would not fit.
        padding=((size // 2, size // 2),) * 2,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        rngs=rngs,
    )


class ConvNorm(nnx.Module):
    """A convolution, batch normalisation and, unless None, an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        strides: int = 1,
        groups: int = 1,
        *,
        activation: Callable[[Array], Array] | None = nnx.relu,
        dtype: DTypeLike,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(inputs, outputs, size, strides, groups, dtype=dtype, rngs=rngs)
        self.norm = batch_norm(outputs, dtype=dtype, axis_name=axis_name, rngs=rngs)
        self.activation = activation

    def __call__(self, x: Float[Array, "n h w inputs"]) -> Float[Array, "n h2 w2 outputs"]:
        """Convolve, normalise and activate."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Take the maximum over 3x3 windows of stride 2: the end of the ImageNet stems."""
    padding: Any = ((1, 1), (1, 1))
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


def initialised(module: nnx.Module, key: Array) -> nnx.Module:
    """Fill an abstract module (`flax.nnx.eval_shape`) with weights, all from one random draw.

    Kernels are normal, of variance 2 / fan-in in convolutions and 1 / fan-in in linear layers;
    tables of embeddings have BERT's standard deviation of 0.02. Prototypes are uniform in the unit
    cube. Scales and variances are 1, biases and means 0. torchvision and RepDistiller divide by
    fan-out: in depthwise convolutions this is so small that an untrained network maps every image
    to the same features. The classifier's weights are drawn last, so that the others are the same
    in a model without one.
    """
    graph, state = nnx.split(module)
    flat = sorted(nnx.to_flat_state(state), key=lambda item: item[0][0] == "classify")
    names_and_shapes = [(path[-1], variable.shape) for path, variable in flat]
    values = _weights(names_and_shapes, key)
    leaves = [
        (path, variable.replace(value))
        for (path, variable), value in zip(flat, values, strict=True)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


RANDOM, EMBEDDING_SCALE = ("kernel", "embedding", "points"), 0.02  # BERT's
CONSTANTS = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}


def _weights(names_and_shapes: Sequence[tuple[Any, tuple[int, ...]]], key: Array) -> list[Array]:
    # A draw for each kernel would be compiled for each shape, some tenths of a second each; so
    # would the parts of one draw, which NumPy therefore cuts out where it can.
    count = sum(math.prod(shape) for name, shape in names_and_shapes if name in RANDOM)
    draws, start, values = jax.random.normal(key, (count,), jnp.float32), 0, []
    arrays = jnp if isinstance(draws, Tracer) else np
    draws = arrays.asarray(draws)
    for name, shape in names_and_shapes:
        if name in RANDOM:
            *window, inputs, _ = shape
            scale = math.sqrt((2 if window else 1) / (math.prod(window) * inputs))
            scale = EMBEDDING_SCALE if name == "embedding" else scale
            normal = draws[start : start + math.prod(shape)].reshape(shape)
            values.append(ndtr(normal) if name == "points" else np.float32(scale) * normal)
            start += math.prod(shape)
        else:
            values.append(arrays.full(shape, CONSTANTS[name], np.float32))
    return [jnp.asarray(value) for value in values]


def parameter_count(module: nnx.Module) -> int:
    """Count the trainable numbers of a module, which may be abstract (`flax.nnx.eval_shape`).

    >>> parameter_count(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
