"""Pairwise dissimilarities between two sets of features.

Every function maps x (n, d) and y (m, d) to an (n, m) array, in float32 whatever the features' dtype (float64 for
float64). All of them are exactly 0 for identical rows and have finite gradients everywhere; where the definition has
a kink, as at distance 0, the gradient there is 0. What is not a number stays none. Wherever pcjax asks for a
dissimilarity, it takes one of these names or any function of the same shape, whose gradients should be finite too.

All but `manhattan` go through a matrix product, after the features' mean has been subtracted: the rounding is that of
the squared distance from the mean. Beside an outlier 10^4 times as far as the rest, or in clusters as far apart as
that, float32 no longer resolves what is near; `manhattan` does.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, UInt32

from pcjax import _checks
from pcjax._checks import RequestError

Dissimilarity = Callable[[Array, Array], Array]


def euclidean(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Euclidean distance: d(x, y) = |x - y|.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) distances.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.euclidean([[0.0, 0.0]], [[3.0, 4.0], [0.0, 0.0]]))
    [[5. 0.]]
    """
    x, y = _features(x, y)
    squared, unit = _squared_distances(x, y)
    return _in_full(_sqrt(squared), unit)


def squared_euclidean(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Squared Euclidean distance: d(x, y) = |x - y|^2, saturating near the largest float.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) squared distances.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.squared_euclidean([[0.0, 0.0]], [[3.0, 4.0]]))
    [[25.]]
    """
    x, y = _features(x, y)
    squared, unit = _squared_distances(x, y)
    return _in_full(_in_full(squared, unit), unit)


def cosine(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Cosine dissimilarity: d(x, y) = 1 - x.y / (|x| |y|), between 0 and 2.

    It is computed as |x/|x| - y/|y||^2 / 2, which keeps its digits where directions nearly agree. A zero vector has no
    direction and stays at the origin: 1/2 away from every direction, 0 from another zero vector.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) dissimilarities.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.cosine([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    [[0. 1. 2.]]
    """
    x, y = _features(x, y)
    squared, unit = _squared_distances(_directions(x), _directions(y))
    return squared * (unit * unit / 2)


