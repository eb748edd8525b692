"""Sorting and scanning the columns of a matrix: what ranking is made of.

Everything here works on *columns*: axis 0 is the one that is ranked, and the rows that are ranked together lie side
by side as contiguous lanes. Which implementation serves is decided here and nowhere else, see `primitives`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, Shaped, UInt

EXCHANGES = 8  # passes over all neighbours before a packed sort is given up as too coarse


def ordered_bits(x: Num[Array, "..."]) -> Int[Array, "..."]:
    """Integers that order as the numbers do; -0 equals +0, and NaN comes after +inf."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        wide = x.dtype.itemsize == 8
        signed = jnp.int64 if wide else jnp.int32
        if jnp.issubdtype(x.dtype, jnp.unsignedinteger) and x.dtype.itemsize >= 4:
            x = lax.bitcast_convert_type(x, signed) ^ jnp.iinfo(signed).min
        # The largest two are left for what is masked and what pads.
        return jnp.minimum(x.astype(signed), jnp.iinfo(signed).max - 2)
    integer = jnp.int64 if x.dtype.itemsize == 8 else jnp.int32
    largest = jnp.iinfo(integer).max
    bits = lax.bitcast_convert_type(x, integer)
    # Compared as integers throughout: as floats, subnormal numbers would count as 0 where the machine flushes them.
    magnitude = bits & largest
    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), integer)
    bits = jnp.where(magnitude == 0, 0, jnp.where(magnitude > infinity, infinity + 1, bits))
    return jnp.where(bits < 0, bits ^ largest, bits)


