"""How alike two models' features are, up to what does not matter."""

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
    r"""Linear centred kernel alignment: how alike the inner products within two sets of features are.

    CKA = HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), of the centred features' Gram matrices K = x x^T and L = y y^T.
    Rotations, translations and one scale for all features change nothing; scaling single features does.

    - Biased, HSIC(x, y) = |x^T y|_F^2. Unrelated features do not get 0 but up to almost 1 where there are more
      features than examples.
    - Unbiased, the self-pairs are left out of K and L; with a_i = |x_i|^2, b_i = |y_i|^2, A and B their sums,

        HSIC(x, y) = |x^T y|_F^2 - n / (n - 2) sum_i a_i b_i + A B / ((n - 1) (n - 2)),

      which is 0 on average, hence at times negative, for unrelated features.

    Everything is computed from (dx, dy) matrices, never n x n. Of "Similarity of Neural Network Representations
    Revisited" (arXiv:1905.00414), with the estimator of "Feature Selection via Dependence Maximization" (Song et al.,
    2012) as used in arXiv:2010.15327.

    Args:
      x: (n, dx) features of one model.
      y: (n, dy) features of the same examples by another.
      unbiased: which of the two; the unbiased one needs n >= 4.

    Returns:
      The alignment, at most 1; 0 if all examples are one point to a model (unbiased: or equally far from each other).

    >>> import pcjax
    >>> x = [[0.0, 1.0], [2.0, 0.0], [1.0, 3.0], [4.0, 1.0], [1.0, 1.0]]
    >>> y = [[3.0, 1.0], [1.0, 5.0], [7.0, 3.0], [3.0, 9.0], [3.0, 3.0]]  # mirrored, moved, twice as large
    >>> print(pcjax.metrics.linear_cka(x, y).round(4))
    1.0
    """
    require_finite("x", x)
    require_finite("y", y)
    n, got = np.shape(x)[0], f"got x {np.shape(x)} and y {np.shape(y)}"
    if n != np.shape(y)[0]:
        raise RequestError(f"{got}: both need one row per example, of the same examples")
    least = 4 if unbiased else 2
    if n < least:
        raise RequestError(f"{got}: expected at least {least} examples; embed more")
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
    # What remains of the self-products when nothing but rounding is left.
    rounding = 64 * jnp.finfo(x.dtype).eps
    defined = (of_x > rounding * _squared_product(x, x)) & (
        of_y > rounding * _squared_product(y, y)
    )
    product = jnp.sqrt(jnp.where(defined, of_x, 1)) * jnp.sqrt(jnp.where(defined, of_y, 1))
    return jnp.where(defined, shared / product, 0)


def _centred(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Features less their mean, of root mean square 1; what is constant but for rounding becomes zero."""
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
