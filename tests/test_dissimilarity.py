import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import pcjax
from pcjax.dissimilarity import DISSIMILARITIES

names = pytest.mark.parametrize("name", DISSIMILARITIES)
TRANSLATED = {"euclidean", "squared_euclidean", "manhattan"}
ROTATED = {"euclidean", "squared_euclidean", "cosine", "angular"}
UNSCALED = {"cosine", "angular", "correlation"}


def features(rng, n=12, d=7, dtype=np.float64):
    return rng.normal(size=(n, d)).astype(dtype)


@jax.jit
def compiled(x, y):
    """Return all dissimilarities by name: one program serves all tests of equal shapes."""
    return {name: function(x, y) for name, function in DISSIMILARITIES.items()}


@jax.jit
def compiled_gradients(x):
    """Return the sum of a bounded function of the dissimilarities in a set, and its gradient."""

    def total(x, name):
        return jnp.sum(jnp.sqrt(DISSIMILARITIES[name](x, x) + 1))

    return {name: jax.value_and_grad(total)(x, name) for name in DISSIMILARITIES}


def assert_close(actual, expected, tolerance):
    assert (
        np.abs(np.asarray(actual) - np.asarray(expected)).max()
        <= tolerance * np.abs(expected).max()
    )


def test_the_six_names():
    assert set(DISSIMILARITIES) == {
        "euclidean",
        "squared_euclidean",
        "cosine",
        "angular",
        "manhattan",
        "correlation",
    }
    assert all(
        getattr(pcjax.dissimilarity, name) is function for name, function in DISSIMILARITIES.items()
    )


