"""Perception coherence: the student orders the world as the teacher does."""

from __future__ import annotations  # short signatures in help()

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax._sorting import average_ranks, cache_rows, in_order, primitives
from pcjax.dissimilarity import Dissimilarity, in_columns, resolve
from pcjax.losses._inputs import (
    FRAMES,
    axis_size,
    column_mean,
    deviation,
    require_pair,
    require_reduction,
    require_where,
    without_masked,
)
from pcjax.losses._sweep import RowValues, swept_sum, swept_values
from pcjax.losses.registry import REFERENCES, RecipeTerm, loss, recipe
from pcjax.ranking import METHODS, ranks_as_they_come, soft_rank

SCALES = ("row", "batch")
WEIGHTINGS = ("uniform", "neighbours")


@loss(memory=REFERENCES)
def perception_coherence(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    dissimilarity: str | Dissimilarity = "cosine",
    teacher_dissimilarity: str | Dissimilarity | None = None,
    teacher_temperature: ArrayLike | None = None,
    ranking: str = "laplace",
    scale: str = "row",
    frame: str = "own",
    power: int | float = 1,
    weighting: str | Callable[[Array], Array] = "uniform",
    where: ArrayLike | None = None,
    references: tuple[ArrayLike, ...] | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    chunk_size: int | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare how student and teacher rank all other examples, seen from every example.

    Let d_ij be the dissimilarity of examples i and j. Self-pairs are left out everywhere. With

        R_ij = (rank of d_ij among {d_ik : k != i} - 1/2) / (n - 1)

    for each of the two models, the loss is

        mean_i mean_{j != i} w_ij |R^student_ij - R^teacher_ij|^power.

    The teacher's ranks are hard. The student's ranks are soft, of width temperature x scale_i. The
    gradient flows through that scale too: the student's scale does not change the loss, and the
    gradient has no radial part. Labels and equal feature dimensions are not needed. The teacher
    gets no gradient.

    The notion is that of "Feature Representation Transferring to Lightweight Models via Perception
    Coherence" (arXiv:2505.06595); this estimator is pcjax's own formulation of it.

    Least 0, for a student equal to the teacher if both ranks are as soft (teacher_temperature =
    temperature). The student's scale and rotation do not matter to cosines, its scale, rotation and
    translation not to Euclidean dissimilarities.

    Which form to use:

    - Start with the defaults: two arguments are enough.
    - Set `dissimilarity` to the one that the embeddings are searched with later.
    - Add a second term with frame="teacher" and weighting="neighbours" where the student has a
      linear head into the teacher's dimension: the recipe `perception_coherence_frames`.
    - Add a tenth of `rank_list` in both frames where neighbours and classes count as much as the
      whole order: the recipe `perception_coherence_list`.
    - Add `references` where the batch is small, `chunk_size` where its n^2 numbers need too much
      memory.

    Three limits:

    - A collapsed student, with all features equal, gets gradient 0 and cannot recover.
    - NaN features give a NaN loss.
    - The first call compiles for seconds, and so does the first call of every other batch size:
      keep the batch size fixed, and drop or mask an incomplete last batch.

    Args:
      student: (n, ds) features, n >= 3 with the examples of all devices and the references.
      teacher: (n, dt) features of the same examples.
      temperature: width of the soft rank relative to the scale of the dissimilarities; positive.
        May be traced: a schedule does not recompile. A small one ranks more exactly, but reaches
        fewer pairs with a gradient.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m), whose
        gradient is finite at distance 0.
      teacher_dissimilarity: the teacher's; None takes the student's.
      teacher_temperature: None ranks the teacher hard; a number ranks it softly, by one method.
      ranking: the soft rank's method, see `pcjax.ranking.soft_rank`.
      scale: unit of the temperature. "row" is the standard deviation of each anchor's own
        dissimilarities, "batch" their mean over the whole batch.
      frame: "own" ranks each model's points among its own. "teacher" ranks the teacher's points as
        seen from the student's example: d(student_i, teacher_j) against d(teacher_i, teacher_j),
        j = i included. The student must have the teacher's dimension.
      power: exponent of the rank differences, at least 1.
      weighting: "uniform" is w = 1. "neighbours" is w_ij proportional to 1 / (8 + teacher's rank of
        j), with mean 1 for each anchor. A function gets the teacher's ranks, 1, 2, ..., of shape
        (anchors, points), and returns w.
      where: (n,), True for the examples that count. The others are left out as anchors, from ranks
        and from means.
      references: (student points, teacher points), more points to rank beside the batch, such as a
        memory of past features. A third array (m,) is True for the points that count. They get no
        gradient.
      axis_name: mapped axis (or axes) over which the batch is split. Every device ranks its anchors
        against the points of all devices; give all devices the same references. `jax.lax.pmean` of
        the loss and of each device's gradients gives those of the whole batch. `jax.shard_map` adds
        up the gradients of shared parameters by itself: there take the gradient of
        `jax.lax.pmean(loss, axis_name)`, or `jax.lax.pcast` the parameters to varying first. Under
        `jax.jit`, with a batch sharded over a mesh of Auto axes, leave axis_name out.
      chunk_size: largest number of anchors computed at a time. The loss and its gradient then take
        one sweep over blocks of anchors, and O(chunk_size x n) memory instead of O(n^2).
      reduce_fn: jnp.mean, jnp.sum, another function of this device's per-example losses (called
        with `where` if there is a mask), or None for these losses, shape (n,).

    Returns:
      The reduced loss; the mean and the sum are 0 if everything is masked.

    >>> import jax, pcjax
    >>> student = jax.random.normal(jax.random.key(0), (8, 4))
    >>> for temperature in (0.3, 0.001):
    ...     value = pcjax.losses.perception_coherence(student, 3 * student, temperature=temperature)
    ...     print(f"{value:.4f}")
    0.0453
    0.0000
    """
    _checks.require_name("frame", frame, FRAMES)
    remedy = 'frame="teacher" needs a linear head into the teacher\'s dimension'
    require_pair(student, teacher, remedy if frame == "teacher" else None)
    n, shapes = np.shape(student)[0], (np.shape(student), np.shape(teacher))
    _checks.require_positive("temperature", temperature)
    _checks.require_positive("teacher_temperature", teacher_temperature, optional=True)
    for what, width in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        shape = () if width is None else np.shape(width)
        if shape != ():
            raise RequestError(f"got {what} of shape {shape}: expected one number")
    _checks.require_name("ranking", ranking, METHODS)
    _checks.require_name("scale", scale, SCALES)
    if not callable(weighting):
        _checks.require_name(
            "weighting", weighting, WEIGHTINGS, " or a function of the teacher's ranks"
        )
    real = isinstance(power, numbers.Real) and not isinstance(power, bool)
    if not (real and 1 <= power < float("inf")):
        raise RequestError(f"got power {power!r}: expected a finite number, at least 1")
    if chunk_size is not None:
        _checks.require_whole("chunk_size", chunk_size, 1)
    require_reduction(reduce_fn)
    require_where(where, n)
    extra = _check_references(references, shapes)
    total = n * axis_size(axis_name) + extra
    if total < 3:
        raise RequestError(
            f"got {total} examples to rank: expected at least 3, one neighbour has no order"
        )
    request = _Request(
        resolve(dissimilarity),
        resolve(dissimilarity if teacher_dissimilarity is None else teacher_dissimilarity),
        ranking,
        scale,
        frame,
        power,
        weighting,
        axis_name,
        None if chunk_size is None else min(int(chunk_size), n),
        reduce_fn,
        not any(callable(given) for given in (dissimilarity, teacher_dissimilarity, weighting)),
    )
    more, present = (references or ())[:2], (references or ())[2:]
    arrays = [_checks.at_least_float32(x) for x in (student, teacher, *more)]
    dtype = jnp.result_type(*arrays)
    student, teacher, *more = (x.astype(dtype) for x in arrays)
    mask = None if where is None else jnp.asarray(where, bool)
    given = _References(*more, *(jnp.asarray(x, bool) for x in present)) if more else None
    # Values that a caller's function closes over may change between calls: compile it anew.
    evaluate = _compiled_loss if request.named and reduce_fn in (None, jnp.mean, jnp.sum) else _loss
    # The gradient traces again. With a mesh set, be it empty, it finds what is traced already.
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return evaluate(request, student, teacher, (temperature, teacher_temperature), mask, given)


def _check_references(references: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    if references is None:
        return 0
    expected = "expected (student points, teacher points), and a mask if not all of them count"
    if not (isinstance(references, (tuple, list)) and len(references) in (2, 3)):
        raise RequestError(f"got references {type(references).__name__}: {expected}")
    for name, points, shape in zip(("student", "teacher"), references[:2], shapes, strict=True):
        _checks.require_features(f"the {name}'s references", points)
        if np.shape(points)[1] != shape[1]:
            raise RequestError(
                f"got references {np.shape(points)} for the {name} {shape}: expected as many "
                "features"
            )
    counts = np.shape(references[0])[0], np.shape(references[1])[0]
    if counts[0] != counts[1]:
        raise RequestError(
            f"got {counts[0]} references for the student and {counts[1]} for the teacher: expected "
            "the same examples in both"
        )
    for mask in references[2:]:
        _checks.require_mask(mask)
        if np.shape(mask) != counts[:1]:
            raise RequestError(
                f"got a mask of shape {np.shape(mask)} for {counts[0]} references: expected "
                f"{counts[:1]}"
            )
    return counts[0]


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments that are fixed while tracing."""

    dissimilarity: Dissimilarity
    teacher_dissimilarity: Dissimilarity
    ranking: str
    scale: str
    frame: str
    power: int | float
    weighting: Any  # a name or a function
    axis_name: str | tuple[str, ...] | None
    chunk_size: int | None
    reduce_fn: Callable[..., Array] | None
    named: bool  # neither the dissimilarities nor the weighting are a caller's function


