"""Random changes to images: drawn anew in every step, or a few fixed views of every example."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data.examples import Examples, hashed, keys_of

VIEWS_SEED = 0  # of no training: trainings of all seeds share the views, and a teacher's features


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random.

    crop: images are shifted by up to so many pixels each way, with zeros (before normalisation) at
      the border.
    flip: exchange left and right in half of the images.
    views: 0 draws the changes anew in every step. Otherwise every example has so many fixed views,
      and epoch e shows view e mod views.
    """

    crop: int = 0
    flip: bool = False
    views: int = 0

    def __post_init__(self):
        _checks.require_whole("crop", self.crop, 0)
        _checks.require_whole("views", self.views, 0)
        if not isinstance(self.flip, (bool, np.bool_)):
            raise RequestError(f"got flip {self.flip!r}: expected True or False")

    def draw(self, random: np.random.Generator, count: int) -> "Changes":
        """Draw the changes of some images."""
        offsets = flipped = None
        if self.crop:
            offsets = random.integers(0, 2 * self.crop + 1, size=(count, 2))
        if self.flip:
            flipped = random.random(count) < 0.5
        return Changes(self.crop, offsets, flipped)


class Changes(NamedTuple):
    """The changes of some images.

    padding: rows and columns of zeros on each side.
    offsets: (n, 2) where in the padded images the windows begin; None: images are not shifted.
    flipped: (n,) which images are mirrored; None: none.
    """

    padding: int
    offsets: np.ndarray | None
    flipped: np.ndarray | None

    def of(self, positions: np.ndarray | slice) -> "Changes":
        """Return the changes of the images at these positions."""
        offsets, flipped = (None if x is None else x[positions] for x in self[1:])
        return Changes(self.padding, offsets, flipped)

    def apply(self, images: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        """Change images; without changes return the examples, whatever they are."""
        if self.offsets is not None:
            images = random_crop(images, self.offsets, padding=self.padding)
        return images if self.flipped is None else horizontal_flip(images, self.flipped)


@functools.lru_cache(maxsize=4)
def view_changes(augmentation: Augmentation, view: int, count: int) -> Changes:
    """Return the changes that make a view of all of `count` examples."""
    random = np.random.default_rng(np.random.SeedSequence(VIEWS_SEED, spawn_key=(view,)))
    return augmentation.draw(random, count)


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """A view of examples, as a store."""

    examples: Examples
    augmentation: Augmentation
    view: int
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.examples.shape

    @property
    def dtype(self) -> np.dtype:
        return self.examples.dtype

    @property
    def fingerprint(self) -> str:
        crop, flip = self.augmentation.crop, self.augmentation.flip
        changes = f"crop {crop} flip {flip} view {self.view} scale {self.scale}"
        return f"{self.examples.fingerprint} {changes}"

    def __len__(self) -> int:
        return len(self.examples)

    def labels(self) -> np.ndarray | None:
        return self.examples.labels

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash each of these images and its change; one without a change keeps its own key."""
        keys = keys_of(self.examples.store, self.examples.rows[rows])
        padding, offsets, flipped = view_changes(self.augmentation, self.view, len(self)).of(rows)
        moved = np.zeros((len(rows), 2)) if offsets is None else offsets - padding
        turned = np.zeros(len(rows)) if flipped is None else flipped
        change = np.column_stack([moved, turned]).astype(int)
        keys[change.any(axis=1)] = hashed(
            (keys[row], f"{self.scale} {change[row]}".encode())
            for row in np.flatnonzero(change.any(axis=1))
        )
        return keys

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        images, labels = self.examples.take_labelled(rows)
        changes = view_changes(self.augmentation, self.view, len(self)).of(rows)
        if changes.offsets is not None and self.scale != 1:
            padding = math.ceil(changes.padding * self.scale)
            moved = np.rint((changes.offsets - changes.padding) * self.scale).astype(np.int64)
            changes = changes._replace(padding=padding, offsets=padding + moved)
        return changes.apply(images), labels


def view_of(
    examples: Examples, augmentation: Augmentation, view: int, scale: float = 1.0
) -> Examples:
    """Return a view of examples, with the very changes that training batches make.

    Args:
      examples: all training examples.
      augmentation: with views.
      view: its number, from 0.
      scale: the side of these images by that of the training's; shifts are so much longer.
    """
    store = _View(examples, augmentation, view, scale)
    return Examples(store, np.arange(len(examples)), examples.classes)


def random_crop(
    images: Shaped[np.ndarray, "n h w c"], offsets: Int[np.ndarray, "n 2"], *, padding: int
) -> Shaped[np.ndarray, "n h w c"]:
    """Cut a window of the image's own size out of every image with zeros around it.

    y[i, a, b] = x[i, a + offsets[i, 0] - padding, b + offsets[i, 1] - padding], which is 0 outside
    the image.

    Args:
      images: (n, height, width, channels).
      offsets: (n, 2), from 0 to 2 padding: where each window begins; `padding` leaves an image
        unchanged.
      padding: rows and columns of zeros on each side.

    Returns:
      The windows, in new memory.

    >>> images = np.arange(1, 5).reshape(1, 2, 2, 1)
    >>> random_crop(images, np.array([[2, 1]]), padding=1)[0, :, :, 0]
    array([[3, 4],
           [0, 0]])
    """
    n, height, width, channels = images.shape
    padded = np.zeros((n, height + 2 * padding, width + 2 * padding, channels), images.dtype)
    padded[:, padding : padding + height, padding : padding + width] = images
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (height, width, channels), axis=(1, 2, 3)
    )
    return windows[np.arange(n), offsets[:, 0], offsets[:, 1], 0]


def horizontal_flip(
    images: Shaped[np.ndarray, "n h w c"], flipped: Bool[np.ndarray, " n"]
) -> Shaped[np.ndarray, "n h w c"]:
    """Exchange left and right in some of the images.

    Args:
      images: (n, height, width, channels).
      flipped: (n,), True for the images to flip.

    Returns:
      The images, in new memory.

    >>> horizontal_flip(np.arange(4).reshape(2, 1, 2, 1), np.array([True, False]))[..., 0]
    array([[[1, 0]],
           [[2, 3]]])
    """
    result = images.copy()
    result[flipped] = images[flipped, :, ::-1]
    return result