@names
@pytest.mark.parametrize(
    "dtype",
    [
        *(jnp.float64, jnp.float32, jnp.bfloat16, jnp.int32),
        pytest.param(jnp.float16, marks=pytest.mark.nightly),
    ],
)
def test_equals_scipy(name, dtype, rng, x64):
    x, y = (3 * features(rng)).astype(dtype), (3 * features(rng, n=9)).astype(dtype)
    d = compiled(x, y)[name]
    assert d.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-6
    expected = oracles.dissimilarity(name, np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert_close(d, expected, tolerance)


@names
def test_accurate_far_from_the_origin(name, rng):
    # The expansion |x|^2 + |y|^2 - 2 x.y without centring has an error of 6e-4 here.
    x = (features(rng, 64, 512) + 30).astype(np.float32)
    d = np.asarray(compiled(x, x)[name])
    expected = oracles.dissimilarity(name, x, x)
    np.fill_diagonal(expected, 0)
    assert_close(d, expected, 1e-5)


@names
@pytest.mark.parametrize(
    "d", [1, 513, *(pytest.param(d, marks=pytest.mark.nightly) for d in (3, 128))]
)
@pytest.mark.parametrize("offset", [0, 100])
def test_exactly_zero_for_identical_rows(name, d, offset, rng):
    x = (features(rng, 40, d) + offset).astype(np.float32)
    x[7], x[8], x[9] = 0, 0, 2.5
    y = np.concatenate([x[::-1], x[5:8], -0.0 * x[:1]])
    distances = np.asarray(compiled(x, y)[name])
    same = (x[:, None] == y[None]).all(axis=2)
    assert same.sum() >= 43
    assert (distances[same] == 0).all()
    if d > 3 and name in TRANSLATED:
        assert (distances[~same] > 0).all()


@names
def test_rows_that_differ_in_signs_only_are_not_identical(name):
    x = np.zeros((12, 7), np.float32)
    x[0, :4], x[1, :4] = [1, -1, 2, 3], [-1, 1, 2, 3]
    assert np.asarray(compiled(x, x[:9])[name])[0, 1] > 0


@functools.cache
def weighted_gradients():
    """Return two sets, weights, and the gradients of every weighted sum of dissimilarities."""
    rng = np.random.default_rng(0)
    x, y, weights = features(rng, 5, 4), features(rng, 6, 4), rng.normal(size=(5, 6))

    def total(x, y, name):
        return jnp.vdot(weights, DISSIMILARITIES[name](x, y))

    @jax.jit
    def gradients(x, y):
        return {name: jax.grad(total, argnums=(0, 1))(x, y, name) for name in DISSIMILARITIES}

    return x, y, weights, gradients(x, y)


@names
def test_gradient_equals_differences(name, x64):
    x, y, weights, gradients = weighted_gradients()
    dx, dy = gradients[name]

    def scipys(xs, ys):
        pairs = zip(xs, ys, strict=True)
        return np.array([np.vdot(weights, oracles.dissimilarity(name, *pair)) for pair in pairs])

    oracles.assert_gradients_agree(
        dx, oracles.central_differences(lambda v: scipys(v, [y] * len(v)), x)
    )
    oracles.assert_gradients_agree(
        dy, oracles.central_differences(lambda v: scipys([x] * len(v), v), y)
    )


@names
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("outlier", [1.0, 1e6, 1e18, 1e30])
def test_gradients_are_finite_where_the_definition_has_kinks(name, dtype, outlier, rng):
    x = features(rng)
    x[1], x[2], x[3], x[4], x[5] = x[0], 0, 0, 1.5, -x[6]
    x[7] *= outlier
    value, gradient = compiled_gradients(x.astype(dtype))[name]
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


@names
def test_gradients_are_finite_when_all_rows_are_equal(name):
    for value in (0.0, 1e-30, 3.0, 1e30):
        _, gradient = compiled_gradients(np.full((12, 7), value, np.float32))[name]
        assert (np.asarray(gradient) == 0).all()


@names
def test_invariances_hold_where_stated_and_only_there(name, rng, x64):
    x = features(rng)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    d = compiled(x, x[:9])[name]
    for stated, moved in (
        (TRANSLATED, x + rng.normal(size=7)),
        (ROTATED, x @ rotation),
        (UNSCALED, 3 * x),
    ):
        difference = np.abs(compiled(moved, moved[:9])[name] - d).max()
        assert (difference < 1e-12) == (name in stated), stated


def test_manhattan_and_the_others_keep_no_cube():
    def total(x, y, name):
        return jnp.sum(jnp.tanh(DISSIMILARITIES[name](x, y)))

    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    gradients = jax.jit(lambda x, y: [jax.grad(total)(x, y, name) for name in DISSIMILARITIES])
    temporary = gradients.lower(x, x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 16 * 256 * 256 * 4


def test_zero_vectors_have_no_direction():
    x = np.zeros((12, 7), np.float32)
    x[1::2, 0] = 1
    d = np.asarray(compiled(x, x[:9])["cosine"])
    assert np.array_equal(d[:2, :2], [[0, 0.5], [0.5, 0]])


def test_close_directions_keep_their_digits(x64):
    # 1 - cos(angle) = angle^2 / 2; computed as 1 - cos in float32 it would be 0.
    x = np.zeros((12, 7))
    x[::2, 0], x[1::2, :2] = 1, [np.cos(1e-4), np.sin(1e-4)]
    single = x.astype(np.float32)
    cosine = np.asarray(compiled(single, single[:9])["cosine"])
    assert_close(cosine[0, 1], 5e-9, 1e-3)
    assert_close(np.asarray(compiled(x, x[:9])["angular"])[0, 1] * np.pi, 1e-4, 1e-9)


@names
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_no_finite_dissimilarity(name, broken, rng):
    x = features(rng).astype(np.float32)
    x[3, 2] = broken
    assert not np.isfinite(np.asarray(compiled(x, x[:9])[name])[3]).any()


def test_matrix_products_have_the_highest_precision():
    # No result on a CPU shows this. TPUs multiply in bfloat16 by default.
    for name in DISSIMILARITIES:
        program = str(
            jax.make_jaxpr(jax.grad(lambda x: jnp.sum(DISSIMILARITIES[name](x, x))))(
                jnp.ones((3, 2))
            )
        )
        assert program.count("dot_general") == program.count(
            "precision=(Precision.HIGHEST, Precision.HIGHEST)"
        ), name
        assert ("dot_general" in program) == (name != "manhattan")


def test_no_points_at_all():
    for d in compiled(np.ones((3, 2)), np.ones((0, 2))).values():
        assert d.shape == (3, 0)
