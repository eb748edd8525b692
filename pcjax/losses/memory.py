"""Memories of what a model said of earlier examples: a queue of the latest ones, in as an argument and out as a result.

A queue gives a small batch many points to be compared with: the keys of the contrastive losses, or the references of
`pcjax.losses.perception_coherence`. It is a pytree of arrays, to be kept in the training state and in checkpoints.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from pcjax import _checks
from pcjax.losses.perception import _axis_size


class Queue(NamedTuple):
    """The latest points, in a ring: first in, first out.

    Attributes:
      points: an array (capacity, ...), or any tree of them: a pair (student's, teacher's) for what has to stay aligned.
      filled: how many of the places have been written.
      position: the place that is written next, which holds the oldest point once all are filled.
    """

    points: PyTree[Array]
    filled: Int[Array, ""]
    position: Int[Array, ""]


def empty_queue(capacity: int, features: int | Sequence[int], dtype: Any = jnp.float32) -> Queue:
    """A queue with nothing in it.

    Args:
      capacity: how many points it holds.
      features: of a point; several numbers make a queue of aligned arrays, `(ds, dt)` one of pairs.
      dtype: of the points.

    Returns:
      The queue; its points are zeros, none of which is `valid`.

    >>> from pcjax.losses import empty_queue
    >>> [points.shape for points in empty_queue(4096, (64, 2048)).points]
    [(4096, 64), (4096, 2048)]
    """
    _checks.require_whole("capacity", capacity, 1)
    several = isinstance(features, Sequence) and not isinstance(features, str)
    widths = list(features) if isinstance(features, Sequence) and several else [features]
    _checks.require(
        len(widths) > 0, f"got features {features!r}: expected at least one number of features"
    )
    for width in widths:
        _checks.require_whole("features", width, 1)
    points = tuple(jnp.zeros((capacity, width), dtype) for width in widths)
    return Queue(
        points if several else points[0], jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    )


def valid(queue: Queue) -> Bool[Array, "capacity"]:
    """Which of a queue's places hold a point.

    Args:
      queue: the queue.

    Returns:
      (capacity,), True for what has been written.

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
    """The queue with a batch put in, in order, over what was oldest.

    What is stored is the batch, bit for bit if it has the queue's dtype, without gradient. Of a batch larger than the
    queue its last points stay.

    Args:
      queue: the queue.
      batch: (n, ...) points, a tree like the queue's own.
      where: (n,), True for the examples to be put in.
      axis_name: mapped axis (or axes) over which the batch is split: every device puts in what all of them have, in the
        order of the devices, so that their queues stay the same.

    Returns:
      The new queue. The old one is untouched, unless its memory is donated to a jitted step.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.empty_queue(3, 1)
    >>> for first in (1.0, 3.0):
    ...     queue = pcjax.losses.enqueue(queue, jnp.array([[first], [first + 1]]))
    >>> print(queue.points[:, 0], queue.filled, queue.position)
    [4. 2. 3.] 3 1
    """
    places, n = _check_batch(queue, batch)
    _axis_size(axis_name)
    if where is not None:
        _checks.require_mask(where)
        _checks.require(
            np.shape(where) == (n,),
            f"got where of shape {np.shape(where)} for {n} examples: expected ({n},)",
        )
    mask = jnp.ones(n, bool) if where is None else jnp.asarray(where)
    batch = jax.tree.map(
        lambda x, points: lax.stop_gradient(jnp.asarray(x, points.dtype)), batch, queue.points
    )
    if axis_name is not None:
        batch, mask = gather_same((batch, mask), axis_name)
    order = jnp.cumsum(mask, dtype=jnp.int32)
    total = order[-1] if mask.shape[0] else jnp.zeros((), jnp.int32)
    # Places that are written twice would hold either: of what would be overwritten at once nothing is written.
    kept = mask & (total - order < places)
    slots = jnp.where(kept, (queue.position + order - 1) % places, places)
    points = jax.tree.map(
        lambda points, x: points.at[slots].set(x, mode="drop"), queue.points, batch
    )
    return Queue(
        points, jnp.minimum(queue.filled + total, places), (queue.position + total) % places
    )


def gather_same(x: PyTree[Array], axis_name: str | tuple[str, ...]) -> PyTree[Array]:
    """All devices' rows, on every device: what is made of them alone is the same everywhere, and known to be."""
    return lax.all_gather(x, axis_name, axis=0, tiled=True, to="invarying")


def _check_batch(queue: Any, batch: Any) -> tuple[int, int]:
    """Refuses a batch that is no batch of the queue's points; the numbers of places and of examples."""
    _checks.require(
        isinstance(queue, Queue),
        f"got queue {type(queue).__name__}: expected one made by empty_queue",
    )
    structures = jax.tree.structure(queue.points), jax.tree.structure(batch)
    got = f"got a batch of structure {structures[1]} for a queue of {structures[0]}"
    _checks.require(structures[0] == structures[1], f"{got}: expected the same")
    stored, given = ([np.shape(x) for x in jax.tree.leaves(tree)] for tree in (queue.points, batch))
    for points, x in zip(stored, given, strict=True):
        fits = len(x) == len(points) and x[1:] == points[1:]
        _checks.require(
            fits, f"got a batch {x} for a queue {points}: expected (examples, *{points[1:]})"
        )
    counts = sorted({x[0] for x in given})
    _checks.require(
        len(counts) == 1, f"got a batch of {counts} examples: expected as many in every array"
    )
    return stored[0][0], counts[0]
