"""Corrupt images, as a camera or the weather may, by name and severity."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Shaped

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data.examples import Examples, Store
from pcjax.data.fitted import resized
from pcjax.data.normalise import full_scale

SEVERITIES = (1, 2, 3)
RANGE_SAMPLE = 1000  # examples that give the range of images that are not uint8

Image = Float32[np.ndarray, "h w c"]


def corrupted(
    images: Shaped[np.ndarray, "n h w c"], name: str, severity: int, *, seeds: np.ndarray
) -> np.ndarray:
    """Corrupt images from 0 to 1, and clip them to 0 to 1 again.

    Args:
      images: (n, height, width, channels), from 0 to 1.
      name: one of `CORRUPTIONS`.
      severity: 1, 2 or 3; 0 leaves the images unchanged.
      seeds: (n,) integers of at least 0. An image's random numbers depend only on its own seed and
        the name.

    Returns:
      (n, height, width, channels), float32.

    >>> corrupted(np.full((1, 1, 1, 1), 0.5), "brightness", 2, seeds=np.arange(1)).round(2).item()
    0.800000011920929
    """
    _checks.require_name("corruption", name, CORRUPTIONS)
    _checks.require_whole("severity", severity, 0, SEVERITIES[-1])
    images = images.astype(np.float32)
    if severity == 0:
        return images
    corrupt, strengths = CORRUPTIONS[name]
    stream = list(CORRUPTIONS).index(name)
    drawn = [np.random.default_rng([int(seed), stream]) for seed in seeds]
    changed = [
        corrupt(image, strengths[severity - 1], rng)
        for image, rng in zip(images, drawn, strict=True)
    ]
    return np.clip(np.stack(changed), 0, 1).astype(np.float32)


def corrupted_examples(examples: Examples, name: str, severity: int, train: Examples) -> Examples:
    """Return examples that are corrupted whenever they are read.

    Images that are not uint8 are brought from the training images' range to 0 to 1 and back.
    """
    low, high = 0.0, full_scale(train)
    if train.dtype != np.uint8:
        rows = np.linspace(0, len(train) - 1, min(len(train), RANGE_SAMPLE)).astype(np.int64)
        sample = train.take(rows)
        low, high = float(sample.min()), float(sample.max())
        if high <= low:
            raise RequestError(
                f"got training images that are all {low}: a corruption needs a range; give others"
            )
    return dataclasses.replace(
        examples, store=_Corrupted(examples.store, name, severity, low, high)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Corrupted:
    """Corrupted examples of another store, as float32, on the scale of their normalisation."""

    store: Store
    name: str
    severity: int
    low: float
    high: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.store.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    @property
    def fingerprint(self) -> str:
        return f"{self.store.fingerprint} {self.name} {self.severity}"

    def __len__(self) -> int:
        return len(self.store)

    def labels(self) -> np.ndarray | None:
        return self.store.labels()

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        stored, labels = self.store.read(rows)
        extent = self.high - self.low
        images = corrupted(
            (stored.astype(np.float32) - self.low) / extent, self.name, self.severity, seeds=rows
        )
        # Normalisation was made for uint8 as 0 to 1, and for floats as stored.
        return images if self.store.dtype == np.uint8 else images * extent + self.low, labels


def _gaussian_noise(image: Image, deviation: float, random: np.random.Generator) -> np.ndarray:
    return image + deviation * random.standard_normal(image.shape, np.float32)


def _salt_and_pepper(image: Image, share: float, random: np.random.Generator) -> np.ndarray:
    """Make a share of the pixels black or white."""
    drawn = random.random((*image.shape[:2], 1), np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn > 1 - share / 2, 1, image))


def _contrast(image: Image, kept: float, random: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return mean + kept * (image - mean)


def _brightness(image: Image, added: float, random: np.random.Generator) -> np.ndarray:
    return image + added


def _box_blur(image: Image, share: float, random: np.random.Generator) -> np.ndarray:
    """Average over boxes that exceed a pixel by a share of the side."""
    for axis in (0, 1):
        side = image.shape[axis]
        reach = (1 + share * side) / 2
        positions = np.arange(side)
        overlap = np.clip(reach + 0.5 - np.abs(positions[:, None] - positions), 0, 1)
        overlap /= overlap.sum(axis=1, keepdims=True)
        image = np.moveaxis(np.tensordot(overlap.astype(np.float32), image, (1, axis)), 0, axis)
    return image


def _pixelate(image: Image, share: float, random: np.random.Generator) -> np.ndarray:
    """Keep a share of the rows and columns, each as large as several were."""
    height, width = image.shape[:2]
    rows, columns = (max(1, round(share * side)) for side in (height, width))
    few = resized(image[None], rows, columns)[0]
    return few[np.arange(height) * rows // height][:, np.arange(width) * columns // width]


Corrupt = Callable[[Image, float, np.random.Generator], np.ndarray]
# Functions, and their strength at each severity.
CORRUPTIONS: dict[str, tuple[Corrupt, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.1, 0.2, 0.4)),
    "salt_and_pepper": (_salt_and_pepper, (0.03, 0.1, 0.25)),
    "contrast": (_contrast, (0.5, 0.25, 0.1)),
    "brightness": (_brightness, (0.15, 0.3, 0.5)),
    "box_blur": (_box_blur, (1 / 16, 1 / 8, 1 / 4)),
    "pixelate": (_pixelate, (0.6, 0.4, 0.25)),
}
