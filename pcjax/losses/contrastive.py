"""Contrastive losses: tell the student's embedding of an example apart from others.

In all of them u_i and v_i are the student's and the teacher's embeddings of example i, divided by
their lengths by the loss. A learnable linear head brings features into a common dimension, 128 as
published. A queue holds the teacher's embeddings of earlier examples, see
`pcjax.losses.enqueue`. Its empty slots count as absent, where the published implementations begin
with random points. A queue gets no gradient.
"""

from __future__ import annotations  # short signatures in help()

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._batch import Batch, divergence, embeddings, products, require_number, unit
from pcjax.losses.memory import Queue, valid
from pcjax.losses.registry import PAIR_OR_TEACHER_QUEUE, TEACHER_QUEUE, Law, loss


@loss(
    head="linear",
    arguments={"temperature": 0.07},
    memory=TEACHER_QUEUE._replace(required=False),
    law=Law(same_width=True, least_at_teacher=False, arguments={"temperature": 0.3}),
)
def info_nce(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 0.07,
    queue: Queue | None = None,
    symmetric: bool = True,
    teacher_gradient: bool = False,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Recognise each example's own embedding of the other model among the batch (InfoNCE).

    With temperature T, the batch's embeddings v_j and the queue's k, the loss is the mean over
    examples of

        1/2 [ -log e^(u_i.v_i / T) / (sum_j e^(u_i.v_j / T) + sum_k e^(u_i.k / T))
              -log e^(v_i.u_i / T) / sum_j e^(v_i.u_j / T) ],

    or of the first term alone. Examples of one class are negatives of each other. van den Oord et
    al., "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748). Between
    two models it is the form within the batch of "Contrastive Representation Distillation"
    (arXiv:1910.10699), whose temperature is the default; `crd` is the published form with memories.

    Least 0, in the limit of small temperatures, where each student embedding is nearest to its
    teacher's. The student's scale does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      temperature: positive; may be traced, and learnt.
      queue: earlier embeddings of the teacher, more negatives for the student's.
      symmetric: whether the second term counts.
      teacher_gradient: let the gradient reach the teacher's embedding, for a head of its own.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> loss = pcjax.losses.info_nce(jnp.eye(4), jnp.eye(4), temperature=1.0)
    >>> print(f"{loss:.4f}")  # log(1 + 3 / e)
    0.7437
    """
    batch = embeddings(
        student, teacher, teacher_gradient, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )
    temperature = require_number("temperature", temperature)
    points = batch.points()
    u, v = unit(batch.student), unit(batch.teacher)
    every_u, every_v = unit(points.student), unit(points.teacher)
    keys, present = every_v, points.valid
    if queue is not None:
        stored, filled = _stored("queue", queue, batch.teacher)
        keys, present = jnp.concatenate([keys, stored]), jnp.concatenate([present, filled])

    positive = jnp.sum(u * v, axis=1) / temperature
    values = _log_sum(products(u, keys) / temperature, present) - positive
    if symmetric:
        values = (
            values + _log_sum(products(v, every_u) / temperature, points.valid) - positive
        ) / 2
    return batch.reduced(values)


@loss(
    head="linear",
    bank=16384,
    arguments={"temperature": 0.1, "teacher_temperature": 0.02},
    # As published, every example finds its own embedding in the queue.
    memory=TEACHER_QUEUE._replace(update_first=True),
    law=Law(same_width=True, least_at_teacher=False),
)
def relational_representation(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    queue: Queue,
    temperature: ArrayLike = 0.1,
    teacher_temperature: ArrayLike = 0.02,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare similarities to a queue of earlier examples (relational representation distillation).

    With k over the queue's points, the loss is

        mean_i -sum_k softmax_k(v_i.k / T_teacher) log softmax_k(u_i.k / T).

    The queue must hold the batch's own embeddings: enqueue them first, as published, and pass the
    new queue. Giakoumoglou and Stathaki, "Relational Representation Distillation"
    (arXiv:2407.12073): queue of 16384, weight 1. There the teacher's head gets no gradient, and
    stays its initial random projection.

    Not verified: which temperature is the sharper. The defaults are those that the public code runs
    with; its documentation swaps them. Try both.

    Least 0, in the limit of small temperatures, where the nearest of the queue is the teacher's.
    The student's scale does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      queue: the teacher's embeddings, those of this batch among them; equal on all devices.
      temperature: of the student's similarities; positive.
      teacher_temperature: of the teacher's; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked, or the queue is empty.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(16, 4), jnp.eye(4))
    >>> round(pcjax.losses.relational_representation(jnp.eye(4), jnp.eye(4), queue=queue).item(), 5)
    0.00014
    """
    batch = embeddings(
        student, teacher, False, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )
    temperature = require_number("temperature", temperature)
    teacher_temperature = require_number("teacher_temperature", teacher_temperature)
    keys, present = _stored("queue", queue, batch.teacher)
    p = jnp.exp(_log_shares(products(unit(batch.teacher), keys) / teacher_temperature, present))
    log_q = _log_shares(products(unit(batch.student), keys) / temperature, present)
    return batch.reduced(-jnp.sum(jnp.where(present, p * log_q, 0), axis=1))


@loss(
    head="mlp",
    bank=65536,
    arguments={"temperature": 0.04},
    memory=PAIR_OR_TEACHER_QUEUE,
    law=Law(same_width=True, arguments={"temperature": 0.3}),
)
def similarity_kl(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    queue: Queue,
    temperature: ArrayLike = 0.04,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare softmaxes of similarities to a queue of anchor points (CompRess, SEED).

    With k over the queue's points, k' the teacher's and k'' the student's embedding of each, the
    loss is

        mean_i KL( softmax_k(v_i.k' / T) || softmax_k(u_i.k'' / T) ).

    A queue of the teacher's embeddings, k'' = k', needs equal dimensions. With a queue of pairs
    they may differ, and neither model needs a head. Abbasi Koohpayegani et al., "CompRess"
    (arXiv:2010.14713): queues of 128000, T = 0.04. Fang et al., "SEED" (arXiv:2101.04731): one
    queue of 65536, which holds the example's own embedding too.

    Least 0, for a student equal to the teacher. The student's scale does not matter.

    Args:
      student: (n, ds) embeddings.
      teacher: (n, dt) embeddings of the same examples.
      queue: earlier embeddings: the teacher's, `empty_queue(capacity, dt)`, or pairs of the
        student's and the teacher's, `empty_queue(capacity, (ds, dt))`; equal on all devices.
      temperature: positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked, or the queue is empty.

    >>> import jax.numpy as jnp, pcjax
    >>> pairs = jnp.ones((3, 1)), jnp.eye(3, 2)
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(8, (1, 2)), pairs)
    >>> loss = pcjax.losses.similarity_kl(jnp.ones((2, 1)), jnp.eye(2), queue=queue)
    >>> print(loss.round(4))  # log 3
    1.0986
    """
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    temperature = require_number("temperature", temperature)
    if not isinstance(queue, Queue):
        raise RequestError(f"got queue {type(queue).__name__}: expected one made by empty_queue")
    both = queue.points if isinstance(queue.points, tuple) else (queue.points, queue.points)
    if len(both) != 2:
        raise RequestError(
            f"got a queue of {len(both)} arrays: expected the teacher's points, or pairs "
            "(student's, teacher's)"
        )
    anchors, present = _stored(
        "queue of the student", queue._replace(points=both[0]), batch.student
    )
    teacher_anchors, _ = _stored(
        "queue of the teacher", queue._replace(points=both[1]), batch.teacher
    )
    log_p = _log_shares(products(unit(batch.teacher), teacher_anchors) / temperature, present)
    log_q = _log_shares(products(unit(batch.student), anchors) / temperature, present)
    return batch.reduced(divergence(log_p, log_q))


@loss(
    head="mlp",
    bank=65536,
    arguments={"temperature": 0.2, "own": 0.5},
    memory=TEACHER_QUEUE,
    law=Law(same_width=True, least_at_teacher=False, arguments={"share": 0.3}),
)
def bingo(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    student_neighbours: ArrayLike,
    teacher_neighbours: ArrayLike,
    student_mixtures: ArrayLike,
    share: ArrayLike,
    queue: Queue,
    temperature: ArrayLike = 0.2,
    own: float = 0.5,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Draw an example, a neighbour and their mixture to both keys of the teacher (BINGO).

    For a query q and a key k of the teacher, with the queue's points n as negatives,

        l(q, k) = -log e^(q.k / T) / (e^(q.k / T) + sum_n e^(q.n / T)).

    With a the example, p its neighbour, w = own, and m the mixture, of which the share s is the
    example's, the loss is the mean over examples of

        1/3 [ w l(u_a, v_a) + (1 - w) l(u_a, v_p) + w l(u_p, v_p) + (1 - w) l(u_p, v_a)
              + s l(u_m, v_a) + (1 - s) l(u_m, v_p) ].

    The neighbours come from the teacher's features before training; every step draws one of the 5
    nearest. Xu et al., "Bag of Instances Aggregation Boosts Self-supervised Distillation"
    (arXiv:2107.01691): own = 1 for the first 10 epochs, CutMix for the mixtures, queue of 65536,
    T = 0.2.

    Least 0, in the limit of small temperatures, where all keys are nearer than the queue. The
    student's scale does not matter.

    Args:
      student: (n, d) the student's embeddings of the examples.
      teacher: (n, d) the teacher's.
      student_neighbours: (n, d) the student's embeddings of one neighbour of each.
      teacher_neighbours: (n, d) the teacher's.
      student_mixtures: (n, d) the student's embeddings of the mixtures of example and neighbour.
      share: of the example in its mixture, from 0 to 1; a number or (n,).
      queue: earlier embeddings of the teacher; equal on all devices.
      temperature: positive.
      own: weight of each image's own key against the other's, from 0 to 1.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> x = jnp.eye(3)
    >>> options = {name: x for name in ("student_neighbours", "teacher_neighbours")}
    >>> options |= {"student_mixtures": x, "share": 0.3, "temperature": 1.0}
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(8, 3), -x)
    >>> loss = pcjax.losses.bingo(x, x, queue=queue, **options)
    >>> print(f"{loss:.4f}")  # log(1 + (e^-1 + 2) / e)
    0.6265
    """
    shape = np.shape(student)
    others = {
        "student_neighbours": student_neighbours,
        "teacher_neighbours": teacher_neighbours,
        "student_mixtures": student_mixtures,
    }
    for name, x in others.items():
        if np.shape(x) != shape:
            raise RequestError(
                f"got {name} {np.shape(x)} for a student {shape}: expected the same shape"
            )
    if np.shape(share) not in ((), shape[:1]):
        raise RequestError(f"got share of shape {np.shape(share)}: expected () or {shape[:1]}")
    _checks.require_share("own", own)
    temperature = require_number("temperature", temperature)

    options = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch, neighbours, mixtures = (
        embeddings(queries, keys, False, **options)
        for queries, keys in (
            (student, teacher),
            (student_neighbours, teacher_neighbours),
            (student_mixtures, teacher),
        )
    )
    negatives, present = _stored("queue", queue, batch.teacher)

    def against(queries: Array) -> Callable[[Array], Array]:
        queries = unit(queries)
        rest = _log_sum(products(queries, negatives) / temperature, present)

        def loss(keys: Array) -> Array:
            return jax.nn.softplus(rest - jnp.sum(queries * unit(keys), axis=1) / temperature)

        return loss

    keys, other_keys = batch.teacher, neighbours.teacher
    example, neighbour, mixture = (against(b.student) for b in (batch, neighbours, mixtures))
    values = own * (example(keys) + neighbour(other_keys)) + (1 - own) * (
        example(other_keys) + neighbour(keys)
    )
    share = jnp.asarray(share, batch.student.dtype)
    return batch.reduced((values + share * mixture(keys) + (1 - share) * mixture(other_keys)) / 3)


def _stored(
    what: str, queue: Any, features: Float[Array, "n d"]
) -> tuple[Float[Array, "k d"], Bool[Array, "k"]]:
    """Return a queue's points as directions, and which of its slots hold one."""
    if not isinstance(queue, Queue):
        raise RequestError(f"got {what} {type(queue).__name__}: expected one made by empty_queue")
    shapes = [np.shape(points) for points in jax.tree.leaves(queue.points)]
    width = features.shape[1]
    if not (len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] == width):
        raise RequestError(
            f"got a {what} of shapes {shapes}: expected one array (capacity, {width}), as many "
            "features as the embeddings"
        )
    points = jax.tree.leaves(queue.points)[0].astype(features.dtype)
    return lax.stop_gradient(unit(points)), valid(queue)


def _absent(dtype: Any) -> float:
    """Return a logit that adds nothing to others, and gives no NaN in a row of such logits."""
    return float(jnp.finfo(dtype).min) / 4


def _log_sum(logits: Float[Array, "n m"], present: Bool[Array, "m"]) -> Float[Array, "n"]:
    return jax.nn.logsumexp(jnp.where(present, logits, _absent(logits.dtype)), axis=1)


def _log_shares(logits: Float[Array, "n m"], present: Bool[Array, "m"]) -> Float[Array, "n m"]:
    return jax.nn.log_softmax(jnp.where(present, logits, _absent(logits.dtype)), axis=1)
