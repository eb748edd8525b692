import importlib
import time

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pcjax.metrics import Probe, linear_probe

module = importlib.import_module("pcjax.metrics.probes")

N, D, CLASSES = 250, 5, 4


def examples(n, seed, d=D, classes=CLASSES, noise=1.0):
    """Draw overlapping classes on very different scales, away from the origin."""
    fixed, drawn = np.random.default_rng(7), np.random.default_rng(seed)
    centres, scales = fixed.normal(size=(classes, d)), np.logspace(-3, 3, d)
    labels = drawn.integers(0, classes, n)
    return ((centres[labels] + noise * drawn.normal(size=(n, d)) + 2) * scales).astype(
        np.float32
    ), labels


TRAIN, TEST = examples(N, 0), examples(300, 1)


def fitted(penalty, statistics_of, features, labels):
    """Standardise and fit scikit-learn's regression, with the penalty in its units."""
    x = np.asarray(statistics_of, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation == 0] = 1
    oracle = LogisticRegression(C=1 / (penalty * len(features)), tol=1e-8, max_iter=10_000)
    oracle.fit((features - mean) / deviation, labels)
    return oracle, lambda x, y: oracle.score((x - mean) / deviation, y)


@pytest.mark.parametrize("penalty", [1e-5, 1e-3, 1e-1, 10.0])
def test_equals_scikit_learn(penalty):
    probe = linear_probe(*TRAIN, *TEST, penalties=(penalty,))
    _, score = fitted(penalty, TRAIN[0], *TRAIN)
    assert isinstance(probe, Probe)
    # One example on the border may fall either way.
    assert np.allclose(probe.accuracy, score(*TEST), atol=1 / 300 + 1e-9)
    assert probe.penalty == penalty
    assert probe.converged
    assert 0 < probe.iterations < 200


@pytest.mark.parametrize("penalty", [1e-4, 1e-1])
def test_the_minimiser_is_scikit_learns(penalty):
    standardised, mean, deviation = module._standardised(TRAIN[0])
    assert np.allclose(mean, TRAIN[0].mean(axis=0), rtol=1e-5)
    assert np.allclose(deviation, TRAIN[0].std(axis=0), rtol=1e-4)
    dtype = standardised.dtype
    start, counts = np.zeros((D + 1, CLASSES), dtype), np.ones(N, dtype)
    labels = TRAIN[1].astype(np.int32)
    weights, _, error = module._fit(standardised, labels, counts, dtype.type(penalty), start)
    oracle, _ = fitted(penalty, TRAIN[0], *TRAIN)
    assert error < 1e-6
    size = np.abs(oracle.coef_).max()
    assert np.allclose(weights[:-1].T, oracle.coef_, atol=2e-3 * size)
    # b is determined up to a constant
    assert np.allclose(
        weights[-1] - weights[-1].mean(),
        oracle.intercept_ - oracle.intercept_.mean(),
        atol=2e-3 * size,
    )


def test_the_penalty_is_chosen_on_the_validation_set():
    penalties = (1e-3, 1.0, 3e-2, 1e3)
    train, held = tuple(x[:200] for x in TRAIN), tuple(x[200:] for x in TRAIN)
    probe = linear_probe(*train, *TEST, validation=held, penalties=penalties)
    scores = {p: fitted(p, TRAIN[0], *train)[1](*held) for p in penalties}
    assert np.allclose(probe.validation_accuracy, max(scores.values()), atol=1 / 50 + 1e-9)
    assert scores[probe.penalty] == pytest.approx(probe.validation_accuracy, abs=1 / 50 + 1e-9)
    assert len(set(scores.values())) > 1
    # then it is fitted to all examples
    _, score = fitted(probe.penalty, TRAIN[0], *TRAIN)
    assert np.allclose(probe.accuracy, score(*TEST), atol=1 / 300 + 1e-9)


def test_of_penalties_that_do_equally_well_the_strongest_is_chosen(rng):
    labels = rng.integers(0, CLASSES, N)
    separate = np.eye(D, dtype=np.float32)[labels] + 0.01 * rng.normal(size=(N, D)).astype(
        np.float32
    )
    probe = linear_probe(separate, labels, separate, labels, penalties=(1e-5, 1e-3, 1e-4))
    assert probe[:3] == (1.0, 1e-3, 1.0)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_of_each_class_the_same_share_is_held_out(share, rng):
    labels = rng.permutation(np.repeat([0, 1, 2], [20, 61, 250]))
    _, _, held_out = module._with_validation(np.zeros((331, 1)), labels, share, 0)
    assert np.all(np.abs(np.bincount(labels[held_out]) - share * np.bincount(labels)) <= 1)
    _, _, other = module._with_validation(np.zeros((331, 1)), labels, share, 1)
    assert not np.array_equal(held_out, other)


def test_class_numbers_order_offset_and_scale_do_not_matter(rng):
    expected = linear_probe(*TRAIN, *TEST)
    assert expected == linear_probe(*TRAIN, *TEST)
    names = np.array([3, 70_000, 11, 5])  # another order, so other examples are held out
    renamed = linear_probe(TRAIN[0], names[TRAIN[1]], TEST[0], names[TEST[1]])
    assert abs(renamed.accuracy - expected.accuracy) < 0.03
    scales, shifts = (
        np.float32([1e9, 2, 1e-6, 100, -4]),
        np.float32([5, -7, 0, 1, 2]) * TRAIN[0].std(axis=0),
    )
    moved = linear_probe(
        (TRAIN[0] + shifts) * scales, TRAIN[1], (TEST[0] + shifts) * scales, TEST[1]
    )
    assert moved.penalty == expected.penalty
    assert abs(moved.accuracy - expected.accuracy) <= 1 / 300 + 1e-9


