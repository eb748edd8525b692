"""Contrastive representation distillation with memories of the whole training set, as published."""

from __future__ import annotations  # short signatures in help()

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._batch import Batch, embeddings, products, require_number, unit
from pcjax.losses.memory import gather_same
from pcjax.losses.registry import Law, Memory, MemoryInit, loss


class Classes(NamedTuple):
    """Other classes' examples: `order` without the `size` of them from `first` on."""

    order: Int[Array, "examples"]
    first: Int[Array, "examples"]
    size: Int[Array, "examples"]


class CRDMemory(NamedTuple):
    """The memory of `crd` of every training example; part of the training state and of checkpoints.

    Attributes:
      student: (examples, d) the student's embeddings, moving averages of length 1.
      teacher: (examples, d) the teacher's.
      log_normalisers: (2,) log Z of the teacher's and of the student's embeddings, fixed at the
        first update.
      started: True after the first update.
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
    """Create the memory before the first step: random points.

    Args:
      key: random key.
      examples: size of the training set.
      features: dimension of the embeddings.
      labels: (examples,) classes. With them an example's negatives are of other classes, as
        published.

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
    labels = np.asarray(labels)
    if labels.shape != (examples,) or labels.dtype.kind not in "iu":
        raise RequestError(
            f"got labels of shape {labels.shape} and dtype {labels.dtype}: expected {examples} "
            "integers"
        )
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) <= 1:
        raise RequestError(
            f"got labels of {len(sizes)} class: expected at least 2, or leave the labels out"
        )
    first = np.cumsum(sizes) - sizes
    order = np.argsort(index, kind="stable")
    return Classes(*(jnp.asarray(x, jnp.int32) for x in (order, first[index], sizes[index])))


def _create_memory(
    init: MemoryInit, *, class_aware: bool = False, momentum: float = 0.5
) -> CRDMemory:
    del momentum
    labels = init.labels if class_aware else None
    return crd_memory(init.key, init.examples, init.widths[1], labels=labels)


def _update_memory(
    memory: CRDMemory, student: Array, teacher: Array, *, class_aware: bool = False, **options: Any
) -> CRDMemory:
    del class_aware
    return crd_update(memory, student, teacher, **options)


