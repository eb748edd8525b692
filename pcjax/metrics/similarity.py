"""Compare the features of two models, up to rotation, translation and scale."""

from __future__ import annotations  # short signatures in help()

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.metrics._labelled import require_finite
from pcjax.metrics.registry import Context, metric, sampled, widened

MAX_COMPARED = 10_000  # test examples


def linear_cka(x: ArrayLike, y: ArrayLike, *, unbiased: bool = True) -> Float[Array, ""]:
    """Compute linear centred kernel alignment (CKA) of two sets of features.

    It compares the inner products within one set with those within the other:

        CKA = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)),

    of the centred features' Gram matrices K = x x^T and L = y y^T. Rotation, translation and one
    scale for all features do not matter; scaling single features does.

    - Biased, HSIC(x, y) = |x^T y|_F^2. With more features than examples, unrelated features get
      values up to almost 1.
    - Unbiased, K and L leave out the self-pairs. With a_i = |x_i|^2, b_i = |y_i|^2, and their sums
      A and B,

        HSIC(x, y) = |x^T y|_F^2 - n / (n - 2) sum_i a_i b_i + A B / ((n - 1) (n - 2)).

      For unrelated features this is 0 on average, so it is negative at times.

    The memory is that of (dx, dy) matrices, never n x n. Kornblith et al., "Similarity of Neural
    Network Representations Revisited" (arXiv:1905.00414). The estimator is from Song et al.,
    "Feature Selection via Dependence Maximization" (2012), as used in arXiv:2010.15327.

    Args:
      x: (n, dx) features of one model.
      y: (n, dy) features of the same examples by another model.
      unbiased: use the unbiased estimator, which needs n >= 4.

    Returns:
      The alignment, at most 1; 0 if one model maps all examples to one point. The unbiased one is
      also 0 if all points are equally far apart.

    >>> import pcjax
    >>> x = [[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [4.0, 1.0], [1.0, 1.0]]
    >>> y = [[3.0, 1.0], [1.0, 5.0], [7.0, 3.0], [3.0, 9.0], [3.0, 3.0]]  # mirrored, moved, scaled
    >>> print(pcjax.metrics.linear_cka(x, y).round(4))
    1.0
    """
    require_finite("x", x)
    require_finite("y", y)
    n, given = np.shape(x)[0], f"got x {np.shape(x)} and y {np.shape(y)}"
    if n != np.shape(y)[0]:
        raise RequestError(f"{given}: both need one row per example, of the same examples")
    least = 4 if unbiased else 2
    if n < least:
        raise RequestError(f"{given}: expected at least {least} examples; embed more")
    x, y = _checks.at_least_float32(x), _checks.at_least_float32(y)
    dtype = jnp.result_type(x, y)
    return _aligned(x.astype(dtype), y.astype(dtype), unbiased=bool(unbiased))


@functools.partial(jax.jit, static_argnames="unbiased")
def _aligned(
    x: Float[Array, "n dx"], y: Float[Array, "n dy"], *, unbiased: bool
) -> Float[Array, ""]:
    x, y = _centred(x), _centred(y)
    hsic = _hsic_unbiased if unbiased else _squared_product
    shared, of_x, of_y = hsic(x, y), hsic(x, x), hsic(y, y)
    # Self-products below this are nothing but rounding.
    rounding = 64 * jnp.finfo(x.dtype).eps
    defined = (of_x > rounding * _squared_product(x, x)) & (
        of_y > rounding * _squared_product(y, y)
    )
    product = jnp.sqrt(jnp.where(defined, of_x, 1)) * jnp.sqrt(jnp.where(defined, of_y, 1))
    return jnp.where(defined, shared / product, 0)


def _centred(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Subtract the mean and scale to root mean square 1.

    Features that are constant up to rounding become 0.
    """
    extent = jnp.max(jnp.abs(x))
    x = x / jnp.where(extent == 0, 1, extent)
    x = x - jnp.mean(x, axis=0)
    size = jnp.sqrt(jnp.mean(x * x))
    constant = size <= 4 * jnp.finfo(x.dtype).eps
    return jnp.where(constant, 0, x / jnp.where(constant, 1, size))


def _squared_product(x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, ""]:
    return jnp.sum(jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST) ** 2)


def _hsic_unbiased(x: Float[Array, "n dx"], y: Float[Array, "n dy"]) -> Float[Array, ""]:
    n = x.shape[0]
    a, b = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
    return (
        _squared_product(x, y)
        - n / (n - 2) * jnp.vdot(a, b)
        + jnp.sum(a) * jnp.sum(b) / ((n - 1) * (n - 2))
    )


@metric("linear_cka", title="linear CKA")
def _evaluate_cka(context: Context) -> float | None:
    if context.teacher is None:
        return None
    rows = sampled(len(context.test), MAX_COMPARED)
    teacher = context.teacher[rows]
    return float(linear_cka(widened(context.test[rows], teacher.shape[1]), teacher))


def pair_agreement(left: ArrayLike, right: ArrayLike, scores: ArrayLike) -> float | None:
    """Compute Spearman's correlation of the pairs' cosine similarities with given scores.

    It is how sentence embeddings are evaluated on pairs that people rated (STS).

    Args:
      left: (n, d) features of one text of every pair.
      right: (n, d) features of the other.
      scores: (n,) a higher one is more similar.

    Returns:
      The correlation; None where it is undefined: all scores or all similarities are equal.

    >>> pair_agreement([[1, 0], [1, 0], [1, 0]], [[1, 0], [1, 1], [0, 1]], [5, 3, 1])
    1.0
    """
    from scipy.stats import spearmanr  # loads much

    x, y = np.asarray(left, np.float64), np.asarray(right, np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    similarities = np.einsum("nd,nd->n", x, y) / np.maximum(norms, np.finfo(np.float64).tiny)
    rated = np.asarray(scores, np.float64)
    if len({*similarities.tolist()}) < 2 or len({*rated.tolist()}) < 2:
        return None
    degree = float(spearmanr(similarities, rated)[0])  # pyright: ignore
    return None if np.isnan(degree) else degree


@metric("pairs", title="rated pairs (Spearman)")
def _evaluate_pairs(context: Context) -> float | None:
    return None if context.rated is None else pair_agreement(*context.rated)