def angular(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Angle between two features as a fraction of a half turn: d(x, y) = arccos(x.y / (|x| |y|)) / pi.

    It orders as `cosine` does, is a metric between directions, and has no infinite slope at angle 0. For zero vectors
    see `cosine`.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) angles, between 0 and 1.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.angular([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    [[0.  0.5 1. ]]
    """
    opposite = jnp.clip(cosine(x, y) / 2, 0, 1)  # sin^2 of half the angle
    # Where a sine or cosine is 0, so is its gradient; atan2 itself is smooth, they never vanish together.
    return jnp.arctan2(_sqrt(opposite), _sqrt(1 - opposite)) * (2 / jnp.pi)


def manhattan(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Manhattan distance: d(x, y) = sum_k |x_k - y_k|.

    There is no matrix product in it: O(n m d) elementwise work, O(n m) memory.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) distances.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.manhattan([[0.0, 0.0]], [[3.0, 4.0]]))
    [[7.]]
    """
    x, y = _features(x, y)
    unit = jnp.maximum(_unit(x), _unit(y))

    # Without the checkpoint the (n, m) differences of every feature would be kept for the gradient.
    @jax.checkpoint
    def add_feature(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.abs(feature[0][:, None] - feature[1][None]), None

    nothing = jnp.zeros_like(x[:, :1]) * jnp.zeros_like(y[:, 0])
    return _in_full(lax.scan(add_feature, nothing, (x.T / unit, y.T / unit))[0], unit)


def correlation(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Correlation dissimilarity: d(x, y) = 1 - Pearson correlation of the two features' entries.

    It is the `cosine` dissimilarity of features whose own mean has been subtracted; a constant feature counts as zero.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) dissimilarities.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.correlation([[1.0, 2.0, 3.0]], [[5.0, 7.0, 9.0], [3.0, 2.0, 1.0]]).round(5))
    [[0. 2.]]
    """
    x, y = _features(x, y)
    return cosine(_deviations(x), _deviations(y))


DISSIMILARITIES: dict[str, Dissimilarity] = {
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
    "cosine": cosine,
    "angular": angular,
    "manhattan": manhattan,
    "correlation": correlation,
}


def resolve(dissimilarity: str | Dissimilarity) -> Dissimilarity:
    """The function that a name stands for; a function, with its result's shape checked, stands for itself."""
    if callable(dissimilarity):
        return _Checked(dissimilarity)
    _checks.require_name(
        "dissimilarity", dissimilarity, DISSIMILARITIES, " or a function (n, d), (m, d) -> (n, m)"
    )
    return DISSIMILARITIES[dissimilarity]


def in_columns(
    dissimilarity: Dissimilarity, x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "m n"]:
    """What `resolve` gave, of x and y, transposed; ours do not depend on which comes first."""
    return dissimilarity(x, y).T if isinstance(dissimilarity, _Checked) else dissimilarity(y, x)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A caller's dissimilarity, whose results are looked at."""

    function: Dissimilarity

    def __call__(self, x: Array, y: Array) -> Array:
        found, expected = self.function(x, y), (x.shape[0], y.shape[0])
        name = getattr(self.function, "__name__", repr(self.function))
        got = f"the dissimilarity {name} gave shape {np.shape(found)} for features {x.shape} and {y.shape}"
        if np.shape(found) != expected:
            raise RequestError(f"{got}: expected {expected}")
        _checks.require_real(f"the dissimilarity {name}'s result", found)
        return _checks.at_least_float32(found)


def _features(x: ArrayLike, y: ArrayLike) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    _checks.require_features("x", x)
    _checks.require_features("y", y)
    shapes = np.shape(x), np.shape(y)
    got = f"got x {shapes[0]} and y {shapes[1]}"
    if shapes[0][1] != shapes[1][1]:
        raise RequestError(f"{got}: expected as many features in both")
    x, y = _checks.at_least_float32(x), _checks.at_least_float32(y)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def _squared_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> tuple[Float[Array, "n m"], Float[Array, ""]]:
    """Squared distances in a unit of length that neither overflows nor underflows, and that unit, a power of two."""
    # Distances do not move with the centre, so neither does the gradient. In a loop over blocks of one of the two, it
    # is the other one's: all that concerns that alone is computed once.
    centre = lax.stop_gradient(jnp.mean(x if x.shape[0] > y.shape[0] else y, axis=0))
    x, y = x - centre, y - centre
    prints = _fingerprints(x)[:, None] == _fingerprints(y)
    # For the same reason each is in a unit of its own.
    x_unit, y_unit = _unit(x), _unit(y)
    unit = jnp.maximum(x_unit, y_unit)
    x, y, x_scale, y_scale = x / x_unit, y / y_unit, x_unit / unit, y_unit / unit
    product = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST) * (x_scale * y_scale)
    norms = (jnp.sum(x * x, axis=1) * (x_scale * x_scale))[:, None] + jnp.sum(y * y, axis=1) * (
        y_scale * y_scale
    )
    squared = norms - 2 * product
    # The expansion leaves up to some 10 eps |x|^2 between equal rows, so these are recognised by their bits; what is
    # below one eps for other reasons is 0 as well, or its square root would have a wild gradient.
    fixed = lax.stop_gradient(norms)
    equal = prints & (squared < 1e-3 * fixed)
    return jnp.where((squared <= jnp.finfo(x.dtype).eps * fixed) | equal, 0, squared), unit


def _unit(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The power of two below the largest entry: division by it is exact."""
    extent = jnp.max(jnp.abs(x), initial=0)
    return lax.stop_gradient(jnp.exp2(jnp.floor(jnp.log2(jnp.where(extent == 0, 1, extent)))))


def _in_full(x: Float[Array, "n m"], unit: Float[Array, ""]) -> Float[Array, "n m"]:
    """X times unit, saturating where the sum of a row would still not overflow."""
    largest = float(jnp.finfo(x.dtype).max) * 2.0**-32
    return jnp.minimum(x, largest / jnp.maximum(unit, 1)) * unit


def _fingerprints(x: Float[Array, "n d"]) -> UInt32[Array, "n"]:
    """A 32-bit hash of every row's numbers (+0 and -0 alike): equal rows have equal ones."""
    n, words = x.shape[0], x.shape[1] * x.dtype.itemsize // 4
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, lax.stop_gradient(x)), jnp.uint32).reshape(
        n, words
    )
    bits ^= lax.broadcasted_iota(jnp.uint32, bits.shape, 1) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finaliser
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return jnp.sum(bits ^ (bits >> 16), axis=1, dtype=jnp.uint32)


def _sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with gradient 0 at 0: with one `where` alone the gradient would be 0 * inf."""
    return jnp.where(x <= 0, 0, jnp.sqrt(jnp.where(x <= 0, 1, x)))


def _directions(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows of length 1; zero rows stay zero."""
    x = _moderate(x)
    squared = jnp.sum(x * x, axis=1, keepdims=True)
    return jnp.where(squared == 0, 0, x / jnp.sqrt(jnp.where(squared == 0, 1, squared)))


def _deviations(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows, in units of their own, less their mean; rows that are constant but for rounding become zero."""
    x = _moderate(x)
    deviations = x - jnp.mean(x, axis=1, keepdims=True)
    constant = jnp.max(jnp.abs(deviations), axis=1, keepdims=True) <= 4 * jnp.finfo(x.dtype).eps
    return jnp.where(constant, 0, deviations)


def _moderate(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Rows divided by their largest entry, so that neither squares nor sums overflow."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    return x / jnp.where(largest == 0, 1, largest)
