"""Perception coherence: the student orders the world as the teacher does."""

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
from pcjax._sorting import average_ranks, cache_rows, in_order, primitives
from pcjax.dissimilarity import Dissimilarity, in_columns, resolve
from pcjax.losses._sweep import RowValues, swept_sum, swept_values
from pcjax.ranking import METHODS, ranks_as_they_come, soft_rank

SCALES = ("row", "batch")
FRAMES = ("own", "teacher")
WEIGHTINGS = ("uniform", "neighbours")


def perception_coherence(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike,
    dissimilarity: str | Dissimilarity = "euclidean",
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
    r"""How differently the student ranks the others, seen from every example.

    With d_ij the dissimilarity of examples i and j, self-pairs left out everywhere, and for each of the two models

        R_ij = (rank of d_ij among {d_ik : k != i} - 1/2) / (n - 1),

    the loss is mean_i mean_{j != i} w_ij |R^student_ij - R^teacher_ij|^power. The teacher's ranks are hard, the
    student's soft, of width temperature x scale_i, and the gradient flows through that scale too: the loss does not
    change with the student's scale, and its gradient has no radial part. Neither labels nor equal feature dimensions
    are needed. No gradient reaches the teacher.

    The notion is that of "Feature Representation Transferring to Lightweight Models via Perception Coherence"
    (arXiv:2505.06595); this estimator is pcjax's own formulation of it.

    Least 0, for a student equal to the teacher if both ranks are as soft (teacher_temperature = temperature). The
    student's scale, rotation and translation do not matter to Euclidean dissimilarities, its scale and rotation not to
    cosines.

    Args:
      student: (n, ds) features, n >= 3 counting everything that is ranked against.
      teacher: (n, dt) features of the same examples.
      temperature: width of the soft rank relative to the scale of the dissimilarities; positive, may be traced (a
        schedule does not recompile). Small ones rank more exactly but reach fewer pairs with a gradient: start at 0.1.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m), whose gradient is finite
        at distance 0.
      teacher_dissimilarity: the teacher's, if it is to be another one.
      teacher_temperature: None ranks the teacher hard; a number ranks it softly too, by the same method.
      ranking: the soft rank's method, see `pcjax.ranking.soft_rank`.
      scale: what the temperature is relative to: "row", the standard deviation of each anchor's own
        dissimilarities, or "batch", their mean over the whole batch.
      frame: "own" ranks each model's points among its own. "teacher" ranks the teacher's points as seen from the
        student's example, d(student_i, teacher_j) against d(teacher_i, teacher_j), j = i included; the student must
        have been brought to the teacher's dimension.
      power: exponent of the rank differences, at least 1.
      weighting: "uniform", w = 1; "neighbours", w_ij proportional to 1 / (8 + teacher's rank of j), with mean 1 for
        each anchor; or a function of the teacher's ranks (1, 2, ...; shape (anchors, points)) giving w.
      where: (n,), True for the examples that count. The others are dropped as anchors, from ranks and from means.
      references: (student points, teacher points), more points to be ranked against beside the batch, such as a
        memory of past features; as a third a mask, (m,), True for the points that count. They get no gradient.
      axis_name: mapped axis (or axes) over which the batch is split. Every device ranks its anchors against the
        points of all of them (the references are each device's own: give all the same), and `jax.lax.pmean` over that
        axis, of the mean or sum and of each device's gradients, gives those of the whole batch. Under
        `jax.shard_map`, which by itself adds up the gradients of parameters that all devices share, take the gradient
        of `jax.lax.pmean(loss, axis_name)` instead, or `jax.lax.pcast` the parameters to varying first. Under
        `jax.jit` with a batch sharded over a mesh of Auto axes nothing of this is needed.
      chunk_size: at most how many anchors are seen at a time. The loss and its gradient are then computed in one sweep
        over blocks of anchors, in O(chunk_size x n) memory instead of O(n^2).
      reduce_fn: jnp.mean, jnp.sum, another function of this device's per-example losses (called with `where` if there
        is one), or None for those themselves, shape (n,).

    Returns:
      The reduced loss; the mean and the sum are 0 if everything is masked.

    >>> import jax, pcjax
    >>> student = jax.random.normal(jax.random.key(0), (8, 4))
    >>> def loss(temperature):
    ...     return pcjax.losses.perception_coherence(student, 3 * student + 1, temperature=temperature).item()
    >>> [round(loss(t), 4) for t in (0.3, 0.001)]
    [0.0312, 0.0]
    """
    _checks.require_features("student", student)
    _checks.require_features("teacher", teacher)
    n, shapes = np.shape(student)[0], (np.shape(student), np.shape(teacher))
    got = f"got student {shapes[0]} and teacher {shapes[1]}"
    _checks.require(shapes[0][0] == shapes[1][0], f"{got}: both need one row per example")
    _checks.require_name("frame", frame, FRAMES)
    if frame == "teacher":
        same = shapes[0][1] == shapes[1][1]
        _checks.require(
            same,
            f'{got}: frame="teacher" needs the student in the teacher\'s dimension, by a linear head',
        )
    _checks.require_positive("temperature", temperature)
    _checks.require_positive("teacher_temperature", teacher_temperature, optional=True)
    for what, width in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        shape = () if width is None else np.shape(width)
        _checks.require(shape == (), f"got {what} of shape {shape}: expected one number")
    _checks.require_name("ranking", ranking, METHODS)
    _checks.require_name("scale", scale, SCALES)
    if not callable(weighting):
        _checks.require_name(
            "weighting", weighting, WEIGHTINGS, " or a function of the teacher's ranks"
        )
    real = isinstance(power, numbers.Real) and not isinstance(power, bool)
    _checks.require(
        real and 1 <= power < float("inf"),
        f"got power {power!r}: expected a finite number, at least 1",
    )
    if chunk_size is not None:
        _checks.require_whole("chunk_size", chunk_size, 1)
    got = f"got reduce_fn {reduce_fn!r}"
    _checks.require(reduce_fn is None or callable(reduce_fn), f"{got}: expected a function or None")
    if where is not None:
        mask = f"got where of shape {np.shape(where)} for {n} examples: expected ({n},)"
        _checks.require_mask(where)
        _checks.require(np.shape(where) == (n,), mask)
    extra = _check_references(references, shapes)
    total = n * _axis_size(axis_name) + extra
    _checks.require(
        total >= 3, f"got {total} examples to rank: expected at least 3, one neighbour has no order"
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
        not any(callable(given) for given in (dissimilarity, teacher_dissimilarity, weighting)),
    )
    more, present = (references or ())[:2], (references or ())[2:]
    arrays = [_checks.at_least_float32(x) for x in (student, teacher, *more)]
    dtype = jnp.result_type(*arrays)
    student, teacher, *more = (x.astype(dtype) for x in arrays)
    mask = None if where is None else jnp.asarray(where, bool)
    given = _References(*more, *(jnp.asarray(x, bool) for x in present)) if more else None
    # What a function of the caller's closes over may change from call to call: nothing of it may be kept compiled.
    evaluate = _compiled_loss if request.named and reduce_fn in (None, jnp.mean, jnp.sum) else _loss
    return evaluate(
        request, reduce_fn, student, teacher, temperature, teacher_temperature, mask, given
    )


def _check_references(references: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    if references is None:
        return 0
    pair = isinstance(references, (tuple, list)) and len(references) in (2, 3)
    expected = "expected (student points, teacher points), and a mask if not all of them count"
    _checks.require(pair, f"got references {type(references).__name__}: {expected}")
    for name, points, shape in zip(("student", "teacher"), references[:2], shapes, strict=True):
        _checks.require_features(f"the {name}'s references", points)
        got = f"got references {np.shape(points)} for the {name} {shape}"
        _checks.require(np.shape(points)[1] == shape[1], f"{got}: expected as many features")
    counts = np.shape(references[0])[0], np.shape(references[1])[0]
    got = f"got {counts[0]} references for the student and {counts[1]} for the teacher"
    _checks.require(counts[0] == counts[1], f"{got}: expected the same examples in both")
    for mask in references[2:]:
        _checks.require_mask(mask)
        got = f"got a mask of shape {np.shape(mask)} for {counts[0]} references"
        _checks.require(np.shape(mask) == counts[:1], f"{got}: expected {counts[:1]}")
    return counts[0]


def _axis_size(axis_name: Any) -> int:
    if axis_name is None:
        return 1
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    named = len(names) > 0 and all(isinstance(name, str) for name in names)
    _checks.require(named, f"got axis_name {axis_name!r}: expected a name or a tuple of names")
    try:
        return lax.axis_size(axis_name)
    except (NameError, KeyError, TypeError) as error:
        raise _checks.RequestError(
            f"got axis_name {axis_name!r}, which is not bound here: call the loss under jax.pmap, jax.shard_map or "
            "jax.vmap with that axis, or leave axis_name out"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Request:
    """What the loss was asked for and is fixed while tracing."""

    dissimilarity: Dissimilarity
    teacher_dissimilarity: Dissimilarity
    ranking: str
    scale: str
    frame: str
    power: int | float
    weighting: Any  # a name or a function
    axis_name: str | tuple[str, ...] | None
    chunk_size: int | None
    named: bool  # no function among the above is the caller's


class _References(NamedTuple):
    """More points to be ranked against."""

    student: Float[Array, "m ds"]
    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"] | None = None


class _Anchors(NamedTuple):
    """What belongs to the examples the world is seen from: one row each, split into blocks."""

    teacher: Float[Array, "n dt"]
    place: Int[Array, "n"]  # of the anchor among the points; -1 if it is to be ranked itself


class _Points(NamedTuple):
    """What every anchor ranks, and what all blocks share, without gradient."""

    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"] | None
    teacher_temperature: Float[Array, ""] | None
    teacher_scale: Float[Array, ""] | None


class _Moving(NamedTuple):
    """What all blocks share and gradients flow to."""

    points: Float[Array, "m ds"] | None  # None in the teacher's frame
    temperature: Float[Array, ""]
    scale: Float[Array, ""] | None  # None if every row has its own


def _loss(
    request: _Request,
    reduce_fn: Callable[..., Array] | None,
    student: Float[Array, "n ds"],
    teacher: Float[Array, "n dt"],
    temperature: ArrayLike,
    teacher_temperature: ArrayLike | None,
    mask: Bool[Array, "n"] | None,
    references: _References | None,
) -> Array:
    # Zeros of the features carry their device axes, which under shard_map all that a gradient flows to must share.
    zero = jnp.zeros_like(jnp.sum(student)) + jnp.zeros_like(jnp.sum(teacher))
    student, teacher = student + zero, lax.stop_gradient(teacher)
    n, axis_name, own = student.shape[0], request.axis_name, request.frame == "own"
    if mask is not None:
        student = _without_masked(student, mask, axis_name)
        teacher = _without_masked(teacher, mask, axis_name)

    points, teacher_points, valid = student, teacher, mask
    if axis_name is not None:
        gather = functools.partial(lax.all_gather, axis_name=axis_name, axis=0, tiled=True)
        points, teacher_points, valid = jax.tree.map(gather, (student, teacher, mask))
    if references is not None:
        more, teacher_more, present = lax.stop_gradient(references)
        if present is not None:
            more, teacher_more = (_without_masked(x, present, None) for x in (more, teacher_more))
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

    # Also where no chunks are asked for, a sweep in blocks that a cache holds is the fastest on a CPU.
    block = min(request.chunk_size or n, cache_rows(teacher_points.shape[0]) or n)
    chunk_size = None if request.chunk_size is None or block == n else block

    def summed(values: RowValues, weights: Array) -> Array:
        values = functools.partial(values, request)
        # The sweep's gradient is its own, and does not know what a caller's function closes over.
        if block == n or not request.named:
            return jnp.vdot(
                weights, swept_values(values, student, moving, anchors, fixed, chunk_size)
            )
        return swept_sum(values, student, moving, anchors, fixed, weights, block)

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
        return summed(_anchor_losses, weights * _axis_size(axis_name))
    losses = functools.partial(_anchor_losses, request)
    values = swept_values(losses, student, moving, anchors, fixed, chunk_size)
    values = values if mask is None else jnp.where(mask, values, 0)
    if reduce_fn is None:
        return values
    return reduce_fn(values) if mask is None else reduce_fn(values, where=mask)


def _without_masked(
    x: Float[Array, "n d"], mask: Bool[Array, "n"], axis_name: Any
) -> Float[Array, "n d"]:
    """Puts the mean of all devices' valid rows in place of the others, so that nothing they hold can matter."""
    x = jnp.where(mask[:, None], x, 0)
    total, count = lax.stop_gradient(jnp.sum(x, axis=0)), jnp.sum(mask)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(mask[:, None], x, total / jnp.maximum(count, 1))


_compiled_loss = jax.jit(_loss, static_argnums=(0, 1))


def _anchor_losses(
    request: _Request,
    student: Float[Array, "r ds"],
    moving: _Moving,
    anchors: _Anchors,
    fixed: _Points,
) -> Float[Array, "r"]:
    """The loss of every anchor of a block.

    What an anchor sees is a column, and the anchors lie side by side.
    """
    included, count = _included(anchors, fixed), _count(anchors, fixed)
    using = primitives(included.shape[0])

    def width(d: Array, temperature: Array, scale: Array | None) -> Array:
        return temperature * (_deviation(d, included, count) if scale is None else scale)

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
    # A column's mean does not depend on its order, so the student's ranks are left in the order they were sorted into,
    # and what they are compared with is brought there.
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
    return _mean(
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
    return _mean(_teacher_columns(request, anchors, fixed, included), _count(anchors, fixed))


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
    """Which points each anchor ranks: the valid ones, itself left out."""
    others = jnp.arange(fixed.teacher.shape[0])[:, None] != anchors.place
    return others if fixed.valid is None else others & fixed.valid[:, None]


def _count(anchors: _Anchors, fixed: _Points) -> Int[Array, "r"]:
    """How many points each anchor ranks: the sums of `_included`, known without adding up."""
    m, place = fixed.teacher.shape[0], anchors.place
    if fixed.valid is None:
        return m - (place >= 0).astype(jnp.int32)
    return jnp.sum(fixed.valid, dtype=jnp.int32) - ((place >= 0) & fixed.valid[place]).astype(
        jnp.int32
    )


def _mean(x: Float[Array, "m r"], count: Int[Array, "r"]) -> Float[Array, "r"]:
    """Mean of every column over what an anchor ranks; the rest of x is 0."""
    return jnp.sum(x, axis=0) / jnp.maximum(count, 1)


def _deviation(
    d: Float[Array, "m r"], included: Bool[Array, "m r"], count: Int[Array, "r"]
) -> Float[Array, "r"]:
    """Standard deviation of each column; where all are equal, and so share one rank at any width, their size.

    Of d, what is not included is 0.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(d), axis=0))
    unit = jnp.where(largest == 0, 1, largest)  # so that no square overflows
    relative = d / unit
    centred = jnp.where(included, relative - _mean(relative, count), 0)
    variance = _mean(centred * centred, count)
    none = variance <= jnp.finfo(d.dtype).eps ** 2
    # With one `where` alone the gradient would be 0 * inf.
    return unit * jnp.where(none, 1, jnp.sqrt(jnp.where(none, 1, variance)))


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
        mean = _mean(jnp.where(included, weights, 0), count)
        return weights / jnp.where(mean > 0, mean, 1)
    # What is not ranked has rank 0 for a function of the caller's too.
    teacher_ranks = jnp.where(included, teacher_ranks, 0)
    weights, shape = request.weighting(teacher_ranks.T), teacher_ranks.T.shape
    got = f"the weighting gave shape {np.shape(weights)} for teacher's ranks of shape {shape}"
    _checks.require(np.shape(weights) == shape, f"{got}: expected the same")
    return lax.stop_gradient(weights).T
