"""Pairwise dissimilarities between two sets of features.

Every function maps x (n, d) and y (m, d) to an (n, m) array. The dtype is float32, or float64 for
float64 features. Identical rows have dissimilarity exactly 0. All gradients are finite. At a kink
of the definition, as at distance 0, the gradient is 0. A row with NaN or infinity has no finite
dissimilarity. Every `dissimilarity` argument of pcjax takes one of these names, or a function of
the same shapes. Such a function should have finite gradients too.

All but `manhattan` subtract the features' mean and use a matrix product. Their rounding error is
that of the squared distance from the mean. An outlier 10^4 times as far as the rest hides the
distances between near points in float32. So do clusters that far apart. `manhattan` resolves both.
"""

from __future__ import annotations  # short signatures in help()

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
    """Compute the Euclidean distance d(x, y) = |x - y|.

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
    """Compute the squared Euclidean distance d(x, y) = |x - y|^2.

    It saturates near the largest float.

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
    """Compute the cosine dissimilarity d(x, y) = 1 - x.y / (|x| |y|), from 0 to 2.

    The formula in use, |x/|x| - y/|y||^2 / 2, keeps its digits where directions nearly agree. A
    zero vector has no direction and stays at the origin. It is 1/2 away from every direction, and 0
    from another zero vector.

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
    return _squared_distances(_directions(x), _directions(y), bounded=True)[0] / 2


def angular(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Compute the angle in half turns, d(x, y) = arccos(x.y / (|x| |y|)) / pi.

    It orders pairs as `cosine` does, is a metric between directions, and has no infinite slope at
    angle 0. For zero vectors see `cosine`.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) angles, from 0 to 1.

    >>> import pcjax
    >>> print(pcjax.dissimilarity.angular([[2.0, 0.0]], [[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    [[0.  0.5 1. ]]
    """
    opposite = jnp.clip(cosine(x, y) / 2, 0, 1)  # sin^2 of half the angle
    # Where sine or cosine is 0, so is its gradient. They never vanish together: atan2 is smooth.
    return jnp.arctan2(_sqrt(opposite), _sqrt(1 - opposite)) * (2 / jnp.pi)


def manhattan(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Compute the Manhattan distance d(x, y) = sum_k |x_k - y_k|.

    It has no matrix product, but O(n m d) elementwise work in O(n m) memory.

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

    # Without the checkpoint, the gradient would store the (n, m) differences of every feature.
    @jax.checkpoint
    def add_feature(total: Array, feature: tuple[Array, Array]) -> tuple[Array, None]:
        return total + jnp.abs(feature[0][:, None] - feature[1][None]), None

    nothing = jnp.zeros_like(x[:, :1]) * jnp.zeros_like(y[:, 0])
    return _in_full(lax.scan(add_feature, nothing, (x.T / unit, y.T / unit))[0], unit)


def correlation(x: ArrayLike, y: ArrayLike) -> Float[Array, "n m"]:
    """Compute 1 minus the Pearson correlation of the features' entries.

    It is the `cosine` dissimilarity of rows minus their own mean. A constant row counts as zero.

    Args:
      x: (n, d) features.
      y: (m, d) features.

    Returns:
      (n, m) dissimilarities.

    >>> import pcjax
    >>> y = [[5.0, 7.0, 9.0], [3.0, 2.0, 1.0]]
    >>> print(pcjax.dissimilarity.correlation([[1.0, 2.0, 3.0]], y).round(5))
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
    """Return the function of a name; wrap a caller's function in a check of its results."""
    if callable(dissimilarity):
        return _Checked(dissimilarity)
    _checks.require_name(
        "dissimilarity", dissimilarity, DISSIMILARITIES, " or a function (n, d), (m, d) -> (n, m)"
    )
    return DISSIMILARITIES[dissimilarity]


def in_columns(
    dissimilarity: Dissimilarity, x: Float[Array, "n d"], y: Float[Array, "m d"]
) -> Float[Array, "m n"]:
    """Compute a resolved dissimilarity of x and y, transposed.

    The named functions are symmetric: they take x and y in the other order instead.
    """
    return dissimilarity(x, y).T if isinstance(dissimilarity, _Checked) else dissimilarity(y, x)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A caller's dissimilarity, with a check of its results."""

    function: Dissimilarity

    def __call__(self, x: Array, y: Array) -> Array:
        result, expected = self.function(x, y), (x.shape[0], y.shape[0])
        name = getattr(self.function, "__name__", repr(self.function))
        if np.shape(result) != expected:
            raise RequestError(
                f"the dissimilarity {name} gave shape {np.shape(result)} for features {x.shape} "
                f"and {y.shape}: expected {expected}"
            )
        _checks.require_real(f"the dissimilarity {name}'s result", result)
        return _checks.at_least_float32(result)


def _features(x: ArrayLike, y: ArrayLike) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    _checks.require_features("x", x)
    _checks.require_features("y", y)
    shapes = np.shape(x), np.shape(y)
    if shapes[0][1] != shapes[1][1]:
        raise RequestError(
            f"got x {shapes[0]} and y {shapes[1]}: expected as many features in both"
        )
    x, y = _checks.at_least_float32(x), _checks.at_least_float32(y)
    dtype = jnp.promote_types(x.dtype, y.dtype)
    return x.astype(dtype), y.astype(dtype)


def _squared_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"], bounded: bool = False
) -> tuple[Float[Array, "n m"], Float[Array, ""]]:
    """Compute squared distances in a unit of length, and return both.

    The unit is a power of two that prevents overflow and underflow. Rows of length 1 at most are
    `bounded` and need none: it is 1.
    """
    # No distance depends on the centre, so it needs no gradient. It is the larger set's. Then a
    # loop over blocks of the other set computes everything about the larger set once.
    centre = lax.stop_gradient(jnp.mean(x if x.shape[0] > y.shape[0] else y, axis=0))
    x, y = x - centre, y - centre
    prints = _fingerprints(x)[:, None] == _fingerprints(y)
    # For this reason each set has its own unit too.
    x_unit, y_unit = (jnp.ones((), x.dtype),) * 2 if bounded else (_unit(x), _unit(y))
    unit = jnp.maximum(x_unit, y_unit)
    x, y, x_scale, y_scale = x / x_unit, y / y_unit, x_unit / unit, y_unit / unit
    product = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST) * (x_scale * y_scale)
    norms = (jnp.sum(x * x, axis=1) * (x_scale * x_scale))[:, None] + jnp.sum(y * y, axis=1) * (
        y_scale * y_scale
    )
    squared = norms - 2 * product
    # The expansion leaves up to 10 eps |x|^2 between equal rows, so their bits identify these.
    # Other values below one eps become 0 too, or their square root would have a wild gradient.
    fixed = lax.stop_gradient(norms)
    equal = prints & (squared < 1e-3 * fixed)
    return jnp.where((squared <= jnp.finfo(x.dtype).eps * fixed) | equal, 0, squared), unit


