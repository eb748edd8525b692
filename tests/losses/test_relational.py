"""Losses on pairs and triplets against loops over NumPy numbers, and values by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import jit

from pcjax import losses


def evaluate(loss, student, teacher, **given):
    """In one compilation; one operation after the other would take many."""
    both = (np.asarray(x, float) for x in (student, teacher))
    return np.asarray(jit(functools.partial(loss, **given))(*both))


def pair(rng, n=7, student=3, teacher=5):
    t = rng.normal(size=(n, teacher))
    return t[:, :student] + 0.5 * rng.normal(size=(n, student)), t


def huber(u):
    return u * u / 2 if abs(u) <= 1 else abs(u) - 0.5


def lengths(x):
    return np.linalg.norm(x, axis=1, keepdims=True)


def by_pairs(relation):
    """Average over j a comparison of both models' relations of i and j."""

    def values(student, teacher, compare):
        s, t = relation(student), relation(teacher)
        n = len(s)
        return np.array([sum(compare(s[i, j], t[i, j]) for j in range(n)) / n for i in range(n)])

    return values


def relative_distances(x):
    n = len(x)
    d = np.array([[math.dist(a, b) for b in x] for a in x])
    return d / (d.sum() / (n * (n - 1)))


def angles(x):
    n = len(x)
    cosines = np.zeros((n, n, n))
    for i in range(n):
        for j in range(n):
            for k in range(n):
                a, b = x[j] - x[i], x[k] - x[i]
                if i not in (j, k):
                    cosines[i, j, k] = a @ b / math.sqrt(a @ a) / math.sqrt(b @ b)
    return cosines


def rkd_angle(student, teacher):
    s, t = angles(student), angles(teacher)
    n = len(s)
    return np.array([sum(huber(u) for u in (s[i] - t[i]).ravel()) / n**2 for i in range(n)])


def similarity_rows(x):
    gram = x @ x.T
    return gram / lengths(gram)


def neighbour_probabilities(x):
    c = ((x / lengths(x)) @ (x / lengths(x)).T + 1) / 2
    return c / c.sum(axis=1, keepdims=True)


def gaussian_expansion(x, gamma=0.4, order=2):
    f = x / lengths(x)
    cosines = f @ f.T
    return math.exp(-2 * gamma) * sum(
        (2 * gamma * cosines) ** p / math.factorial(p) for p in range(order + 1)
    )


