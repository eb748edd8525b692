"""Linear recurrences down the columns of a matrix, as GPU kernels.

A block of `ROWS` rows becomes one step of the recurrence for whole blocks. Three passes follow: sum
up every block, run along the blocks, and run along the rows of every block from its start. Every
pass has a thread for each column of each block, so that loads keep a GPU's memory busy.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

ROWS, LANES = 64, 128
UNROLLED = 8  # rows whose loads are under way together

# Each step maps y to a y + b. `along` gives (a, b) of two steps one after the other.
Along = Callable[[tuple[Array, Array], tuple[Array, Array]], tuple[Array, Array]]


def recur(
    decay: Float[Array, "n r"],
    value: Float[Array, "n r"],
    reverse: bool,
    interpret: bool = False,
) -> Float[Array, "n r"]:
    """Compute y_k = decay_k y_{k-1} + value_k, upwards along axis 0 or downwards if `reverse`."""
    return _recurrence("recur", decay, value, reverse, interpret)


def relax(
    rate: Float[Array, "n r"],
    target: Float[Array, "n r"],
    reverse: bool,
    interpret: bool = False,
) -> Float[Array, "n r"]:
    """Compute y_k = y_{k-1} + rate_k (target_k - y_{k-1}) from 0, in the same directions."""
    return _recurrence("relax", rate, target, reverse, interpret)


def _step(kind: str, rate: Array, value: Array, y: Array) -> Array:
    return rate * y + value if kind == "recur" else y + rate * (value - y)


def _along(kind: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
    """Combine steps, or blocks of steps, of which `two` comes after `one`."""
    if kind == "recur":
        return one[0] * two[0], two[0] * one[1] + two[1]
    # The rates replace 1 - rate, so that small rates keep their digits.
    return one[0] + (two[0] - one[0] * two[0]), one[1] + (two[1] - two[0] * one[1])


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _recurrence(kind: str, rate: Array, value: Array, reverse: bool, interpret: bool) -> Array:
    n, r = rate.shape
    blocks, lanes = pl.cdiv(n, ROWS), pl.cdiv(r, LANES)
    # Zeros never matter: they come after the last row in either direction, or after no column.
    padding = ((0, blocks * ROWS - n), (0, lanes * LANES - r))
    if reverse:
        padding = (padding[0][::-1], padding[1])
    rate, value = jnp.pad(rate, padding), jnp.pad(value, padding)
    call = functools.partial(
        pl.pallas_call,
        grid=(blocks, lanes),
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=LANES // 32),
    )
    tile = pl.BlockSpec((ROWS, LANES), lambda i, j: (i, j))
    line = pl.BlockSpec((1, LANES), lambda i, j: (i, j))
    sums = jax.ShapeDtypeStruct((blocks, lanes * LANES), rate.dtype)
    totals = call(
        functools.partial(_sum_block, kind, reverse),
        in_specs=[tile, tile],
        out_specs=[line, line],
        out_shape=[sums, sums],
    )(rate, value)
    totals = lax.associative_scan(functools.partial(_along, kind), totals, reverse=reverse)
    first = jnp.zeros_like(totals[1][:1])
    ends = [totals[1][1:], first] if reverse else [first, totals[1][:-1]]
    starts = jnp.concatenate(ends)
    result = call(
        functools.partial(_run_block, kind, reverse),
        in_specs=[tile, tile, line],
        out_specs=tile,
        out_shape=jax.ShapeDtypeStruct(rate.shape, rate.dtype),
    )(rate, value, starts)
    return result[-n:, :r] if reverse else result[:n, :r]


def _rows(reverse: bool, body: Callable[[Array, tuple[Array, ...]], tuple[Array, ...]], start):
    """Run along the rows of a block, some at a time."""

    def some(turn: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        for offset in range(UNROLLED):
            k = turn * UNROLLED + offset
            carry = body(ROWS - 1 - k if reverse else k, carry)
        return carry

    return lax.fori_loop(0, ROWS // UNROLLED, some, start)


def _sum_block(kind: str, reverse: bool, rate_ref, value_ref, rate_out, value_out) -> None:
    def add(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        line = rate_ref[pl.ds(k, 1), :], value_ref[pl.ds(k, 1), :]
        return _along(kind, (carry[0], carry[1]), _as_step(kind, *line))

    zero = jnp.zeros((1, LANES), rate_ref.dtype)
    start = (zero + 1, zero) if kind == "recur" else (zero, zero)
    rate_out[...], value_out[...] = _rows(reverse, add, start)


def _as_step(kind: str, rate: Array, value: Array) -> tuple[Array, Array]:
    return (rate, value) if kind == "recur" else (rate, rate * value)


def _run_block(kind: str, reverse: bool, rate_ref, value_ref, start_ref, out_ref) -> None:
    def run(k: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        line = pl.ds(k, 1), slice(None)
        y = _step(kind, rate_ref[line], value_ref[line], carry[0])
        out_ref[line] = y
        return (y,)

    _rows(reverse, run, (start_ref[...],))
