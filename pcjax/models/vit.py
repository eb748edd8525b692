"""Vision transformers (arXiv:2010.11929), and DINOv2's form of them (arXiv:2304.07193).

A block normalises before its attention and before its hidden layer, and adds both to its input.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Float32

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.bert import gelu
from pcjax.models.parts import Network, Output

POOLINGS = ("cls", "mean", "cls+mean")


class ViT(Network):
    """Patches as tokens, blocks of attention, and the normalised class token or a mean.

    Args:
      shape: (height, width, channels) of one image; only such images are accepted.
      classes: number of classes; None builds no classifier.
      width: width of every block.
      heads: number of attention heads; it divides the width.
      layers: number of blocks.
      patch: side of a patch; it divides height and width.
      intermediate: width of the hidden part of a block; None: four times the width.
      registers: number of tokens without a position, which are left out of the output.
      layer_scale: whether a learned factor for every channel ends both parts of a block.
      pooling: "cls", the class token; "mean" over the patches; or "cls+mean", one behind the other.
      epsilon: added to the variance in layer normalisation.
      features: width of a last linear layer; None: the features are what was pooled.
      dtype: dtype of the blocks; normalisation and softmax compute in float32.
      axis_name: not used; there is no batch normalisation.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        width: int = 384,
        heads: int = 6,
        layers: int = 12,
        patch: int = 16,
        intermediate: int | None = None,
        registers: int = 0,
        layer_scale: bool = False,
        pooling: str = "cls",
        epsilon: float = 1e-6,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,  # noqa: ARG002
        rngs: nnx.Rngs,
    ):
        channels = self._start_images(shape, dtype)
        intermediate = 4 * width if intermediate is None else intermediate
        sizes = {"width": width, "heads": heads, "layers": layers, "patch": patch}
        for name, size in (sizes | {"intermediate": intermediate}).items():
            _checks.require_whole(name, size, 1)
        _checks.require_whole("registers", registers, 0)
        _checks.require_positive("epsilon", epsilon)
        _checks.require_name("pooling", pooling, POOLINGS)
        if width % heads:
            raise RequestError(f"got width {width} and {heads} heads: expected a multiple")
        if shape[0] % patch or shape[1] % patch:
            raise RequestError(
                f"got images of {shape[0]} x {shape[1]} and patches of {patch} x {patch}: expected "
                "a multiple on both sides"
            )
        self.shape = shape  # the table of positions is for these images
        self.patch, self.pooling = patch, pooling
        self.grid = (shape[0] // patch, shape[1] // patch)
        self.patches = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            dtype=dtype,
            rngs=rngs,
        )
        self.cls = nnx.Embed(1, width, rngs=rngs)
        self.registers = nnx.Embed(registers, width, rngs=rngs) if registers else None
        self.positions = nnx.Embed(1 + math.prod(self.grid), width, rngs=rngs)
        options: dict[str, Any] = {"epsilon": epsilon, "layer_scale": layer_scale, "dtype": dtype}
        self.blocks = nnx.List(
            [Block(width, heads, intermediate, **options, rngs=rngs) for _ in range(layers)]
        )
        self.norm = _norm(width, epsilon, rngs)
        self._end(width * (1 + (pooling == "cls+mean")), features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and the tokens of the last block of a batch of images."""
        x = self.patches(self._enter(x))
        n, *_, width = x.shape
        table = self.positions.embedding[...]
        tokens = [
            jnp.broadcast_to(self.cls.embedding + table[:1], (n, 1, width)),
            x.reshape(n, -1, width) + table[1:].astype(x.dtype),
        ]
        first = 1  # the position of the first patch
        if self.registers is not None:
            registers = self.registers.embedding[...]
            first += len(registers)
            tokens.insert(1, jnp.broadcast_to(registers, (n, *registers.shape)))
        x = jnp.concatenate([part.astype(self.dtype) for part in tokens], axis=1)
        for block in self.blocks:
            x = block(x)
        maps = {"stage1": x[:, first:].reshape(n, *self.grid, width)}
        pooled = []
        if "cls" in self.pooling:
            pooled.append(self.norm(_checks.at_least_float32(x[:, 0])))
        if "mean" in self.pooling:
            pooled.append(self.norm(_checks.at_least_float32(x[:, first:])).mean(axis=1))
        return self._output(jnp.concatenate(pooled, axis=1), maps)


class Block(nnx.Module):
    """Attention and a hidden layer, each of normalised tokens and added to them."""

    def __init__(
        self,
        width: int,
        heads: int,
        intermediate: int,
        *,
        epsilon: float,
        layer_scale: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads, self.dtype = heads, dtype
        self.norm1 = _norm(width, epsilon, rngs)
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.mixed = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.scale1 = LayerScale(width) if layer_scale else None
        self.norm2 = _norm(width, epsilon, rngs)
        self.inner = nnx.Linear(width, intermediate, dtype=dtype, rngs=rngs)
        self.outer = nnx.Linear(intermediate, width, dtype=dtype, rngs=rngs)
        self.scale2 = LayerScale(width) if layer_scale else None

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Compute the tokens of the next block."""
        attended = self.mixed(self._attention(self.qkv(self.norm1(x))))
        x = x + (attended if self.scale1 is None else self.scale1(attended))
        hidden = self.outer(gelu(self.inner(self.norm2(x))))
        return x + (hidden if self.scale2 is None else self.scale2(hidden))

    def _attention(self, x: Float[Array, "n t d3"]) -> Float[Array, "n t d"]:
        n, t, d = x.shape[0], x.shape[1], x.shape[2] // 3
        size = d // self.heads
        # Heads first: two small transposes are faster than strided products.
        query, key, value = x.reshape(n, t, 3, self.heads, size).transpose(2, 0, 3, 1, 4)
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key).astype(jnp.float32)
        shares = jax.nn.softmax(scores / math.sqrt(size), axis=-1)
        mixed = jnp.einsum("nhqk,nhkd->nhqd", shares.astype(self.dtype), value)
        return mixed.swapaxes(1, 2).reshape(n, t, d)


