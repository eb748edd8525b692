"""Losses with positives and negatives: the student's embedding of an example is told apart from others by the teacher.

In all of them u_i and v_i are the student's and the teacher's embeddings of example i, divided by their lengths here; a
learnable linear head brings features into a common dimension, 128 as published. A queue holds the teacher's embeddings
of earlier examples, see `pcjax.losses.enqueue`; its places that are not filled count as absent, where the published
implementations begin with random points. No gradient reaches a queue.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from pcjax import _checks
from pcjax.losses._batch import Batch, divergence, products, require_number, unit
from pcjax.losses.memory import Queue, valid

_HEAD = "give one of them a linear head"


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
    r"""Which of the teacher's embeddings is this example's, and which of the student's: a softmax over the batch.

    With temperature T, the batch's embeddings v_j and the queue's k the loss is the mean over examples of

        1/2 [ -log e^(u_i.v_i / T) / (sum_j e^(u_i.v_j / T) + sum_k e^(u_i.k / T))
              -log e^(v_i.u_i / T) / sum_j e^(v_i.u_j / T) ],

    or of the first term alone. Examples of one class are negatives of each other. van den Oord et al.,
    "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748); between two models it is the form
    in the batch of "Contrastive Representation Distillation" (arXiv:1910.10699), whose temperature is the default; the
    published form with memories is `crd`.

    Least 0, in the limit of small temperatures, where each student embedding is nearest to its teacher's. The student's
    scale does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      temperature: positive; may be traced, and learnt.
      queue: earlier embeddings of the teacher, more negatives for the student's.
      symmetric: whether the second term counts.
      teacher_gradient: let the gradient reach the teacher's embedding, where a head of its own is learnt with it.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> round(pcjax.losses.info_nce(jnp.eye(4), jnp.eye(4), temperature=1.0).item(), 4)  # log(1 + 3 / e)
    0.7437
    """
    batch = _embeddings(
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
    r"""Relational representation distillation: the student is as similar to earlier examples as the teacher is.

    With k over the queue's points,

        mean_i -sum_k softmax_k(v_i.k / T_teacher) log softmax_k(u_i.k / T).

    The batch's own embeddings belong in the queue already: enqueue them first, as published, and pass the new queue.
    Giakoumoglou and Stathaki, "Relational Representation Distillation" (arXiv:2407.12073): queue of 16384, weight 1;
    the teacher's head gets no gradient there and so stays the random projection it began as.

    What was not verifiable: which temperature is the sharper. The defaults are what the public code runs with; its
    documentation has them the other way round. Try both.

    Least 0, in the limit of small temperatures, where the nearest of the queue is the teacher's. The student's scale
    does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      queue: the teacher's embeddings, those of this batch among them.
      temperature: of the student's similarities; positive.
      teacher_temperature: of the teacher's; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`; the queue is the same on all.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked, or the queue is empty.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(16, 4), jnp.eye(4))
    >>> round(pcjax.losses.relational_representation(jnp.eye(4), jnp.eye(4), queue=queue).item(), 5)
    0.00014
    """
    batch = _embeddings(
        student, teacher, False, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )
    temperature = require_number("temperature", temperature)
    teacher_temperature = require_number("teacher_temperature", teacher_temperature)
    keys, present = _stored("queue", queue, batch.teacher)
    p = jnp.exp(_log_shares(products(unit(batch.teacher), keys) / teacher_temperature, present))
    log_q = _log_shares(products(unit(batch.student), keys) / temperature, present)
    return batch.reduced(-jnp.sum(jnp.where(present, p * log_q, 0), axis=1))


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
    r"""Distillation of similarities to anchor points: softmaxes over a queue are to agree.

    With k over the queue's points, k' the teacher's and k'' the student's embedding of each,

        mean_i KL( softmax_k(v_i.k' / T) || softmax_k(u_i.k'' / T) ).

    One queue of the teacher's embeddings, k'' = k', wants equal dimensions; one of pairs lets them differ, and neither
    model needs a head. Abbasi Koohpayegani et al., "CompRess" (arXiv:2010.14713): queues of 128000, T = 0.04; Fang et
    al., "SEED" (arXiv:2101.04731): one queue of 65536, to which the example's own embedding belongs.

    Least 0, for a student equal to the teacher. The student's scale does not matter.

    Args:
      student: (n, ds) embeddings.
      teacher: (n, dt) embeddings of the same examples.
      queue: earlier embeddings: the teacher's, `empty_queue(capacity, dt)`, or pairs of the student's and the
        teacher's, `empty_queue(capacity, (ds, dt))`.
      temperature: positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`; the queue is the same on all.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked, or the queue is empty.

    >>> import jax.numpy as jnp, pcjax
    >>> queue = pcjax.losses.enqueue(pcjax.losses.empty_queue(8, (1, 2)), (jnp.ones((3, 1)), jnp.eye(3, 2)))
    >>> print(pcjax.losses.similarity_kl(jnp.ones((2, 1)), jnp.eye(2), queue=queue).round(4))  # log 3
    1.0986
    """
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    temperature = require_number("temperature", temperature)
    _checks.require(
        isinstance(queue, Queue),
        f"got queue {type(queue).__name__}: expected one made by empty_queue",
    )
    both = queue.points if isinstance(queue.points, tuple) else (queue.points, queue.points)
    got = f"got a queue of {len(both)} arrays"
    _checks.require(
        len(both) == 2, f"{got}: expected the teacher's points, or pairs (student's, teacher's)"
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
    r"""Bag of instances: an example, one of its neighbours and a mixture of both are drawn to both keys of the teacher.

    For a query q and a key k of the teacher, with the queue's points n as negatives,

        l(q, k) = -log e^(q.k / T) / (e^(q.k / T) + sum_n e^(q.n / T)),

    and with a the example, p its neighbour, w = own and m the mixture of which the share s is the example's,

        1/3 [ w l(u_a, v_a) + (1 - w) l(u_a, v_p) + w l(u_p, v_p) + (1 - w) l(u_p, v_a)
              + s l(u_m, v_a) + (1 - s) l(u_m, v_p) ],

    averaged over the examples. The neighbours are found before training, by the teacher's features: one drawn out of
    the 5 nearest in every step. Xu et al., "Bag of Instances Aggregation Boosts Self-supervised Distillation"
    (arXiv:2107.01691): own = 1 for the first 10 epochs, CutMix for the mixtures, queue of 65536, T = 0.2.

    Least 0, in the limit of small temperatures, where all keys are nearer than the queue. The student's scale does not
    matter.

    Args:
      student: (n, d) the student's embeddings of the examples.
      teacher: (n, d) the teacher's.
      student_neighbours: (n, d) the student's embeddings of one neighbour of each.
      teacher_neighbours: (n, d) the teacher's.
      student_mixtures: (n, d) the student's embeddings of the mixtures of example and neighbour.
      share: of the example in its mixture, from 0 to 1; a number or (n,).
      queue: earlier embeddings of the teacher.
      temperature: positive.
      own: weight of each image's own key against the other's, from 0 to 1.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`; the queue is the same on all.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> x, queue = jnp.eye(3), pcjax.losses.enqueue(pcjax.losses.empty_queue(8, 3), -jnp.eye(3))
    >>> rest = dict(student_neighbours=x, teacher_neighbours=x, student_mixtures=x, share=0.3, queue=queue)
    >>> round(pcjax.losses.bingo(x, x, **rest, temperature=1.0).item(), 4)  # log(1 + (e^-1 + 2) / e)
    0.6265
    """
    shape = np.shape(student)
    others = {
        "student_neighbours": student_neighbours,
        "teacher_neighbours": teacher_neighbours,
        "student_mixtures": student_mixtures,
    }
    for name, x in others.items():
        _checks.require(
            np.shape(x) == shape,
            f"got {name} {np.shape(x)} for a student {shape}: expected the same shape",
        )
    _checks.require(
        np.shape(share) in ((), shape[:1]),
        f"got share of shape {np.shape(share)}: expected () or {shape[:1]}",
    )
    _checks.require_share("own", own)
    temperature = require_number("temperature", temperature)

    def of(queries: ArrayLike, keys: ArrayLike) -> Batch:
        return _embeddings(
            queries, keys, False, where=where, axis_name=axis_name, reduce_fn=reduce_fn
        )

    batch, neighbours, mixtures = (
        of(student, teacher),
        of(student_neighbours, teacher_neighbours),
        of(student_mixtures, teacher),
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


def _embeddings(
    student: ArrayLike, teacher: ArrayLike, teacher_gradient: bool, **given: Any
) -> Batch:
    """The batch of a loss whose two embeddings are compared with one another."""
    batch = Batch.of(student, teacher, same=_HEAD, **given)
    if not teacher_gradient:
        return batch
    return dataclasses.replace(batch, teacher=Batch.of(teacher, student, **given).student)


def _stored(
    what: str, queue: Any, features: Float[Array, "n d"]
) -> tuple[Float[Array, "k d"], Bool[Array, "k"]]:
    """A queue's points as directions, and which of them there are."""
    _checks.require(
        isinstance(queue, Queue),
        f"got {what} {type(queue).__name__}: expected one made by empty_queue",
    )
    shapes = [np.shape(points) for points in jax.tree.leaves(queue.points)]
    fits = len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] == features.shape[1]
    wanted = f"expected one array (capacity, {features.shape[1]}), as many features as what is compared with it"
    _checks.require(fits, f"got a {what} of shapes {shapes}: {wanted}")
    points = jax.tree.leaves(queue.points)[0].astype(features.dtype)
    return lax.stop_gradient(unit(points)), valid(queue)


def _absent(dtype: Any) -> float:
    """A logit that adds nothing beside any other, and with which a row of nothing else still has no NaN."""
    return float(jnp.finfo(dtype).min) / 4


def _log_sum(logits: Float[Array, "n m"], present: Bool[Array, "m"]) -> Float[Array, "n"]:
    return jax.nn.logsumexp(jnp.where(present, logits, _absent(logits.dtype)), axis=1)


def _log_shares(logits: Float[Array, "n m"], present: Bool[Array, "m"]) -> Float[Array, "n m"]:
    return jax.nn.log_softmax(jnp.where(present, logits, _absent(logits.dtype)), axis=1)
