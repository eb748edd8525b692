"""Training examples that live on the devices, and the batches that a device makes of them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Shaped

from pcjax.data import Examples
from pcjax.data.batches import NEIGHBOUR, Column
from pcjax.data.examples import Arrays
from pcjax.data.normalise import Normaliser
from pcjax.data.tokens import Tokens

CPU_BYTES = 2**30  # for all devices of a CPU together
SHARE = 1 / 8  # of an accelerator's memory


class Resident(NamedTuple):
    """All that batches are made of, as arrays on every device.

    images: (n, ...) as they are stored.
    labels: (n,) int32, -1 for none.
    columns: (views, n, ...) each; one view where a column has no others.
    shift, factor: of the normalisation; None for tokens, which are names.
    """

    images: Any
    labels: Any
    columns: Mapping[str, Any]
    shift: Any
    factor: Any


def resident_examples(
    examples: Examples, normalise: Any, columns: Mapping[str, Column]
) -> Resident | None:
    """Return examples and columns for the devices' memory; None where they do not fit there.

    Examples that are decoded from files whenever they are read stay where they are.
    """
    if not isinstance(examples.store, (Arrays, Tokens)):
        return None
    views = {name: x if isinstance(x, tuple) else (x,) for name, x in columns.items()}
    size = len(examples) * math.prod(examples.shape) * examples.dtype.itemsize
    size += sum(rows.nbytes for arrays in views.values() for rows in arrays)
    if size > resident_limit():
        return None
    normaliser = Normaliser(examples, normalise)
    images, labels = examples.take_labelled(np.arange(len(examples)))
    tokens = normaliser.tokens
    return Resident(
        images.astype(np.float32) if images.dtype == np.float64 else images,
        np.full(len(examples), -1, np.int32) if labels is None else labels.astype(np.int32),
        {name: np.stack(arrays) for name, arrays in views.items()},
        None if tokens else normaliser.shift,
        None if tokens else normaliser.factor,
    )


def resident_limit() -> float:
    """Return how many bytes of examples each device may hold."""
    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    if device.platform == "cpu" or memory is None:
        return CPU_BYTES / jax.local_device_count()
    return SHARE * memory


def batch_of(data: Resident, draw: Mapping[str, Array], padding: int) -> dict[str, Array]:
    """Make the batch that `pcjax.data.TrainingBatches` makes of the same draw.

    Args:
      data: the examples.
      draw: the arrays of a `pcjax.data.batches.Draw`.
      padding: rows and columns of zeros around an image that is shifted.
    """

    def rows(index: Array, prefix: str) -> dict[str, Array]:
        images = data.images[index]
        if f"{prefix}offsets" in draw:
            images = shifted(images, draw[f"{prefix}offsets"], padding)
        if f"{prefix}flipped" in draw:
            images = jnp.where(
                jnp.expand_dims(draw[f"{prefix}flipped"], (1, 2, 3)), images[:, :, ::-1], images
            )
        if data.shift is not None:
            images = (images.astype(jnp.float32) - data.shift) * data.factor
        chosen = {name: x[draw["epoch"] % len(x), index] for name, x in data.columns.items()}
        return {f"{prefix}{name}": x for name, x in (chosen | {"image": images}).items()}

    index = draw["index"]
    batch = rows(index, "") | {
        "label": data.labels[index],
        "index": index,
        "mask": jnp.ones(len(index), bool),
    }
    return batch | (rows(draw["near"], NEIGHBOUR) if "near" in draw else {})


def shifted(
    images: Shaped[Array, "n h w c"], offsets: Int[Array, "n 2"], padding: int
) -> Shaped[Array, "n h w c"]:
    """Cut windows of the images' own size, as `pcjax.data.random_crop` does."""
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    zero = jnp.zeros((), offsets.dtype)

    def window(image: Array, offset: Array) -> Array:
        return lax.dynamic_slice(image, (*offset, zero), images.shape[1:])

    return jax.vmap(window)(jnp.pad(images, border), offsets)
