"""Losses on orders: keep the teacher's order of distances, by published and classical measures.

`pcjax.losses.relational` explains the notation; here no example is paired with itself.
"""

from __future__ import annotations  # short signatures in help()

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax.dissimilarity import Dissimilarity, euclidean, resolve
from pcjax.losses._batch import Batch, Points, divergence, require_number, unit
from pcjax.losses._inputs import FRAMES, deviation
from pcjax.losses._sweep import swept_values
from pcjax.losses.registry import Law, loss
from pcjax.ranking import METHODS, hard_rank, soft_rank

# (amount by which a pair of pairs misses its order, positive where it does) -> penalty
PENALTIES: dict[str, Callable[[Array], Array]] = {
    "hinge": jax.nn.relu,
    "exponential": lambda miss: jax.nn.relu(jnp.expm1(miss)),
    "logistic": jax.nn.softplus,
}


@loss(arguments={"alpha": 3.0, "beta": 3.0}, law=Law(least_at_teacher=False))
def darkrank_hard(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    alpha: ArrayLike = 3.0,
    beta: ArrayLike = 3.0,
    list_length: int = 4,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute how unlikely the teacher's order of neighbours is to the student (DarkRank).

    With scores S_ij = -alpha |x_i - x_j|^beta of rows at length 1, and pi the teacher's
    `list_length` nearest to example i, nearest first, the loss is the negative log-likelihood of
    that list (Plackett and Luce's, ListMLE)

        mean_i -sum_k [S^student_i,pi(k) - log sum_{l >= k} exp S^student_i,pi(l)].

    Chen et al., "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities
    Transfer" (arXiv:1707.01220). The defaults are those of a public re-implementation; the original
    ranks the whole batch. The loss is not a divergence: a student equal to the teacher is not at
    its minimum. Equally near examples are listed in the order of the batch.

    Least 0, in the limit of distances that leave no doubt about the teacher's order. The student's
    scale and rotation do not matter.

    Args:
      student: (n, ds) features, more of them than `list_length`.
      teacher: (n, dt) features of the same examples.
      alpha: sharpness of the scores; positive.
      beta: power of the distance; positive.
      list_length: number of neighbours listed, at least 2; fewer where a mask leaves fewer.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> angle = jnp.array([0.0, 0.5, 1.5])
    >>> student = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    >>> print(f"{pcjax.losses.darkrank_hard(student, student, list_length=2):.4f}")
    0.0350
    """
    _checks.require_whole("list_length", list_length, 2)
    require_number("alpha", alpha)
    require_number("beta", beta)
    given = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch = Batch.of(student, teacher, **given, min_examples=list_length + 1)
    points = batch.points()
    nearest, listed = _teachers_nearest(batch, points, list_length)
    scores = _scores(batch.student, points.student, nearest, listed, alpha, beta)
    return batch.reduced(-_log_likelihood(scores, listed))


@loss(arguments={"alpha": 3.0, "beta": 3.0}, law=Law(arguments={"list_length": 3}))
def darkrank_soft(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    alpha: ArrayLike = 3.0,
    beta: ArrayLike = 3.0,
    list_length: int = 4,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the probabilities of all orders of each example's neighbours (soft DarkRank).

    With scores S and list pi as in `darkrank_hard`, P and Q are the Plackett-Luce probabilities of
    the list's order sigma under S^teacher_i and S^student_i. The loss sums over all its orders:

        mean_i sum_sigma P(sigma) [log P(sigma) - log Q(sigma)].

    The paper's cross-entropy (ListNet's) is this plus the teacher's entropy, which has no gradient.
    See `darkrank_hard` for the reference.

    Least 0, for a student equal to the teacher. The student's scale and rotation do not matter.

    Args:
      student: (n, ds) features, more of them than `list_length`.
      teacher: (n, dt) features of the same examples.
      alpha: sharpness of the scores; positive.
      beta: power of the distance; positive.
      list_length: number of neighbours listed, 2 to 5; fewer where a mask leaves fewer. Every one
        multiplies the number of orders.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> angle = jnp.array([0.0, 0.5, 1.5])
    >>> student = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    >>> print(f"{pcjax.losses.darkrank_soft(student, -student, list_length=2):.4f}")
    0.0000
    """
    _checks.require_whole("list_length", list_length, 2, 5)
    require_number("alpha", alpha)
    require_number("beta", beta)
    given = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch = Batch.of(student, teacher, **given, min_examples=list_length + 1)
    points = batch.points()
    nearest, listed = _teachers_nearest(batch, points, list_length)
    orders = np.array(list(itertools.permutations(range(list_length))))
    # A shorter list has fewer orders: those that keep the positions after its end.
    counted = jnp.all((orders == np.arange(list_length)) | listed[:, None], axis=-1)

    def log_probabilities(anchors: Array, others: Array) -> Array:
        scores = _scores(anchors, others, nearest, listed, alpha, beta)
        return jnp.where(counted, _log_likelihood(scores[:, orders], listed[:, None]), 0)

    log_p = log_probabilities(batch.teacher, points.teacher)
    log_q = log_probabilities(batch.student, points.student)
    return batch.reduced(jnp.sum(jnp.where(counted, jnp.exp(log_p) * (log_p - log_q), 0), axis=1))


def _teachers_nearest(
    batch: Batch, points: Points, k: int
) -> tuple[Int[Array, "n k"], Bool[Array, "n k"]]:
    """Return the teacher's k nearest points of each example, and which of them count."""
    included = batch.others(points)
    distances = euclidean(unit(batch.teacher), unit(points.teacher))
    nearest = lax.top_k(-jnp.where(included, distances, jnp.inf), k)[1]
    return nearest, jnp.take_along_axis(included, nearest, axis=1)


def _scores(
    anchors: Float[Array, "n d"],
    others: Float[Array, "m d"],
    nearest: Int[Array, "n k"],
    listed: Bool[Array, "n k"],
    alpha: ArrayLike,
    beta: ArrayLike,
) -> Float[Array, "n k"]:
    """Compute the scores of the nearest points; unlisted ones get -1e30, whose exp is 0."""
    distances = jnp.take_along_axis(euclidean(unit(anchors), unit(others)), nearest, axis=1)
    apart = distances != 0
    powers = jnp.where(apart, jnp.where(apart, distances, 1) ** beta, 0)
    return jnp.where(listed, powers * -jnp.asarray(alpha, powers.dtype), -1e30).astype(
        anchors.dtype
    )


def _log_likelihood(
    scores: Float[Array, "... k"], listed: Bool[Array, "... k"]
) -> Float[Array, "..."]:
    """Compute the Plackett-Luce log-likelihood of choosing the entries in their given order."""
    remaining = lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True)
    return jnp.sum(jnp.where(listed, scores - remaining, 0), axis=-1)


@loss(
    arguments={"sharpness": 1.0},
    law=Law(arguments={"penalty": "exponential", "margin": "difference"}),
)
def pairwise_ranking(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    penalty: str = "hinge",
    margin: str | ArrayLike = 0.0,
    sharpness: ArrayLike = 1.0,
    dissimilarity: str | Dissimilarity = "euclidean",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Penalise every two pairs of examples whose order of distances differs from the teacher's.

    With d_a the dissimilarity of a pair a of examples, rows at length 1, the loss is the mean of a
    penalty over all pairs of pairs (a, b) with d^teacher_a > d^teacher_b. With
    u = d^student_a - d^student_b, margin m and v = sharpness (m - u), the penalty is

    - "hinge": max(0, v);
    - "exponential": max(0, exp(v) - 1);
    - "logistic": log(1 + exp(v)), RankNet's.

    There are some B^4 / 4 pairs of pairs, computed in blocks: value and gradient take time as B^4
    and memory as B^3, 600 MB for B = 512. A constant student pays little, with margin 0 nothing:
    use a margin, or another loss beside this one. A public implementation has this loss; we know of
    no paper. An example's value adds up the penalties whose farther pair a contains the example.

    Least 0, for a student equal to the teacher where the margin is 0 or "difference" and the
    penalty is not "logistic". The student's scale and rotation do not matter.

    Args:
      student: (n, ds) features, n >= 3.
      teacher: (n, dt) features of the same examples.
      penalty: "hinge", "exponential" or "logistic".
      margin: m, a number of at least 0; "difference", the teacher's own, d^teacher_a - d^teacher_b;
        or "deviation", the standard deviation of the teacher's d_a.
      sharpness: factor of the differences; positive.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m).
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]
    >>> teacher = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    >>> print(f"{pcjax.losses.pairwise_ranking(student, teacher):.4f}")
    0.0873
    """
    _checks.require_name("penalty", penalty, PENALTIES)
    named = isinstance(margin, str)
    if named:
        _checks.require_name(
            "margin", margin, ("difference", "deviation"), " or a number of at least 0"
        )
    else:
        margin = require_number("margin", margin, zero=True)
    sharpness = require_number("sharpness", sharpness)
    measure = resolve(dissimilarity)
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, min_examples=3
    )
    points, n, dtype = batch.points(), batch.student.shape[0], batch.student.dtype
    m = points.valid.shape[0]
    upper = np.triu_indices(m, 1)
    counts = points.valid[upper[0]] & points.valid[upper[1]]

    def pairs(features: Array) -> tuple[Array, Array]:
        # Both directions of a pair get the same bits: rounding must not order equal ones.
        above = jnp.triu(measure(unit(features), unit(features)), 1).astype(dtype)
        return (above + above.T)[batch.positions], above[upper]

    (d_rows, d), (teacher_rows, d_teacher) = pairs(points.student), pairs(points.teacher)
    teacher_rows, d_teacher = lax.stop_gradient((teacher_rows, d_teacher))
    fixed_margin = jnp.zeros((), dtype) if named else jnp.asarray(margin, dtype)
    if named and margin == "deviation":
        fixed_margin = deviation(
            jnp.where(counts, d_teacher, 0)[:, None], counts[:, None], jnp.sum(counts)
        )[0]

    def block_values(
        rows: Array, columns: Array, fixed_rows: tuple[Array, Array], fixed: tuple[Array, Array]
    ) -> Array:
        (t_rows, included), (t_columns, counts) = fixed_rows, fixed
        teachers = t_rows[..., None] - t_columns
        ordered = (teachers > 0) & included[..., None] & counts
        least = teachers if named and margin == "difference" else fixed_margin
        miss = jnp.where(ordered, sharpness * (least - (rows[..., None] - columns)), 0)
        return jnp.sum(jnp.where(ordered, PENALTIES[penalty](miss), 0), axis=(1, 2))

    included = batch.others(points)
    nearer = jnp.searchsorted(jnp.sort(jnp.where(counts, d_teacher, jnp.inf)), teacher_rows)
    ordered_pairs = batch.total(jnp.sum(jnp.where(included, nearer, 0), axis=1).astype(dtype))
    block = max(1, 2**21 // (m * len(upper[0])))
    fixed = (teacher_rows, included), (d_teacher, counts)
    values = swept_values(block_values, (d_rows, d), fixed, None if block >= n else block)
    return batch.reduced(values * (batch.count / jnp.maximum(ordered_pairs, 1)))


@loss(law=Law(least_at_teacher=False, arguments={"temperature": 0.2}))
def spearman(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    dissimilarity: str | Dissimilarity = "cosine",
    teacher_dissimilarity: str | Dissimilarity | None = None,
    ranking: str = "laplace",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute 1 minus Spearman's correlation of the models' ranks of the others, from each example.

    With r_ij the rank of d_ij among {d_ik : k != i}, the loss is

        mean_i [1 - corr_{j != i}(r^student_ij, r^teacher_ij)].

    The teacher's ranks are hard. The student's are soft, of width temperature x the standard
    deviation of the anchor's own dissimilarities, as in `perception_coherence`. That loss weighs
    rank differences as they are, this one their squares. An anchor with all others equally far away
    correlates with nothing: its value is 1. The form is pcjax's own.

    Least 0, in the limit of small temperatures, where the student has the teacher's order. The
    student's scale and rotation do not matter to cosines, its scale, rotation and translation not
    to Euclidean dissimilarities.

    Args:
      student: (n, ds) features, n >= 3.
      teacher: (n, dt) features of the same examples.
      temperature: width of the soft rank relative to the spread of the dissimilarities; positive,
        may be traced.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m).
      teacher_dissimilarity: the teacher's; None takes the student's.
      ranking: the soft rank's method, see `pcjax.ranking.soft_rank`.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student, teacher = [[0.0], [1.0], [3.0], [3.5]], [[0.0], [1.0], [3.0], [-9.0]]
    >>> options = dict(temperature=0.001, dissimilarity="euclidean")
    >>> print(f"{pcjax.losses.spearman(student, teacher, **options):.4f}")
    0.8750
    """
    temperature = require_number("temperature", temperature)
    _checks.require_name("ranking", ranking, METHODS)
    measure = resolve(dissimilarity)
    teacher_measure = resolve(
        dissimilarity if teacher_dissimilarity is None else teacher_dissimilarity
    )
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, min_examples=3
    )
    points, dtype = batch.points(), batch.student.dtype
    included = batch.others(points)
    d = jnp.where(included, measure(batch.student, points.student), 0).astype(dtype)
    d_teacher = jnp.where(included, teacher_measure(batch.teacher, points.teacher), 0)
    width = temperature * deviation(d.T, included.T, jnp.sum(included, axis=1))
    ranks = soft_rank(d, temperature=width, method=ranking, where=included)
    teacher_ranks = lax.stop_gradient(hard_rank(d_teacher, where=included)).astype(dtype)
    # Hard and soft ranks sum to m (m + 1) / 2. The direction of equal ranks would be mere rounding.
    middle = (jnp.sum(included, axis=1, keepdims=True) + 1) / 2

    def direction(ranks: Array) -> Array:
        centred = jnp.where(included, ranks - middle.astype(dtype), 0)
        equal = (
            jnp.max(jnp.abs(centred), axis=1, keepdims=True) <= 8 * jnp.finfo(dtype).eps * middle
        )
        return unit(jnp.where(equal, 0, centred))

    return batch.reduced(1 - jnp.sum(direction(ranks) * direction(teacher_ranks), axis=1))