ORACLES = {
    "rkd_distance": lambda s, t: by_pairs(relative_distances)(s, t, lambda a, b: huber(a - b)),
    "rkd_angle": rkd_angle,
    "similarity_preserving": lambda s, t: by_pairs(similarity_rows)(
        s, t, lambda a, b: (a - b) ** 2
    ),
    "pkt": lambda s, t: by_pairs(neighbour_probabilities)(
        s, t, lambda q, p: p * math.log((p + 1e-7) / (q + 1e-7))
    ),
    "correlation_congruence": lambda s, t: by_pairs(gaussian_expansion)(
        s, t, lambda a, b: (a - b) ** 2
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_equals_a_loop(name, rng, x64):
    student, teacher = pair(rng)
    result = evaluate(getattr(losses, name), student, teacher, reduce_fn=None)
    assert np.allclose(result, ORACLES[name](student, teacher), atol=1e-12)


def test_distances_by_hand():
    # Distances 1, 3, 2 with mean 2, against 1.5, 3, 1.5 with mean 2: relative ones differ by -1/4,
    # 0, 1/4, which cost 1/32, 0, 1/32. Each counts in both directions, among nine pairs.
    loss = evaluate(losses.rkd_distance, [[0.0], [1.0], [3.0]], [[0.0], [1.5], [3.0]])
    assert np.allclose(loss, 4 / 32 / 9)
    # Distances of 0 are not in the mean: 1 for both models here, where the last seven differ by 1
    # from the teacher's.
    student = np.eye(8)[:, :1]
    result = evaluate(losses.rkd_distance, student, np.eye(8), reduce_fn=None)
    assert np.allclose(result, [0] + [6 * 0.5 / 8] * 7)


def test_distances_that_differ_much_by_hand(x64):
    # Five nearly equal points and a sixth far away: 5 of 15 distances are 3 times the mean, the
    # others 0, and the teacher has all at 1. Differences of 2 cost 3/2, those of 1 cost 1/2.
    student = 1e-6 * np.arange(6.0)[:, None]
    student[5] = 1
    result = evaluate(losses.rkd_distance, student, np.eye(6), reduce_fn=None)
    assert np.allclose(result, [(1.5 + 4 * 0.5) / 6] * 5 + [5 * 1.5 / 6], atol=1e-4)


def test_angles_by_hand():
    # A right angle between equal sides against three points on a line, the corner at its end:
    # cosines 0, 1/sqrt 2 and 1/sqrt 2 against 1, -1 and 1. The differences 1, 1.71 and 0.29 cost
    # 1/2, 1.21 and 0.043, each twice of 27.
    corner = math.sqrt(0.5)
    costs = 0.5 + (1 + corner - 0.5) + (1 - corner) ** 2 / 2
    loss = evaluate(losses.rkd_angle, [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0], [2.0]])
    assert np.allclose(loss, 2 * costs / 27)


def test_similarities_by_hand():
    # Rows (1, 0) against (1, 1) / sqrt 2.
    row = (1 - math.sqrt(0.5)) ** 2 + 0.5
    loss = evaluate(
        losses.similarity_preserving,
        [[2.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [1.0, 0.0]],
        reduce_fn=None,
    )
    assert np.allclose(loss, row / 2)


def test_probabilities_by_hand():
    # Perpendicular examples choose each other with 1/3, themselves with 2/3; opposite ones only
    # themselves.
    loss = evaluate(losses.pkt, [[1.0, 0.0], [0.0, 3.0]], [[1.0, 0.0], [-2.0, 0.0]])
    assert np.allclose(loss, math.log(3 / 2) / 2, atol=1e-6)


def test_congruence_by_hand():
    # Perpendicular against parallel: e^-1 times 1 against 1 + 1 + 1/2 + 1/6, with gamma 1/2 and
    # order 3.
    loss = evaluate(
        losses.correlation_congruence,
        [[1.0, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [2.0, 0.0]],
        gamma=0.5,
        order=3,
    )
    assert np.allclose(loss, 2 * (math.exp(-1) * (1 + 1 / 2 + 1 / 6)) ** 2 / 4)


def test_the_expansion_becomes_the_gaussian_kernel(rng, x64):
    student, teacher = pair(rng)

    def kernel(x):
        f = x / lengths(x)
        return np.exp(-0.7 * ((f[:, None] - f) ** 2).sum(axis=-1))

    result = evaluate(losses.correlation_congruence, student, teacher, gamma=0.7, order=20)
    assert np.allclose(result, np.mean((kernel(student) - kernel(teacher)) ** 2), atol=1e-12)


@pytest.mark.parametrize("n", [4, 9])
def test_alignment_of_kernels_is_that_of_features(n, rng, x64):
    # Fewer examples than features, and more.
    student, teacher = (x - x.mean(axis=0) for x in pair(rng, n, student=5, teacher=6))
    cross, own, other = (
        np.linalg.norm(a.T @ b) for a, b in ((student, teacher), (student,) * 2, (teacher,) * 2)
    )
    result = evaluate(losses.cka, student + rng.normal(size=5), teacher + rng.normal(size=6))
    assert np.allclose(result, 1 - cross**2 / (own * other), atol=1e-12)


def test_alignment_by_hand():
    # S has its centred points at (2, -1), (-1, 2), (-1, -1), a third of each. S^T t = (1, -1),
    # |t t^T| = 2, and S^T S = (2 -1; -1 2) / 3 has the eigenvalues 1 and 1/3.
    loss = evaluate(losses.cka, [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[1.0], [-1.0], [0.0]])
    assert np.allclose(loss, 1 - 2 / (2 * math.sqrt(10) / 3))


def test_alignment_takes_features_of_any_size(rng):
    student, teacher = (x.astype(np.float32) for x in pair(rng))
    align = jit(losses.cka)
    assert np.allclose(align(1e8 * student, 1e-8 * teacher), align(student, teacher), atol=1e-5)


def test_angles_in_blocks_of_corners(rng, x64):
    # From some 128 examples on there is more than one block.
    student, teacher = pair(rng, 130)

    def cosines(x):
        e = x - x[:, None]
        length = np.linalg.norm(e, axis=-1, keepdims=True)
        e = e / np.where(length == 0, 1, length)
        return e @ e.swapaxes(1, 2)

    def mean(student):
        u = np.abs(cosines(student) - cosines(teacher))
        return np.where(u <= 1, u * u / 2, u - 0.5).mean()

    value, gradient = jit(jax.value_and_grad(losses.rkd_angle))(student, teacher)
    assert np.allclose(value, mean(student), atol=1e-12)
    direction = rng.normal(size=student.shape)
    numeric = (mean(student + 1e-6 * direction) - mean(student - 1e-6 * direction)) / 2e-6
    oracles.assert_gradients_agree(np.sum(gradient * direction), numeric)


def test_memory_of_the_angles():
    features = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    compiled = jit(jax.value_and_grad(losses.rkd_angle)).lower(features, features).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 64e6


def test_close_points_far_from_the_origin(rng):
    # |x|^2 + |y|^2 - 2 x y would leave nothing of these distances.
    student, teacher = pair(rng, 12)
    loss = jit(losses.rkd_distance)
    expected, result = loss(student, teacher), loss(student + 1000, teacher)
    assert abs(result - expected) < 1e-2 * expected


def test_a_function_of_the_callers_reduces(rng):
    student, teacher = pair(rng)
    where = np.arange(7) < 5
    values = evaluate(losses.pkt, student, teacher, reduce_fn=None, where=where)
    assert evaluate(losses.pkt, student, teacher, reduce_fn=jnp.max) > 0
    largest = functools.partial(jnp.max, initial=-1.0)
    assert np.allclose(
        evaluate(losses.pkt, student, teacher, where=where, reduce_fn=largest), values.max()
    )
    # Without the mask the largest would be a 0.
    negative = lambda values, where: jnp.max(-values, where=where, initial=-1.0)
    assert (
        evaluate(losses.pkt, student, teacher, where=where, reduce_fn=negative) == -values[:5].min()
    )


X = np.ones((4, 3), np.float32)
REFUSED = [
    (
        losses.rkd_distance,
        {"teacher": X[:3]},
        "got student (4, 3) and teacher (3, 3): both need one row per example",
    ),
    (
        losses.rkd_distance,
        {"student": X[:1], "teacher": X[:1]},
        "got 1 example: expected at least 2",
    ),
    (
        losses.rkd_angle,
        {"student": X[:2], "teacher": X[:2]},
        "got 2 examples: expected at least 3, give a larger",
    ),
    (
        losses.pkt,
        {"where": np.ones(3, bool)},
        "got where of shape (3,) for 4 examples: expected (4,)",
    ),
    (losses.pkt, {"where": np.arange(4)}, "got where of dtype int64: expected booleans"),
    (losses.pkt, {"reduce_fn": "mean"}, "got reduce_fn 'mean': expected a function"),
    (losses.pkt, {"axis_name": "batch"}, "got axis_name 'batch', which is not bound here"),
    (
        losses.similarity_preserving,
        {"student": X[0]},
        "got student of shape (3,): expected (rows, features)",
    ),
    (
        losses.correlation_congruence,
        {"gamma": 0.0},
        "got gamma 0.0: expected a positive, finite number",
    ),
    (
        losses.correlation_congruence,
        {"gamma": np.ones(2)},
        "got gamma of shape (2,): expected one number",
    ),
    (losses.correlation_congruence, {"order": 0}, "got order 0: expected an integer of at least 1"),
    (
        losses.cka,
        {"reduce_fn": None},
        "got reduce_fn None, but the alignment of two representations has no value per",
    ),
    (
        losses.cka,
        {"reduce_fn": jnp.sum},
        "got reduce_fn sum, but the alignment of two representations has no value",
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
