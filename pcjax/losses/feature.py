"""Losses on the features themselves: bring the student's features to the teacher's.

Where a loss compares entry by entry, a learnable head brings the student into the teacher's
dimension; `pcjax.models.regressors` has the heads of the papers. `hint` and
`variational_information` take maps too.
"""

from __future__ import annotations  # short signatures in help()

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.dissimilarity import squared_euclidean
from pcjax.losses._batch import Batch, huber, norms, require_number, unit
from pcjax.losses.registry import Law, RecipeTerm, loss, recipe

HEAD_REMEDY = "give the student a head into the teacher's dimension"
DISTANCES = ("euclidean", "cosine")


@loss(weight=100.0, head="linear", kinds=("features", "maps"), law=Law(same_width=True))
def hint(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute the mean squared difference of features or maps (FitNets).

    The loss is mean_i mean_k (s_ik - t_ik)^2.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550), on a map in the middle of
    the network, through `pcjax.models.regressors.ConvRegressor`. The head is not needed after
    training; weight 100 in later comparisons. On the last map through such a head it is the loss of
    SimKD.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, ...) features or maps, behind a head.
      teacher: (n, ...) features or maps of the same examples, of the same shape.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> print(pcjax.losses.hint(jnp.ones((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 3.0)))
    4.0
    """
    batch = flat_batch(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    return batch.reduced(jnp.mean((batch.student - batch.teacher) ** 2, axis=1))


@loss(
    needs_head="variational",
    kinds=("features", "maps"),
    law=Law(same_width=True, arguments={"variance": 1.0}),
)
def variational_information(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    variance: ArrayLike,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Fit a Gaussian that the student predicts to the teacher's features (variational information).

    Up to a constant the loss is the negative log-likelihood per feature, mean_i mean_k 1/2 [(s_ik -
    t_ik)^2 / var_k + log var_k], and may be negative. Ahn et al., "Variational Information
    Distillation for Knowledge Transfer" (arXiv:1904.05835): weight 1, at several maps, mean and
    variance from `pcjax.models.regressors.VariationalRegressor`. The variance must be learnt. Where
    it stays at its initial 5, as in one public implementation, this is a squared error divided by
    10.

    Least mean_k log(var_k) / 2, for a student equal to the teacher. The student's scale, rotation
    and translation matter.

    Args:
      student: (n, ...) the predicted mean of the teacher's features or maps.
      teacher: (n, ...) features or maps of the same examples, of the same shape.
      variance: the predicted variance, positive: a number, (channels,), or another shape that
        broadcasts to one example's.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> mean, maps = jnp.ones((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 3.0)
    >>> print(pcjax.losses.variational_information(mean, maps, variance=jnp.ones(3)))
    2.0
    """
    batch = flat_batch(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    _checks.require_positive("variance", variance)
    shape, one = np.shape(variance), np.shape(teacher)[1:]
    if not (
        len(shape) <= len(one)
        and all(a in (1, b) for a, b in zip(shape[::-1], one[::-1], strict=False))
    ):
        raise RequestError(
            f"got variance of shape {shape} for features {one}: expected (), ({one[-1]},) or {one}"
        )
    variance = jnp.broadcast_to(jnp.asarray(variance, batch.student.dtype), one).reshape(-1)
    return batch.reduced(
        jnp.mean((batch.student - batch.teacher) ** 2 / variance + jnp.log(variance), axis=1) / 2
    )


@loss(head="linear", law=Law(same_width=True))
def embed_distill(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    distance: str = "euclidean",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute the mean distance of the embeddings, mean_i |s_i - t_i| (EmbedDistill).

    Kim et al., "EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval"
    (arXiv:2301.12005), on queries and on documents, each added to a loss on scores. The distance is
    not squared. "cosine", 1 - cos(s_i, t_i), is the default of one public implementation. Where
    student and teacher coincide the gradient is 0.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, d) embeddings, behind a linear head where the dimensions differ.
      teacher: (n, d) embeddings of the same examples.
      distance: "euclidean" or "cosine".
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(pcjax.losses.embed_distill([[0.0, 0.0], [1.0, 1.0]], [[3.0, 4.0], [1.0, 1.0]]))
    2.5
    """
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same_width=HEAD_REMEDY,
    )
    _checks.require_name("distance", distance, DISTANCES)
    if distance == "cosine":
        # |x - y|^2 / 2 of directions keeps its digits where they nearly agree.
        return batch.reduced(jnp.sum((unit(batch.student) - unit(batch.teacher)) ** 2, axis=1) / 2)
    return batch.reduced(norms(batch.student - batch.teacher)[:, 0])


@loss(head="orthogonal", law=Law(same_width=True, least_at_teacher=False))
def orthogonal_projection(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the student, behind an orthogonal projection, with the standardised teacher (VkD).

    With t~_i = (t_i - mean of its entries) / sqrt(their variance + 1e-5), the loss is
    mean_i mean_k h(s_ik - t~_ik), where h(x) = x^2 / 2 up to 1 and |x| - 1/2 beyond. Miles et al.,
    "VkD: Improving Knowledge Distillation using Orthogonal Projections" (arXiv:2403.06213), on the
    mean over tokens. The student's projection is `pcjax.models.regressors.OrthogonalProjection`,
    which cannot change the student's geometry.

    Least 0, for a student equal to the standardised teacher. The student's scale, rotation and
    translation matter.

    Args:
      student: (n, d) features, projected into the teacher's dimension.
      teacher: (n, d) features of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(pcjax.losses.orthogonal_projection([[0.0, 0.0]], [[3.0, 5.0]]).round(4))
    0.5
    """
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same_width=HEAD_REMEDY,
    )
    centred = batch.teacher - jnp.mean(batch.teacher, axis=1, keepdims=True)
    target = centred * lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-5)
    return batch.reduced(jnp.mean(huber(batch.student - target), axis=1))