@loss(
    weight=0.8,
    head="linear",
    # The published 16,384 negatives take four times as long.
    arguments={"negatives": 4096, "temperature": 0.07},
    memory=Memory(
        "memory",
        _create_memory,
        _update_memory,
        sized=False,
        arguments=("momentum", "class_aware"),
    ),
    law=Law(
        same_width=True, least_at_teacher=False, arguments={"negatives": 6, "temperature": 0.3}
    ),
)
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
    """Tell each example's remembered embedding apart from random others' (CRD).

    u_i and v_i are the two models' embeddings divided by their lengths. The memory holds N
    examples; i_0 = i is the example itself, and i_1 .. i_K are drawn from the others with
    replacement. With m the memory of the other model and

        p_k = e^(a.m_{i_k} / T) / Z,
        c(a, m) = -log p_0 / (p_0 + K/N) - sum_k log (K/N) / (p_k + K/N),

    the loss is mean_i c(v_i, student's memory) + c(u_i, teacher's memory). Z is N times the mean of
    e^(a.m / T) in the first batch, and is fixed from then on. It is part of the memory, so a run
    depends on its first batch. An example's negatives follow from the key and its index alone. The
    loss computes the product with the whole memory and picks entries of it: n x N numbers, not
    n x K x d.

    Compute the loss first, then `crd_update` with the same arguments, which returns the memory of
    the next step. Tian et al., "Contrastive Representation Distillation" (arXiv:1910.10699): weight
    0.8, learnt linear heads to dimension 128 on both models (teacher_gradient), negatives of other
    classes. The published code adds 1e-7 to the denominators; here the logarithms are computed
    directly and need none. Its variant with another example of the class as the positive is not
    available.

    Least 0, in the limit of small temperatures, where the example's remembered embedding is near
    and the rest far. The student's scale does not matter.

    Args:
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      memory: from `crd_memory` or `crd_update`; equal on all devices.
      indices: (n,) the examples' positions in the memory.
      key: random key, a new one in every step; equal on all devices.
      negatives: K, drawn for each example.
      temperature: positive.
      teacher_gradient: let the gradient reach the teacher's embedding, for a head of its own. The
        term of the teacher's embedding is constant without it.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax, jax.numpy as jnp, pcjax
    >>> key, x = jax.random.key(0), jnp.eye(2)
    >>> options = dict(indices=jnp.arange(2), key=key, negatives=8)
    >>> memory = pcjax.losses.crd_memory(key, 100, 2)
    >>> loss = pcjax.losses.crd(x, x, memory=memory, **options)
    >>> memory = pcjax.losses.crd_update(memory, x, x, **options)
    >>> bool(pcjax.losses.crd(x, x, memory=memory, **options) < loss)
    True
    """
    options = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
    batch = embeddings(student, teacher, teacher_gradient, **options)
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
    """Return the memory after a step.

    m_i becomes momentum x m_i + (1 - momentum) x the new embedding, at length 1. The first update
    also fixes the normalisers, from the old memory and that step's negatives, so it takes the
    arguments of `crd`. No example should be in a batch twice: either of the two may be remembered.

    Args:
      memory: the one that the step's loss was computed with.
      student: (n, d) embeddings.
      teacher: (n, d) embeddings of the same examples.
      indices: (n,) the examples' positions in the memory.
      key: the step's random key.
      negatives: as in the loss.
      temperature: as in the loss.
      momentum: share of the old embedding, from 0 to 1; 0.5 as published.
      where: (n,), True for the examples to remember.
      axis_name: mapped axis over which the batch is split: every device remembers all examples.

    Returns:
      The memory for the next step.

    >>> import jax, jax.numpy as jnp, pcjax
    >>> memory = pcjax.losses.crd_memory(jax.random.key(0), 100, 2)
    >>> options = dict(indices=jnp.array([7]), key=jax.random.key(1), negatives=8, momentum=0.0)
    >>> student, teacher = jnp.array([[3.0, 4.0]]), jnp.ones((1, 2))
    >>> print(pcjax.losses.crd_update(memory, student, teacher, **options).student[7])
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
    *embeddings, positions, remembered, sums = rows
    first = _log_normalisers(memory, sums, remembered).astype(memory.log_normalisers.dtype)
    fixed = jnp.where(memory.started, memory.log_normalisers, first)
    # An index beyond the memory is dropped.
    positions = jnp.where(remembered, positions, memory.student.shape[0])
    student, teacher = (
        points.at[positions].set(
            unit(momentum * points[positions] + (1 - momentum) * unit(x).astype(points.dtype)),
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
    """Compute the logits of each model's embeddings in the other's memory; positive first."""
    if not isinstance(memory, CRDMemory):
        raise RequestError(f"got memory {type(memory).__name__}: expected one of crd_memory")
    _checks.require_whole("negatives", negatives, 1)
    n, shapes = batch.student.shape[0], (batch.student.shape, memory.student.shape)
    if shapes[0][1] != shapes[1][1]:
        raise RequestError(
            f"got embeddings {shapes[0]} for a memory {shapes[1]}: expected as many features"
        )
    indices = jnp.asarray(indices)
    if indices.shape != (n,) or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise RequestError(
            f"got indices of shape {indices.shape} and dtype {indices.dtype}: expected {n} "
            "integers, the examples' positions in the memory"
        )
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
    """Draw other examples, or examples of other classes, all equally likely."""
    examples, classes = memory.student.shape[0], memory.classes
    if classes is None:
        return (index + jax.random.randint(key, (negatives,), 1, examples, jnp.int32)) % examples
    first, size = classes.first[index], classes.size[index]
    position = jax.random.randint(key, (negatives,), 0, examples - size, jnp.int32)
    return classes.order[jnp.where(position < first, position, position + size)]


def _sums(logits: tuple[Float[Array, "n k"], Float[Array, "n k"]]) -> Float[Array, "n 2"]:
    """Compute the logarithm of each example's mean of e^logit, in both memories."""
    return jnp.stack(
        [jax.nn.logsumexp(side, axis=1) - math.log(side.shape[1]) for side in logits], axis=1
    )


def _log_normalisers(
    memory: CRDMemory, sums: Float[Array, "m 2"], valid: Bool[Array, "m"]
) -> Float[Array, "2"]:
    """Compute the logarithm of N times the mean of e^logit in the whole batch."""
    least = float(jnp.finfo(sums.dtype).min) / 4
    total = jax.nn.logsumexp(jnp.where(valid[:, None], sums, least), axis=0)
    count = jnp.maximum(jnp.sum(valid), 1).astype(sums.dtype)
    return lax.stop_gradient(total - jnp.log(count) + math.log(memory.student.shape[0]))
