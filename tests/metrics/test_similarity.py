import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcjax.metrics import linear_cka


def pair(rng, n=40):
    x = rng.normal(size=(n, 6))
    return x, x[:, :3] @ rng.normal(size=(3, 5)) + rng.normal(size=(n, 5))


def hsic(K, L, unbiased):
    """Compute HSIC from n x n Gram matrices, as published.

    Song et al. (2012), equation 5, and Gretton et al. (2005).
    """
    n, one = len(K), np.ones(len(K))
    if not unbiased:
        H = np.eye(n) - 1 / n
        return np.trace(K @ H @ L @ H)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    shared = (
        np.trace(K @ L)
        + one @ K @ one * (one @ L @ one) / (n - 1) / (n - 2)
        - 2 / (n - 2) * (one @ K @ L @ one)
    )
    return shared / (n * (n - 3))


@pytest.mark.parametrize("unbiased", [True, False])
def test_equals_the_published_definition(unbiased, rng):
    for n in (40, 5, 4):
        x, y = pair(rng, n)
        K, L = x @ x.T, y @ y.T
        expected = hsic(K, L, unbiased) / np.sqrt(hsic(K, K, unbiased) * hsic(L, L, unbiased))
        assert np.allclose(linear_cka(x, y, unbiased=unbiased), expected, atol=1e-5)
    half = (jax.ShapeDtypeStruct(features.shape, jnp.float16) for features in (x, y))
    similarity = functools.partial(linear_cka, unbiased=unbiased)
    assert jax.eval_shape(similarity, *half).dtype == jnp.float32


def test_zero_on_average_for_unrelated_features_only_if_unbiased(rng):
    # with as many features as examples the biased one is near 1/2
    drawn = [(rng.normal(size=(40, 40)), rng.normal(size=(40, 40))) for _ in range(100)]
    unbiased = np.array([linear_cka(*both) for both in drawn])
    assert np.abs(unbiased.mean()) < 4 * unbiased.std() / 10
    assert unbiased.min() < 0
    assert np.mean([linear_cka(*both, unbiased=False) for both in drawn[:10]]) > 0.4


@pytest.mark.parametrize("unbiased", [True, False])
def test_rotation_translation_and_scale_change_nothing(unbiased, rng):
    x, y = pair(rng)
    value = linear_cka(x, y, unbiased=unbiased)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for scale in (1e-12, 1.0, 1e15):
        changed = scale * (x @ turn + 30)
        assert np.allclose(linear_cka(changed, y, unbiased=unbiased), value, atol=1e-4)
        assert np.allclose(linear_cka(changed, x, unbiased=unbiased), 1, atol=1e-4)
    assert np.allclose(linear_cka(y, x, unbiased=unbiased), value, atol=1e-6)
    assert not np.allclose(linear_cka(x * np.arange(6), y, unbiased=unbiased), value, atol=1e-2)


def test_nothing_to_compare_is_0(rng):
    x, _ = pair(rng)
    for unbiased in (True, False):
        for constant in (
            np.zeros((40, 6)),
            np.full((40, 6), 0.3),
            np.tile(rng.normal(size=6), (40, 1)),
        ):
            assert linear_cka(constant, x, unbiased=unbiased) == 0
    # all are equally far apart
    assert linear_cka(np.eye(40), rng.normal(size=(40, 6))) == 0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shapes", "given", "message"),
    [
        (((8, 4), (7, 4)), {}, "got x (8, 4) and y (7, 4): both need one row per example"),
        (
            ((3, 4), (3, 4)),
            {},
            "got x (3, 4) and y (3, 4): expected at least 4 examples; embed more",
        ),
        (((1, 4), (1, 4)), {"unbiased": False}, "expected at least 2 examples"),
        (((8,), (8, 4)), {}, "got x of shape (8,): expected (rows, features)"),
    ],
)
def test_refused(shapes, given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        linear_cka(*(np.ones(shape) for shape in shapes), **given)
    assert message in str(caught.value)


@pytest.mark.bad_input
def test_features_that_are_not_finite_are_refused():
    with pytest.raises(
        ValueError, match=r"got y with 1 of 8 rows that hold NaN or infinity, row 2 the first"
    ):
        linear_cka(np.ones((8, 2)), np.where(np.arange(8)[:, None] == 2, np.nan, 1.0))
