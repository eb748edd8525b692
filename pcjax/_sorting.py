"""Sort and scan the columns of a matrix, as ranking needs it.

Everything here works on *columns*: axis 0 is ranked. The rows to be ranked lie side by side as
contiguous lanes. This file alone decides which implementation runs, see `primitives`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num, Shaped, UInt

EXCHANGES = 8  # passes over all neighbours before the radix sort
ARRAYS = 24  # of a block's size that loss and gradient need at once, roughly


def ordered_bits(x: Num[Array, "..."]) -> Int[Array, "..."]:
    """Map numbers to integers of the same order; -0 equals +0, and NaN comes after +inf."""
    if jnp.issubdtype(x.dtype, jnp.integer):
        wide = x.dtype.itemsize == 8
        signed = jnp.int64 if wide else jnp.int32
        if jnp.issubdtype(x.dtype, jnp.unsignedinteger) and x.dtype.itemsize >= 4:
            x = lax.bitcast_convert_type(x, signed) ^ jnp.iinfo(signed).min
        # The largest two values mark masked entries and padding.
        return jnp.minimum(x.astype(signed), jnp.iinfo(signed).max - 2)
    integer = jnp.int64 if x.dtype.itemsize == 8 else jnp.int32
    largest = jnp.iinfo(integer).max
    bits = lax.bitcast_convert_type(x, integer)
    # Integers are compared throughout: some machines flush subnormal floats to 0.
    magnitude = bits & largest
    infinity = lax.bitcast_convert_type(jnp.asarray(jnp.inf, x.dtype), integer)
    bits = jnp.where(magnitude == 0, 0, jnp.where(magnitude > infinity, infinity + 1, bits))
    return jnp.where(bits < 0, bits ^ largest, bits)


def floats_of(bits: Int[Array, "..."]) -> Float[Array, "..."]:
    """Invert `ordered_bits`."""
    floating = jnp.float64 if bits.dtype.itemsize == 8 else jnp.float32
    return lax.bitcast_convert_type(
        jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits), floating
    )


def _exchange_neighbours(
    keys: UInt[Array, "n r"], order: Int[Array, "n r"]
) -> tuple[UInt[Array, "n r"], Int[Array, "n r"]]:
    """Exchange neighbours that are out of order: pairs from 0, 2, 4 ..., then from 1, 3, 5 ..."""
    n, r = keys.shape
    odd = ((0, n % 2), (0, 0))
    last = jnp.asarray(jnp.iinfo(keys.dtype).max, keys.dtype)
    key_pairs = jnp.pad(keys, odd, constant_values=last).reshape(-1, 2, r)
    order_pairs = jnp.pad(order, odd).reshape(-1, 2, r)
    low, high, one, two = key_pairs[:, 0], key_pairs[:, 1], order_pairs[:, 0], order_pairs[:, 1]
    swap = low > high
    low, high = jnp.where(swap, high, low), jnp.where(swap, low, high)
    one, two = jnp.where(swap, two, one), jnp.where(swap, one, two)
    # Now exchange the second of each pair with the first of the next one. The very first and last
    # entry have no partner.
    swap = high[:-1] > low[1:]

    def between(second: Array, first: Array) -> Array:
        upper = jnp.concatenate([first[:1], jnp.where(swap, second[:-1], first[1:])])
        lower = jnp.concatenate([jnp.where(swap, first[1:], second[:-1]), second[-1:]])
        return jnp.stack([upper, lower], axis=1).reshape(-1, r)[:n]

    return between(high, low), between(two, one)


def _network(keys: Int[Array, "n r"]) -> Int[Array, "n r"]:
    """Sort by Batcher's bitonic network: min and max of whole contiguous lanes.

    XLA's sort on a CPU calls a comparator instead, which is several times slower.
    """
    given = len(keys)
    padding = ((0, (1 << max(given - 1, 1).bit_length()) - given), (0, 0))
    keys = jnp.pad(keys, padding, constant_values=jnp.iinfo(keys.dtype).max)
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
    return keys[:given]


def _sort_packed(
    sort: Callable[[Array], Array], bits: Int[Array, "n r"]
) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    """Sort one packed integer per entry: the leading digits of its key, and its position.

    A key is the excess over the least of the column, so that few digits hold it. The packed integer
    has room for some leading digits. A few exchanges of neighbours then order by the digits left
    out. In a column with far outliers this may fail. Then a radix sort uses all digits, the last
    ones first.
    """
    n = len(bits)
    length, index_bits = 8 * bits.dtype.itemsize, max(n - 1, 1).bit_length()
    unsigned = jnp.uint32 if length == 32 else jnp.uint64
    room = length - 1 - index_bits
    last_digit = jnp.asarray((1 << room) - 1, unsigned)
    excluded = bits >= jnp.iinfo(bits.dtype).max - 1
    least = jnp.min(bits, axis=0)
    span = lax.bitcast_convert_type(
        jnp.max(jnp.where(excluded, least, bits), axis=0) - least, unsigned
    )
    leading = jnp.maximum(length - lax.clz(span).astype(jnp.int32) - room, 0).astype(unsigned)
    leading = jnp.where(span >> leading == last_digit, leading + 1, leading)
    # Masked entries get the first leading digits above all numbers. Only integers can fill all
    # digits.
    beyond = ((span >> leading) + 1) << leading
    beyond = jnp.where(beyond == 0, ~beyond, beyond)
    excess = jnp.where(excluded, beyond, lax.bitcast_convert_type(bits - least, unsigned))

    def by_digits(excess: Array, shift: Array) -> Array:
        """Sort the digits above `shift`; return the position of each in `excess`."""
        digits = (excess >> shift) & last_digit
        packed = (digits << index_bits) | lax.broadcasted_iota(unsigned, excess.shape, 0)
        packed = sort(lax.bitcast_convert_type(packed, bits.dtype))
        return (packed & ((1 << index_bits) - 1)).astype(jnp.int32)

    def unsorted(excess: Array) -> Array:
        return jnp.any(excess[1:] < excess[:-1])

    def exchange(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        excess, order, turn, _ = carry
        excess, order = _exchange_neighbours(excess, order)
        return excess, order, turn + 1, unsorted(excess)

    def sort_digits(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Sort by the leading digits in the first turn; by the last, the next ... in the others."""
        excess, order, shift, turn = carry
        is_first = turn == 0
        source = by_digits(excess, jnp.where(is_first, leading, shift))
        excess = in_order(excess, source)
        order = lax.cond(is_first, lambda: source, lambda: in_order(order, source))
        excess, order, _, is_unsorted = lax.while_loop(
            lambda now: (now[2] < EXCHANGES) & now[3],
            exchange,
            (excess, order, none, is_first & jnp.any(leading > 0)),
        )
        is_unsorted = lax.cond(is_first, lambda: is_unsorted, lambda: unsorted(excess))
        # No digit is left beyond the length: that ends the loop.
        following = jnp.where(is_first, 0, shift + room)
        return excess, order, jnp.where(is_unsorted, following, length), turn + 1

    # A zero of the keys has their device axes: under shard_map the whole carry must share them.
    none = (excess[0, 0] & 0).astype(jnp.int32)
    start = lax.broadcasted_iota(jnp.int32, bits.shape, 0) + none
    # A loop, though one turn is almost always enough: the network is compiled once.
    excess, order, _, _ = lax.while_loop(
        lambda now: now[2] < length, sort_digits, (excess, start, none.astype(unsigned), none)
    )
    number = lax.bitcast_convert_type(excess, bits.dtype) + least
    return jnp.where(excess == beyond, jnp.iinfo(bits.dtype).max - 1, number), order


