"""Losses on orders against loops over NumPy numbers, and against values computed by hand."""

import functools
import itertools
import math

import jax
import numpy as np
import oracles
import pytest
import scipy.special
import scipy.stats
from jax import jit

from pcjax import losses
from pcjax._checks import RequestError
from pcjax.losses import ordering


def evaluate(loss, student, teacher, **given):
    """In one compilation; one operation after the other would take many."""
    both = (np.asarray(x, float) for x in (student, teacher))
    return np.asarray(jit(functools.partial(loss, **given))(*both))


def pair(rng, n=7, student=3, teacher=5):
    t = rng.normal(size=(n, teacher))
    return t[:, :student] + 0.5 * rng.normal(size=(n, student)), t


def distances(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.array([[math.dist(a, b) for b in x] for a in x])


def log_likelihood(scores):
    return sum(score - math.log(sum(map(math.exp, scores[i:]))) for i, score in enumerate(scores))


def darkrank(student, teacher, soft, alpha=3.0, beta=3.0, list_length=4):
    d_student, d_teacher = distances(student), distances(teacher)
    values = []
    for i in range(len(student)):
        others = sorted((j for j in range(len(student)) if j != i), key=lambda j: d_teacher[i, j])[
            :list_length
        ]
        s, t = ([-alpha * d[i, j] ** beta for j in others] for d in (d_student, d_teacher))
        if not soft:
            values.append(-log_likelihood(s))
            continue
        orders = list(itertools.permutations(range(len(others))))
        log_p, log_q = (
            [log_likelihood([scores[k] for k in order]) for order in orders] for scores in (t, s)
        )
        values.append(sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
    return np.array(values)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_darkrank_equals_a_loop(soft, rng, x64):
    student, teacher = pair(rng)
    given = {"alpha": 2.0, "beta": 1.5, "list_length": 3}
    loss = functools.partial(
        losses.darkrank_soft if soft else losses.darkrank_hard, reduce_fn=None, **given
    )
    where = np.ones(7, bool)
    masked = jit(lambda where: loss(student, teacher, where=where))
    assert np.allclose(masked(where), darkrank(student, teacher, soft, **given), atol=1e-12)
    # Of three examples every one has two others: a list of three is cut short.
    where[[1, 3, 4, 6]] = False
    expected = darkrank(student[where], teacher[where], soft, **given)
    assert np.allclose(masked(where)[where], expected, atol=1e-12)


def test_darkrank_by_hand():
    # Angles 0, a, 3a on the circle with chords c1 (of a), c2 (of 2a), c3 (of 3a). The first point
    # has the others at c1 and c3, the second at c1 and c2, the third at c2 and c3. A list of two is
    # as likely as a coin of that bias.
    angle = np.array([0.0, 0.5, 1.5])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    c1, c2, c3 = (3 * (2 * math.sin(k / 4)) ** 3 for k in (1, 2, 3))
    expected = [math.log1p(math.exp(near - far)) for near, far in ((c1, c3), (c1, c2), (c2, c3))]
    assert np.allclose(
        evaluate(losses.darkrank_hard, points, points, list_length=2, reduce_fn=None),
        expected,
        atol=1e-6,
    )
    # Seen the other way round by the student, the coin has the other bias.
    q = np.array([1 / (1 + math.exp(near - far)) for near, far in ((c1, c3), (c1, c2), (c2, c3))])
    turned = np.stack([np.cos(-2 * angle[[2, 1, 0]]), np.sin(-2 * angle[[2, 1, 0]])], axis=1)
    log_q = darkrank(turned, points, soft=False, list_length=2)
    expected = q * (np.log(q) + log_q) + (1 - q) * (np.log(1 - q) - np.log(-np.expm1(-log_q)))
    assert np.allclose(
        evaluate(losses.darkrank_soft, turned, points, list_length=2, reduce_fn=None),
        expected,
        atol=1e-5,
    )


def test_all_orders_together_are_certain(rng):
    scores = rng.normal(size=4)
    orders = np.array(list(itertools.permutations(range(4))))
    listed = np.ones(4, bool)
    total = np.exp(jit(ordering._log_likelihood)(scores[orders], listed)).sum()
    assert np.allclose(total, 1, atol=1e-6)


def pairwise(student, teacher, penalty, margin, sharpness):
    s, t = (x[np.triu_indices(len(x), 1)] for x in (distances(student), distances(teacher)))
    values = []
    for a, b in itertools.product(range(len(s)), repeat=2):
        if t[a] > t[b]:
            m = {"difference": t[a] - t[b], "deviation": t.std()}.get(margin, margin)
            miss = sharpness * (m - (s[a] - s[b]))
            values.append(
                {"hinge": max(0, miss), "exponential": max(0, math.expm1(miss))}.get(
                    penalty, math.log1p(math.exp(miss))
                )
            )
    return np.mean(values)


@pytest.mark.parametrize(
    ("penalty", "margin"),
    [("hinge", 0.1), ("exponential", "difference"), ("logistic", "deviation")],
)
def test_pairs_of_pairs_equal_a_loop(penalty, margin, rng, x64):
    student, teacher = pair(rng, 6)
    given = {"penalty": penalty, "margin": margin, "sharpness": 2.0}
    values = evaluate(losses.pairwise_ranking, student, teacher, reduce_fn=None, **given)
    assert np.allclose(values.mean(), pairwise(student, teacher, **given), atol=1e-12)


def test_pairs_of_pairs_by_hand():
    # The teacher has 02 > 01 > 12, the student 02 > 12 > 01: one of three orders is wrong, by the
    # difference of the chords of 3-4-5 triangles, sqrt 0.8 - sqrt 0.4.
    student, teacher = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]
    expected = (math.sqrt(0.8) - math.sqrt(0.4)) / 3
    assert np.allclose(evaluate(losses.pairwise_ranking, student, teacher), expected, atol=1e-6)


def test_what_is_equal_is_not_ordered_by_rounding(rng):
    # Points of a regular polygon: every distance occurs many times.
    angle = 2 * np.pi * np.arange(4) / 4
    square = np.stack([np.cos(angle), np.sin(angle)], axis=1).round().astype(np.float32)
    # Four sides and two diagonals: 8 pairs of pairs, all with the same cost.
    loss = evaluate(losses.pairwise_ranking, square, square, penalty="logistic")
    assert np.allclose(loss, math.log1p(math.exp(math.sqrt(2) - 2)), atol=1e-6)


def test_pairs_of_pairs_in_blocks(rng, x64):
    # From some 46 examples on there is more than one block.
    student, teacher = pair(rng, 48)
    t = distances(teacher)[np.triu_indices(48, 1)]
    ordered = t[:, None] > t

    def mean(student):
        s = distances(student)[np.triu_indices(48, 1)]
        return np.maximum(0.2 - (s[:, None] - s), 0)[ordered].mean()

    loss = functools.partial(losses.pairwise_ranking, margin=0.2)
    value, gradient = jit(jax.value_and_grad(loss))(student, teacher)
    assert np.allclose(value, mean(student), atol=1e-12)
    direction = rng.normal(size=student.shape)
    numeric = (mean(student + 1e-7 * direction) - mean(student - 1e-7 * direction)) / 2e-7
    oracles.assert_gradients_agree(np.sum(gradient * direction), numeric, relative=1e-5)


def test_the_rank_list_equals_a_loop(rng, x64):
    student, teacher = pair(rng, n=9)
    teacher[4] = teacher[2]  # two share their rank
    loss = jit(functools.partial(losses.rank_list, reduce_fn=None))
    for temperature, exponent in ((0.1, 1.0), (0.5, 2.0)):
        values = []
        unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
        for i in range(9):
            others = [j for j in range(9) if j != i]
            ranks = scipy.stats.rankdata([1 - other[i] @ other[j] for j in others])
            p = (1 + ranks) ** -exponent / np.sum((1 + ranks) ** -exponent)
            scores = np.array([unit[i] @ unit[j] for j in others]) / temperature
            values.append(np.sum(p * (np.log(p) - scipy.special.log_softmax(scores))))
        result = loss(student, teacher, temperature=temperature, exponent=exponent)
        assert np.allclose(result, values, rtol=1e-9)


def test_the_rank_list_in_the_teachers_frame_equals_a_loop(rng, x64):
    student, teacher = (rng.normal(size=(9, 4)) for _ in range(2))
    values = []
    unit, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
    for i in range(9):
        ranks = scipy.stats.rankdata([1 - other[i] @ other[j] if j != i else -1 for j in range(9)])
        p = ranks**-2.0 / np.sum(ranks**-2.0)  # its own rank is 0 + 1
        scores = other @ unit[i] / 0.1
        values.append(np.sum(p * (np.log(p) - scipy.special.log_softmax(scores))))
    loss = jit(functools.partial(losses.rank_list, frame="teacher", reduce_fn=None))
    assert np.allclose(loss(student, teacher, exponent=2.0, temperature=0.1), values, rtol=1e-9)
    contrast = evaluate(losses.info_nce, student, teacher, temperature=0.1, symmetric=False)
    only_the_first = loss(student, teacher, exponent=1e6, temperature=0.1)
    assert np.allclose(only_the_first.mean(), contrast, rtol=1e-9)
    with pytest.raises(RequestError, match="linear head"):
        losses.rank_list(student[:, :3], teacher, frame="teacher")


def test_the_rank_list_by_hand():
    """From the first of three at 0, 1 and 3 the weights are 1/2 and 1/3: shares 3/5 and 2/5."""
    student = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]  # at distance 1 and 2, in cosine
    expected = 0.6 * math.log(0.6) + 0.4 * math.log(0.4)
    q = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    expected -= 0.6 * math.log(q) + 0.4 * math.log(1 - q)
    given = {"temperature": 1.0, "teacher_dissimilarity": "euclidean", "reduce_fn": None}
    values = evaluate(losses.rank_list, student, [[0.0], [1.0], [3.0]], **given)
    assert np.allclose(values[0], expected, atol=1e-6)


