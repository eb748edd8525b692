"""Bring images to another size and to other channels."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from pcjax._checks import RequestError
from pcjax.data.examples import Dataset, Examples, Store, blocks, hashed, keys_of

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)


def fitted(data: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Resize a data set's images, and turn grey to colour or colour to grey.

    Sides are resized by linear interpolation, height and width independently; where a side shrinks,
    over wider triangles. Grey is repeated in three channels; red, green and blue become luminance.

    Args:
      data: the data set; its values stay on their scale.
      shape: the new shape of an example, (height, width, channels). Features, (features,), cannot
        be changed.

    Returns:
      The data set, whose images are changed whenever they are read; `data` if it has that shape.
    """
    stored = data.train.shape
    if stored == shape:
        return data
    cause = f"got examples of shape {stored} from {data.source!r} for a model of shape {shape}"
    if not len(stored) == len(shape) == 3:
        raise RequestError(f"{cause}: expected them alike, only images can be resized")
    if stored[2] != shape[2] and {stored[2], shape[2]} != {1, 3}:
        raise RequestError(
            f"{cause}: expected as many channels, or 1 for 3, or 3 for 1; convert the images"
        )

    def fit(examples: Examples) -> Examples:
        return dataclasses.replace(examples, store=Fitted(examples.store, shape))

    unseen = None if data.unseen is None else fit(data.unseen)
    return Dataset(data.source, fit(data.train), fit(data.validation), fit(data.test), unseen)


def sized(data: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Bring images to another shape as `fitted` does, from their originals where these are kept.

    Images from files are decoded again at the new size. They keep details that are lost at the size
    of `data`, so a teacher may have a larger input than the student.

    Args:
      data: the data set.
      shape: the new shape of an example, (height, width, channels).

    Returns:
      The data set in the new shape, with the same labels and rows; `data` if it has that shape.
    """
    if data.train.shape == shape:
        return data
    stores: dict[int, Any] = {id(part.store): part.store for part in data.parts.values()}
    original, is_square = data, len(shape) == 3 and shape[0] == shape[1]
    # All of them or none: other pixels in one part than in another would mislead an evaluation.
    if is_square and all(hasattr(store, "at_size") for store in stores.values()):
        others = {key: store.at_size(shape[0]) for key, store in stores.items()}
        parts = {
            name: dataclasses.replace(part, store=others[id(part.store)])
            for name, part in data.parts.items()
        }
        original = dataclasses.replace(data, **parts)
    return dataclasses.replace(data, **fitted(original, shape).parts)


def resized(
    images: Float32[np.ndarray, "n h w c"], height: int, width: int, *, cut: bool = False
) -> Float32[np.ndarray, "n a b c"]:
    """Interpolate linearly; over a triangle as wide as two new pixels where a side shrinks.

    `cut` keeps proportions: it resizes the largest part in the middle that has the new ones.

    >>> resized(np.array([[[[0.0], [1.0]]]], np.float32), 1, 4)[0, 0, :, 0]
    array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    scale = min(images.shape[1] / height, images.shape[2] / width)
    for axis, after in ((1, height), (2, width)):
        before = images.shape[axis]
        extent = scale * after if cut else float(before)
        if not before == after == extent:
            weights = _weights(before, after, extent)
            images = np.moveaxis(np.tensordot(weights, images, (1, axis)), 0, axis)
    return images


def _weights(before: int, after: int, extent: float) -> Float32[np.ndarray, "after before"]:
    """Return the share of every old pixel, within `extent` in the middle, in every new one."""
    scale = extent / after
    centres = (before - extent) / 2 + (np.arange(after) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(before)) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Images of another store in a new shape."""

    store: Store
    shape: tuple[int, ...]
    cut: bool = False  # the middle, in place of a change of proportions

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype."""
        return self.store.dtype

    @property
    def fingerprint(self) -> str:
        """A hash of the stored images and of the change."""
        return f"{self.store.fingerprint} {self.shape} {self.cut}"

    def __len__(self) -> int:
        return len(self.store)

    def labels(self) -> np.ndarray | None:
        """Return all labels."""
        return self.store.labels()

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash each of these images, as it is stored, and the change."""
        change = f"{self.shape} {self.cut}".encode()
        return hashed((key, change) for key in keys_of(self.store, rows))

    def read(self, rows: np.ndarray) -> tuple[Shaped[np.ndarray, "..."], np.ndarray | None]:
        """Read and change the images of these rows; read their labels."""
        images, labels = self.store.read(rows)
        result = np.empty((len(rows), *self.shape), self.dtype)
        for part in blocks(np.arange(len(rows)), images):
            result[part] = self._fit(images[part].astype(np.float32))
        return result, labels

    def _fit(self, images: Float32[np.ndarray, "n h w c"]) -> np.ndarray:
        height, width, channels = self.shape
        if images.shape[3] > channels:
            images = images @ LUMINANCE[:, None]
        images = resized(images, height, width, cut=self.cut)
        if channels > images.shape[3]:
            images = np.repeat(images, channels, axis=3)
        return np.rint(images) if self.dtype == np.uint8 else images
