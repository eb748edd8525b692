"""Losses on class scores: compare the distributions of student and teacher over the classes.

Student and teacher are scores before the softmax, (n, classes), unless a docstring states
otherwise.
"""

from __future__ import annotations  # short signatures in help()

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._batch import Batch, divergence, norms, products, require_number
from pcjax.losses._inputs import require_where
from pcjax.losses.feature import flat_batch
from pcjax.losses.registry import Law, loss

SAME_CLASSES = "the scores of the same classes"


@loss(arguments={"temperature": 4.0}, kinds=("logits",), law=Law(same_width=True))
def kd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 4.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare softened class distributions (knowledge distillation).

    With p = softmax(z / T) the loss is mean_i T^2 KL(p^teacher_i || p^student_i). The factor T^2
    keeps the gradient's size where T changes. Hinton et al., "Distilling the Knowledge in a Neural
    Network" (arXiv:1503.02531). The most common choice is T = 4 and weight 0.9, beside 0.1 of the
    cross-entropy with the labels.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, classes) scores.
      teacher: (n, classes) scores of the same examples.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.kd([[0.0, 0.0]], [[1.0, 0.0]], temperature=1.0):.4f}")
    0.1109
    """
    temperature = require_number("temperature", temperature)
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same_width=SAME_CLASSES,
    )
    log_p, log_q = (jax.nn.log_softmax(z / temperature) for z in (batch.teacher, batch.student))
    return batch.reduced(temperature**2 * divergence(log_p, log_q))


@loss(
    arguments={"alpha": 1.0, "beta": 8.0, "temperature": 4.0},
    kinds=("logits",),
    law=Law(same_width=True),
)
def dkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    labels: ArrayLike,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 8.0,
    temperature: ArrayLike = 4.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the true class with the others, and the others among themselves (decoupled KD).

    With p = softmax(z / T), y the label, b = (p_y, 1 - p_y), and r the distribution over the other
    classes, r_c = p_c / (1 - p_y), the loss is

        mean_i T^2 [alpha KL(b^teacher_i || b^student_i) + beta KL(r^teacher_i || r^student_i)].

    `kd` is this loss with alpha = 1 and 1 - p^teacher_y in place of beta. Zhao et al., "Decoupled
    Knowledge Distillation" (arXiv:2203.08679). The paper tunes beta for every pair of models (8 is
    one of its values) and raises the weight from 0 over the first 20 epochs. All logarithms are
    taken of scores, none of probabilities. With two classes only the first term is left.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, classes) scores, of at least two classes.
      teacher: (n, classes) scores of the same examples.
      labels: (n,) true classes as integers; examples with label -1 do not count.
      alpha: weight of the true class, at least 0.
      beta: weight of the others, at least 0.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> student, teacher = [[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]
    >>> print(f"{pcjax.losses.dkd(student, teacher, labels=[0], temperature=1.0):.4f}")
    0.9234
    """
    alpha = require_number("alpha", alpha, zero=True)
    beta = require_number("beta", beta, zero=True)
    temperature = require_number("temperature", temperature)
    labels, where = _labelled(labels, where, student)
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same_width=SAME_CLASSES,
    )
    classes = batch.student.shape[1]
    if classes < 2:
        raise RequestError(f"got scores of {classes} class: expected at least 2")
    target = labels[:, None] == jnp.arange(classes)

    def split(scores: Array) -> tuple[Array, Array]:
        """Return log-probabilities of (target, rest), and of the other classes among themselves."""
        log_p = jax.nn.log_softmax(scores / temperature)
        log_rest = jax.nn.logsumexp(log_p, axis=1, where=~target)
        log_target = jnp.sum(jnp.where(target, log_p, 0), axis=1)
        return jnp.stack([log_target, log_rest], axis=1), log_p - log_rest[:, None]

    (both_t, others_t), (both_s, others_s) = split(batch.teacher), split(batch.student)
    others_t = jnp.where(target, -jnp.inf, others_t)
    values = alpha * divergence(both_t, both_s) + beta * divergence(others_t, others_s)
    return batch.reduced(temperature**2 * values)


