"""Queues of the latest embeddings, passed as an argument and returned with the batch added.

A queue gives a small batch many points for comparison: the keys of the contrastive losses, or the
references of `pcjax.losses.perception_coherence`. It is a pytree of arrays, and belongs in the
training state and in checkpoints.
"""

from __future__ import annotations  # short signatures in help()

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._inputs import axis_size, require_where


class Queue(NamedTuple):
    """The latest points in a ring: first in, first out.

    Attributes:
      points: an array (capacity, ...), or a tree of arrays: a pair (student's, teacher's) stays
        aligned.
      filled: number of slots that hold a point.
      position: the slot that is written next; once all are filled, it holds the oldest point.
    """

    points: PyTree[Array]
    filled: Int[Array, ""]
    position: Int[Array, ""]


def empty_queue(capacity: int, features: int | Sequence[int], dtype: Any = jnp.float32) -> Queue:
    """Create an empty queue.

    Args:
      capacity: number of points that it holds.
      features: width of a point. Several widths create aligned arrays, `(ds, dt)` creates pairs.
      dtype: of the points.

    Returns:
      The queue. Its points are zeros, none of which is `valid`.

    >>> from pcjax.losses import empty_queue
    >>> [points.shape for points in empty_queue(4096, (64, 2048)).points]
    [(4096, 64), (4096, 2048)]
    """
    _checks.require_whole("capacity", capacity, 1)
    several = isinstance(features, Sequence) and not isinstance(features, str)
    widths = list(features) if isinstance(features, Sequence) and several else [features]
    if not len(widths):
        raise RequestError(f"got features {features!r}: expected at least one number of features")
    for width in widths:
        _checks.require_whole("features", width, 1)
    points = tuple(jnp.zeros((capacity, width), dtype) for width in widths)
    return Queue(
        points if several else points[0], jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    )


def valid(queue: Queue) -> Bool[Array, "capacity"]:
    """Return which slots of a queue hold a point.

    Args:
      queue: the queue.

    Returns:
      (capacity,), True for the filled slots.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(4, 2), jnp.ones((3, 2)))
    >>> print(pcjax.losses.valid(queue))
    [ True  True  True False]
    """
    return jnp.arange(jax.tree.leaves(queue.points)[0].shape[0]) < queue.filled


def enqueue(
    queue: Queue,
    batch: PyTree[ArrayLike],
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Queue:
    """Add a batch to a queue, in order; it replaces the oldest points.

    The queue stores the batch without gradient, bit for bit if the dtypes are equal. Only the last
    points of a batch larger than the queue stay.

    Args:
      queue: the queue.
      batch: (n, ...) points, in the same tree as the queue's points.
      where: (n,), True for the examples to add.
      axis_name: mapped axis (or axes) over which the batch is split. Every device adds the examples
        of all devices, in their order, so that all queues stay equal.

    Returns:
      The new queue. The old one is unchanged, unless its memory is donated to a jitted step.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.empty_queue(3, 1)
    >>> for first in (1.0, 3.0):
    ...     queue = pcjax.losses.enqueue(queue, jnp.array([[first], [first + 1]]))
    >>> print(queue.points[:, 0], queue.filled, queue.position)
    [4. 2. 3.] 3 1
    """
    capacity, n = _check_batch(queue, batch)
    axis_size(axis_name)
    require_where(where, n)
    mask = jnp.ones(n, bool) if where is None else jnp.asarray(where)
    batch = jax.tree.map(
        lambda x, points: lax.stop_gradient(jnp.asarray(x, points.dtype)), batch, queue.points
    )
    if axis_name is not None:
        batch, mask = gather_same((batch, mask), axis_name)
    order = jnp.cumsum(mask, dtype=jnp.int32)
    total = order[-1] if mask.shape[0] else jnp.zeros((), jnp.int32)
    # A slot written twice would hold either point, so the earlier one is dropped.
    kept = mask & (total - order < capacity)
    slots = jnp.where(kept, (queue.position + order - 1) % capacity, capacity)
    points = jax.tree.map(
        lambda points, x: points.at[slots].set(x, mode="drop"), queue.points, batch
    )
    filled = jnp.minimum(queue.filled + total, capacity)
    return Queue(points, filled, (queue.position + total) % capacity)


def gather_same(x: PyTree[Array], axis_name: str | tuple[str, ...]) -> PyTree[Array]:
    """Gather all devices' rows; shard_map then knows that every device holds the same."""
    return lax.all_gather(x, axis_name, axis=0, tiled=True, to="invarying")


def _check_batch(queue: Any, batch: Any) -> tuple[int, int]:
    """Refuse a batch that does not match the queue; return the capacity and the batch size."""
    if not isinstance(queue, Queue):
        raise RequestError(f"got queue {type(queue).__name__}: expected one made by empty_queue")
    structures = jax.tree.structure(queue.points), jax.tree.structure(batch)
    if structures[0] != structures[1]:
        raise RequestError(
            f"got a batch of structure {structures[1]} for a queue of {structures[0]}: expected "
            "the same"
        )
    stored, given = ([np.shape(x) for x in jax.tree.leaves(tree)] for tree in (queue.points, batch))
    for points, x in zip(stored, given, strict=True):
        if not (len(x) == len(points) and x[1:] == points[1:]):
            raise RequestError(
                f"got a batch {x} for a queue {points}: expected (examples, *{points[1:]})"
            )
    counts = sorted({x[0] for x in given})
    if len(counts) != 1:
        raise RequestError(f"got a batch of {counts} examples: expected as many in every array")
    return stored[0][0], counts[0]