class _References(NamedTuple):
    """More points to be ranked against."""

    student: Float[Array, "m ds"]
    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"] | None = None


class _Anchors(NamedTuple):
    """The examples from which the others are ranked: one row each, split into blocks."""

    teacher: Float[Array, "n dt"]
    position: Int[Array, "n"]  # among the points; -1 where the anchor is ranked too


class _Points(NamedTuple):
    """The points that every anchor ranks; shared by all blocks, without gradient."""

    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"] | None
    teacher_temperature: Float[Array, ""] | None
    teacher_scale: Float[Array, ""] | None


class _Moving(NamedTuple):
    """Values that all blocks share and gradients flow to."""

    points: Float[Array, "m ds"] | None  # None in the teacher's frame
    temperature: Float[Array, ""]
    scale: Float[Array, ""] | None  # None if every row has its own


def _loss(
    request: _Request,
    student: Float[Array, "n ds"],
    teacher: Float[Array, "n dt"],
    temperatures: tuple[ArrayLike, ArrayLike | None],  # the student's, the teacher's
    mask: Bool[Array, "n"] | None,
    references: _References | None,
) -> Array:
    # Zeros of both models carry both models' device axes: under shard_map, everything that a
    # gradient flows to must share them.
    zero = jnp.zeros_like(jnp.sum(student)) + jnp.zeros_like(jnp.sum(teacher))
    student, teacher = student + zero, lax.stop_gradient(teacher)
    n, axis_name, own = student.shape[0], request.axis_name, request.frame == "own"
    reduce_fn, (temperature, teacher_temperature) = request.reduce_fn, temperatures
    if mask is not None:
        student = without_masked(student, mask, axis_name)
        teacher = without_masked(teacher, mask, axis_name)

    points, teacher_points, valid = student, teacher, mask
    if axis_name is not None:
        gather = functools.partial(lax.all_gather, axis_name=axis_name, axis=0, tiled=True)
        points, teacher_points, valid = jax.tree.map(gather, (student, teacher, mask))
    if references is not None:
        more, teacher_more, present = lax.stop_gradient(references)
        if present is not None:
            more, teacher_more = (without_masked(x, present, None) for x in (more, teacher_more))
        if valid is not None or present is not None:
            flags = zip((valid, present), (points, more), strict=True)
            valid = jnp.concatenate(
                [jnp.ones(len(x), bool) if flag is None else flag for flag, x in flags]
            )
        points = jnp.concatenate([points, more])
        teacher_points = jnp.concatenate([teacher_points, teacher_more])
    first = 0 if axis_name is None else lax.axis_index(axis_name) * n
    anchors = _Anchors(teacher, first + jnp.arange(n) if own else jnp.full((n,), -1))

    moving = _Moving(points if own else None, zero + temperature, None)
    fixed = _Points(teacher_points, valid, None, None)
    if teacher_temperature is not None:
        fixed = fixed._replace(teacher_temperature=lax.stop_gradient(zero + teacher_temperature))

    weights = zero + (jnp.ones_like(student[:, 0]) if mask is None else mask.astype(student.dtype))
    total = jnp.sum(weights)
    total = total if axis_name is None else lax.pmean(total, axis_name)
    share = 1 / jnp.where(total > 0, total, 1)

    # On a CPU, a sweep in blocks that fit its cache is the fastest, even without chunk_size.
    block = min(request.chunk_size or n, cache_rows(teacher_points.shape[0]))
    chunk_size = None if request.chunk_size is None or block == n else block

    def inputs() -> tuple[Any, Any]:
        return (student, moving), (anchors, fixed)

    def summed(values: RowValues, weights: Array) -> Array:
        values = functools.partial(values, request)
        # The sweep has a gradient of its own, which misses values that a caller's function closes
        # over.
        if block == n or not request.named:
            return jnp.vdot(weights, swept_values(values, *inputs(), chunk_size))
        return swept_sum(values, *inputs(), weights, block)

    if request.scale == "batch":

        def scale_of(row_means: RowValues) -> Array:
            mean = summed(row_means, weights * share)
            mean = mean if axis_name is None else lax.pmean(mean, axis_name)
            return zero + jnp.where(mean == 0, 1, mean)

        student_scale = scale_of(_student_means)
        if teacher_temperature is not None:
            fixed = fixed._replace(teacher_scale=lax.stop_gradient(scale_of(_teacher_means)))
        moving = moving._replace(scale=student_scale)

    # The mean over the devices of these sums is the mean, or the sum, over the whole batch.
    if reduce_fn is jnp.mean:
        return summed(_anchor_losses, weights * share)
    if reduce_fn is jnp.sum:
        return summed(_anchor_losses, weights * axis_size(axis_name))
    losses = functools.partial(_anchor_losses, request)
    values = swept_values(losses, *inputs(), chunk_size)
    values = values if mask is None else jnp.where(mask, values, 0)
    if reduce_fn is None:
        return values
    return reduce_fn(values) if mask is None else reduce_fn(values, where=mask)


