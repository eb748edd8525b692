"""A neighbour of every example, and a mixture of the two, for the losses that use them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pcjax.data.batches import NEIGHBOUR
from pcjax.models import Output

MAX_SIMILARITIES = 2**24  # in memory at a time
NEAREST = 5  # neighbours, one of which is drawn in every step


class NeighbourViews(NamedTuple):
    """The models' outputs for each example's neighbour, and the student's for the mixture."""

    neighbours: Output
    teacher_neighbours: Output
    mixtures: Output
    share: Float[Array, "n"]  # of the example in its mixture


def nearest_neighbours(features: np.ndarray, k: int = NEAREST) -> Int[np.ndarray, "n k"]:
    """Find the indices of the k other examples most similar to each, by cosine."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    directions = (features / np.where(length > 0, length, 1)).astype(np.float32)
    k, blocks = min(k, len(features) - 1), []
    rows = max(1, MAX_SIMILARITIES // len(features))
    for first in range(0, len(features), rows):
        similarity = directions[first : first + rows] @ directions.T
        own = np.arange(len(similarity))
        similarity[own, first + own] = -np.inf
        blocks.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
    return np.concatenate(blocks).astype(np.int32)


def embed_views(
    student: Callable[[Array], Output],
    teacher: Callable[[Mapping[str, Array]], Output],
    batch: Mapping[str, Array],
    key: Array,
) -> NeighbourViews:
    """Compute the outputs for the neighbours that came with a batch, and for the mixtures."""
    near = {n.removeprefix(NEIGHBOUR): x for n, x in batch.items() if n.startswith(NEIGHBOUR)}
    mixtures, share = cutmix(key, batch["image"], near["image"], batch["index"])
    n = len(mixtures)
    both = student(jnp.concatenate([near["image"], mixtures]))
    first = jax.tree.map(lambda x: x[:n], both)
    second = jax.tree.map(lambda x: x[n:], both)
    return NeighbourViews(first, jax.lax.stop_gradient(teacher(near)), second, share)


def cutmix(key: Array, images: Any, others: Any, index: Any) -> tuple[Array, Array]:
    """Put a box of other images into images (CutMix); examples of other shapes are averaged.

    The box follows from the key and the example's index alone. Its area is uniform from 0 to 1;
    a part of it may lie outside the image.

    Args:
      key: a random key.
      images: (n, height, width, channels), or (n, ...) to average.
      others: the images to mix in, in the same shape.
      index: (n,) the examples' indices.

    Returns:
      The mixtures, and the share of the image in each, (n,).
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    if images.ndim != 4:
        share = draws[:, 0]
        weights = share.reshape(-1, *(1,) * (images.ndim - 1))
        return weights * images + (1 - weights) * others, share
    side = jnp.sqrt(draws[:, 0])

    def inside(size: int, centre: Array) -> Array:
        positions = jnp.arange(size) + 0.5
        return jnp.abs(positions - centre[:, None] * size) < side[:, None] * size / 2

    height, width = images.shape[1:3]
    box = inside(height, draws[:, 1])[:, :, None] & inside(width, draws[:, 2])[:, None, :]
    return jnp.where(box[..., None], others, images), 1 - jnp.mean(box, axis=(1, 2))