def test_rank_correlation_is_scipys_as_the_temperature_goes_to_0(rng, x64):
    loss = jit(
        functools.partial(losses.spearman, temperature=1e-7, dissimilarity="cosine", reduce_fn=None)
    )
    student, teacher = pair(rng, student=5)
    result = loss(student, teacher)
    d = [oracles.dissimilarity("cosine", x, x) for x in (student, teacher)]
    others = ~np.eye(7, dtype=bool)
    expected = [
        1 - scipy.stats.spearmanr(d[0][i, others[i]], d[1][i, others[i]]).statistic
        for i in range(7)
    ]
    assert np.allclose(result, expected, atol=1e-9)
    assert np.abs(loss(teacher, teacher)).max() < 1e-9


def test_rank_correlation_by_hand():
    # From the first two, 0 < 1 < 3 < 3.5 is ordered as 0 < 1 < 3 < -9. From the third, the others
    # are third, second, first against second, first, third: correlation -1/2. From the last, the
    # order is reversed.
    student, teacher = [[0.0], [1.0], [3.0], [3.5]], [[0.0], [1.0], [3.0], [-9.0]]
    given = {"temperature": 1e-6, "dissimilarity": "euclidean", "reduce_fn": None}
    result = evaluate(losses.spearman, student, teacher, **given)
    assert np.allclose(result, [0, 0, 1.5, 2], atol=1e-5)