@loss()
def procrustes(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute the squared distance left after the best rotation of one model onto the other.

    Let S and T be the features of all examples, centred and divided by their Frobenius norms, with
    the smaller dimension padded by zeros. The loss is

        min over orthogonal Q of |S Q - T|^2 = |S|^2 + |T|^2 - 2 |S^T T|_*,

    between 0 and 2. The nuclear norm |.|_* is the sum of singular values. Example i has the value n
    |S_i Q - T_i|^2. At the best Q the gradient through Q vanishes, so Q is held fixed. The gradient
    is then that of the nuclear norm, finite even where singular values are repeated or 0. Second
    derivatives are wrong.

    Proposed as a geometric loss for distillation in arXiv:2509.25253. Not verified: whether
    centring and this scale are the paper's, and its weight.

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

    >>> import jax.numpy as jnp, pcjax
    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    >>> print(abs(pcjax.losses.procrustes(x, 5 - 2 * x[:, ::-1]).round(4)))
    0.0
    """
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, min_examples=2
    )
    points = batch.points()

    def placed(own: Array, every: Array) -> tuple[Array, Array]:
        centre = points.mean(every.T)
        rest = jnp.where(points.valid[:, None], every - centre, 0)
        size = norms(rest.reshape(-1))
        size = jnp.where(size == 0, 1, size)
        return (own - centre) / size, rest / size

    (own, every), (teacher_own, teacher_every) = (
        placed(batch.student, points.student),
        placed(batch.teacher, points.teacher),
    )
    precision = lax.Precision.HIGHEST
    u, _, v = jnp.linalg.svd(
        lax.stop_gradient(jnp.matmul(every.T, teacher_every, precision=precision)),
        full_matrices=False,
    )
    rotation = jnp.matmul(u, v, precision=precision)
    # Rotate the smaller dimension: the larger one's part outside its image remains anyway.
    if rotation.shape[0] <= rotation.shape[1]:
        difference = jnp.matmul(own, rotation, precision=precision) - teacher_own
    else:
        difference = own - jnp.matmul(teacher_own, rotation.T, precision=precision)
    return batch.reduced(jnp.sum(difference**2, axis=1) * batch.count)


@loss(
    arguments={"neighbours": 5},
    alone=False,
    law=Law(least_at_teacher=False, arguments={"neighbours": 3}),
)
def locality_preserving(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    neighbours: int = 5,
    width: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Keep near what is near for the teacher (locality preservation).

    With N_i the examples of the batch nearest to i for the teacher, the loss is

        mean_i 1/2 sum_{j in N_i} a_ij |s_i - s_j|^2,        a_ij = exp(-|t_i - t_j|^2 / width).

    Alone it collapses: a student that maps everything to one point has loss 0. Add it to a loss
    that keeps examples apart, cross-entropy or `kd`. Chen et al., "Learning Student Networks via
    Feature Embedding" (arXiv:1812.06597). Not verified: the paper's form. Only its idea was at
    hand; number of neighbours, width, normalisation and weight are pcjax's own. Of equally near
    examples, N_i takes those that come first in the batch.

    Least 0, for a student that is the same everywhere. The student's rotation and translation do
    not matter.

    Args:
      student: (n, ds) features.
      teacher: (n, dt) features of the same examples.
      neighbours: size of N_i, less than the number of examples.
      width: of the kernel, in the teacher's squared distances; None takes their mean over all N_i.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> teacher = [[0.0], [1.0], [10.0], [11.0]]
    >>> for student in ([[0.0], [1.0], [10.0], [11.0]], [[0.0], [10.0], [1.0], [11.0]]):
    ...     print(pcjax.losses.locality_preserving(student, teacher, neighbours=1).round(4))
    0.1839
    18.394
    """
    _checks.require_whole("neighbours", neighbours, 1)
    options = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch = Batch.of(student, teacher, min_examples=neighbours + 1, **options)
    if width is not None:
        width = require_number("width", width)
    points = batch.points()
    distances = jnp.where(
        batch.others(points), squared_euclidean(batch.teacher, points.teacher), jnp.inf
    )
    nearest, positions = lax.top_k(-distances, neighbours)
    squared, present = -nearest, nearest > -jnp.inf
    squared = jnp.where(present, squared, 0)
    if width is None:
        total, count = batch.total(jnp.sum(squared, axis=1)), batch.total(jnp.sum(present, axis=1))
        width = jnp.where(total > 0, total / jnp.maximum(count, 1), 1)
    weights = lax.stop_gradient(jnp.where(present, jnp.exp(-squared / width), 0))
    differences = batch.student[:, None] - points.student[positions]
    return batch.reduced(jnp.sum(weights * jnp.sum(differences**2, axis=2), axis=1) / 2)


def flat_batch(student: ArrayLike, teacher: ArrayLike, **options: Any) -> Batch:
    """Build the batch of features or maps of one shape, as rows."""
    shapes = np.shape(student), np.shape(teacher)
    if shapes[0] != shapes[1] or len(shapes[0]) < 2:
        raise RequestError(
            f"got student {shapes[0]} and teacher {shapes[1]}: expected the same shape (n, ...), "
            "give the student a head into the teacher's"
        )
    rows = *shapes[0][:1], math.prod(shapes[0][1:])
    return Batch.of(*(jnp.reshape(jnp.asarray(x), rows) for x in (student, teacher)), **options)


recipe(
    "locality_preserving",
    RecipeTerm("hint", 100.0, "linear"),
    # Without a head, which would shrink in place of the features.
    RecipeTerm("locality_preserving", arguments={"neighbours": 5}),
)