def _unit(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """Return the power of two below the largest entry; division by it is exact."""
    extent = jnp.max(jnp.abs(x), initial=0)
    return lax.stop_gradient(jnp.exp2(jnp.floor(jnp.log2(jnp.where(extent == 0, 1, extent)))))


def _in_full(x: Float[Array, "n m"], unit: Float[Array, ""]) -> Float[Array, "n m"]:
    """Multiply by the unit; saturate where the sum of a row still does not overflow."""
    largest = float(jnp.finfo(x.dtype).max) * 2.0**-32
    return jnp.minimum(x, largest / jnp.maximum(unit, 1)) * unit


def _fingerprints(x: Float[Array, "n d"]) -> UInt32[Array, "n"]:
    """Hash every row to 32 bits, +0 and -0 alike; equal rows have equal hashes."""
    n, words = x.shape[0], x.shape[1] * x.dtype.itemsize // 4
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0, lax.stop_gradient(x)), jnp.uint32).reshape(
        n, words
    )
    bits ^= lax.broadcasted_iota(jnp.uint32, bits.shape, 1) * jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finaliser
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return jnp.sum(bits ^ (bits >> 16), axis=1, dtype=jnp.uint32)


def _sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute the square root, with gradient 0 at 0."""
    # With one `where` alone the gradient would be 0 * inf.
    return jnp.where(x <= 0, 0, jnp.sqrt(jnp.where(x <= 0, 1, x)))


def _directions(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Scale rows to length 1; zero rows stay zero."""
    x = _moderate(x)
    squared = jnp.sum(x * x, axis=1, keepdims=True)
    return jnp.where(squared == 0, 0, x / jnp.sqrt(jnp.where(squared == 0, 1, squared)))


def _deviations(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Subtract each scaled row's mean; rows constant up to rounding become zero."""
    x = _moderate(x)
    deviations = x - jnp.mean(x, axis=1, keepdims=True)
    constant = jnp.max(jnp.abs(deviations), axis=1, keepdims=True) <= 4 * jnp.finfo(x.dtype).eps
    return jnp.where(constant, 0, deviations)


def _moderate(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Divide rows by their largest entry, so that neither squares nor sums overflow."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    return x / jnp.where(largest == 0, 1, largest)
