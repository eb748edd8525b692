"""The estimator of perception coherence: rank by blocks of anchors, and compare the ranks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax._checks import RequestError
from pcjax._sorting import average_ranks, cache_rows, in_order, primitives
from pcjax.dissimilarity import Dissimilarity, in_columns
from pcjax.losses._inputs import axis_size, column_mean, deviation, without_masked
from pcjax.losses._sweep import RowValues, swept_sum, swept_values
from pcjax.ranking import ranks_as_they_come, soft_rank


@dataclasses.dataclass(frozen=True)
class Request:
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


class References(NamedTuple):
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


def whole_loss(
    request: Request,
    student: Float[Array, "n ds"],
    teacher: Float[Array, "n dt"],
    temperatures: tuple[ArrayLike, ArrayLike | None],  # the student's, the teacher's
    mask: Bool[Array, "n"] | None,
    references: References | None,
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


compiled_loss = jax.jit(whole_loss, static_argnums=0)


def _anchor_losses(
    request: Request,
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
    request: Request,
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
    request: Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    anchors: _Anchors,
    fixed: _Points,
) -> Float[Array, "r"]:
    included = _included(anchors, fixed)
    return column_mean(_teacher_columns(request, anchors, fixed, included), _count(anchors, fixed))


def _student_columns(
    request: Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    fixed: _Points,
    included: Bool[Array, "m r"],
) -> Float[Array, "m r"]:
    points = fixed.teacher if moving.points is None else moving.points
    d = in_columns(request.dissimilarity, student, points)
    return jnp.where(included, d, 0).astype(student.dtype)


def _teacher_columns(
    request: Request, anchors: _Anchors, fixed: _Points, included: Bool[Array, "m r"]
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
    request: Request,
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