def floats_of(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `ordered_bits`."""
    floating = jnp.float64 if bits.dtype.itemsize == 8 else jnp.float32
    return lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits), floating)


def _compare_exchange(
    keys: UInt[Array, "n r"], order: Int[Array, "n r"], first: int
) -> tuple[UInt[Array, "n r"], Int[Array, "n r"]]:
    """Puts every other pair of neighbours in order, the first pair beginning at `first`."""
    n, r = keys.shape
    last = first + (n - first) // 2 * 2

    def pairs(a: Array) -> tuple[Array, Array]:
        paired = a[first:last].reshape(-1, 2, r)
        return paired[:, 0], paired[:, 1]

    def joined(low: Array, high: Array, a: Array) -> Array:
        return jnp.concatenate([a[:first], jnp.stack([low, high], axis=1).reshape(last - first, r), a[last:]])

    (low, high), (one, two) = pairs(keys), pairs(order)
    swap = low > high
    keys = joined(jnp.where(swap, high, low), jnp.where(swap, low, high), keys)
    return keys, joined(jnp.where(swap, two, one), jnp.where(swap, one, two), order)


def _network(keys: Int[Array, "n r"]) -> Int[Array, "n r"]:
    """Batcher's bitonic network: min and max of whole contiguous lanes, where XLA's CPU sort calls a comparator."""
    n, r = keys.shape

    def stage(keys: Array, distance: int, mirrored: bool) -> Array:
        pairs = keys.reshape(n // (2 * distance), 2, distance, r)
        low, high = pairs[:, 0], pairs[:, 1, ::-1] if mirrored else pairs[:, 1]
        least, most = jnp.minimum(low, high), jnp.maximum(low, high)
        return jnp.stack([least, most[:, ::-1] if mirrored else most], axis=1).reshape(n, r)

    width = 1
    while width < n:
        keys, distance = stage(keys, width, mirrored=True), width // 2
        while distance:
            keys, distance = stage(keys, distance, mirrored=False), distance // 2
        width *= 2
    return keys


def _sort_by_network(bits: Int[Array, "n r"]) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    """Sorts one packed integer an entry: the leading digits of its key, as many as there is room for, and its position.

    Keys are what a column exceeds its least by, so that the digits are used up by few; then some exchanges of
    neighbours put right what the left-out digits decide. Where they do not (in a column with far outliers), all digits
    are sorted by, the last ones first.
    """
    n, r = bits.shape
    length, index_bits = 8 * bits.dtype.itemsize, max(n - 1, 1).bit_length()
    unsigned = jnp.uint32 if length == 32 else jnp.uint64
    room = length - 1 - index_bits
    last_digit = jnp.asarray((1 << room) - 1, unsigned)
    excluded = bits >= jnp.iinfo(bits.dtype).max - 1
    least = jnp.min(bits, axis=0)
    span = lax.bitcast_convert_type(jnp.max(jnp.where(excluded, least, bits), axis=0) - least, unsigned)
    shift = jnp.maximum(length - lax.clz(span).astype(jnp.int32) - room, 0).astype(unsigned)
    shift = jnp.where(span >> shift == last_digit, shift + 1, shift)
    # What is excluded has the first leading digits that no number has. (Only whole numbers can fill all digits.)
    beyond = ((span >> shift) + 1) << shift
    beyond = jnp.where(beyond == 0, ~beyond, beyond)
    excess = jnp.where(excluded, beyond, lax.bitcast_convert_type(bits - least, unsigned))

    def by_digits(excess: Array, shift: Array) -> Array:
        digits = (excess >> shift) & last_digit
        packed = (digits << index_bits) | lax.broadcasted_iota(unsigned, excess.shape, 0)
        padding = ((0, (1 << index_bits) - n), (0, 0))
        packed = jnp.pad(packed, padding, constant_values=jnp.iinfo(bits.dtype).max)
        packed = _network(lax.bitcast_convert_type(packed, bits.dtype))[:n]
        return (packed & ((1 << index_bits) - 1)).astype(jnp.int32)

    def unsorted(excess: Array) -> Array:
        return jnp.any(excess[1:] < excess[:-1])

    def exchange(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        excess, order, turn = given
        excess, order = _compare_exchange(*_compare_exchange(excess, order, 0), 1)
        return excess, order, turn + 1

    def sort_next_digits(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        excess, order, shift = given
        came_from = by_digits(excess, jnp.broadcast_to(shift, (r,)))
        return in_order(excess, came_from), in_order(order, came_from), shift + room

    def put_right(given: tuple[Array, Array]) -> tuple[Array, Array]:
        excess, order = given
        # Zeros of the keys carry their device axes, which under shard_map all that a loop carries must share.
        none = excess[0, 0] & 0
        few = lax.while_loop(
            lambda now: (now[2] < EXCHANGES) & unsorted(now[0]), exchange, (excess, order, none.astype(jnp.int32))
        )
        every_digit = lax.while_loop(
            lambda now: (now[2] < length) & unsorted(now[0]), sort_next_digits, (few[0], few[1], none)
        )
        return every_digit[:2]

    order = by_digits(excess, shift)
    excess = in_order(excess, order)
    excess, order = _compare_exchange(*_compare_exchange(excess, order, 0), 1)
    excess, order = lax.cond(unsorted(excess), put_right, lambda sorted_: sorted_, (excess, order))
    number = lax.bitcast_convert_type(excess, bits.dtype) + least
    return jnp.where(excess == beyond, jnp.iinfo(bits.dtype).max - 1, number), order


def _sort_by_library(keys: Int[Array, "n r"]) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    keys, order = lax.sort((keys, lax.broadcasted_iota(jnp.int32, keys.shape, 0)), dimension=0, num_keys=1)
    return keys, order


def _relax_sequentially(rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool) -> Float[Array, "n r"]:
    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        y, lost = carry
        # Kahan: `lost` holds the low bits, without which n additions would cost sqrt(n) roundings.
        increment = now[0] * (now[1] - y) + lost
        total = y + increment
        return (total, increment - (total - y)), total

    start = jnp.zeros_like(rate[0])
    return lax.scan(step, (start, start), (rate, target), reverse=reverse)[1]


def _recur_sequentially(decay: Float[Array, "n r"], value: Float[Array, "n r"], reverse: bool) -> Float[Array, "n r"]:
    def step(y: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        y = now[0] * y + now[1]
        return y, y

    return lax.scan(step, jnp.zeros_like(decay[0]), (decay, value), reverse=reverse)[1]


def _recur_in_parallel(decay: Float[Array, "n r"], value: Float[Array, "n r"], reverse: bool) -> Float[Array, "n r"]:
    def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] * two[0], two[0] * one[1] + two[1]

    return lax.associative_scan(after, (decay, value), reverse=reverse, axis=0)[1]


def _relax_in_parallel(rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool) -> Float[Array, "n r"]:
    def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        # In terms of the rates, not of 1 - rate: small rates keep their digits.
        return one[0] + (two[0] - one[0] * two[0]), one[1] + (two[1] - two[0] * one[1])

    return lax.associative_scan(after, (rate, rate * target), reverse=reverse, axis=0)[1]


class Primitives(NamedTuple):
    """The three operations whose best implementation depends on the machine.

    sort: ordered bits (n, r) -> the bits sorted along axis 0, and where each came from.
    relax: y_k = y_{k-1} + rate_k (target_k - y_{k-1}), y_0 = 0; upwards along axis 0, or downwards if `reverse`.
    recur: y_k = decay_k y_{k-1} + value_k, likewise.
    """

    sort: Callable[[Array], tuple[Array, Array]]
    relax: Callable[[Array, Array, bool], Array]
    recur: Callable[[Array, Array, bool], Array]


# A CPU core walks a column block quickly but sorts slowly; an accelerator pays for every sequential step. A short
# row sorts soon enough either way, and the network's stages would only be compiled for nothing.
CPU = Primitives(_sort_by_network, _relax_sequentially, _recur_sequentially)
CPU_SHORT = CPU._replace(sort=_sort_by_library)
ACCELERATOR = Primitives(_sort_by_library, _relax_in_parallel, _recur_in_parallel)


def primitives(length: int) -> Primitives:
    """The implementation for rows of this length on JAX's default backend."""
    if jax.default_backend() != "cpu":
        return ACCELERATOR
    return CPU if length > 64 else CPU_SHORT


def cache_rows(length: int) -> int | None:
    """How many rows of this length are best ranked together: what a core's cache holds; None, all at once."""
    return max(16, 2**17 // length, min(64, 2**18 // length)) if jax.default_backend() == "cpu" else None


class Sorted(NamedTuple):
    """Columns in ascending order, the excluded entries last."""

    bits: Int[Array, "n r"]
    order: Int[Array, "n r"]
    entries: Int[Array, "r"]  # how many of each column take part


def sort_columns(x: Num[Array, "n r"], valid: Bool[Array, "n r"] | None, using: Primitives) -> Sorted:
    """Sorts every column, entries that are not `valid` to the end."""
    n, r = x.shape
    bits = ordered_bits(x)
    if valid is None:
        entries = jnp.full((r,), n, jnp.int32)
    else:
        # Above NaN, but below what pads the network: a column's first n entries stay its own.
        bits = jnp.where(valid, bits, jnp.iinfo(bits.dtype).max - 1)
        entries = jnp.sum(valid, axis=0, dtype=jnp.int32)
    return Sorted(*using.sort(bits), entries)


def unsort(values: Num[Array, "n r"], order: Int[Array, "n r"]) -> Num[Array, "n r"]:
    """Brings sorted columns back into the order they came in."""
    lanes = lax.broadcasted_iota(jnp.int32, order.shape, 1)
    return jnp.zeros_like(values).at[order, lanes].set(values, unique_indices=True, mode="promise_in_bounds")


def in_order(values: Shaped[Array, "m r"], order: Int[Array, "n r"]) -> Shaped[Array, "n r"]:
    """Brings columns into the order that `order` names."""
    if values.size >= 2**31:
        return jnp.take_along_axis(values, order, axis=0, mode="promise_in_bounds")
    # One number for a place is looked up faster than two.
    places = order * order.shape[1] + lax.broadcasted_iota(jnp.int32, order.shape, 1)
    return values.reshape(-1).at[places].get(mode="promise_in_bounds")


def run_bounds(bits: Int[Array, "n r"], using: Primitives) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """First and last position, counted from 0, of the run of equal values that each sorted entry belongs to."""
    floating = jnp.float64 if bits.dtype.itemsize == 8 else jnp.float32
    position = lax.broadcasted_iota(jnp.int32, bits.shape, 0).astype(floating)
    tied = jnp.pad(bits[1:] == bits[:-1], ((1, 0), (0, 0))).astype(floating)
    tied_next = jnp.roll(tied, -1, axis=0)  # tied[0] is 0, so the last entry ends its run
    first = using.recur(tied, (1 - tied) * position, False)
    last = using.recur(tied_next, (1 - tied_next) * position, True)
    return first, last


@functools.partial(jax.jit, static_argnames="using")
def average_ranks(x: Num[Array, "n r"], valid: Bool[Array, "n r"] | None, *, using: Primitives) -> Float[Array, "n r"]:
    """Ranks 1 ... n of every column, ties sharing the average of theirs."""
    columns = sort_columns(x, valid, using)
    first, last = run_bounds(columns.bits, using)
    return unsort((first + last) / 2 + 1, columns.order)