def test_a_constant_feature_is_ignored_even_where_the_test_set_differs():
    train, test = TRAIN[0].copy(), TEST[0].copy()
    # constant up to a rounding, which is enormous beside the other features
    train[:, 2] = np.where(
        np.arange(N) % 2, np.float32(1.1e20), np.nextafter(np.float32(1.1e20), np.float32(0))
    )
    _, score = fitted(1e-2, train[:, [0, 1, 3, 4]], train[:, [0, 1, 3, 4]], TRAIN[1])
    for value in (1.1e20, -1e6):
        test[:, 2] = value
        probe = linear_probe(train, TRAIN[1], test, TEST[1], penalties=(1e-2,))
        assert np.allclose(
            probe.accuracy, score(test[:, [0, 1, 3, 4]], TEST[1]), atol=1 / 300 + 1e-9
        )


def test_a_class_that_was_not_in_training_counts_as_an_error():
    probe = linear_probe(*TRAIN, *TEST, penalties=(1e-2,))
    new = np.where(np.arange(300) < 150, 17, TEST[1])
    missed = linear_probe(*TRAIN, TEST[0], new, penalties=(1e-2,))
    assert missed.accuracy <= 0.5 < probe.accuracy


def test_reports_a_fit_that_did_not_converge(monkeypatch):
    monkeypatch.setattr(module, "MOST_ITERATIONS", 2)
    module._fit.clear_cache()
    probe = linear_probe(*TRAIN, *TEST, penalties=(1e-5,))
    module._fit.clear_cache()
    assert not probe.converged
    assert probe.iterations == 2


@pytest.mark.nightly
@pytest.mark.parametrize(("n", "seconds"), [(1_400, 3), (54_000, 40)])
def test_quick_on_two_cores(n, seconds):
    train, test = examples(n, 0, 64, 10, noise=4.0), examples(2000, 1, 64, 10, noise=4.0)
    taken = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        probe = linear_probe(*train, *test)
        taken.append(time.perf_counter() - start)
        assert probe.converged
    assert min(taken) < seconds


WITH_NAN = np.where(np.arange(N)[:, None] == 5, np.nan, TRAIN[0])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"train_labels": np.full(N, 3)},
            "got training examples of the one class 3, beside 50 held out for validation",
        ),
        (
            {"train_labels": np.full(N, 3), "validation": TRAIN},
            (
                "the one class 3, beside 250 held out for validation: expected at least two "
                "classes; add examples of others"
            ),
        ),
        (
            {"train_features": WITH_NAN},
            "got train_features with 1 of 250 rows that hold NaN or infinity, row 5",
        ),
        (
            {"test_features": TEST[0][:, :4]},
            "got train_features (250, 5) and test_features (300, 4): expected as many",
        ),
        (
            {"train_labels": TRAIN[1][:9]},
            "got train_labels of shape (9,): expected (250,), one class per row",
        ),
        ({"train_labels": np.eye(4)[TRAIN[1]]}, "of one-hot rows take labels.argmax(axis=1)"),
        ({"test_labels": TEST[1] / 2}, "got test_labels of dtype float64: expected integers"),
        (
            {"train_labels": TRAIN[1] - 1},
            "got train_labels with -1 among them: expected classes 0, 1, ...; leave out",
        ),
        (
            {"test_features": TEST[0][:0], "test_labels": TEST[1][:0]},
            "got test_features (0, 5): expected at least one",
        ),
        (
            {"validation": 1.5},
            "got validation 1.5: expected a share of the training set between 0 and 1, or",
        ),
        ({"validation": None}, "got validation None: expected a share"),
        (
            {"validation": 1e-3},
            "got validation 0.001 of 250 training examples, which holds out none: expected at",
        ),
        (
            {"validation": (TEST[0],)},
            "got validation of 1 parts: expected a share of the training set or (features",
        ),
        (
            {"validation": (TEST[0][:, :4], TEST[1])},
            "got train_features (250, 5) and validation_features (300, 4)",
        ),
        ({"penalties": ()}, "got penalties (): expected a tuple of them, such as (1e-05"),
        ({"penalties": 0.1}, "got penalties 0.1: expected a tuple of them"),
        ({"penalties": (0.1, 0)}, "got penalty 0: expected a positive, finite number"),
        ({"seed": -1}, "got seed -1: expected an integer of at least 0"),
    ],
    ids=str,
)
def test_refused(given, message):
    arrays = dict(
        zip(
            ("train_features", "train_labels", "test_features", "test_labels"),
            TRAIN + TEST,
            strict=True,
        )
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        linear_probe(**(arrays | given))
    assert message in str(caught.value)


@pytest.mark.bad_input
def test_refused_under_jit():
    with pytest.raises(
        ValueError, match=r"got traced arrays: expected known ones; call linear_probe outside"
    ):
        jax.jit(lambda x: linear_probe(x, TRAIN[1], *TEST))(TRAIN[0])
