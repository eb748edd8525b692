"""What some losses see beside the batch: a neighbour of every example, and a mixture of the two."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pcjax.data.batches import NEIGHBOUR
from pcjax.models import Output

LOOKED_AT = 2**24  # similarities at a time
NEAREST = 5  # neighbours, one of which is drawn in every step


class Beside(NamedTuple):
    """What the models say of each example's neighbour, and the student of the mixture."""

    neighbours: Output
    teacher_neighbours: Output
    mixtures: Output
    share: Float[Array, "n"]  # of the example in its mixture


def nearest(features: np.ndarray, k: int = NEAREST) -> Int[np.ndarray, "n k"]:
    """The places of the k examples most similar to each, by the cosine of their features; itself is none of them."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    directions = (features / np.where(length > 0, length, 1)).astype(np.float32)
    k, found = min(k, len(features) - 1), []
    rows = max(1, LOOKED_AT // len(features))
    for first in range(0, len(features), rows):
        similarity = directions[first : first + rows] @ directions.T
        own = np.arange(len(similarity))
        similarity[own, first + own] = -np.inf
        found.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
    return np.concatenate(found).astype(np.int32)


def look(
    student: Callable[[Array], Output],
    teacher: Callable[[Mapping[str, Array]], Output],
    batch: Mapping[str, Array],
    key: Array,
) -> Beside:
    """Shows both models the neighbours that came with a batch, and the student the mixtures, in one go."""
    near = {
        name.removeprefix(NEIGHBOUR): x for name, x in batch.items() if name.startswith(NEIGHBOUR)
    }
    mixtures, share = mixed(key, batch["image"], near["image"], batch["index"])
    n, both = len(mixtures), student(jnp.concatenate([near["image"], mixtures]))
    first, second = (
        jax.tree.map(lambda x, part=part: x[part], both) for part in (slice(n), slice(n, None))
    )
    return Beside(first, jax.lax.stop_gradient(teacher(near)), second, share)


def mixed(
    key: Array, images: Float[Array, "n ..."], others: Float[Array, "n ..."], index: Int[Array, "n"]
) -> tuple[Float[Array, "n ..."], Float[Array, "n"]]:
    """Images with a box of the others' in them (CutMix), or weighted means of what has no height and width (mixup).

    The box of an example follows from the key and its index alone, not from what else is in the batch. Its area is
    drawn evenly from 0 to 1; a part of it may lie outside the image.

    Returns:
      The mixtures, and how much of each is of the image.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    if images.ndim != 4:
        share = draws[:, 0]
        weights = share.reshape(-1, *(1,) * (images.ndim - 1))
        return weights * images + (1 - weights) * others, share
    side = jnp.sqrt(draws[:, 0])

    def inside(size: int, centre: Any) -> Any:
        return jnp.abs(jnp.arange(size) + 0.5 - centre[:, None] * size) < side[:, None] * size / 2

    height, width = images.shape[1:3]
    box = inside(height, draws[:, 1])[:, :, None] & inside(width, draws[:, 2])[:, None, :]
    return jnp.where(box[..., None], others, images), 1 - jnp.mean(box, axis=(1, 2))