_compiled_loss = jax.jit(_loss, static_argnums=0)


def _anchor_losses(
    request: _Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    anchors: _Anchors,
    fixed: _Points,
) -> Float[Array, "r"]:
    """Compute the loss of every anchor of a block.

    Each anchor's dissimilarities are a column; the anchors lie side by side.
    """
    included, count = _included(anchors, fixed), _count(anchors, fixed)
    using = primitives(included.shape[0])

    def width(d: Array, temperature: Array, scale: Array | None) -> Array:
        return temperature * (deviation(d, included, count) if scale is None else scale)

    d_teacher = _teacher_columns(request, anchors, fixed, included)
    if fixed.teacher_temperature is None:
        teacher_ranks = average_ranks(d_teacher, included, count, using=using)
    else:
        teacher_width = width(d_teacher, fixed.teacher_temperature, fixed.teacher_scale)
        teacher_ranks = soft_rank(
            d_teacher, temperature=teacher_width, method=request.ranking, axis=0, where=included
        )
    teacher_ranks = lax.stop_gradient(teacher_ranks)
    weights = _weights(request, teacher_ranks, included, count)

    d = _student_columns(request, student, moving, fixed, included)
    # A column's mean does not depend on its order: the student's ranks stay sorted, and the
    # teacher's ranks and the weights are brought into that order.
    student_width = jnp.broadcast_to(width(d, moving.temperature, moving.scale), d.shape[1:])
    ranks, order = ranks_as_they_come(d, student_width, included, request.ranking, using, count)
    if order is not None:
        teacher_ranks, weights = jax.tree.map(
            lambda column: in_order(column, order), (teacher_ranks, weights)
        )
        included = lax.broadcasted_iota(count.dtype, order.shape, 0) < count
    count = jnp.maximum(count, 1)
    difference = jnp.abs(ranks - teacher_ranks) / count
    powered = difference if request.power == 1 else difference**request.power
    powered = powered if weights is None else weights * powered
    return jnp.sum(jnp.where(included, powered, 0), axis=0) / count


