"""Losses on class scores: the student's distribution over the classes is to be the teacher's.

Student and teacher are scores before the softmax, (n, classes), where not said otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax.losses._batch import Batch, divergence, norms, products, require_number

SAME_CLASSES = "the scores of the same classes"


def kd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    temperature: ArrayLike = 4.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    r"""Knowledge distillation: the softened distribution over classes is to be the teacher's.

    With p = softmax(z / T) the loss is mean_i T^2 KL(p^teacher_i || p^student_i); T^2 keeps the gradient's size where T
    changes. Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531); T = 4 and weight 0.9,
    beside 0.1 of the cross-entropy with the labels, are the most common choice.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation matter.

    Args:
      student: (n, classes) scores.
      teacher: (n, classes) scores of the same examples.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.kd([[0.0, 0.0]], [[1.0, 0.0]], temperature=1.0):.4f}")
    0.1109
    """
    temperature = require_number("temperature", temperature)
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, same=SAME_CLASSES
    )
    log_p, log_q = (jax.nn.log_softmax(z / temperature) for z in (batch.teacher, batch.student))
    return batch.reduced(temperature**2 * divergence(log_p, log_q))


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
    r"""Decoupled knowledge distillation: the true class against the others, and the others among themselves.

    With p = softmax(z / T), y the label, b = (p_y, 1 - p_y) and r the distribution over the other classes,
    r_c = p_c / (1 - p_y), the loss is

        mean_i T^2 [alpha KL(b^teacher_i || b^student_i) + beta KL(r^teacher_i || r^student_i)].

    `kd` is that with alpha = 1 and 1 - p^teacher_y in place of beta. Zhao et al., "Decoupled Knowledge Distillation"
    (arXiv:2203.08679), where beta is tuned for every pair of models (8 is one of them's) and the weight grows from 0
    over the first 20 epochs. All logarithms are taken of scores, none of probabilities. Of two classes there is only
    the first term.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation matter.

    Args:
      student: (n, classes) scores, of at least two classes.
      teacher: (n, classes) scores of the same examples.
      labels: (n,) true classes as integers; examples with label -1 do not count.
      alpha: weight of the true class, at least 0.
      beta: weight of the others, at least 0.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

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
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, same=SAME_CLASSES
    )
    classes = batch.student.shape[1]
    _checks.require(classes >= 2, f"got scores of {classes} class: expected at least 2")
    target = labels[:, None] == jnp.arange(classes)

    def split(scores: Array) -> tuple[Array, Array]:
        """Log-probabilities of (the target, not the target), and of the other classes among themselves."""
        log_p = jax.nn.log_softmax(scores / temperature)
        log_rest = jax.nn.logsumexp(log_p, axis=1, where=~target)
        log_target = jnp.sum(jnp.where(target, log_p, 0), axis=1)
        return jnp.stack([log_target, log_rest], axis=1), log_p - log_rest[:, None]

    (both_t, others_t), (both_s, others_s) = split(batch.teacher), split(batch.student)
    others_t = jnp.where(target, -jnp.inf, others_t)
    values = alpha * divergence(both_t, both_s) + beta * divergence(others_t, others_s)
    return batch.reduced(temperature**2 * values)