def test_anchors_that_see_no_difference_correlate_with_nothing():
    teacher = np.arange(8.0).reshape(4, 2)
    result = evaluate(losses.spearman, np.ones((4, 2)), teacher, temperature=0.1, reduce_fn=None)
    assert np.array_equal(result, np.ones(4))
    # Nine points equally far apart, in float32: rounding errors of their ranks are no direction.
    teacher = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    value, gradient = jit(jax.value_and_grad(losses.spearman))(np.eye(9, dtype=np.float32), teacher)
    assert value == 1
    assert not gradient.any()


X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
SPEARMAN = functools.partial(losses.spearman, temperature=0.1)
REFUSED = [
    (
        losses.darkrank_hard,
        {"list_length": 1},
        "got list_length 1: expected an integer of at least 2",
    ),
    (
        losses.darkrank_hard,
        {"list_length": 4},
        "got 4 examples: expected at least 5, give a larger batch",
    ),
    (losses.darkrank_hard, {"alpha": -1.0}, "got alpha -1.0: expected a positive, finite number"),
    (
        losses.darkrank_soft,
        {"list_length": 6},
        "got list_length 6: expected an integer from 2 to 5",
    ),
    (losses.darkrank_soft, {"beta": 0}, "got beta 0: expected a positive, finite number"),
    (
        losses.pairwise_ranking,
        {"penalty": "square"},
        "unknown penalty 'square': expected one of 'hinge'",
    ),
    (
        losses.pairwise_ranking,
        {"margin": "std"},
        "unknown margin 'std': expected one of 'difference', 'deviation' or",
    ),
    (
        losses.pairwise_ranking,
        {"margin": -1.0},
        "got margin -1.0: expected a positive, finite number",
    ),
    (
        losses.pairwise_ranking,
        {"sharpness": "much"},
        "got sharpness 'much': expected a positive, finite number",
    ),
    (
        losses.pairwise_ranking,
        {"student": X[:2], "teacher": X[:2]},
        "got 2 examples: expected at least 3",
    ),
    (losses.pairwise_ranking, {"dissimilarity": "l2"}, "unknown dissimilarity 'l2'"),
    (SPEARMAN, {"ranking": "sort"}, "unknown ranking 'sort': expected one of 'laplace'"),
    (SPEARMAN, {"temperature": 0}, "got temperature 0: expected a positive, finite number"),
    (SPEARMAN, {"student": X[:2], "teacher": X[:2]}, "got 2 examples: expected at least 3"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("loss", "given", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED]
)
def test_refused(loss, given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        loss(**{"student": X, "teacher": X, **given})
    assert message in str(caught.value)


def test_memory_of_pairs_of_pairs():
    features = jax.ShapeDtypeStruct((512, 128), np.float32)
    compiled = jit(jax.value_and_grad(losses.pairwise_ranking)).lower(features, features).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 600e6
