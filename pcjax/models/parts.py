"""What the architectures share: what a model returns, convolution and normalisation, the way in and the way out."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks


class Output(NamedTuple):
    """What a model says of a batch of n examples.

    features: (n, d), the representation that is transferred; float32.
    logits: (n, classes) in float32, or None from a model built without a classifier.
    maps: the stages' outputs by name, "stage1" the first, before any pooling; in the dtype they were computed in.
    """

    features: Float[Array, "n d"]
    logits: Float[Array, "n classes"] | None
    maps: dict[str, Array]


def require_images(architecture: str, shape: tuple[int, ...]) -> int:
    """Refuses anything but (height, width, channels) and returns the channels."""
    message = f"got shape {shape}: {architecture} takes images, (height, width, channels); "
    _checks.require(len(shape) == 3, message + "give theirs, or choose 'mlp' for flat features")
    for size in shape:
        _checks.require_whole("size", size, 1, context=f" in shape {shape}")
    return shape[2]


def require_classes(classes: int | None) -> None:
    """Refuses what is neither a number of classes nor None."""
    if classes is not None:
        _checks.require_whole("classes", classes, 1, context=" (None builds no classifier)")


def enter(x: Array, shape: tuple[int | None, ...], dtype: DTypeLike) -> Array:
    """The batch in the dtype the model computes in, if it is one the model was built for (None: of any size)."""
    expected = ", ".join("any" if size is None else str(size) for size in shape)
    fits = len(x.shape) == 1 + len(shape) and all(
        b in (a, None) for a, b in zip(x.shape[1:], shape, strict=True)
    )
    _checks.require(
        fits,
        f"got a batch of shape {x.shape}: this model was built for examples of shape ({expected})",
    )
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    _checks.require(
        floating,
        f"got a batch of dtype {x.dtype}: expected floating-point numbers; normalise it first",
    )
    return x.astype(dtype)


def pool(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """The mean over all positions, in float32 at least."""
    return jnp.mean(_checks.at_least_float32(x), axis=(1, 2))


def classifier(features: int, classes: int | None, rngs: nnx.Rngs) -> nnx.Linear | None:
    """The linear layer from features to class scores, if there are classes."""
    return None if classes is None else nnx.Linear(features, classes, rngs=rngs)


def batch_norm(
    channels: int, *, dtype: DTypeLike, axis_name: str | None, rngs: nnx.Rngs
) -> nnx.BatchNorm:
    """Batch normalisation that computes in float32 at least and returns `dtype`; running statistics move by 0.1."""
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        dtype=dtype,
        axis_name=axis_name,
        promote_dtype=_at_least_float32,
        rngs=rngs,
    )


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
    """A convolution without bias, padded by half its size on both sides."""
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        strides=(strides, strides),
        # "SAME" would pad on one side only where the stride is 2, and published weights would not fit.
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
        """The activated, normalised convolution."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


def max_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """The maximum over 3x3 windows, every other one, as ImageNet's stems end."""
    padding: Any = ((1, 1), (1, 1))
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


def initialised(module: nnx.Module, key: Array) -> nnx.Module:
    """An abstract module (`flax.nnx.eval_shape`) with its weights, of which there is one draw for all.

    Kernels are normal, of variance 2 / fan-in in convolutions and 1 / fan-in in linear layers; scales and variances
    are 1, biases and means 0. It is what comes in that counts, not what goes out as for torchvision and RepDistiller:
    where each channel is convolved by itself theirs is so small that an untrained network, whose running statistics
    are those of a unit normal, has the same features for every image.
    """
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    names_and_shapes = tuple((path[-1], variable.shape) for path, variable in flat)
    values = _weights(names_and_shapes, key)
    leaves = [
        (path, variable.replace(value))
        for (path, variable), value in zip(flat, values, strict=True)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


# A draw for each kernel would be compiled for each of their shapes, a few tenths of a second each.
@functools.partial(jax.jit, static_argnums=0)
def _weights(names_and_shapes: tuple[tuple[Any, tuple[int, ...]], ...], key: Array) -> list[Array]:
    count = sum(math.prod(shape) for name, shape in names_and_shapes if name == "kernel")
    draws, start, values = jax.random.normal(key, (count,), jnp.float32), 0, []
    for name, shape in names_and_shapes:
        if name == "kernel":
            *window, inputs, _ = shape
            scale = math.sqrt((2 if window else 1) / (math.prod(window) * inputs))
            values.append(scale * draws[start : start + math.prod(shape)].reshape(shape))
            start += math.prod(shape)
        else:
            values.append(
                jnp.full(
                    shape, {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}[name], jnp.float32
                )
            )
    return values


def parameter_count(module: nnx.Module) -> int:
    """The number of trainable numbers in a module, abstract ones (`flax.nnx.eval_shape`) included.

    >>> parameter_count(nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))
