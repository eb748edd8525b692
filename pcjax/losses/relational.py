"""Losses on pairs and triplets: compare the student's geometry with the teacher's in the batch.

In all of them s_i and t_i are the student's and the teacher's features of example i, and B is the
number of examples that count, on all devices. Pairs of an example with itself are included, as in
the published implementations. Weights that papers put in front of a loss are documented, but not
applied.
"""

from __future__ import annotations  # short signatures in help()

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._sorting import block_entries
from pcjax.dissimilarity import euclidean
from pcjax.losses._batch import Batch, Points, huber, products, require_number, unit
from pcjax.losses._sweep import swept_sum, swept_values
from pcjax.losses.registry import Law, RecipeTerm, loss, recipe


@loss(weight=25.0)
def rkd_distance(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare all pairwise distances, in units of their mean (relational distillation).

    With psi_ij = |x_i - x_j| / mu and mu the mean of the distances that are not 0, the loss is

        mean_i 1/B sum_j h(psi^student_ij - psi^teacher_ij),

    with h(u) = u^2 / 2 up to |u| = 1 and |u| - 1/2 beyond. The gradient flows through the student's
    mu too. Park et al., "Relational Knowledge Distillation" (arXiv:1904.05068): weight 25 for
    classification; weight 1 for metric learning, with a teacher of rows of length 1.
    Implementations that first normalise both models' rows compute another loss of the same name.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation do
    not matter.

    Args:
      student: (n, ds) features, n >= 2.
      teacher: (n, dt) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student = [[0.0], [1.0], [3.0]]
    >>> print(pcjax.losses.rkd_distance(student, [[0.0], [2.0], [6.0]]))
    0.0
    >>> print(f"{pcjax.losses.rkd_distance(student, [[0.0], [1.5], [3.0]]):.4f}")
    0.0139
    """
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, min_examples=2
    )
    points = batch.points()

    def relative(anchors: Array, others: Array) -> Array:
        distances = jnp.where(points.valid, euclidean(anchors, others), 0)
        total, count = (
            batch.total(jnp.sum(distances, axis=1)),
            batch.total(jnp.sum(distances > 0, axis=1)),
        )
        return distances / jnp.where(total > 0, total / jnp.maximum(count, 1), 1)

    difference = relative(batch.student, points.student) - relative(batch.teacher, points.teacher)
    return batch.reduced(points.mean(huber(difference)))


@loss(weight=50.0)
def rkd_angle(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the cosine at every corner of every triangle of examples (relational distillation).

    With cos_ijk = <e_ij, e_ik> and e_ij the direction from x_i to x_j, the loss is

        mean_i 1/B^2 sum_jk h(cos^student_ijk - cos^teacher_ijk),

    with h as in `rkd_distance`. Triangles with two equal corners are included, with cosine 0. The
    B^3 terms are computed in blocks of corners, and once more for the gradient. The memory is some
    ten times that of B^2 numbers or of the features. Park et al., "Relational Knowledge
    Distillation" (arXiv:1904.05068): weight 50 for classification, 2 for metric learning; see
    `rkd_distance`.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation do
    not matter.

    Args:
      student: (n, ds) features, n >= 3.
      teacher: (n, dt) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    >>> print(f"{pcjax.losses.rkd_angle(student, [[1.0, 1.0], [3.0, 1.0], [1.0, 3.0]]):.4f}")
    0.0000
    >>> print(f"{pcjax.losses.rkd_angle(student, [[0.0], [1.0], [2.0]]):.4f}")
    0.1296
    """
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, min_examples=3
    )
    points = batch.points()
    n, (m, dt) = batch.student.shape[0], points.teacher.shape
    block = max(1, block_entries() // (m * (m + max(dt, points.student.shape[1]))))
    inputs = _corner_values, (batch.student, points.student), (batch.teacher, points)
    if block >= n or batch.factor is None:
        return batch.reduced(swept_values(*inputs, None if block >= n else block))
    # A sum is swept once, with its gradient.
    return swept_sum(*inputs, jnp.where(batch.valid, batch.factor, 0), block)


def _corner_values(corners: Array, others: Array, teacher: Array, points: Points) -> Array:
    """Compare the cosines at every corner."""
    difference = _cosines(corners, others) - _cosines(teacher, points.teacher)
    return points.mean(points.mean(huber(difference)))


def _cosines(corners: Array, others: Array) -> Array:
    directions = unit(others - corners[:, None])
    return products(directions, directions)


@loss(weight=3000.0)
def similarity_preserving(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the directions of each example's inner products with all (similarity-preserving KD).

    With G_ij = <x_i, x_j> and g_i its i-th row divided by that row's length, the loss is

        mean_i 1/B |g^student_i - g^teacher_i|^2.

    Tung and Mori, "Similarity-Preserving Knowledge Distillation" (arXiv:1907.09682): weight 3000,
    on the flattened last feature maps. Reshape maps to (n, height x width x channels).

    Least 0, for a student equal to the teacher. The student's scale and rotation do not matter.

    Args:
      student: (n, ds) features.
      teacher: (n, dt) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student, teacher = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
    >>> print(f"{pcjax.losses.similarity_preserving(student, teacher):.4f}")
    0.2929
    """
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    points = batch.points()

    def similarities(anchors: Array, others: Array) -> Array:
        return unit(jnp.where(points.valid, products(anchors, others), 0))

    difference = similarities(batch.student, points.student) - similarities(
        batch.teacher, points.teacher
    )
    return batch.reduced(points.mean(difference**2))


@loss(weight=30000.0)
def pkt(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the probabilities with which examples choose their neighbours (PKT).

    With c_ij = (cos(x_i, x_j) + 1) / 2, p_ij = c_ij / sum_k c_ik and epsilon = 1e-7, the loss is

        mean_i 1/B sum_j p^teacher_ij log((p^teacher_ij + epsilon) / (p^student_ij + epsilon)).

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer"
    (arXiv:1803.10837), with weight 30000, which makes up for the 1/B.

    Least 0, for a student equal to the teacher. The student's scale and rotation do not matter.

    Args:
      student: (n, ds) features.
      teacher: (n, dt) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.pkt([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]]):.4f}")
    0.2027
    """
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    points = batch.points()

    def probabilities(anchors: Array, others: Array) -> Array:
        # Rounding takes cosines a little below -1.
        c = jnp.maximum((products(unit(anchors), unit(others)) + 1) / 2, 0)
        total = jnp.sum(jnp.where(points.valid, c, 0), axis=1, keepdims=True)
        return c / jnp.where(total > 0, total, 1)

    p, q = (
        probabilities(batch.teacher, points.teacher),
        probabilities(batch.student, points.student),
    )
    return batch.reduced(points.mean(p * jnp.log((p + 1e-7) / (q + 1e-7))))


@loss(arguments={"gamma": 0.4})
def correlation_congruence(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    gamma: ArrayLike = 0.4,
    order: int = 2,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare a Gaussian kernel of the examples' directions (correlation congruence).

    With f_i = x_i / |x_i| and the Taylor expansion of exp(-gamma |f_i - f_j|^2),

        C_ij = e^(-2 gamma) sum_{p <= order} (2 gamma)^p / p! <f_i, f_j>^p,

    the loss is mean_i 1/B sum_j (C^student_ij - C^teacher_ij)^2. This is the form of the paper:
    Peng et al., "Correlation Congruence for Knowledge Distillation" (arXiv:1904.01802). The
    implementation behind the results that later papers quote is another loss, which compares
    neighbours in the order of the batch.

    Least 0, for a student equal to the teacher. The student's scale and rotation do not matter.

    Args:
      student: (n, ds) features.
      teacher: (n, dt) features of the same examples.
      gamma: inverse squared width of the kernel; positive.
      order: the highest power of the expansion, at least 1.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student, teacher = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]]
    >>> print(f"{pcjax.losses.correlation_congruence(student, teacher):.4f}")
    0.1266
    """
    gamma = require_number("gamma", gamma)
    _checks.require_whole("order", order, 1)
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    points = batch.points()

    def kernel(anchors: Array, others: Array) -> Array:
        cosine = products(unit(anchors), unit(others))
        total = jnp.zeros_like(cosine)
        for p in reversed(range(order + 1)):  # Horner's rule
            total = total * cosine + (2 * gamma) ** p / math.factorial(p)
        return total * jnp.exp(-2 * gamma)

    difference = kernel(batch.student, points.student) - kernel(batch.teacher, points.teacher)
    return batch.reduced(points.mean(difference**2))


@loss(law=Law(per_example=False))
def cka(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] = jnp.mean,
) -> Float[Array, ""]:
    """Compute 1 minus the linear centred kernel alignment of the two representations.

    With S and T the features less their mean over the batch, as rows, and |.| the Frobenius norm,
    the loss is

        1 - |S^T T|^2 / (|S^T S| |T^T T|) = 1 - <S S^T, T T^T> / (|S S^T| |T T^T|).

    It is computed from the second form, in O(n B) memory. Where one of the models is constant the
    loss is 1. Kornblith et al., "Similarity of Neural Network Representations Revisited"
    (arXiv:1905.00414). The alignment is biased towards 1 in batches smaller than the feature
    dimension. Implementations without centring compute something else.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation do
    not matter.

    Args:
      student: (n, ds) features, n >= 2.
      teacher: (n, dt) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: only jnp.mean: the alignment has no value per example.

    Returns:
      The loss, between 0 and 1; 0 if everything is masked.

    >>> import pcjax
    >>> student = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    >>> print(f"{pcjax.losses.cka(student, [[1.0], [-1.0], [0.0]]):.4f}")
    0.0513
    """
    options: dict[str, Any] = {"min_examples": 2, "whole": "the alignment of two representations"}
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, **options
    )

    def gram(x: Array) -> Array:
        centred = x - batch.total(x) / batch.count
        # Kernels become fourth powers below. A fixed factor changes neither the alignment nor
        # its gradient, as the model's scale does not matter.
        size = lax.stop_gradient(jnp.sqrt(batch.total(jnp.mean(centred**2, axis=1)) / batch.count))
        centred = jnp.where(batch.valid[:, None], centred / jnp.where(size > 0, size, 1), 0)
        return products(centred, batch.gather(centred))

    def inner(one: Array, other: Array) -> Array:
        return batch.total(jnp.sum(one * other, axis=1))

    s, t = gram(batch.student), gram(batch.teacher)
    squared = inner(s, s) * inner(t, t)
    return batch.whole(
        1 - inner(s, t) / jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 1)
    )


recipe("rkd", RecipeTerm("rkd_distance", 25.0), RecipeTerm("rkd_angle", 50.0))
