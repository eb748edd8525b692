"""Perception coherence: the student orders the world as the teacher does."""

from __future__ import annotations  # short signatures in help()

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.dissimilarity import Dissimilarity, resolve
from pcjax.losses._estimator import References, Request, compiled_loss, whole_loss
from pcjax.losses._inputs import (
    FRAMES,
    axis_size,
    require_pair,
    require_reduction,
    require_where,
)
from pcjax.losses.registry import REFERENCES, RecipeTerm, loss, recipe
from pcjax.ranking import METHODS

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

    The teacher's ranks are hard. The student's ranks are soft, of width temperature x scale_i, see
    `scale`. The gradient flows through scale_i too. So multiplying the student's features by a
    positive number does not change the loss, and the gradient has no radial part. Labels and equal
    feature dimensions are not needed. The teacher gets no gradient.

    "Feature Representation Transferring to Lightweight Models via Perception Coherence"
    (arXiv:2505.06595) introduces the notion; this estimator is pcjax's own formulation of it.

    Least 0, for a student equal to the teacher if both ranks are as soft (teacher_temperature =
    temperature). The student's scale and rotation do not matter to cosines, its scale, rotation and
    translation not to Euclidean dissimilarities.

    Which form to use:

    - Start with the defaults: two arguments are enough.
    - Set `dissimilarity` to the one that the embeddings are searched with later.
    - Add a second term with frame="teacher" and weighting="neighbours" where the student has a
      linear head into the teacher's dimension: the recipe `perception_coherence_frames`.
    - Add `rank_list` where neighbours and classes count as much as the whole order: with weight 1
      on images, and in both frames with weight 0.1 each on texts, which is the recipe
      `perception_coherence_list`.
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
      teacher_temperature: None ranks the teacher hard; a number ranks it softly, by `ranking`.
      ranking: the soft rank's method, see `pcjax.ranking.soft_rank`.
      scale: unit of the temperature. "row" is the standard deviation of each anchor's own
        dissimilarities, "batch" the mean dissimilarity of the whole batch.
      frame: "own" ranks each model's points as seen from the model's own example. "teacher" ranks
        the teacher's points as seen from the student's example: d(student_i, teacher_j) against
        d(teacher_i, teacher_j), j = i included. The student must have the teacher's dimension.
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
        the loss and of each device's gradients gives the whole batch's values. `jax.shard_map` adds
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
    request = Request(
        dissimilarity=resolve(dissimilarity),
        teacher_dissimilarity=resolve(
            dissimilarity if teacher_dissimilarity is None else teacher_dissimilarity
        ),
        ranking=ranking,
        scale=scale,
        frame=frame,
        power=power,
        weighting=weighting,
        axis_name=axis_name,
        chunk_size=None if chunk_size is None else min(int(chunk_size), n),
        reduce_fn=reduce_fn,
        named=not any(map(callable, (dissimilarity, teacher_dissimilarity, weighting))),
    )
    more, present = (references or ())[:2], (references or ())[2:]
    arrays = [_checks.at_least_float32(x) for x in (student, teacher, *more)]
    dtype = jnp.result_type(*arrays)
    student, teacher, *more = (x.astype(dtype) for x in arrays)
    mask = None if where is None else jnp.asarray(where, bool)
    given = References(*more, *(jnp.asarray(x, bool) for x in present)) if more else None
    # A caller's function may close over values that change between calls: do not reuse a trace.
    evaluate = (
        compiled_loss if request.named and reduce_fn in (None, jnp.mean, jnp.sum) else whole_loss
    )
    # The gradient traces again. With a mesh set, even an empty one, JAX reuses the first trace.
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
