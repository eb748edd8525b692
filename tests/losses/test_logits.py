"""Losses on class scores against NumPy and SciPy, and against values computed by hand."""

import functools
import math

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax import jit

from pcjax import losses

N, CLASSES = 7, 5


def evaluate(loss, student, teacher, **given):
    """In one compilation; one operation after the other would take many."""
    return jit(functools.partial(loss, **given))(
        np.asarray(student, float), np.asarray(teacher, float)
    )


def pair(rng, classes=CLASSES):
    t = 2 * rng.normal(size=(N, classes))
    return t + rng.normal(size=(N, classes)), t


def softmax(z, temperature):
    return scipy.special.softmax(np.asarray(z) / temperature, axis=1)


def kd_values(student, teacher, temperature):
    return temperature**2 * scipy.stats.entropy(
        softmax(teacher, temperature), softmax(student, temperature), axis=1
    )


def test_softened_distributions(rng, x64):
    student, teacher = pair(rng)
    result = evaluate(losses.kd, student, teacher, temperature=3.0, reduce_fn=None)
    assert np.allclose(result, kd_values(student, teacher, 3.0), atol=1e-12)


def test_softened_distributions_by_hand():
    # Teacher 3 : 1, student 1 : 1; at T = 2 the same with scores twice as large, times 4.
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert np.allclose(
        evaluate(losses.kd, [[0.0, 0.0]], [[math.log(3), 0.0]], temperature=1.0), expected
    )
    assert np.allclose(
        evaluate(losses.kd, [[5.0, 5.0]], [[math.log(9), 0.0]], temperature=2.0), 4 * expected
    )


def test_scores_of_any_size(rng):
    student, teacher = (1e4 * x.astype(np.float32) for x in pair(rng))
    labels = np.arange(N) % CLASSES

    def each(student, teacher):
        dkd = functools.partial(losses.dkd, labels=labels)
        return [
            jax.value_and_grad(loss)(student, teacher) for loss in (losses.kd, dkd, losses.dist)
        ]

    for value, gradient in jit(each)(student, teacher):
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_class_that_the_teacher_excludes(rng):
    student, teacher = pair(rng)
    teacher[:, 2] = -np.inf
    value, gradient = jit(jax.value_and_grad(losses.kd))(student, teacher)
    assert np.allclose(value, kd_values(student, teacher, 4.0).mean(), atol=1e-5)
    assert np.isfinite(gradient).all()


def decoupled(student, teacher, labels, alpha, beta, temperature):
    values = []
    for s, t, y in zip(
        softmax(student, temperature), softmax(teacher, temperature), labels, strict=True
    ):
        target = scipy.stats.entropy([t[y], 1 - t[y]], [s[y], 1 - s[y]])
        rest = scipy.stats.entropy(
            np.delete(t, y), np.delete(s, y)
        )  # which brings both to a sum of 1
        values.append(temperature**2 * (alpha * target + beta * rest))
    return np.array(values)


@functools.cache
def compiled_dkd():
    @jit
    def values(student, teacher, labels, alpha, beta):
        return losses.dkd(
            student, teacher, labels=labels, alpha=alpha, beta=beta, temperature=3.0, reduce_fn=None
        )

    return values


def test_decoupled(rng, x64):
    student, teacher = pair(rng)
    labels = rng.integers(0, CLASSES, N)
    result = compiled_dkd()(student, teacher, labels, 0.5, 2.0)
    assert np.allclose(result, decoupled(student, teacher, labels, 0.5, 2.0, 3.0), atol=1e-12)
    # `kd` is the true class plus the others, weighted by the teacher's doubt.
    target, rest = (
        compiled_dkd()(student, teacher, labels, *weights) for weights in ((1.0, 0.0), (0.0, 1.0))
    )
    doubt = 1 - softmax(teacher, 3.0)[np.arange(N), labels]
    assert np.allclose(target + doubt * rest, kd_values(student, teacher, 3.0), atol=1e-12)


def test_the_true_class(rng, x64):
    student, _ = pair(rng)
    labels = np.array([0, -1, 3, 2, -1, 4, 1])
    kept = labels >= 0
    log_p = np.log(softmax(student, 1.0))
    expected = -log_p[np.arange(N), labels]
    values = np.asarray(evaluate_alone(student, labels=labels, reduce_fn=None))
    assert np.allclose(values[kept], expected[kept], atol=1e-12)
    assert not values[~kept].any()
    smooth = 0.7 * expected - 0.3 * log_p.mean(axis=1)
    assert np.allclose(
        evaluate_alone(student, labels=labels, label_smoothing=0.3), smooth[kept].mean(), atol=1e-12
    )


def test_the_true_class_by_hand():
    # 3 : 1 for the first class.
    scores = [[math.log(3), 0.0]]
    assert np.allclose(evaluate_alone(scores, labels=np.array([1])), math.log(4))
    assert np.allclose(
        evaluate_alone(scores, labels=np.array([1]), label_smoothing=0.5),
        0.75 * math.log(4) + 0.25 * math.log(4 / 3),
    )


def cross_entropy(student, teacher, **given):
    """Call it as the others are called."""
    return losses.cross_entropy(student, **{"labels": LABELS, **given})


def evaluate_alone(scores, **given):
    return jit(functools.partial(losses.cross_entropy, **given))(np.asarray(scores, float))


def test_examples_without_a_label_do_not_count(rng, x64):
    student, teacher = pair(rng)
    labels = np.array([0, -1, 3, 2, -1, 4, 1])
    kept = labels >= 0
    result = np.asarray(compiled_dkd()(student, teacher, labels, 1.0, 8.0))
    expected = decoupled(student[kept], teacher[kept], labels[kept], 1.0, 8.0, 3.0)
    assert np.allclose(result[kept], expected, atol=1e-12)
    assert not result[~kept].any()
    where = np.arange(N) != 0
    mean = evaluate(losses.dkd, student, teacher, labels=labels, where=where, temperature=3.0)
    assert np.allclose(mean, expected[1:].mean(), atol=1e-12)


