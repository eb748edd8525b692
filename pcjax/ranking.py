"""Hard ranks, and soft ranks with closed-form gradients.

A rank counts smaller entries: r_i = 1/2 + sum_j step(x_i - x_j), with step(0) = 1/2. A *soft* rank
replaces the step by a smooth function, so that ranks have gradients. The temperature is the width
of that function. As it goes to 0, the soft rank becomes the hard rank.
"""

from __future__ import annotations  # short signatures in help()

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num

from pcjax import _checks, _sorting
from pcjax._checks import RequestError
from pcjax._sorting import Primitives


def hard_rank(
    x: ArrayLike, *, axis: int = -1, where: ArrayLike | None = None
) -> Float[Array, "..."]:
    """Rank the entries along an axis from 1 to n; ties share the average of their ranks.

        r_i = 1 + #{j : x_j < x_i} + 1/2 #{j != i : x_j = x_i},

    as `scipy.stats.rankdata(x, "average", axis)` does. In a row with a NaN all ranks are NaN.
    Integers are compared as integers, however large. The gradient is zero.

    Args:
      x: numbers, of any shape.
      axis: the axis to rank along.
      where: True for the entries that count, broadcastable to x; the others get rank 0.

    Returns:
      The ranks, of x's shape.

    >>> import pcjax
    >>> print(pcjax.ranking.hard_rank([[5.0, 1.0, 2.0], [7.0, 7.0, 3.0]]))
    [[3.  1.  2. ]
     [2.5 2.5 1. ]]
    """
    columns, valid, restore = _as_columns(x, axis, where)
    if not jnp.issubdtype(columns.dtype, jnp.integer):
        columns = lax.stop_gradient(_checks.at_least_float32(columns))
    ranks = _sorting.average_ranks(columns, valid, using=_sorting.primitives(columns.shape[0]))
    return restore(ranks if valid is None else jnp.where(valid, ranks, 0))


def soft_rank(
    x: ArrayLike,
    *,
    temperature: ArrayLike,
    method: str = "laplace",
    axis: int = -1,
    where: ArrayLike | None = None,
) -> Float[Array, "..."]:
    """Rank the entries along an axis, with gradients.

        r_i = 1/2 + sum_j F((x_i - x_j) / temperature), j = i included.

    At every temperature the ranks sum to n (n + 1) / 2. As it goes to 0, they become `hard_rank`.
    The methods are:

    - "laplace": F is the Laplace distribution's, e^u / 2 below 0 and 1 - e^-u / 2 above. One sort
      and linear scans compute ranks and gradients exactly, in O(n) memory per row.
    - "logistic": F(u) = 1 / (1 + e^-u), summed pair by pair in O(n^2) time per row.
    - "permutahedron": the Euclidean projection of x / temperature onto the permutahedron (Blondel
      et al., 2020, arXiv:2002.08871). Where gaps exceed the temperature, these ranks are exactly
      hard and have no gradient. At slightly higher temperatures the whole row pools into one
      block. Then each rank is only an affine function of x.

    Gradients flow to x and to the temperature: first derivatives, in reverse mode. Ranks of
    bfloat16 or float16 numbers are computed and returned in float32.

    Args:
      x: numbers, of any shape.
      temperature: positive, in x's units; traced values are not checked. One number, or one per
        row: x's shape without `axis`, or with 1 there.
      method: "laplace", "logistic" or "permutahedron".
      axis: the axis to rank along.
      where: True for the entries that count, broadcastable to x; the others get rank 0 and no
        gradient.

    Returns:
      The ranks, of x's shape.

    >>> import pcjax
    >>> print(pcjax.ranking.soft_rank([5.0, 1.0, 2.0], temperature=1.0).round(4))
    [2.9659 1.1931 1.841 ]
    >>> print(pcjax.ranking.soft_rank([5.0, 1.0, 2.0], temperature=2.0, method="permutahedron"))
    [3.   1.25 1.75]
    """
    _checks.require_name("ranking method", method, METHODS)
    _checks.require_positive("temperature", temperature)
    shape = np.shape(x)
    columns, valid, restore = _as_columns(x, axis, where)
    columns = _checks.at_least_float32(columns)
    width = jnp.asarray(temperature, columns.dtype)
    rows = shape[: axis % len(shape)] + shape[axis % len(shape) + 1 :]
    if width.ndim == len(shape) and width.shape[axis] == 1:
        width = jnp.squeeze(width, axis)
    if not _broadcasts(width.shape, rows):
        raise RequestError(
            f"got temperature of shape {np.shape(temperature)} for x of shape {shape}: expected "
            f"one number, or one per row, {rows}"
        )
    # Adding zeros gives all arguments the same device axes: under shard_map the custom gradient
    # needs that.
    width = jnp.broadcast_to(width, rows).reshape(-1) + jnp.zeros_like(columns[0])
    columns = columns + jnp.zeros_like(width)
    if valid is not None:
        columns = columns + jnp.zeros_like(valid, columns.dtype)
        width = width + jnp.zeros_like(columns[0])
    ranks = soft_rank_columns(columns, width, valid, method, _sorting.primitives(columns.shape[0]))
    return restore(ranks if valid is None else jnp.where(valid, ranks, 0))


