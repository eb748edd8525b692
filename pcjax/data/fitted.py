"""Images of one data set brought to the size and the channels of another's."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Shaped

from pcjax import _checks
from pcjax.data.examples import Dataset, Examples, Store

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)


def fitted(data: Dataset, shape: tuple[int, ...]) -> Dataset:
    """The same examples in another shape: resized, and grey turned to colour or colour to grey.

    A side is resized by linear interpolation, over wider triangles where it shrinks, and height and width
    independently. Grey is repeated in three channels; of red, green and blue the luminance is taken.

    Args:
      data: the data set; its values stay on their scale.
      shape: what an example is to have, (height, width, channels), or (features,), which must be what it has.

    Returns:
      The data set, the images changed whenever they are read; itself if they have that shape.
    """
    there = data.train.shape
    if there == shape:
        return data
    got = f"got examples of shape {there} from {data.source!r} for a model of examples of shape {shape}"
    images = len(there) == len(shape) == 3
    _checks.require(images, f"{got}: expected them alike, only images can be resized")
    matched = there[2] == shape[2] or {there[2], shape[2]} == {1, 3}
    _checks.require(
        matched, f"{got}: expected as many channels, or 1 for 3, or 3 for 1; convert the images"
    )

    def fit(examples: Examples) -> Examples:
        return dataclasses.replace(examples, store=_Fitted(examples.store, shape))

    unseen = None if data.unseen is None else fit(data.unseen)
    return Dataset(data.source, fit(data.train), fit(data.validation), fit(data.test), unseen)


def resized(
    images: Float32[np.ndarray, "n h w c"], height: int, width: int
) -> Float32[np.ndarray, "n a b c"]:
    """Linear interpolation; over a triangle as wide as two new pixels where a side shrinks.

    >>> resized(np.array([[[[0.0], [1.0]]]], np.float32), 1, 4)[0, 0, :, 0]
    array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    if images.shape[1] != height:
        images = np.einsum(
            "ah,nhwc->nawc", _weights(images.shape[1], height), images, optimize=True
        )
    if images.shape[2] != width:
        images = np.einsum("bw,nhwc->nhbc", _weights(images.shape[2], width), images, optimize=True)
    return images


def _weights(before: int, after: int) -> Float32[np.ndarray, "after before"]:
    """How much of every old pixel is in every new one."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(before)) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fitted:
    """Examples of another store in this shape."""

    store: Store
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype

    @property
    def fingerprint(self) -> str:
        return f"{self.store.fingerprint} {self.shape}"

    def __len__(self) -> int:
        return len(self.store)

    def labels(self) -> np.ndarray | None:
        return self.store.labels()

    def read(self, rows: np.ndarray) -> tuple[Shaped[np.ndarray, "..."], np.ndarray | None]:
        stored, labels = self.store.read(rows)
        height, width, channels = self.shape
        images = stored.astype(np.float32)
        if images.shape[3] > channels:
            images = images @ LUMINANCE[:, None]
        images = resized(images, height, width)
        if channels > images.shape[3]:
            images = np.repeat(images, channels, axis=3)
        whole = np.rint(images) if self.dtype == np.uint8 else images
        return whole.astype(self.dtype), labels