def _student_means(
    request: _Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    anchors: _Anchors,
    fixed: _Points,
) -> Float[Array, "r"]:
    included = _included(anchors, fixed)
    return column_mean(
        _student_columns(request, student, moving, fixed, included), _count(anchors, fixed)
    )


def _teacher_means(
    request: _Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    anchors: _Anchors,
    fixed: _Points,
) -> Float[Array, "r"]:
    included = _included(anchors, fixed)
    return column_mean(_teacher_columns(request, anchors, fixed, included), _count(anchors, fixed))


def _student_columns(
    request: _Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    fixed: _Points,
    included: Bool[Array, "m r"],
) -> Float[Array, "m r"]:
    points = fixed.teacher if moving.points is None else moving.points
    d = in_columns(request.dissimilarity, student, points)
    return jnp.where(included, d, 0).astype(student.dtype)


def _teacher_columns(
    request: _Request, anchors: _Anchors, fixed: _Points, included: Bool[Array, "m r"]
) -> Float[Array, "m r"]:
    d = in_columns(request.teacher_dissimilarity, anchors.teacher, fixed.teacher)
    return jnp.where(included, d, 0).astype(fixed.teacher.dtype)


def _included(anchors: _Anchors, fixed: _Points) -> Bool[Array, "m r"]:
    """Return the points that each anchor ranks: the valid ones, except itself."""
    others = jnp.arange(fixed.teacher.shape[0])[:, None] != anchors.position
    return others if fixed.valid is None else others & fixed.valid[:, None]


