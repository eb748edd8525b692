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


@functools.cache
def compiled(name):
    """Return the dissimilarity; tests of equal shapes share what is compiled."""
    return jax.jit(DISSIMILARITIES[name])


@functools.cache
def compiled_gradient(name):
    """Return the sum of a bounded function of the dissimilarities in a set, and its gradient."""
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sqrt(DISSIMILARITIES[name](x, x) + 1))))


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
    x, y = (
        jnp.asarray(3 * features(rng)).astype(dtype),
        jnp.asarray(3 * features(rng, n=9)).astype(dtype),
    )
    d = compiled(name)(x, y)
    assert d.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-6
    expected = oracles.dissimilarity(name, np.asarray(x, np.float64), np.asarray(y, np.float64))
    assert_close(d, expected, tolerance)


@names
def test_accurate_far_from_the_origin(name, rng):
    # The expansion |x|^2 + |y|^2 - 2 x.y without centring has an error of 6e-4 here.
    x = (features(rng, 64, 512) + 30).astype(np.float32)
    d = np.asarray(compiled(name)(x, x))
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
    distances = np.asarray(compiled(name)(x, y))
    same = (x[:, None] == y[None]).all(axis=2)
    assert same.sum() >= 43
    assert (distances[same] == 0).all()
    if d > 3 and name in TRANSLATED:
        assert (distances[~same] > 0).all()


@names
def test_rows_that_differ_in_signs_only_are_not_identical(name):
    x = jnp.array([[1.0, -1.0, 2.0, 3.0], [-1.0, 1.0, 2.0, 3.0]])
    assert compiled(name)(x, x)[0, 1] > 0


@names
def test_gradient_equals_differences(name, rng, x64):
    x, y, weights = features(rng, 5, 4), features(rng, 6, 4), rng.normal(size=(5, 6))
    function = lambda x, y: jnp.vdot(weights, DISSIMILARITIES[name](x, y))
    dx, dy = jax.jit(jax.grad(function, argnums=(0, 1)))(x, y)

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
    x = jnp.asarray(features(rng), dtype)
    x = (
        x.at[1]
        .set(x[0])
        .at[2]
        .set(0)
        .at[3]
        .set(0)
        .at[4]
        .set(1.5)
        .at[5]
        .set(-x[6])
        .at[7]
        .multiply(outlier)
    )
    value, gradient = compiled_gradient(name)(x)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()


@names
def test_gradients_are_finite_when_all_rows_are_equal(name):
    gradient = jax.jit(jax.grad(lambda x: DISSIMILARITIES[name](x, x).sum()))
    for value in (0.0, 1e-30, 3.0, 1e30):
        assert (gradient(jnp.full((4, 3), value)) == 0).all()


@names
def test_invariances_hold_where_stated_and_only_there(name, rng, x64):
    x = features(rng)
    rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    d = compiled(name)(x, x)
    for stated, moved in (
        (TRANSLATED, x + rng.normal(size=7)),
        (ROTATED, x @ rotation),
        (UNSCALED, 3 * x),
    ):
        difference = jnp.abs(compiled(name)(moved, moved) - d).max()
        assert (difference < 1e-12) == (name in stated), stated


@names
def test_manhattan_and_the_others_keep_no_cube(name):
    x = jax.ShapeDtypeStruct((256, 128), jnp.float32)
    gradient = jax.jit(jax.grad(lambda x, y: jnp.sum(jnp.tanh(DISSIMILARITIES[name](x, y)))))
    temporary = gradient.lower(x, x).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 16 * 256 * 256 * 4


def test_zero_vectors_have_no_direction():
    x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    assert jnp.array_equal(pcjax.dissimilarity.cosine(x, x), jnp.array([[0, 0.5], [0.5, 0]]))


def test_close_directions_keep_their_digits(x64):
    # 1 - cos(angle) = angle^2 / 2; computed as 1 - cos in float32 it would be 0.
    x = np.array([[1.0, 0.0], [np.cos(1e-4), np.sin(1e-4)]])
    assert_close(compiled("cosine")(x.astype(np.float32), x.astype(np.float32))[0, 1], 5e-9, 1e-3)
    assert_close(compiled("angular")(x, x)[0, 1] * np.pi, 1e-4, 1e-9)


@names
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_no_finite_dissimilarity(name, broken, rng):
    x = features(rng).astype(np.float32)
    x[3, 2] = broken
    assert not np.isfinite(np.asarray(compiled(name)(x, x))[3]).any()


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


@names
def test_no_points_at_all(name):
    assert compiled(name)(jnp.ones((3, 2)), jnp.ones((0, 2))).shape == (3, 0)