@loss(law=Law(least_at_teacher=False))
def rank_list(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    exponent: ArrayLike = 1.0,
    frame: str = "own",
    dissimilarity: str | Dissimilarity = "cosine",
    teacher_dissimilarity: str | Dissimilarity | None = None,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare a softmax over the student's neighbours with a list weighted by the teacher's ranks.

    With r_ij the rank of the teacher's d_ij among {d_ik : k != i}, the loss is

        mean_i KL( p_i || softmax_{j != i}(-d^student_ij / temperature) ),
        p_ij = (1 + r_ij)^-exponent / sum_{k != i} (1 + r_ik)^-exponent.

    In the teacher's frame, d^student_ij = d(student_i, teacher_j), and j = i is in the list too,
    with rank 0. For a large exponent p_ii is nearly 1, and the loss is `info_nce` in one direction.

    Only the teacher's order counts, its nearest examples most. Unlike in `perception_coherence`,
    the gradient reaches an example however far its rank is from the teacher's. The softmax can
    follow p where the dissimilarities' range is at least temperature x exponent x log n. The form
    is pcjax's own.

    Least 0, in the limit of dissimilarities that follow the list. The student's scale and rotation
    do not matter to cosines, its rotation and translation not to Euclidean dissimilarities. In the
    teacher's frame its rotation and translation always matter.

    Args:
      student: (n, ds) features, n >= 3.
      teacher: (n, dt) features of the same examples.
      temperature: of the student's softmax; positive, may be traced.
      exponent: how fast the list's weights fall; positive, may be traced.
      frame: "own" compares the student with its own points, "teacher" with the teacher's. The
        student must then have the teacher's dimension.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m).
      teacher_dissimilarity: the teacher's; None takes the student's.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student, teacher = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], [[0.0], [1.0], [3.0]]
    >>> options = dict(temperature=1.0, teacher_dissimilarity="euclidean")
    >>> print(pcjax.losses.rank_list(student, teacher, **options, reduce_fn=None).round(4))
    [0.0402 0.0201 0.0402]
    """
    temperature = require_number("temperature", temperature)
    exponent = require_number("exponent", exponent)
    _checks.require_name("frame", frame, FRAMES)
    remedy = "give the student a linear head into the teacher's dimension"
    measure = resolve(dissimilarity)
    teacher_measure = resolve(
        dissimilarity if teacher_dissimilarity is None else teacher_dissimilarity
    )
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        min_examples=3,
        same_width=remedy if frame == "teacher" else None,
    )
    points, dtype = batch.points(), batch.student.dtype
    others = included = batch.others(points)
    d_teacher = jnp.where(others, teacher_measure(batch.teacher, points.teacher), 0)
    ranks = lax.stop_gradient(hard_rank(d_teacher, where=others)).astype(dtype)
    if frame == "teacher":
        ranks = jnp.where(others, ranks, 0)
        included = jnp.broadcast_to(points.valid, others.shape)
    seen = points.student if frame == "own" else points.teacher
    d = measure(batch.student, seen).astype(dtype)

    def log_shares(scores: Array) -> Array:
        # A row without others has no shares: its value is 0.
        scores = jnp.where(included, scores, -jnp.inf)
        return jnp.where(
            included, scores - jax.nn.logsumexp(scores, axis=1, keepdims=True), -jnp.inf
        )

    log_p = log_shares(-exponent * jnp.log1p(ranks))
    log_q = jnp.where(included, log_shares(-d / temperature), 0)
    return batch.reduced(divergence(log_p, log_q))