@loss(kinds=("labels",), law=Law(same_width=True, least_at_teacher=False))
def cross_entropy(
    student: ArrayLike,
    *,
    labels: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compute the negative log-likelihood of the true classes, without a teacher.

    With p = softmax(z), y the label, C classes and a the smoothing, the loss is mean_i -[(1 - a)
    log p_iy + a/C sum_c log p_ic]. The other losses on class scores are added to it.

    Least 0, in the limit of scores that leave no doubt of the labels. The student's scale, rotation
    and translation matter.

    Args:
      student: (n, classes) scores.
      labels: (n,) true classes as integers; examples with label -1 do not count.
      label_smoothing: a, the share of the target that all classes get alike; from 0 to 1.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.cross_entropy([[0.0, 0.0]], labels=[1]):.4f}")  # log 2
    0.6931
    """
    smoothing = require_number("label_smoothing", label_smoothing, zero=True)
    if not (isinstance(label_smoothing, Tracer) or bool(np.asarray(label_smoothing) <= 1)):
        raise RequestError(
            f"got label_smoothing {label_smoothing!r}: expected a number from 0 to 1"
        )
    labels, where = _labelled(labels, where, student)
    batch = Batch.of(student, student, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    log_p = jax.nn.log_softmax(batch.student)
    target = labels[:, None] == jnp.arange(log_p.shape[1])
    true = jnp.sum(jnp.where(target, log_p, 0), axis=1)
    return batch.reduced(-((1 - smoothing) * true + smoothing * jnp.mean(log_p, axis=1)))


def _labelled(
    labels: ArrayLike, where: ArrayLike | None, student: ArrayLike
) -> tuple[Array, Array]:
    """Return the labels, and the mask without the examples that have none."""
    _checks.require_features("student", student)
    n, classes = np.shape(student)
    if np.shape(labels) != (n,):
        raise RequestError(
            f"got labels of shape {np.shape(labels)}: expected ({n},), one class per example"
        )
    dtype = jax.dtypes.result_type(labels if isinstance(labels, Tracer) else np.asarray(labels))
    if not jnp.issubdtype(dtype, jnp.integer):
        raise RequestError(f"got labels of dtype {dtype}: expected integers, -1 for no label")
    if not isinstance(labels, Tracer):
        known = np.asarray(labels)
        wrong = known[(known < -1) | (known >= classes)]
        if wrong.size:
            raise RequestError(
                f"got label {wrong[0]} for {classes} classes: expected 0 to {classes - 1}, or -1 "
                "for no label"
            )
    labels = jnp.asarray(labels)
    require_where(where, n)
    return labels, (labels >= 0) & (True if where is None else jnp.asarray(where))


@loss(
    arguments={"beta": 1.0, "gamma": 1.0, "temperature": 1.0},
    kinds=("logits",),
    law=Law(same_width=True, per_example=False),
)
def dist(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    gamma: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] = jnp.mean,
) -> Float[Array, ""]:
    """Compare class probabilities by correlation, over classes and over examples (DIST).

    With p = softmax(z / T) and rho Pearson's correlation the loss is

        T^2 [beta (1 - mean_i rho(p^student_i., p^teacher_i.))
             + gamma (1 - mean_c rho(p^student_.c, p^teacher_.c))].

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (arXiv:2205.10536). The defaults
    are those of the published code. As far as we know, the paper has beta = gamma = 2 with T = 4
    for CIFAR and T = 1 for ImageNet. As in that code, 1e-8 is added to the product of the two
    lengths: values that hardly vary correlate with nothing.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, classes) scores, n >= 2.
      teacher: (n, classes) scores of the same examples.
      beta: weight of the correlation over classes, at least 0.
      gamma: weight of the correlation over examples, at least 0; noisy in small batches.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: only jnp.mean: correlations over examples have no value per example.

    Returns:
      The loss, at most 2 T^2 (beta + gamma); 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.dist([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]):.4f}")
    0.0000
    """
    beta = require_number("beta", beta, zero=True)
    gamma = require_number("gamma", gamma, zero=True)
    temperature = require_number("temperature", temperature)
    whole: dict[str, Any] = {"min_examples": 2, "whole": "a correlation over examples"}
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same_width=SAME_CLASSES,
        **whole,
    )
    p, q = (jax.nn.softmax(z / temperature) for z in (batch.student, batch.teacher))

    def correlations(p: Array, q: Array, axis: int) -> Array:
        p, q = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (p, q))
        lengths = norms(p, axis) * norms(q, axis)
        return jnp.sum(p * q, axis=axis) / (jnp.squeeze(lengths, axis) + 1e-8)

    over_classes = 1 - batch.total(correlations(p, q, 1)) / batch.count
    # Masked rows hold the mean: it adds nothing to a sum of products, nor to a length.
    rows = batch.valid[:, None]
    p, q = (batch.gather(jnp.where(rows, x, batch.total(x) / batch.count)) for x in (p, q))
    over_examples = 1 - jnp.mean(correlations(p, q, 0))
    return batch.whole(temperature**2 * (beta * over_classes + gamma * over_examples))


@loss(head="linear", arguments={"temperature": 4.0}, law=Law(same_width=True))
def shared_classifier(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    kernel: ArrayLike,
    bias: ArrayLike | None = None,
    temperature: ArrayLike = 4.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the scores that one frozen classifier reads from both models' features.

    With W and b a trained model's last layer and z(x) = x W + b, the loss is `kd` of z(student) and
    z(teacher):

        mean_i T^2 KL(softmax(z(t_i) / T) || softmax(z(s_i) / T)).

    The teacher's classifier gives the TH-KD term of "It's All in the Head: Representation Knowledge
    Distillation through Classifier Sharing" (arXiv:2201.06945), with weight 0.02 beside 1 of the
    cross-entropy and 1.5 of `kd`. A trained student's classifier gives the reverse, SH-KD. (In the
    paper SH-KD first trains the teacher under the student's frozen classifier, by cross-entropy,
    which needs no loss of its own.) The classifier gets no gradient.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, d) features, as the last layer takes them.
      teacher: (n, d) features of the same examples.
      kernel: (d, classes) weights W of the frozen classifier.
      bias: (classes,) b, or None for 0.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> options = dict(kernel=[[1.0, 0.0]], temperature=1.0)
    >>> print(f"{pcjax.losses.shared_classifier([[0.0]], [[1.0]], **options):.4f}")
    0.1109
    """
    _checks.require_features("kernel", kernel)
    remedy = "in the kernel's width, by a linear layer on the student"
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, same_width=remedy
    )
    (d, classes), width = np.shape(kernel), batch.student.shape[1]
    if d != width:
        raise RequestError(
            f"got a kernel of shape {(d, classes)} for features of width {width}: expected "
            f"({width}, classes); transpose a kernel of (classes, width)"
        )
    if bias is not None:
        _checks.require_real("bias", bias)
        if np.shape(bias) != (classes,):
            raise RequestError(
                f"got a bias of shape {np.shape(bias)} for {classes} classes: expected ({classes},)"
            )
    weights, offset = (_checks.at_least_float32(x) for x in (kernel, 0.0 if bias is None else bias))
    weights, offset = lax.stop_gradient((weights, offset))
    scores = [
        (products(x, weights.T) + offset).astype(x.dtype) for x in (batch.student, batch.teacher)
    ]
    where = batch.valid if batch.masked else None
    return kd(
        *scores, temperature=temperature, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )


@loss(head="mlp", kinds=("features", "maps"), law=Law(same_width=True))
def simkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare features that the teacher's own classifier will read (SimKD).

    The loss is mean_i mean_k (s_ik - t_ik)^2, over all entries of the last features before the
    classifier. A projector brings the student into their shape. It learns with the student, and is
    deployed with it and the teacher's classifier. There is no other term. Chen et al., "Knowledge
    Distillation with the Reused Teacher Classifier" (arXiv:2203.14001), with weight 1.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, ...) projected features or maps.
      teacher: (n, ...) features or maps of the same examples, of the same shape.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(pcjax.losses.simkd([[1.0, 2.0]], [[1.0, 5.0]]))
    4.5
    """
    batch = flat_batch(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    return batch.reduced(jnp.mean((batch.student - batch.teacher) ** 2, axis=1))