def _count(anchors: _Anchors, fixed: _Points) -> Int[Array, "r"]:
    """Return the column sums of `_included`, without adding up."""
    m, position = fixed.teacher.shape[0], anchors.position
    if fixed.valid is None:
        return m - (position >= 0).astype(jnp.int32)
    itself = (position >= 0) & fixed.valid[position]
    return jnp.sum(fixed.valid, dtype=jnp.int32) - itself.astype(jnp.int32)


def _weights(
    request: _Request,
    teacher_ranks: Float[Array, "m r"],
    included: Bool[Array, "m r"],
    count: Int[Array, "r"],
) -> Float[Array, "m r"] | None:
    if request.weighting == "uniform":
        return None
    if request.weighting == "neighbours":
        weights = 1 / (8 + teacher_ranks)
        mean = column_mean(jnp.where(included, weights, 0), count)
        return weights / jnp.where(mean > 0, mean, 1)
    # A caller's function gets rank 0 for points that are not ranked.
    teacher_ranks = jnp.where(included, teacher_ranks, 0)
    weights, shape = request.weighting(teacher_ranks.T), teacher_ranks.T.shape
    if np.shape(weights) != shape:
        raise RequestError(
            f"the weighting gave shape {np.shape(weights)} for teacher's ranks of shape "
            f"{shape}: expected the same"
        )
    return lax.stop_gradient(weights).T


recipe(
    "perception_coherence_list",
    RecipeTerm("perception_coherence"),
    RecipeTerm("rank_list", weight=0.1),
    RecipeTerm("rank_list", 0.1, "linear", arguments={"frame": "teacher", "exponent": 2.0}),
)
recipe(
    "perception_coherence_frames",
    RecipeTerm("perception_coherence"),
    RecipeTerm(
        "perception_coherence",
        head="linear",
        arguments={"frame": "teacher", "weighting": "neighbours"},
    ),
)