def _sort_by_library(keys: Int[Array, "n r"]) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    keys, order = lax.sort(
        (keys, lax.broadcasted_iota(jnp.int32, keys.shape, 0)), dimension=0, num_keys=1
    )
    return keys, order


def _sort_rows(keys: Int[Array, "n r"]) -> tuple[Int[Array, "n r"], Int[Array, "n r"]]:
    keys, order = lax.sort(
        (keys.T, lax.broadcasted_iota(jnp.int32, keys.shape[::-1], 1)), dimension=1, num_keys=1
    )
    return keys.T, order.T


def _line_by_line(
    step: Callable[..., tuple[Array, Any]], rate: Array, value: Array, start: Any, reverse: bool
) -> Float[Array, "n r"]:
    """Apply `step` to each line and to the carry of the step before, writing over `value`.

    A scan would allocate its results, fill them with zeros and copy them.
    """
    n = value.shape[0]

    def at_line(k: Array, state: tuple[Any, Array]) -> tuple[Any, Array]:
        carry, lines = state
        k = k.astype(jnp.uint32)  # unsigned indices need no wrapping of negative ones
        k = jnp.uint32(n - 1) - k if reverse else k
        line, carry = step(rate[k], lines[k], carry)
        return carry, lax.dynamic_update_index_in_dim(lines, line, k, 0)

    # Zeros of the rate have its device axes: under shard_map the whole carry must share them.
    return lax.fori_loop(0, n, at_line, (start, value + jnp.zeros_like(rate)))[1]


