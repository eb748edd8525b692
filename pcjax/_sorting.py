"""Sorting and scanning the columns of a matrix: what ranking is made of.

Everything here works on *columns*: axis 0 is the one that is ranked, and the rows that are ranked together lie side
by side as contiguous lanes. Which implementation serves is decided here and nowhere else, see `primitives`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
    return lax.bitcast_convert_type(
        jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits), floating
    )


def _exchange_neighbours(
    keys: UInt[Array, "n r"], order: Int[Array, "n r"]
) -> tuple[UInt[Array, "n r"], Int[Array, "n r"]]:
    """Puts the pairs of neighbours in order that begin at 0, 2, 4 ..., then those that begin at 1, 3, 5 ..."""
    n, r = keys.shape
    odd = ((0, n % 2), (0, 0))
    last = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    key_pairs = jnp.pad(keys, odd, constant_values=last).reshape(-1, 2, r)
    order_pairs = jnp.pad(order, odd).reshape(-1, 2, r)
    low, high, one, two = key_pairs[:, 0], key_pairs[:, 1], order_pairs[:, 0], order_pairs[:, 1]
    swap = low > high
    low, high = jnp.where(swap, high, low), jnp.where(swap, low, high)
    one, two = jnp.where(swap, two, one), jnp.where(swap, one, two)
    # What comes first in the next pair comes second in these; the very first and last have no neighbour left.
    swap = high[:-1] > low[1:]

    def between(second: Array, first: Array) -> Array:
        upper = jnp.concatenate([first[:1], jnp.where(swap, second[:-1], first[1:])])
        lower = jnp.concatenate([jnp.where(swap, first[1:], second[:-1]), second[-1:]])
        return jnp.stack([upper, lower], axis=1).reshape(-1, r)[:n]

    return between(high, low), between(two, one)


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
    span = lax.bitcast_convert_type(
        jnp.max(jnp.where(excluded, least, bits), axis=0) - least, unsigned
    )
    shift = jnp.maximum(length - lax.clz(span).astype(jnp.int32) - room, 0).astype(unsigned)
    shift = jnp.where(span >> shift == last_digit, shift + 1, shift)
    # What is excluded has the first leading digits that no number has. (Only whole numbers can fill all digits.)
    beyond = ((span >> shift) + 1) << shift
    beyond = jnp.where(beyond == 0, ~beyond, beyond)
    excess = jnp.where(excluded, beyond, lax.bitcast_convert_type(bits - least, unsigned))

    def by_digits(excess: Array, shift: Array) -> tuple[Array, Array]:
        """The leading digits in ascending order, and where each came from."""
        digits = (excess >> shift) & last_digit
        packed = (digits << index_bits) | lax.broadcasted_iota(unsigned, excess.shape, 0)
        padding = ((0, (1 << index_bits) - n), (0, 0))
        packed = jnp.pad(packed, padding, constant_values=jnp.iinfo(bits.dtype).max)
        packed = lax.bitcast_convert_type(
            _network(lax.bitcast_convert_type(packed, bits.dtype))[:n], unsigned
        )
        return packed >> index_bits, (packed & ((1 << index_bits) - 1)).astype(jnp.int32)

    def unsorted(excess: Array) -> Array:
        return jnp.any(excess[1:] < excess[:-1])

    def exchange(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        excess, order, turn = given
        return *_exchange_neighbours(excess, order), turn + 1

    def sort_next_digits(given: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        excess, order, shift = given
        _, came_from = by_digits(excess, jnp.broadcast_to(shift, (r,)))
        return in_order(excess, came_from), in_order(order, came_from), shift + room

    def put_right(given: tuple[Array, Array]) -> tuple[Array, Array]:
        excess, order = given
        # Zeros of the keys carry their device axes, which under shard_map all that a loop carries must share.
        none = excess[0, 0] & 0
        few = lax.while_loop(
            lambda now: (now[2] < EXCHANGES) & unsorted(now[0]),
            exchange,
            (excess, order, none.astype(jnp.int32)),
        )
        every_digit = lax.while_loop(
            lambda now: (now[2] < length) & unsorted(now[0]),
            sort_next_digits,
            (few[0], few[1], none),
        )
        return every_digit[:2]

    def look_up(given: tuple[Array, Array]) -> tuple[Array, Array]:
        found = _exchange_neighbours(in_order(excess, given[1]), given[1])
        return lax.cond(unsorted(found[0]), put_right, lambda sorted_: sorted_, found)

    # Where no digit was left out, the leading ones are all there is to know.
    excess, order = lax.cond(
        jnp.any(shift > 0), look_up, lambda sorted_: sorted_, by_digits(excess, shift)
    )
    number = lax.bitcast_convert_type(excess, bits.dtype) + least
    return jnp.where(excess == beyond, jnp.iinfo(bits.dtype).max - 1, number), order


def _sort_by_library(keys: Int[Array, "n r"]) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    keys, order = lax.sort(
        (keys, lax.broadcasted_iota(jnp.int32, keys.shape, 0)), dimension=0, num_keys=1
    )
    return keys, order


def _line_by_line(
    step: Callable[..., tuple[Array, Any]], rate: Array, value: Array, start: Any, reverse: bool
) -> Float[Array, "n r"]:
    """What `step` makes of each line of both and of what it left behind; written over the value, line by line.

    A scan would set up room for its results beforehand, line it with zeros and copy these.
    """
    n = value.shape[0]

    def at_line(k: Array, given: tuple[Any, Array]) -> tuple[Any, Array]:
        carry, lines = given
        k = (
            jnp.uint32(n - 1) - k.astype(jnp.uint32) if reverse else k.astype(jnp.uint32)
        )  # none is below 0 then
        line, carry = step(rate[k], lines[k], carry)
        return carry, lax.dynamic_update_index_in_dim(lines, line, k, 0)

    # Zeros of the rate carry its device axes, which under shard_map all that a loop carries must share.
    return lax.fori_loop(0, n, at_line, (start, value + jnp.zeros_like(rate)))[1]


def _relax_sequentially(
    rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    def step(
        rate: Array, target: Array, carry: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        y, lost = carry
        # Kahan: `lost` holds the low bits, without which n additions would cost sqrt(n) roundings.
        increment = rate * (target - y) + lost
        total = y + increment
        return total, (total, increment - (total - y))

    zeros = jnp.zeros_like(rate[0])
    return _line_by_line(step, rate, target, (zeros, zeros), reverse)


def _recur_sequentially(
    decay: Float[Array, "n r"], value: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    def step(decay: Array, value: Array, y: Array) -> tuple[Array, Array]:
        y = decay * y + value
        return y, y

    return _line_by_line(step, decay, value, jnp.zeros_like(decay[0]), reverse)


def _recur_in_parallel(
    decay: Float[Array, "n r"], value: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        return one[0] * two[0], two[0] * one[1] + two[1]

    return lax.associative_scan(after, (decay, value), reverse=reverse, axis=0)[1]


def _relax_in_parallel(
    rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
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


def metric_primitives(length: int) -> Primitives:
    """Return the implementation for a metric, which is called once and so pays for compiling."""
    light = jax.default_backend() == "cpu" and length <= 2048
    return CPU_SHORT if light else primitives(length)


def cache_rows(length: int) -> int | None:
    """How many rows of this length are best ranked together: what a core's cache holds; None, all at once."""
    return (
        max(16, 2**17 // length, min(64, 2**18 // length))
        if jax.default_backend() == "cpu"
        else None
    )


class Sorted(NamedTuple):
    """Columns in ascending order, the excluded entries last."""

    bits: Int[Array, "n r"]
    order: Int[Array, "n r"]
    entries: Int[Array, "r"]  # how many of each column take part


def sort_columns(
    x: Num[Array, "n r"],
    valid: Bool[Array, "n r"] | None,
    using: Primitives,
    entries: Int[Array, "r"] | None = None,
) -> Sorted:
    """Sorts every column, entries that are not `valid` to the end; who knows how many are, says it (`entries`)."""
    n, r = x.shape
    bits = ordered_bits(x)
    if valid is not None:
        # Above NaN, but below what pads the network: a column's first n entries stay its own.
        bits = jnp.where(valid, bits, jnp.iinfo(bits.dtype).max - 1)
    return Sorted(*using.sort(bits), entries_of(valid, n, r) if entries is None else entries)


def entries_of(valid: Bool[Array, "n r"] | None, n: int, r: int) -> Int[Array, "r"]:
    """How many entries of each column take part."""
    return (
        jnp.full((r,), n, jnp.int32) if valid is None else jnp.sum(valid, axis=0, dtype=jnp.int32)
    )


def unsort(values: Num[Array, "n r"], order: Int[Array, "n r"]) -> Num[Array, "n r"]:
    """Brings sorted columns back into the order they came in."""
    if values.size >= 2**31:
        lanes = lax.broadcasted_iota(jnp.int32, order.shape, 1)
        return (
            jnp.zeros_like(values)
            .at[order, lanes]
            .set(values, unique_indices=True, mode="promise_in_bounds")
        )
    flat = jnp.zeros_like(values).reshape(-1)
    flat = flat.at[_places(order)].set(values, unique_indices=True, mode="promise_in_bounds")
    return flat.reshape(values.shape)


def in_order(values: Shaped[Array, "m r"], order: Int[Array, "n r"]) -> Shaped[Array, "n r"]:
    """Brings columns into the order that `order` names."""
    if values.size >= 2**31:
        return jnp.take_along_axis(values, order, axis=0, mode="promise_in_bounds")
    return values.reshape(-1).at[_places(order)].get(mode="promise_in_bounds")


def _places(order: Int[Array, "n r"]) -> Int[Array, "n r"]:
    """Where those rows of each column lie in all columns together: one number is looked up faster than two."""
    return order * order.shape[1] + lax.broadcasted_iota(jnp.int32, order.shape, 1)


def run_bounds(
    bits: Int[Array, "n r"], using: Primitives
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """First and last position, counted from 0, of the run of equal values that each sorted entry belongs to."""
    floating = jnp.float64 if bits.dtype.itemsize == 8 else jnp.float32
    position = lax.broadcasted_iota(jnp.int32, bits.shape, 0).astype(floating)
    tied = jnp.pad(bits[1:] == bits[:-1], ((1, 0), (0, 0))).astype(floating)
    tied_next = jnp.roll(tied, -1, axis=0)  # tied[0] is 0, so the last entry ends its run
    first = using.recur(tied, (1 - tied) * position, False)
    last = using.recur(tied_next, (1 - tied_next) * position, True)
    return first, last


@functools.partial(jax.jit, static_argnames="using")
def average_ranks(
    x: Num[Array, "n r"],
    valid: Bool[Array, "n r"] | None,
    entries: Int[Array, "r"] | None = None,
    *,
    using: Primitives,
) -> Float[Array, "n r"]:
    """Ranks 1 ... n of every column, ties sharing the average of theirs; NaN where a valid entry is."""
    columns = sort_columns(x, valid, using, entries)
    first, last = run_bounds(columns.bits, using)
    ranks = (first + last) / 2 + 1
    if jnp.issubdtype(x.dtype, jnp.floating):
        ending = jnp.maximum(columns.entries - 1, 0)[None]
        largest = floats_of(
            jnp.take_along_axis(columns.bits, ending, axis=0, mode="promise_in_bounds")
        )
        ranks = jnp.where((columns.entries > 0) & jnp.isnan(largest), jnp.nan, ranks)
    return unsort(ranks, columns.order)