def _as_columns(
    x: ArrayLike, axis: int, where: ArrayLike | None
) -> tuple[Num[Array, "n r"], Bool[Array, "n r"] | None, Callable[[Array], Array]]:
    """Move the ranked axis to the front and merge the others behind it; `restore` undoes this."""
    shape = np.shape(x)
    _checks.require_real("x", x)
    if not len(shape):
        raise RequestError(f"got x of shape {shape}: expected at least one axis to rank along")
    _checks.require_whole("axis", axis, -len(shape), len(shape) - 1, f" for x of shape {shape}")
    if shape[axis] <= 0:
        raise RequestError(f"got x of shape {shape}: expected at least one entry along axis {axis}")
    front = jnp.moveaxis(jnp.asarray(x), axis, 0)
    valid = None
    if where is not None:
        _checks.require_mask(where)
        if not _broadcasts(np.shape(where), shape):
            raise RequestError(
                f"got where of shape {np.shape(where)} for x of shape {shape}: expected a shape "
                "that broadcasts to it"
            )
        valid = jnp.moveaxis(jnp.broadcast_to(jnp.asarray(where, bool), shape), axis, 0).reshape(
            shape[axis], -1
        )

    def restore(ranks: Array) -> Array:
        return jnp.moveaxis(ranks.reshape(front.shape), 0, axis)

    return front.reshape(shape[axis], -1), valid, restore


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, onto) == onto
    except ValueError:
        return False


class _Method(NamedTuple):
    """A method of soft ranking: two functions on columns.

    forward: (x, width, valid, entries, primitives) -> (ranks, order, residuals). A method that
      sorts returns the ranks in sorted order, and in `order` the position of each in x. Another
      returns None as `order`.
    backward: (residuals, cotangent of the ranks, primitives) -> cotangents of x, in the order of
      the ranks, and of the width. The Jacobian of every method is symmetric.
    """

    forward: Callable[..., tuple[Array, Array | None, Any]]
    backward: Callable[..., tuple[Array, Array]]


@functools.partial(jax.jit, static_argnames=("method", "using"))
def soft_rank_columns(
    x: Float[Array, "n r"],
    width: Float[Array, "r"],
    valid: Bool[Array, "n r"] | None,
    method: str,
    using: Primitives,
) -> Float[Array, "n r"]:
    """Compute the `soft_rank` of every column, without its checks.

    Ranks of entries that are not valid have no meaning.
    """
    ranks, order = ranks_as_they_come(x, width, valid, method, using)
    return ranks if order is None else _sorting.unsort(ranks, order)


def ranks_as_they_come(
    x: Float[Array, "n r"],
    width: Float[Array, "r"],
    valid: Bool[Array, "n r"] | None,
    method: str,
    using: Primitives,
    entries: Int[Array, "r"] | None = None,
) -> tuple[Float[Array, "n r"], Int[Array, "n r"] | None]:
    """Compute the soft ranks of every column, in the order of the method.

    A method that sorts puts the valid entries first. A sum over a column needs no other order.

    Args:
      x: columns.
      width: the temperature of each column.
      valid: True for the entries that count; None if all do.
      method: a key of `METHODS`.
      using: the primitives of this machine.
      entries: number of valid entries of each column, if it is known.

    Returns:
      The ranks, and the position of each in x; None for x's own order.
    """
    entries = _sorting.entries_of(valid, *x.shape) if entries is None else entries
    # A width below the smallest normal number would be flushed to 0, and then divide.
    return _soft_rank(x, jnp.maximum(width, jnp.finfo(x.dtype).tiny), valid, entries, method, using)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _soft_rank(
    x: Array, width: Array, valid: Array | None, entries: Array, method: str, using: Primitives
) -> tuple[Array, Array | None]:
    ranks, order, _ = METHODS[method].forward(x, width, valid, entries, using)
    return ranks, order


