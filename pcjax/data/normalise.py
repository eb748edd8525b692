"""Bring images to mean 0 and standard deviation 1."""

import numpy as np
from jaxtyping import Float64, Shaped

from pcjax._checks import RequestError
from pcjax.data.examples import Examples

MAX_SAMPLE = 50_000  # examples
BLOCK = 2**24  # numbers


def statistics(examples: Examples) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Compute the mean and standard deviation of every channel.

    They are over all examples, rows and columns, with uint8 divided by 255. Without rows and
    columns, every feature is a channel. A constant channel has the standard deviation 1. Of more
    than 50,000 examples, an even sample is read, the same every time.

    Args:
      examples: the training examples.

    Returns:
      (mean, std), each (channels,).

    >>> import pcjax.data
    >>> mean, std = pcjax.data.statistics(pcjax.data.load("digits").train)
    >>> mean.round(2), std.round(2)
    (array([0.31]), array([0.38]))
    """
    if not len(examples):
        raise RequestError("got no examples: statistics need at least one")
    if examples.dtype.kind == "i":  # tokens are names, not amounts
        return np.zeros(1), np.ones(1)
    n = len(examples)
    indices = (
        np.arange(n) if n <= MAX_SAMPLE else np.linspace(0, n - 1, MAX_SAMPLE).astype(np.int64)
    )
    step = max(1, BLOCK // int(np.prod(examples.shape)))
    count, mean, squares = 0, np.zeros(examples.shape[-1]), np.zeros(examples.shape[-1])
    for start in range(0, len(indices), step):
        x = (
            examples.take(indices[start : start + step])
            .astype(np.float64)
            .reshape(-1, examples.shape[-1])
        )
        # Chan's merging: sums of squares alone would cancel where the mean is large.
        added, centre = len(x), x.mean(axis=0)
        delta = centre - mean
        squares += ((x - centre) ** 2).sum(axis=0) + delta**2 * count * added / (count + added)
        count += added
        mean = mean + delta * added / count
    std = np.sqrt(squares / count)
    scale = full_scale(examples)
    # Rounding leaves a constant such as 0.1 a deviation of 1e-16, and float32 must hold divisors.
    moves = std > np.maximum(1e-12 * np.abs(mean), np.finfo(np.float32).tiny)
    return mean / scale, np.where(moves, std, scale) / scale


def full_scale(examples: Examples) -> float:
    """Return the stored number that stands for 1.0."""
    return 255.0 if examples.dtype == np.uint8 else 1.0


class Normaliser:
    """Convert stored examples to float32: x / scale, and then (x - mean) / std.

    Tokens of texts stay as they are.
    """

    def __init__(self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray] | None):
        self.tokens = examples.dtype.kind == "i"
        channels = 1 if self.tokens else examples.shape[-1]
        mean, std = (
            (np.zeros(channels), np.ones(channels))
            if normalise is None
            else _checked(normalise, channels)
        )
        self.mean, self.std = mean, std
        scale = full_scale(examples)
        self.shift = np.broadcast_to(mean * scale, examples.shape).astype(np.float32)
        self.factor = np.broadcast_to(1 / (std * scale), examples.shape).astype(np.float32)

    def __call__(self, images: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
        """Normalise into new memory, in C order."""
        if self.tokens:
            return images
        # Over rows of an image: NumPy's inner loop is long, and both operands stay in the cache.
        size = int(np.prod(images.shape[-2:])) if images.ndim > 2 else images.shape[-1]
        rows = images.reshape(-1, size)
        result = np.subtract(rows, self.shift.ravel()[:size], dtype=np.float32, order="C")
        result *= self.factor.ravel()[:size]
        return result.reshape(images.shape)


def _checked(
    normalise: tuple[np.ndarray, np.ndarray], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    if not (isinstance(normalise, (tuple, list)) and len(normalise) == 2):
        raise RequestError(
            f"got normalise {type(normalise).__name__}: expected (mean, std), as statistics "
            "returns, or None"
        )
    mean, std = (np.asarray(numbers, np.float64) for numbers in normalise)
    if not {mean.shape, std.shape} <= {(), (channels,)}:
        raise RequestError(
            f"got a mean of shape {mean.shape} and a std of shape {std.shape}: expected a number "
            f"or ({channels},), one for each channel"
        )
    if not bool(np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise RequestError(
            f"got mean {mean} and std {std}: expected finite numbers, and a std above 0"
        )
    return np.broadcast_to(mean, channels), np.broadcast_to(std, channels)
