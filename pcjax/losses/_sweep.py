"""Computes a weighted sum over blocks of rows and its gradient, in one block's memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# (rows, shared, fixed rows, fixed shared) -> one value per row; gradients flow to the first two.
RowValues = Callable[..., Array]
Inputs = tuple[Any, Any]  # rows, and what all rows share


def swept_values(
    values: RowValues, moving: Inputs, fixed: Inputs, chunk_size: int | None
) -> Float[Array, "n"]:
    """Compute every row's value, block by block; the gradient computes each block again."""
    (rows, shared), (fixed_rows, fixed_shared) = moving, fixed
    if chunk_size is None:
        return values(rows, shared, fixed_rows, fixed_shared)
    n = jax.tree.leaves(rows)[0].shape[0]

    @jax.checkpoint
    def block_values(block: tuple[Any, Any]) -> Array:
        return values(block[0], shared, block[1], fixed_shared)

    return lax.map(block_values, _blocks((rows, fixed_rows), chunk_size)).reshape(-1)[:n]


def swept_sum(
    values: RowValues, moving: Inputs, fixed: Inputs, weights: Float[Array, "n"], chunk_size: int
) -> Float[Array, ""]:
    """Sum weight x value over rows; the weights get no gradient.

    The weights are known beforehand, so that the same sweep takes each block's gradient right after
    its values.
    """
    rows, fixed_rows = _blocks((moving[0], fixed[0]), chunk_size)
    weights = jnp.pad(weights, (0, -weights.shape[0] % chunk_size)).reshape(-1, chunk_size)
    values = jax.jit(values)  # traced once for the sum and its gradient
    return _swept_sum(values, rows, moving[1], fixed_rows, fixed[1], lax.stop_gradient(weights))


def _blocks(rows: Any, chunk_size: int) -> Any:
    """Split (n, ...) into (blocks, chunk_size, ...); copies of the last row pad the last block."""

    def split(x: Array) -> Array:
        padding = ((0, -x.shape[0] % chunk_size),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x, padding, mode="edge").reshape(-1, chunk_size, *x.shape[1:])

    return jax.tree.map(split, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _swept_sum(
    values: RowValues, rows: Any, shared: Any, fixed_rows: Any, fixed_shared: Any, weights: Array
) -> Array:
    def add_block(total: Array, block: tuple[Any, Any, Array]) -> tuple[Array, None]:
        return total + jnp.vdot(block[2], values(block[0], shared, block[1], fixed_shared)), None

    return lax.scan(add_block, jnp.zeros_like(weights[0, 0]), (rows, fixed_rows, weights))[0]


def _forward(
    values: RowValues, rows: Any, shared: Any, fixed_rows: Any, fixed_shared: Any, weights: Array
) -> tuple[Array, tuple[Any, Any]]:
    def add_block(
        carry: tuple[Array, Any], block: tuple[Any, Any, Array]
    ) -> tuple[tuple[Array, Any], Any]:
        total, shared_gradient = carry

        def block_sum(rows: Any, shared: Any) -> Array:
            return jnp.vdot(block[2], values(rows, shared, block[1], fixed_shared))

        block_total, pull_back = jax.vjp(block_sum, block[0], shared)
        row_gradient, more = pull_back(jnp.ones_like(block_total))
        return (total + block_total, jax.tree.map(jnp.add, shared_gradient, more)), row_gradient

    nothing = jax.tree.map(jnp.zeros_like, shared)
    start = (jnp.zeros_like(weights[0, 0]), nothing)
    (total, shared_gradient), row_gradients = lax.scan(
        add_block, start, (rows, fixed_rows, weights)
    )
    return total, (row_gradients, shared_gradient)


def _backward(values: RowValues, gradients: tuple[Any, Any], g: Array) -> tuple[Any, ...]:
    rows, shared = jax.tree.map(lambda gradient: g * gradient, gradients)
    return rows, shared, None, None, None


_swept_sum.defvjp(_forward, _backward)