def _soft_rank_forward(
    x: Array, width: Array, valid: Array | None, entries: Array, method: str, using: Primitives
) -> tuple[tuple[Array, Array | None], tuple[Any, ...]]:
    ranks, order, saved = METHODS[method].forward(x, width, valid, entries, using)
    return (ranks, order), (saved, order, valid, entries)


def _soft_rank_backward(
    method: str, using: Primitives, residuals: tuple[Any, ...], g: tuple[Array, Any]
) -> tuple[Any, ...]:
    saved, order, valid, entries = residuals
    counts = jnp.ones_like(g[0], bool) if valid is None else valid
    if order is not None:
        counts = lax.broadcasted_iota(jnp.int32, g[0].shape, 0) < entries
    dx, dwidth = METHODS[method].backward(saved, jnp.where(counts, g[0], 0), using)
    dx = jnp.where(counts, dx, 0)
    return dx if order is None else _sorting.unsort(dx, order), dwidth, None, None


_soft_rank.defvjp(_soft_rank_forward, _soft_rank_backward)


def _width_cotangent(
    dx: Callable[[], Float[Array, "n r"]],
    x: Float[Array, "n r"],
    width: Float[Array, "r"],
    entries: Int[Array, "r"],
    reach: float,
    using: Primitives,
) -> Float[Array, "r"]:
    """Compute the width's cotangent of sorted columns, -(1 / width) sum_i x_i dx_i.

    The formula holds because the ranks depend on x / width alone. On either side of a gap of
    `reach` widths dx sums to 0. So x may restart at 0 after each such gap. After much longer gaps
    it must, or rounding would destroy the digits of the others.

    `dx` is a function: XLA would store an array that both branches take.
    """
    k = lax.broadcasted_iota(jnp.int32, x.shape, 0)

    def at(position: Array) -> Array:
        return jnp.take_along_axis(x, position[None], axis=0, mode="promise_in_bounds")[0]

    def restarted() -> Array:
        before = jnp.roll(x, 1, axis=0)
        gap = jnp.where(x == before, 0, x - before)
        near = (k > 0) & (k < entries) & (jnp.abs(gap) < reach * width)
        return jnp.sum(
            using.recur(near.astype(x.dtype), jnp.where(near, gap, 0), False) * dx(), axis=0
        )

    centred = jnp.sum(jnp.where(k < entries, x - at(entries // 2), 0) * dx(), axis=0)
    extent = jnp.where(entries > 1, jnp.abs(at(jnp.maximum(entries - 1, 0)) - x[0]), 0)
    return -lax.cond(jnp.all(extent <= 1000 * width), lambda: centred, restarted) / width


def _laplace_forward(
    x: Array, width: Array, valid: Array | None, entries: Array, using: Primitives
) -> tuple[Array, Array | None, Any]:
    columns = _sorting.sort_columns(x, valid, using, entries)
    s, m = _sorting.floats_of(columns.bits), columns.entries
    k = lax.broadcasted_iota(jnp.int32, x.shape, 0)  # counted from 0
    tied = columns.bits == jnp.roll(columns.bits, 1, axis=0)
    gap = jnp.where(tied, 0, s - jnp.roll(s, 1, axis=0))  # infinities tie too
    # With d_k = exp(-gap_k / width), a_k = d_k (1 + a_{k-1}) sums exp(-(s_k - s_j) / width) over
    # the j below k, and b_k over those above. Then r_k = k + (b_k - a_k) / 2.
    # The scans compute the shortfalls k - a_k and m - 1 - k - b_k. They are small where ranks are
    # soft and integers where ranks are hard: exact in both cases.
    fall = jnp.where((k > 0) & (k < m), -jnp.expm1(-gap / width), 1)
    below, above = k.astype(x.dtype), jnp.maximum(m - 1 - k, 0).astype(x.dtype)
    from_below = using.relax(fall, below, False)
    from_above = using.relax(jnp.roll(fall, -1, axis=0), above, True)
    ranks = (m.astype(x.dtype) + 1) / 2 + (from_below - from_above) / 2
    return ranks, columns.order, (fall, gap, below - from_below, above - from_above, width)


def _laplace_backward(saved: Any, g: Array, using: Primitives) -> tuple[Array, Array]:
    fall, gap, a, b, width = saved
    d, d_next = 1 - fall, jnp.roll(1 - fall, -1, axis=0)
    # dx_k = [g_k (a_k + b_k) - A_k - B_k] / (2 width), with
    # A_k = d_k (g_{k-1} + A_{k-1}) and B_k = d_{k+1} (g_{k+1} + B_{k+1}).
    from_below = using.recur(d, d * jnp.roll(g, 1, axis=0), False)
    from_above = using.recur(d_next, d_next * jnp.roll(g, -1, axis=0), True)
    dx = (g * (a + b) - from_below - from_above) / 2 / width
    # The ranks depend on x / width alone: the width's cotangent is -(1 / width) sum_k x_k dx_k. By
    # parts, that is a sum over k of -(gap_k / width) sum_{j >= k} dx_j, and
    # 2 width sum_{j >= k} dx_j = a_k (g_k + B_k) - A_k (1 + b_k).
    # No flow crosses a gap so long that d_k = 0: far entries cost the others no digits.
    flow = a * (g + from_above) - from_below * (1 + b)
    return dx, -jnp.sum(jnp.where(fall < 1, gap / width, 0) * flow, axis=0) / 2 / width


def _over_entries(entry: Callable[..., Array], *columns: Array) -> Array:
    """Apply `entry` to every row of the columns, in the memory of about a million pairs."""
    n, r = columns[0].shape
    return lax.map(lambda rows: entry(*rows), columns, batch_size=max(1, min(n, 2**20 // (n * r))))


def _logistic_forward(
    x: Array, width: Array, valid: Array | None, entries: Array, using: Primitives
) -> tuple[Array, Array | None, Any]:
    largest = jnp.finfo(x.dtype).max
    x = x if valid is None else jnp.where(valid, x, 0)
    x = jnp.clip(x, -largest, largest)  # infinities tie too
    counts = jnp.ones_like(x) if valid is None else valid.astype(x.dtype)
    ranks = _over_entries(
        lambda one: jnp.sum(jax.nn.sigmoid((one - x) / width) * counts, axis=0) + 0.5, x
    )
    return ranks, None, (x, width, counts)


def _logistic_backward(saved: Any, g: Array, using: Primitives) -> tuple[Array, Array]:
    x, width, counts = saved

    def slopes(u: Array) -> Array:
        return jax.nn.sigmoid(u) * jax.nn.sigmoid(-u) * counts

    def x_cotangent(one: Array, g_one: Array) -> Array:
        return jnp.sum(slopes((one - x) / width) * (g_one - g), axis=0)

    def width_cotangent(one: Array, g_one: Array) -> Array:
        u = jnp.clip((one - x) / width, -1000, 1000)  # beyond, slopes are 0
        return -g_one * jnp.sum(u * slopes(u), axis=0)

    # Two loops: in one loop XLA would store the slope of every pair.
    dx = _over_entries(x_cotangent, x, g)
    dwidth = jnp.sum(_over_entries(width_cotangent, x, g), axis=0)
    return dx / width, dwidth / width


def _permutahedron_forward(
    x: Array, width: Array, valid: Array | None, entries: Array, using: Primitives
) -> tuple[Array, Array | None, Any]:
    n, r = x.shape
    columns = _sorting.sort_columns(-x, valid, using, entries)
    z, m = -_sorting.floats_of(columns.bits), columns.entries
    k = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    tied = columns.bits == jnp.roll(columns.bits, -1, axis=0)  # infinities too
    gap = (
        jnp.where(tied, 0, jnp.clip(z - jnp.roll(z, -1, axis=0), 0, jnp.finfo(x.dtype).max)) / width
    )
    # With s = z / width, y_k = s_k - w_k falls by gap - 1 from one entry to the next. Where entries
    # lie far apart, y would need more digits than a float has.
    rise = jnp.where(k < m - 1, 1 - jnp.minimum(gap, n), 0)
    # But no block pools over a position where the least y before it exceeds the largest after it.
    # So a fall may be cut to little more than the sum of two heights: from the least y before up
    # to y_k, and from y_k up to the largest y after. Both heights are running sums of the rises,
    # restarted at 0.
    above_least = _positive_sums(jnp.roll(rise, 1, axis=0).at[0].set(0))
    below_largest = jnp.roll(_positive_sums(rise[::-1])[::-1], -1, axis=0).at[-1].set(0)
    y = lax.cumsum(jnp.minimum(-rise, above_least + below_largest + 0.25), axis=0, reverse=True)
    w = (m - k).astype(x.dtype)
    # Padding below every other entry never violates the order, so it never pools with them.
    lowest = jnp.min(jnp.where(k < m, y, jnp.inf), axis=0) - 1
    y = jnp.where(k < m, y, lowest)
    size = 1 << (n - 1).bit_length()
    v = jnp.concatenate([y, jnp.broadcast_to(lowest, (size - n, r))])
    half = 1
    while half < size:
        v = _pool_halves(v.reshape(size // (2 * half), 2, half, r)).reshape(size, r)
        half *= 2
    v = v[:n]
    same = jnp.pad((v[1:] == v[:-1]) & (k[1:] < m), ((1, 0), (0, 0))).astype(x.dtype)
    # r = s - v, in a form that gives an entry on its own exactly its hard rank.
    return w + (y - v), columns.order, (same, z, width, m)


def _positive_sums(x: Float[Array, "n r"]) -> Float[Array, "n r"]:
    """Compute running sums that restart at 0 instead of falling below."""

    def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] + two[0], jnp.maximum(two[1], one[1] + two[0])

    return lax.associative_scan(after, (x, jnp.maximum(x, 0)), axis=0)[1]


def _pool_halves(v: Float[Array, "pairs 2 half r"]) -> Float[Array, "pairs 2 half r"]:
    """Project each pair of non-increasing halves onto the nearest non-increasing whole.

    Where the upper half ends below the start of the lower one, the entries between take one level
    m. It solves sum (m - upper)+ = sum (lower - m)+. Newton's method on this piecewise linear
    equation ends in few steps.
    """
    upper, lower = v[:, 0], v[:, 1]
    floor, ceiling = upper[:, -1], lower[:, 0]
    violated = floor < ceiling
    half = v.shape[2]

    def step(_: Array, m: Array) -> Array:
        above, below = upper <= m[:, None], lower >= m[:, None]
        excess = jnp.sum(
            jnp.where(above, upper - m[:, None], 0) + jnp.where(below, lower - m[:, None], 0),
            axis=1,
        )
        count = jnp.sum(above, axis=1) + jnp.sum(below, axis=1)
        return jnp.clip(m + excess / jnp.maximum(count, 1), floor, ceiling)

    steps = 8 if half > 1 else 2
    m = lax.fori_loop(
        0, steps if v.dtype == jnp.float32 else 2 * steps, step, (floor + ceiling) / 2
    )
    # Halves in order stay unchanged: no upper entry lies below `floor`, no lower entry above it.
    m = jnp.where(violated, m, floor)[:, None]
    return jnp.stack([jnp.maximum(upper, m), jnp.minimum(lower, m)], axis=1)


def _permutahedron_backward(saved: Any, g: Array, using: Primitives) -> tuple[Array, Array]:
    same, z, width, m = saved
    same_next = jnp.roll(same, -1, axis=0)

    def block_sum(values: Array) -> Array:
        return using.recur(same, values, False) + using.recur(same_next, values, True) - values

    dx = (g - block_sum(g) / block_sum(jnp.ones_like(g))) / width
    # Entries n widths apart never share a block.
    return dx, _width_cotangent(lambda: dx, z, width, m, float(len(z)), using)


METHODS: dict[str, _Method] = {
    "laplace": _Method(_laplace_forward, _laplace_backward),
    "permutahedron": _Method(_permutahedron_forward, _permutahedron_backward),
    "logistic": _Method(_logistic_forward, _logistic_backward),
}
