"""Contrastive representation distillation against memories of the whole training set, as it was published."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax.losses._batch import Batch, products, require_number, unit
from pcjax.losses.contrastive import _embeddings
from pcjax.losses.memory import gather_same


class Classes(NamedTuple):
    """Where the examples of other classes are: all of `order` but `size` of them from `first` on."""

    order: Int[Array, "examples"]
    first: Int[Array, "examples"]
    size: Int[Array, "examples"]


class CRDMemory(NamedTuple):
    """What `crd` remembers of every training example; belongs into the training state and into checkpoints.

    Attributes:
      student: (examples, d) the student's embeddings, moving averages of length 1.
      teacher: (examples, d) the teacher's.
      log_normalisers: (2,) log Z of the teacher's and of the student's embeddings, fixed at the first update.
      started: whether there has been one.
      classes: for negatives of other classes only, or None.
    """

    student: Float[Array, "examples d"]
    teacher: Float[Array, "examples d"]
    log_normalisers: Float[Array, "2"]
    started: Bool[Array, ""]
    classes: Classes | None


def crd_memory(
    key: Array, examples: int, features: int, *, labels: ArrayLike | None = None
) -> CRDMemory:
    """The memory before the first step: random points.

    Args:
      key: random key.
      examples: size of the training set.
      features: dimension of the embeddings.
      labels: (examples,) classes; with them negatives are of other classes than the example, as published.

    Returns:
      The memory, of 8 x examples x features bytes.

    >>> import jax, pcjax
    >>> pcjax.losses.crd_memory(jax.random.key(0), 1000, 128).student.shape
    (1000, 128)
    """
    _checks.require_whole("examples", examples, 2)
    _checks.require_whole("features", features, 1)
    bound = math.sqrt(3 / features)
    points = jax.random.uniform(key, (2, examples, features), minval=-bound, maxval=bound)
    classes = None if labels is None else _classes(labels, examples)
    return CRDMemory(points[0], points[1], jnp.zeros(2), jnp.zeros((), bool), classes)


def _classes(labels: ArrayLike, examples: int) -> Classes:
    of_each = np.asarray(labels)
    got = f"got labels of shape {of_each.shape} and dtype {of_each.dtype}"
    _checks.require(
        of_each.shape == (examples,) and of_each.dtype.kind in "iu",
        f"{got}: expected {examples} integers",
    )
    _, index, sizes = np.unique(of_each, return_inverse=True, return_counts=True)
    _checks.require(
        len(sizes) > 1,
        f"got labels of {len(sizes)} class: expected at least 2, or leave the labels out",
    )
    first = np.cumsum(sizes) - sizes
    order = np.argsort(index, kind="stable")
    return Classes(*(jnp.asarray(x, jnp.int32) for x in (order, first[index], sizes[index])))


def crd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    memory: CRDMemory,
    indices: ArrayLike,
    key: Array,
    negatives: int = 16384,
    temperature: ArrayLike = 0.07,
    teacher_gradient: bool = False,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    r"""Contrastive representation distillation: noise-contrastive estimation against memories of all examples.

    With u_i and v_i the two models' embeddings divided by their lengths, i_0 = i the example itself among the N that
    are remembered, i_1 .. i_K drawn from the others with replacement, and m the memory of the other model,

        c(a, m) = -log p_0 / (p_0 + K/N) - sum_k log (K/N) / (p_k + K/N),       p_k = e^(a.m_{i_k} / T) / Z,

    the loss is mean_i c(v_i, student's memory) + c(u_i, teacher's memory). Z is N times the mean of e^(a.m / T) in the
    first batch, and fixed from then on: it is part of the memory, and what a run does depends on that batch. Which
    negatives an example has follows from the key and its index alone. The product with the whole memory is computed and
    looked up in, rather than the memory: n x N numbers, and not n x K x d.

    Take the loss first and then `crd_update` with the same arguments, which returns the memory of the next step. Tian
    et al., "Contrastive Representation Distillation" (arXiv:1910.10699): weight 0.8, linear heads to dimension 128 on
    both models, both learnt (teacher_gradient), negatives of other classes. The published code's 1e-7 in the
    denominators is left out, logarithms being computed as such; its variant with another example of the class as the
    positive is not offered.

    Least 0, in the limit of small temperatures, where what is remembered of the example is near and the rest far. The
    student's scale does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      memory: from `crd_memory` or `crd_update`.
      indices: (n,) the examples' places in the memory.
      key: random key, a new one in every step.
      negatives: K, drawn for each example.
      temperature: positive.
      teacher_gradient: let the gradient reach the teacher's embedding, where a head of its own is learnt with it;
        without it the term of the teacher's embedding is but a number.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`; memory and key are the same on
        all devices.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax, jax.numpy as jnp, pcjax
    >>> key, x = jax.random.key(0), jnp.eye(2)
    >>> given = dict(indices=jnp.arange(2), key=key, negatives=8)
    >>> memory = pcjax.losses.crd_memory(key, 100, 2)
    >>> loss = pcjax.losses.crd(x, x, memory=memory, **given)
    >>> memory = pcjax.losses.crd_update(memory, x, x, **given)
    >>> bool(pcjax.losses.crd(x, x, memory=memory, **given) < loss)
    True
    """
    given = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch = _embeddings(student, teacher, teacher_gradient, **given)
    temperature = require_number("temperature", temperature)
    logits = _logits(batch, memory, indices, key, negatives, temperature)
    values = jnp.zeros_like(batch.student[:, 0])
    log_noise = math.log(negatives / memory.student.shape[0])
    first = _log_normalisers(memory, batch.gather(_sums(logits)), batch.gather(batch.valid))
    fixed = jnp.where(memory.started, memory.log_normalisers, first)
    for side, log_normaliser in zip(logits, lax.stop_gradient(fixed), strict=True):
        odds = side - log_normaliser.astype(side.dtype) - log_noise
        values -= jax.nn.log_sigmoid(odds[:, 0]) + jnp.sum(jax.nn.log_sigmoid(-odds[:, 1:]), axis=1)
    return batch.reduced(values)


def crd_update(
    memory: CRDMemory,
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    indices: ArrayLike,
    key: Array,
    negatives: int = 16384,
    temperature: ArrayLike = 0.07,
    momentum: float = 0.5,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> CRDMemory:
    """The memory after a step: m_i moves to momentum x m_i + (1 - momentum) x the new embedding, at length 1.

    The first time it fixes the normalisers too, from the memory as it was and the negatives of that step, so it takes
    what `crd` takes. No example should be in a batch twice: which of the two would be remembered is open.

    Args:
      memory: the one the step's loss was computed with.
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      indices: (n,) the examples' places in the memory.
      key: the step's random key.
      negatives: as in the loss.
      temperature: as in the loss.
      momentum: from 0 to 1, share of what was remembered; 0.5 as published.
      where: (n,), True for the examples that are remembered.
      axis_name: mapped axis over which the batch is split: every device remembers the examples of all.

    Returns:
      The memory for the next step.

    >>> import jax, jax.numpy as jnp, pcjax
    >>> memory = pcjax.losses.crd_memory(jax.random.key(0), 100, 2)
    >>> given = dict(indices=jnp.array([7]), key=jax.random.key(1), negatives=8, momentum=0.0)
    >>> print(pcjax.losses.crd_update(memory, jnp.array([[3.0, 4.0]]), jnp.ones((1, 2)), **given).student[7])
    [0.6 0.8]
    """
    _checks.require_share("momentum", momentum)
    temperature = require_number("temperature", temperature)
    student, teacher = (lax.stop_gradient(jnp.asarray(x)) for x in (student, teacher))
    batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=None)
    absent = jnp.zeros_like(batch.student[:, :1]) + jnp.zeros(2)

    def first_sums() -> Array:
        return _sums(_logits(batch, memory, indices, key, negatives, temperature))

    sums = lax.cond(memory.started, lambda: absent, first_sums)
    rows = batch.student, batch.teacher, jnp.asarray(indices), batch.valid, sums
    if axis_name is not None:
        rows = gather_same(rows, axis_name)
    *embeddings, places, remembered, sums = rows
    first = _log_normalisers(memory, sums, remembered).astype(memory.log_normalisers.dtype)
    fixed = jnp.where(memory.started, memory.log_normalisers, first)
    # An index beyond the memory is dropped.
    places = jnp.where(remembered, places, memory.student.shape[0])
    student, teacher = (
        points.at[places].set(
            unit(momentum * points[places] + (1 - momentum) * unit(x).astype(points.dtype)),
            mode="drop",
        )
        for points, x in zip((memory.student, memory.teacher), embeddings, strict=True)
    )
    return memory._replace(
        student=student,
        teacher=teacher,
        log_normalisers=fixed,
        started=memory.started | jnp.any(remembered),
    )


def _logits(
    batch: Batch,
    memory: CRDMemory,
    indices: ArrayLike,
    key: Array,
    negatives: int,
    temperature: ArrayLike,
) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
    """Of the teacher's embeddings in the student's memory, and the other way round; the positive comes first."""
    _checks.require(
        isinstance(memory, CRDMemory),
        f"got memory {type(memory).__name__}: expected one of crd_memory",
    )
    _checks.require_whole("negatives", negatives, 1)
    n, shapes = batch.student.shape[0], (batch.student.shape, memory.student.shape)
    got = f"got embeddings {shapes[0]} for a memory {shapes[1]}"
    _checks.require(shapes[0][1] == shapes[1][1], f"{got}: expected as many features")
    indices = jnp.asarray(indices)
    integers = jnp.issubdtype(indices.dtype, jnp.integer) and indices.shape == (n,)
    got = f"got indices of shape {indices.shape} and dtype {indices.dtype}"
    _checks.require(integers, f"{got}: expected {n} integers, the examples' places in the memory")
    drawn = jax.vmap(lambda index: _draw(memory, index, jax.random.fold_in(key, index), negatives))(
        indices
    )
    picked = jnp.concatenate([indices[:, None].astype(drawn.dtype), drawn], axis=1)

    def against(embeddings: Array, points: Array) -> Array:
        scores = (
            products(unit(embeddings), lax.stop_gradient(points).astype(embeddings.dtype))
            / temperature
        )
        return jnp.take_along_axis(scores, picked, axis=1)

    return against(batch.teacher, memory.student), against(batch.student, memory.teacher)


def _draw(memory: CRDMemory, index: Array, key: Array, negatives: int) -> Int[Array, "k"]:
    """Others than the example, or of other classes, all equally likely."""
    examples, classes = memory.student.shape[0], memory.classes
    if classes is None:
        return (index + jax.random.randint(key, (negatives,), 1, examples, jnp.int32)) % examples
    first, size = classes.first[index], classes.size[index]
    place = jax.random.randint(key, (negatives,), 0, examples - size, jnp.int32)
    return classes.order[jnp.where(place < first, place, place + size)]


def _sums(logits: tuple[Float[Array, "n k"], Float[Array, "n k"]]) -> Float[Array, "n 2"]:
    """The logarithm of each example's mean of e^logit, in both memories."""
    return jnp.stack(
        [jax.nn.logsumexp(side, axis=1) - math.log(side.shape[1]) for side in logits], axis=1
    )


def _log_normalisers(
    memory: CRDMemory, sums: Float[Array, "m 2"], valid: Bool[Array, "m"]
) -> Float[Array, "2"]:
    """The logarithm of N times the mean of e^logit in the whole batch."""
    least = float(jnp.finfo(sums.dtype).min) / 4
    total = jax.nn.logsumexp(jnp.where(valid[:, None], sums, least), axis=0)
    count = jnp.maximum(jnp.sum(valid), 1).astype(sums.dtype)
    return lax.stop_gradient(total - jnp.log(count) + math.log(memory.student.shape[0]))