def test_of_two_classes_there_is_only_the_first_term(rng):
    student, teacher = pair(rng, classes=2)
    given = {"labels": np.arange(N) % 2, "temperature": 1.0}
    expected = kd_values(student, teacher, 1.0).mean()
    assert np.allclose(
        evaluate(losses.dkd, student, teacher, beta=100.0, **given), expected, atol=1e-5
    )


def test_correlations(rng, x64):
    student, teacher = pair(rng)
    p, q = softmax(student, 2.0), softmax(teacher, 2.0)
    over_classes = np.mean(
        [scipy.stats.pearsonr(a, b).statistic for a, b in zip(p, q, strict=True)]
    )
    over_examples = np.mean(
        [scipy.stats.pearsonr(a, b).statistic for a, b in zip(p.T, q.T, strict=True)]
    )
    expected = 4 * (0.5 * (1 - over_classes) + 3 * (1 - over_examples))
    result = evaluate(losses.dist, student, teacher, beta=0.5, gamma=3.0, temperature=2.0)
    assert np.allclose(result, expected, rtol=1e-6)


def test_correlations_by_hand():
    # Two numbers correlate by 1 or -1.
    student = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert np.allclose(evaluate(losses.dist, student, 3 * student), 0, atol=1e-5)
    assert np.allclose(
        evaluate(losses.dist, student, student[::-1], beta=1.0, gamma=2.0), 2 + 4, atol=1e-5
    )


def test_one_head_reads_both(rng, x64):
    student, teacher = rng.normal(size=(2, N, 4))
    kernel, bias = rng.normal(size=(4, CLASSES)), rng.normal(size=CLASSES)

    def loss(student, kernel, bias):
        values = losses.shared_classifier(
            student,
            teacher,
            kernel=kernel,
            bias=bias,
            temperature=2.0,
            where=np.arange(N) > 1,
            reduce_fn=None,
        )
        return values.sum(), values

    gradients, values = jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(student, kernel, bias)
    expected = kd_values(student @ kernel + bias, teacher @ kernel + bias, 2.0)
    assert np.allclose(values[2:], expected[2:], atol=1e-12)
    assert not values[:2].any()
    assert gradients[0][2:].all()
    assert not gradients[1].any()  # the head is frozen
    assert not gradients[2].any()


def test_maps_of_features(rng):
    student, teacher = rng.normal(size=(2, 3, 2, 2, 4))
    result = evaluate(losses.simkd, student, teacher, reduce_fn=None)
    assert np.allclose(result, ((student - teacher) ** 2).mean(axis=(1, 2, 3)), atol=1e-6)


X = np.ones((4, 3), np.float32)
LABELS = np.zeros(4, int)
DKD = functools.partial(losses.dkd, labels=LABELS)
SHARED = functools.partial(losses.shared_classifier, kernel=np.ones((3, 7)))
REFUSED = [
    (
        losses.kd,
        {"teacher": X[:, :2]},
        "got student (4, 3) and teacher (4, 2): expected as many columns in both, the sc",
    ),
    (losses.kd, {"temperature": -1}, "got temperature -1: expected a positive, finite number"),
    (DKD, {"labels": LABELS[:3]}, "got labels of shape (3,): expected (4,), one class per example"),
    (DKD, {"labels": LABELS + 0.5}, "expected integers, -1 for no label"),
    (DKD, {"labels": LABELS + 3}, "got label 3 for 3 classes: expected 0 to 2, or -1 for no label"),
    (
        DKD,
        {"labels": LABELS - 2},
        "got label -2 for 3 classes: expected 0 to 2, or -1 for no label",
    ),
    (DKD, {"alpha": -1.0}, "got alpha -1.0: expected a positive, finite number"),
    (DKD, {"student": X[:, :1], "teacher": X[:, :1]}, "got scores of 1 class: expected at least 2"),
    (DKD, {"where": np.arange(4)}, "got where of dtype int64: expected booleans"),
    (
        cross_entropy,
        {"labels": LABELS[:3]},
        "got labels of shape (3,): expected (4,), one class per example",
    ),
    (
        cross_entropy,
        {"labels": LABELS + 3},
        "got label 3 for 3 classes: expected 0 to 2, or -1 for no label",
    ),
    (
        cross_entropy,
        {"label_smoothing": -0.1},
        "got label_smoothing -0.1: expected a positive, finite number",
    ),
    (
        cross_entropy,
        {"label_smoothing": 1.5},
        "got label_smoothing 1.5: expected a number from 0 to 1",
    ),
    (
        losses.dist,
        {"reduce_fn": None},
        "got reduce_fn None, but a correlation over examples has no value per example",
    ),
    (
        SHARED,
        {"kernel": np.ones((7, 3))},
        "got a kernel of shape (7, 3) for features of width 3: expected (3, classes)",
    ),
    (SHARED, {"kernel": np.ones(3)}, "got kernel of shape (3,): expected (rows, features)"),
    (SHARED, {"bias": np.ones(3)}, "got a bias of shape (3,) for 7 classes: expected (7,)"),
    (SHARED, {"teacher": X[:, :2]}, "expected as many columns in both, in the kernel's width"),
    (
        losses.simkd,
        {"teacher": X[:, :2]},
        "got student (4, 3) and teacher (4, 2): expected the same shape (n, ...), give",
    ),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("loss", "given", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED]
)
def test_refused(loss, given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        loss(**{"student": X, "teacher": X, **given})
    assert message in str(caught.value)