def cross_entropy(
    student: ArrayLike,
    *,
    labels: ArrayLike,
    label_smoothing: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    r"""The negative log-likelihood of the true classes: what the other losses on class scores are added to.

    With p = softmax(z), y the label, C classes and a the smoothing, mean_i -[(1 - a) log p_iy + a/C sum_c log p_ic].
    There is no teacher in it.

    Least 0, in the limit of scores that leave no doubt of the labels. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, classes) scores.
      labels: (n,) true classes as integers; examples with label -1 do not count.
      label_smoothing: a, the share of the target that all classes get alike; from 0 to 1.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.cross_entropy([[0.0, 0.0]], labels=[1]):.4f}")  # log 2
    0.6931
    """
    smoothing = require_number("label_smoothing", label_smoothing, zero=True)
    at_most_one = isinstance(label_smoothing, Tracer) or bool(np.asarray(label_smoothing) <= 1)
    _checks.require(
        at_most_one, f"got label_smoothing {label_smoothing!r}: expected a number from 0 to 1"
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
    """The labels, and the mask without the examples that have none."""
    _checks.require_features("student", student)
    (n, classes), got = np.shape(student), f"got labels of shape {np.shape(labels)}"
    _checks.require(np.shape(labels) == (n,), f"{got}: expected ({n},), one class per example")
    dtype = jax.dtypes.result_type(labels if isinstance(labels, Tracer) else np.asarray(labels))
    whole = jnp.issubdtype(dtype, jnp.integer)
    _checks.require(whole, f"got labels of dtype {dtype}: expected integers, -1 for no label")
    if not isinstance(labels, Tracer):
        known = np.asarray(labels)
        wrong = known[(known < -1) | (known >= classes)]
        got = f"got label {wrong[0] if wrong.size else ''} for {classes} classes"
        _checks.require(not wrong.size, f"{got}: expected 0 to {classes - 1}, or -1 for no label")
    labels = jnp.asarray(labels)
    if where is not None:
        _checks.require_mask(where)
        _checks.require(
            np.shape(where) == (n,), f"got where of shape {np.shape(where)}: expected ({n},)"
        )
    return labels, (labels >= 0) & (True if where is None else jnp.asarray(where))


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
    r"""DIST: probabilities are to correlate with the teacher's, over each example's classes and each class's examples.

    With p = softmax(z / T) and rho Pearson's correlation the loss is

        T^2 [beta (1 - mean_i rho(p^student_i., p^teacher_i.)) + gamma (1 - mean_c rho(p^student_.c, p^teacher_.c))].

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (arXiv:2205.10536). The defaults are those of the
    published code; beta = gamma = 2 with T = 4 for CIFAR and 1 for ImageNet are, as far as we know, the paper's. As in
    that code 1e-8 is added to the product of the two lengths: what hardly varies correlates with nothing.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation matter.

    Args:
      student: (n, classes) scores, n >= 2.
      teacher: (n, classes) scores of the same examples.
      beta: weight of the correlation over classes, at least 0.
      gamma: weight of the correlation over examples, at least 0; noisy in small batches.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: only jnp.mean: correlations over examples are the whole batch's and have no value per example.

    Returns:
      The loss, at most 2 T^2 (beta + gamma); 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.dist([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]):.4f}")
    0.0000
    """
    beta = require_number("beta", beta, zero=True)
    gamma = require_number("gamma", gamma, zero=True)
    temperature = require_number("temperature", temperature)
    whole: dict[str, Any] = {"least": 2, "whole": "a correlation over examples"}
    batch = Batch.of(
        student,
        teacher,
        where=where,
        axis_name=axis_name,
        reduce_fn=reduce_fn,
        same=SAME_CLASSES,
        **whole,
    )
    p, q = (jax.nn.softmax(z / temperature) for z in (batch.student, batch.teacher))

    def correlations(p: Array, q: Array, axis: int) -> Array:
        p, q = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (p, q))
        lengths = norms(p, axis) * norms(q, axis)
        return jnp.sum(p * q, axis=axis) / (jnp.squeeze(lengths, axis) + 1e-8)

    over_classes = 1 - batch.total(correlations(p, q, 1)) / batch.count
    # In place of what is masked stands the mean: it adds nothing, neither to a sum of products nor to a length.
    rows = batch.valid[:, None]
    p, q = (batch.gather(jnp.where(rows, x, batch.total(x) / batch.count)) for x in (p, q))
    over_examples = 1 - jnp.mean(correlations(p, q, 0))
    return batch.whole(temperature**2 * (beta * over_classes + gamma * over_examples))


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
    r"""Classifier sharing: one frozen head is to read the same out of the student's features and the teacher's.

    With W and b a trained model's last layer and z(x) = x W + b, the loss is `kd` of z(student) and z(teacher):

        mean_i T^2 KL(softmax(z(t_i) / T) || softmax(z(s_i) / T)).

    The teacher's head gives the TH-KD term of "It's All in the Head: Representation Knowledge Distillation through
    Classifier Sharing" (arXiv:2201.06945), with weight 0.02 beside 1 of the cross-entropy and 1.5 of `kd`; a trained
    student's head gives the reverse. (In the paper the reverse, SH-KD, trains the teacher itself under the student's
    frozen head, with cross-entropy, before it is distilled; that needs no loss of its own.) The head gets no gradient.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation matter.

    Args:
      student: (n, d) features, what the last layer would get.
      teacher: (n, d) features of the same examples.
      kernel: (d, classes) weights W of the frozen head.
      bias: (classes,) b, or None for 0.
      temperature: T; positive.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(f"{pcjax.losses.shared_classifier([[0.0]], [[1.0]], kernel=[[1.0, 0.0]], temperature=1.0):.4f}")
    0.1109
    """
    _checks.require_features("kernel", kernel)
    same = "in the head's width, by a linear layer on the student"
    batch = Batch.of(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn, same=same
    )
    (d, classes), width = np.shape(kernel), batch.student.shape[1]
    got = f"got a kernel of shape {(d, classes)} for features of width {width}"
    _checks.require(
        d == width,
        f"{got}: expected ({width}, classes); a kernel of (classes, width) must be transposed",
    )
    if bias is not None:
        _checks.require_real("bias", bias)
        got = f"got a bias of shape {np.shape(bias)} for {classes} classes"
        _checks.require(np.shape(bias) == (classes,), f"{got}: expected ({classes},)")
    weights, offset = (_checks.at_least_float32(x) for x in (kernel, 0.0 if bias is None else bias))
    weights, offset = lax.stop_gradient((weights, offset))
    scores = [
        (products(x, weights.T) + offset).astype(x.dtype) for x in (batch.student, batch.teacher)
    ]
    where = batch.valid if batch.masked else None
    return kd(
        *scores, temperature=temperature, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )


def simkd(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    r"""SimKD's loss: features that the teacher's own classifier is to read are to be the teacher's.

    The loss is mean_i mean_k (s_ik - t_ik)^2, over all entries of the last features before the classifier. The student
    has been brought to their shape by a projector, which learns with it and, with the teacher's classifier, is part of
    the model that is deployed; there is no other term. Chen et al., "Knowledge Distillation with the Reused Teacher
    Classifier" (arXiv:2203.14001), with weight 1.

    Least 0, for a student equal to the teacher. The student's scale, rotation and translation matter.

    Args:
      student: (n, ...) projected features or maps.
      teacher: (n, ...) features or maps of the same examples, of the same shape.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,).

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import pcjax
    >>> print(pcjax.losses.simkd([[1.0, 2.0]], [[1.0, 5.0]]))
    4.5
    """
    shapes = np.shape(student), np.shape(teacher)
    got = f"got student {shapes[0]} and teacher {shapes[1]}"
    _checks.require(shapes[0] == shapes[1], f"{got}: expected the same shape, project the student")
    _checks.require(len(shapes[0]) >= 2, f"{got}: expected (examples, features) or maps")
    flat = [jnp.reshape(jnp.asarray(x), (shapes[0][0], -1)) for x in (student, teacher)]
    batch = Batch.of(*flat, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    return batch.reduced(jnp.mean((batch.student - batch.teacher) ** 2, axis=1))