class LayerScale(nnx.Module):
    """A factor for every channel."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Multiply."""
        return x * self.scale.astype(x.dtype)


def _norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def interpolated(
    table: Float32[np.ndarray, "n d"], grid: tuple[int, int], antialias: bool
) -> Float32[np.ndarray, "m d"]:
    """Bring the positions of a square grid to another grid, by cubic interpolation.

    Args:
      table: the positions of the patches, row by row.
      grid: the new grid's rows and columns.
      antialias: whether the cubic is widened where a side shrinks, as Pillow and timm do; PyTorch's
        default, which DINOv2 and Hugging Face use, does not.
    """
    side = math.isqrt(len(table))
    if side * side != len(table):
        raise RequestError(f"got a table of {len(table)} positions: expected those of a square")
    if grid == (side, side):
        return table
    rows, columns = (_cubic_weights(side, after, antialias) for after in grid)
    square = table.astype(np.float64).reshape(side, side, -1)
    changed = np.einsum("ai,bj,ijd->abd", rows, columns, square, optimize=True)
    return changed.reshape(math.prod(grid), -1).astype(np.float32)


def _cubic_weights(before: int, after: int, antialias: bool) -> np.ndarray:
    """Return the share of every old position in every new one."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale - 0.5
    if antialias:
        steepness, width = -0.5, max(scale, 1)
    else:
        steepness, width = -0.75, 1
    near = np.floor(centres)[:, None] + np.arange(-math.ceil(2 * width), math.ceil(2 * width) + 1)
    shares = _cubic((near - centres[:, None]) / width, steepness)
    inside = (near >= 0) & (near < before)
    if antialias:  # what lies outside is left out; without, it repeats the border
        shares *= inside
        shares /= shares.sum(axis=1, keepdims=True)
    weights = np.zeros((after, before))
    columns = np.clip(near, 0, before - 1).astype(np.int64)
    np.add.at(weights, (np.arange(after)[:, None], columns), shares)
    return weights


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Compute Keys' cubic (1981); `a` is its slope at 1."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    outer = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0))
