"""The scale of the images: what it is, and bringing it to mean 0 and deviation 1."""

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from pcjax import _checks
from pcjax.data.examples import Examples

SEEN = 50_000  # examples; the statistics of more are those of an even sample
AT_ONCE = 2**24  # numbers


def statistics(examples: Examples) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """The mean and standard deviation of every channel.

    mean_c and std_c are taken over all examples, rows and columns, after uint8 has been divided by 255. Without
    rows and columns, every feature is a channel. A channel that is constant has the deviation 1. Of
    more than 50,000 examples, an even sample is looked at: the same every time.

    Args:
      examples: those for training.

    Returns:
      (mean, std), each (channels,).

    >>> import pcjax.data
    >>> mean, std = pcjax.data.statistics(pcjax.data.load("digits").train)
    >>> mean.round(2), std.round(2)
    (array([0.31]), array([0.38]))
    """
    _checks.require(len(examples) > 0, "got no examples: statistics need at least one")
    n = len(examples)
    indices = np.arange(n) if n <= SEEN else np.linspace(0, n - 1, SEEN).astype(np.int64)
    step = max(1, AT_ONCE // int(np.prod(examples.shape)))
    count, mean, squares = 0, np.zeros(examples.shape[-1]), np.zeros(examples.shape[-1])
    for start in range(0, len(indices), step):
        x = (
            examples.take(indices[start : start + step])
            .astype(np.float64)
            .reshape(-1, examples.shape[-1])
        )
        # Chan's merging of means and sums of squared deviations: sums of squares alone cancel where the mean is large.
        added, centre = len(x), x.mean(axis=0)
        delta = centre - mean
        squares += ((x - centre) ** 2).sum(axis=0) + delta**2 * count * added / (count + added)
        count += added
        mean = mean + delta * added / count
    std = np.sqrt(squares / count)
    scale = full_scale(examples)
    # Of a constant such as 0.1 rounding leaves a deviation of some 1e-16; and float32 must hold what divides.
    moves = std > np.maximum(1e-12 * np.abs(mean), np.finfo(np.float32).tiny)
    return mean / scale, np.where(moves, std, scale) / scale


def full_scale(examples: Examples) -> float:
    """What 1.0 is in the numbers that are stored."""
    return 255.0 if examples.dtype == np.uint8 else 1.0


class Normaliser:
    """Stored examples to float32: x / scale, and then (x - mean) / std."""

    def __init__(self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray] | None):
        channels = examples.shape[-1]
        mean, std = (
            (np.zeros(channels), np.ones(channels))
            if normalise is None
            else _checked(normalise, channels)
        )
        self.mean, self.std = mean, std
        scale = full_scale(examples)
        # As large as an example: NumPy then runs along all of it, not along its channels of one or three.
        self.shift = np.broadcast_to(mean * scale, examples.shape).astype(np.float32)
        self.factor = np.broadcast_to(1 / (std * scale), examples.shape).astype(np.float32)

    def __call__(self, images: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n ..."]:
        """In new memory, row after row."""
        result = images.astype(np.float32, order="C")
        result -= self.shift
        result *= self.factor
        return result


def _checked(
    normalise: tuple[np.ndarray, np.ndarray], channels: int
) -> tuple[np.ndarray, np.ndarray]:
    pair = isinstance(normalise, (tuple, list)) and len(normalise) == 2
    _checks.require(
        pair,
        f"got normalise {type(normalise).__name__}: expected (mean, std), as statistics gives, or None",
    )
    mean, std = (np.asarray(given, np.float64) for given in normalise)
    shapes = f"got a mean of shape {mean.shape} and a std of shape {std.shape}"
    fits = mean.shape in ((), (channels,)) and std.shape in ((), (channels,))
    _checks.require(fits, f"{shapes}: expected a number or ({channels},), one for each channel")
    proper = bool(np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all())
    _checks.require(
        proper, f"got mean {mean} and std {std}: expected finite numbers, and a std above 0"
    )
    return np.broadcast_to(mean, channels), np.broadcast_to(std, channels)