def _relax_sequentially(
    rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    def step(
        rate: Array, target: Array, carry: tuple[Array, Array]
    ) -> tuple[Array, tuple[Array, Array]]:
        y, lost = carry
        # Kahan: `lost` holds the low bits. Without them n additions would cost sqrt(n) roundings.
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


def _recur_in_blocks(
    decay: Float[Array, "n r"], value: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    from pcjax import _pallas  # only a GPU runs it, and importing it takes time

    return _pallas.recur(decay, value, reverse)


def _relax_in_blocks(
    rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    from pcjax import _pallas

    return _pallas.relax(rate, target, reverse)


def _relax_in_parallel(
    rate: Float[Array, "n r"], target: Float[Array, "n r"], reverse: bool
) -> Float[Array, "n r"]:
    def after(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        # The rates replace 1 - rate, so that small rates keep their digits.
        return one[0] + (two[0] - one[0] * two[0]), one[1] + (two[1] - two[0] * one[1])

    return lax.associative_scan(after, (rate, rate * target), reverse=reverse, axis=0)[1]


class Primitives(NamedTuple):
    """The three operations whose best implementation depends on the machine.

    sort: ordered bits (n, r) -> the bits sorted along axis 0, and the position of each before.
    relax: y_k = y_{k-1} + rate_k (target_k - y_{k-1}) with y_0 = 0, upwards along axis 0, or
      downwards if `reverse`.
    recur: y_k = decay_k y_{k-1} + value_k, in the same directions.
    """

    sort: Callable[[Array], tuple[Array, Array]]
    relax: Callable[[Array, Array, bool], Array]
    recur: Callable[[Array, Array, bool], Array]


# A CPU core scans a block of columns quickly but sorts slowly. Short rows sort fast anyway, so
# compiling the network would not pay off.
CPU = Primitives(
    functools.partial(_sort_packed, _network), _relax_sequentially, _recur_sequentially
)
CPU_SHORT = CPU._replace(sort=_sort_by_library)
# An accelerator pays for every sequential step.
ACCELERATOR = Primitives(_sort_by_library, _relax_in_parallel, _recur_in_parallel)
# All are exact; `python -m benchmarks.accelerator` times them on an accelerator.
CANDIDATES = {
    "library": ACCELERATOR,
    "rows": ACCELERATOR._replace(sort=_sort_rows),
    "packed": ACCELERATOR._replace(
        sort=functools.partial(_sort_packed, functools.partial(lax.sort, dimension=0))
    ),
    "packed rows": ACCELERATOR._replace(
        sort=functools.partial(_sort_packed, lambda keys: lax.sort(keys.T, dimension=1).T)
    ),
    "network": ACCELERATOR._replace(sort=CPU.sort),
    "kernels": ACCELERATOR._replace(relax=_relax_in_blocks, recur=_recur_in_blocks),
}
_chosen: Primitives | None = None


def primitives(length: int) -> Primitives:
    """Return the implementation for rows of this length on JAX's default backend."""
    if _chosen is not None:
        return _chosen
    if jax.default_backend() != "cpu":
        return ACCELERATOR
    return CPU if length > 64 else CPU_SHORT


@contextlib.contextmanager
def using(chosen: Primitives) -> Iterator[None]:
    """Use these primitives in the context, for benchmarks and tests; everything compiles anew."""
    global _chosen
    before, _chosen = _chosen, chosen
    jax.clear_caches()
    try:
        yield
    finally:
        _chosen = before
        jax.clear_caches()


def metric_primitives(length: int) -> Primitives:
    """Return the implementation for a metric: compiling costs more than its one call."""
    light = jax.default_backend() == "cpu" and length <= 2048
    return CPU_SHORT if light else primitives(length)


def cache_rows(length: int) -> int:
    """Return how many rows of this length to rank at a time; on a CPU they fit a core's cache."""
    if jax.default_backend() == "cpu":
        return max(16, 2**17 // length, min(64, 2**18 // length))
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 2**34)
    return accelerator_rows(length, memory)


def accelerator_rows(length: int, memory: int) -> int:
    """Return how many rows to rank at a time: intermediate results take a twelfth of the memory."""
    return max(128, memory // 12 // (4 * ARRAYS * length))


def block_entries() -> int:
    """Return how many entries of an intermediate result to compute at a time."""
    return 2**17 if jax.default_backend() == "cpu" else 2**21


class Sorted(NamedTuple):
    """Columns in ascending order, the masked entries last."""

    bits: Int[Array, "n r"]
    order: Int[Array, "n r"]
    entries: Int[Array, "r"]  # number of valid entries


def sort_columns(
    x: Num[Array, "n r"],
    valid: Bool[Array, "n r"] | None,
    using: Primitives,
    entries: Int[Array, "r"] | None = None,
) -> Sorted:
    """Sort every column, entries that are not `valid` to the end.

    Args:
      x: columns.
      valid: True for the entries that count; None if all do.
      using: the primitives of this machine.
      entries: number of valid entries of each column, if it is known.
    """
    n, r = x.shape
    bits = ordered_bits(x)
    if valid is not None:
        # Above NaN, but below the network's padding: a column's first n entries stay its own.
        bits = jnp.where(valid, bits, jnp.iinfo(bits.dtype).max - 1)
    return Sorted(*using.sort(bits), entries_of(valid, n, r) if entries is None else entries)


def entries_of(valid: Bool[Array, "n r"] | None, n: int, r: int) -> Int[Array, "r"]:
    """Count the valid entries of each column."""
    return (
        jnp.full((r,), n, jnp.int32) if valid is None else jnp.sum(valid, axis=0, dtype=jnp.int32)
    )


def unsort(values: Num[Array, "n r"], order: Int[Array, "n r"]) -> Num[Array, "n r"]:
    """Return sorted columns to their original order."""
    if values.size >= 2**31:
        lanes = lax.broadcasted_iota(jnp.int32, order.shape, 1)
        return (
            jnp.zeros_like(values)
            .at[order, lanes]
            .set(values, unique_indices=True, mode="promise_in_bounds")
        )
    flat = jnp.zeros_like(values).reshape(-1)
    flat = flat.at[_flat_positions(order)].set(
        values, unique_indices=True, mode="promise_in_bounds"
    )
    return flat.reshape(values.shape)


def in_order(values: Shaped[Array, "m r"], order: Int[Array, "n r"]) -> Shaped[Array, "n r"]:
    """Arrange columns in the order that `order` gives."""
    if values.size >= 2**31:
        return jnp.take_along_axis(values, order, axis=0, mode="promise_in_bounds")
    return values.reshape(-1).at[_flat_positions(order)].get(mode="promise_in_bounds")


def _flat_positions(order: Int[Array, "n r"]) -> Int[Array, "n r"]:
    """Return positions in the flattened columns: one index is faster than two."""
    return order * order.shape[1] + lax.broadcasted_iota(jnp.int32, order.shape, 1)


def run_bounds(
    bits: Int[Array, "n r"], using: Primitives
) -> tuple[Float[Array, "n r"], Float[Array, "n r"]]:
    """Return the first and last position, from 0, of each sorted entry's run of equal values."""
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
    """Rank every column from 1 to n; ties share their average rank.

    In a column with a valid NaN all ranks are NaN.
    """
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
