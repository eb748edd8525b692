import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.stats

import pcjax
from pcjax import _sorting
from pcjax.ranking import METHODS, hard_rank, soft_rank, soft_rank_columns

methods = pytest.mark.parametrize("method", METHODS)
machines = pytest.mark.parametrize(
    "machine", [_sorting.CPU, _sorting.ACCELERATOR], ids=["cpu", "accelerator"]
)
cpu_quickly = pytest.mark.parametrize(
    "machine",
    [_sorting.CPU, pytest.param(_sorting.ACCELERATOR, marks=pytest.mark.nightly)],
    ids=["cpu", "accelerator"],
)
TEMPERATURES = (1e-6, 1e-2, 0.1, 1.0, 10.0, 1e4)

GOLDEN = [
    ("laplace", 1.0, [2.96594865, 1.19309754, 1.84095381]),
    ("permutahedron", 2.0, [3, 1.25, 1.75]),
    ("permutahedron", 1.0, [3, 1, 2]),
    # by hand: 1/2 + 1/2 + sigmoid(4) + sigmoid(3) and so on
    ("logistic", 1.0, [2.93458791, 1.28692763, 1.77848446]),
]


def on(machine, monkeypatch):
    monkeypatch.setattr(_sorting, "primitives", lambda length: machine)


@pytest.mark.parametrize(("method", "temperature", "expected"), GOLDEN)
@cpu_quickly
def test_golden_values(method, temperature, expected, machine, monkeypatch):
    on(machine, monkeypatch)
    ranks = soft_rank(jnp.array([5.0, 1.0, 2.0]), temperature=temperature, method=method)
    assert np.abs(ranks - np.array(expected)).max() <= 1e-6


def rows_with_ties(rng):
    """Return rows by name, all as long as each other to share what is compiled."""
    repeated = {
        "all": [3.0],
        "zeros of both signs": [0.0, -0.0, 1.0, -1.0, 0.0, -0.0],
        "infinities": [np.inf, 1.0, -np.inf, np.inf, 0.0, -np.inf],
        "huge and tiny": [1e38, -1e38, 1e-37, -1e-37, 0.0, 1e38],
        "not a number": [1.0, np.nan, 2.0, 3.0, 3.0, 0.0],
    }
    return {
        **{f"none {i}": rng.normal(size=65) for i in range(4)},
        **{f"some {i}": rng.integers(0, 6 + 20 * i, size=65).astype(float) for i in range(4)},
        **{name: np.resize(row, 65) for name, row in repeated.items()},
        "sorted": np.arange(65.0),
        "reversed": np.arange(65.0)[::-1],
    }


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [(_sorting.CPU, np.float32), (_sorting.CPU, np.float64), (_sorting.ACCELERATOR, np.float32)],
    ids=["cpu", "cpu in float64", "accelerator"],
)
def test_hard_rank_equals_scipy(machine, dtype, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    rows = {name: row.astype(dtype) for name, row in rows_with_ties(rng).items()}
    ranks = hard_rank(np.stack([*rows.values()]))
    for (name, row), result in zip(rows.items(), ranks, strict=True):
        assert np.array_equal(result, scipy.stats.rankdata(row, "average"), equal_nan=True), name
    assert np.array_equal(hard_rank(np.array([4.0], dtype)), [1])


def test_hard_rank_on_any_axis_and_dtype(rng):
    x = rng.integers(0, 9, size=(3, 4, 5))
    cases = [(axis, np.int32) for axis in (0, 2, -2)]
    cases += [(1, dtype) for dtype in (np.uint8, np.float16, jnp.bfloat16)]
    for axis, dtype in cases:
        ranks = hard_rank(jnp.asarray(x, dtype), axis=axis)
        assert ranks.dtype == jnp.float32
        assert np.array_equal(ranks, scipy.stats.rankdata(x, "average", axis=axis))


def test_hard_rank_of_large_integers_under_x64(x64):
    for x in (
        [2.0**53, 2.0**53 - 1, 2.0**52],
        [2**62 + 1, 2**62, 5],
        np.array([2**63 + 1, 2**63, 5], np.uint64),
    ):
        assert np.array_equal(hard_rank(np.asarray(x)), [3, 2, 1])


def test_hard_rank_of_large_integers():
    for dtype in (np.int32, np.uint32):
        x = np.array([2**24 + 1, 2**24, 0, 2**31 - 1], dtype)
        assert np.array_equal(hard_rank(x), [3, 2, 1, 4])
    assert np.array_equal(hard_rank(np.array([3, 2**32 - 1, 2**31], np.uint32)), [1, 3, 2])


def test_hard_rank_has_no_gradient():
    assert (jax.grad(lambda x: jnp.sum(hard_rank(x) ** 2))(jnp.array([3.0, 1.0, 2.0])) == 0).all()


@methods
@machines
def test_equals_brute_force(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    for n in (1, 33):
        x = np.stack([rng.normal(size=n), rng.integers(0, 4, size=n), -np.arange(n)])
        for temperature in (1e-3, 0.2, 1.0, 30.0):
            ranks = soft_rank(x, temperature=temperature, method=method)
            expected = [oracles.soft_rank(row, temperature, method) for row in x]
            assert np.abs(ranks - np.array(expected)).max() < 1e-9 * n


@functools.cache
def long_rows(temperature, method):
    rng = np.random.default_rng(0)
    rows = (
        rng.normal(size=4096),
        rng.standard_cauchy(size=4096),
        np.round(rng.normal(size=4096), 2) + 1000,
    )
    rows = np.stack(rows).astype(np.float32)
    width = np.float64(np.float32(temperature))
    return rows, np.stack([oracles.soft_rank(row, width, method) for row in rows])


@methods
@cpu_quickly
@pytest.mark.parametrize(
    "temperature",
    [1e-2, *(pytest.param(t, marks=pytest.mark.nightly) for t in (1e-4, 0.5, 3.0, 30.0))],
)
def test_float32_is_within_a_thousandth_of_a_rank_at_4096(
    method, machine, temperature, monkeypatch
):
    on(machine, monkeypatch)
    rows, expected = long_rows(temperature, method)
    ranks = np.asarray(soft_rank(rows, temperature=temperature, method=method))
    assert np.abs(ranks - expected).max() <= 1e-3


@methods
@pytest.mark.parametrize(
    "dtype",
    [
        *(jnp.bfloat16, jnp.float64),  # the first is computed in float32
        *(pytest.param(x, marks=pytest.mark.nightly) for x in (jnp.float32, jnp.float16)),
    ],
)
def test_ranks_sum_to_the_same_at_every_temperature(method, dtype, rng, x64):
    x = jnp.asarray(rng.normal(size=(3, 40)), dtype)
    for temperature in TEMPERATURES:
        ranks = soft_rank(x, temperature=temperature, method=method)
        assert ranks.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
        assert np.abs(np.asarray(ranks).sum(axis=1) / (40 * 41 / 2) - 1).max() < 1e-5


@methods
def test_becomes_the_hard_rank_as_the_temperature_goes_to_0(method, rng, x64):
    rows = rows_with_ties(rng)
    del rows["not a number"]
    if method != "laplace":
        del rows["infinities"]
    temperatures = np.array([1e-300 if name == "huge and tiny" else 1e-9 for name in rows])
    ranks = soft_rank(np.stack([*rows.values()]), temperature=temperatures, method=method)
    for (name, row), result in zip(rows.items(), ranks, strict=True):
        assert np.abs(result - scipy.stats.rankdata(row)).max() < 1e-6, name
    assert soft_rank(np.array([4.0]), temperature=1e-9, method=method) == 1


@pytest.mark.nightly
@methods
def test_half_precision_is_ranked_in_float32(method, rng):
    x = jnp.asarray(rng.normal(size=200), jnp.bfloat16)
    ranks = soft_rank(x, temperature=0.1, method=method)
    assert jnp.array_equal(ranks, soft_rank(x.astype(jnp.float32), temperature=0.1, method=method))
    assert (
        jax.grad(lambda x: jnp.sum(soft_rank(x, temperature=0.1, method=method) ** 2))(x).dtype
        == jnp.bfloat16
    )


@methods
@machines
def test_gradients_equal_differences(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    n = 8

    def weighted(x, temperature, g):
        return jnp.vdot(g, soft_rank(x, temperature=temperature, method=method))

    def brute_force(rows, temperatures, g):
        rows, temperatures = np.broadcast_arrays(rows, np.reshape(temperatures, (-1, 1)))
        pairs = zip(rows, temperatures[:, 0], strict=True)
        return np.array([oracles.soft_rank(row, t, method) @ g for row, t in pairs])

    gradients = jax.jit(jax.grad(weighted, argnums=(0, 1)))
    for _ in range(50):
        x, g = rng.normal(size=n), rng.normal(size=n)
        temperature = np.exp(rng.uniform(-2, 1)) * (0.3 if method == "permutahedron" else 1)
        dx, dt = gradients(x, temperature, g)
        numeric = oracles.central_differences(lambda v: brute_force(v, temperature, g), x)
        # Differences of sums of ranks, each up to 40, have rounding errors of some 1e-9.
        assert np.abs(dx - numeric).max() <= 1e-6 * max(np.abs(numeric).max(), 1e-2)
        numeric = oracles.central_differences(lambda v: brute_force(x, v, g), temperature)
        assert abs(dt - numeric) <= 1e-6 * max(np.abs(dx).max(), abs(numeric), 1e-2)


@functools.cache
def compiled_temperature_gradient(method, machine):
    def weighted(temperature, x, g):
        return jnp.vdot(g, soft_rank(x, temperature=temperature, method=method))

    return jax.jit(jax.grad(weighted))


def gradient_of_the_temperature(x, g, method, temperature=0.05):
    temperature, x, g = (np.asarray(value, np.float32) for value in (temperature, x, g))
    gradient = compiled_temperature_gradient(method, _sorting.primitives(len(x)))
    return float(gradient(temperature, x, g))


@methods
def test_gradient_of_the_temperature_far_from_the_origin(method, rng):
    # -sum_i x_i dx_i / temperature would cancel to noise at 1e4; measured from the minimum it does
    # not.
    x, g = rng.normal(size=50), rng.normal(size=50)
    steps = np.round(x * 64) / 64  # exact at both positions
    near, far = (
        gradient_of_the_temperature(position, g, method, temperature=0.5)
        for position in (steps, steps + 1e4)
    )
    assert abs(near - far) <= 1e-3 * abs(near)


@methods
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("outlier", [1e4, -1e4, 1e30, -1e30, np.inf, -np.inf])
def test_gradient_of_the_temperature_beside_outliers(method, outlier, count, rng):
    """Check that the distance of outliers does not matter.

    It changes no rank, and the other entries must keep their digits.
    """
    x, g = rng.normal(size=50), rng.normal(size=50)
    near, far = (
        gradient_of_the_temperature(np.append(x[count:], [position] * count), g, method)
        for position in (np.copysign(1e3, outlier), outlier)
    )
    assert abs(far - near) <= 1e-3 * abs(near)


GROUPS = {  # as long as each other, to share what is compiled
    "two far apart": lambda rng: np.concatenate([rng.normal(size=25), 300 + rng.normal(size=25)]),
    "many low outliers": lambda rng: np.concatenate(
        [rng.normal(size=40), -np.geomspace(1e2, 1e9, 10)]
    ),
    "many high outliers": lambda rng: np.concatenate(
        [rng.normal(size=40), np.geomspace(1e2, 1e9, 10)]
    ),
}


@methods
@machines
@pytest.mark.parametrize(
    "rows",
    [*GROUPS][:2] + [pytest.param(name, marks=pytest.mark.nightly) for name in [*GROUPS][2:]],
)
def test_gradient_of_the_temperature_across_far_gaps(rows, method, machine, rng, monkeypatch):
    on(machine, monkeypatch)
    x = GROUPS[rows](rng).astype(np.float32)
    g = rng.normal(size=len(x)).astype(np.float32)
    gradient = gradient_of_the_temperature(x, g, method)
    high, low = (np.vdot(g, oracles.soft_rank(x, 0.05 + t, method)) for t in (1e-6, -1e-6))
    assert abs(gradient - (high - low) / 2e-6) <= 2e-3 * np.abs(g).sum()


@methods
@cpu_quickly
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.nightly)]
)
def test_gradients_are_finite_on_degenerate_rows(dtype, method, machine, rng, monkeypatch):
    on(machine, monkeypatch)
    rows = {
        "ties": [1.0, 1.0, 2.0, 2.0, 2.0],
        "all equal": [3.0] * 5,
        "zeros": [0.0] * 5,
        "outlier": [1.0, 2.0, 3.0, 4.0, 1e30],
        "outliers": [-1e38, 1.0, 2.0, 3.0, 3e38],
        "tiny": [1e-38, 2e-38, 3e-38, 0.0, 5e-38],
        "three": [1.0, 5.0, 2.0],
        "one": [1.0],
    }

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def total(x, temperature):
        ranks = soft_rank(x, temperature=temperature, method=method)
        return jnp.vdot(jnp.arange(1.0, len(ranks) + 1), ranks)

    for name, row in rows.items():
        for temperature in (1e-6, 1.0, 1e6):
            value, gradients = total(jnp.asarray(row, dtype), temperature)
            assert np.isfinite(value), name
            assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients), (
                name,
                temperature,
            )


@methods
def test_permutation_translation_and_reversal(method, rng, x64):
    x = rng.normal(size=(2, 30))
    ranks = soft_rank(x, temperature=0.3, method=method)
    order = rng.permutation(30)
    assert np.allclose(
        soft_rank(x[:, order], temperature=0.3, method=method), ranks[:, order], atol=1e-9
    )
    assert np.allclose(soft_rank(x + 5, temperature=0.3, method=method), ranks, atol=1e-9)
    assert np.allclose(soft_rank(7 * x, temperature=2.1, method=method), ranks, atol=1e-9)
    assert np.allclose(soft_rank(-x, temperature=0.3, method=method), 31 - ranks, atol=1e-9)


@methods
@cpu_quickly
def test_masked_equals_subset(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    x, g = rng.normal(size=(3, 20)), rng.normal(size=(3, 20))
    where = rng.random(size=20) < 0.6
    x[:, ~where] = [[np.nan], [np.inf], [1e300]]

    def weighted(x, where, g):
        ranks = soft_rank(x, temperature=0.4, method=method, where=where)
        return jnp.vdot(g, ranks), ranks

    both = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, ranks), gradient = both(x, where, g)
    (_, expected), expected_gradient = both(x[:, where], None, g[:, where])
    assert np.allclose(ranks[:, where], expected)
    assert np.allclose(gradient[:, where], expected_gradient)
    assert (gradient[:, ~where] == 0).all()
    assert (ranks[:, ~where] == 0).all()
    assert np.array_equal(
        hard_rank(x, where=where)[:, where], scipy.stats.rankdata(x[:, where], axis=1)
    )
    assert (hard_rank(x, where=where)[:, ~where] == 0).all()
    assert (hard_rank(x, where=np.zeros(20, bool)) == 0).all()


@methods
def test_axes_batches_and_temperatures_per_row(method, rng, x64):
    x, temperature = rng.normal(size=(2, 3, 10)), np.exp(rng.normal(size=(2, 3)))
    expected = np.array(
        [
            [oracles.soft_rank(x[i, j], temperature[i, j], method) for j in range(3)]
            for i in range(2)
        ]
    )
    assert np.allclose(soft_rank(x, temperature=temperature, method=method), expected, atol=1e-8)
    assert np.allclose(
        soft_rank(x, temperature=temperature[..., None], method=method), expected, atol=1e-8
    )
    moved = soft_rank(np.moveaxis(x, -1, 0), temperature=temperature, method=method, axis=0)
    assert np.allclose(np.moveaxis(moved, 0, -1), expected, atol=1e-8)
    one_by_one = jax.vmap(jax.vmap(lambda x, t: soft_rank(x, temperature=t, method=method)))(
        x, temperature
    )
    assert np.allclose(one_by_one, expected, atol=1e-8)


@pytest.mark.nightly
@methods
def test_memory_is_linear_in_the_row(method):
    n = 4096
    x = jax.ShapeDtypeStruct((n, 1), jnp.float32)

    def gradient(x):
        return jax.grad(
            lambda x: jnp.sum(soft_rank_columns(x, jnp.ones(1), None, method, _sorting.CPU) ** 2)
        )(x)

    temporary = jax.jit(gradient).lower(x).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 40 * n * 4


def test_the_temperature_may_change_without_recompiling():
    traces = []

    @jax.jit
    def ranks(x, temperature):
        traces.append(1)
        return pcjax.ranking.soft_rank(x, temperature=temperature)

    x = jnp.arange(5.0)
    assert not jnp.array_equal(ranks(x, 0.1), ranks(x, 2.0))
    assert len(traces) == 1


ADVERSARIAL = {
    "ties": lambda rng: rng.integers(0, 9, size=300) / 4,
    "huge outliers": lambda rng: np.concatenate([rng.normal(size=297), [1e30, -1e30, 3e38]]),
    "denormals": lambda rng: rng.normal(size=300) * 1e-40,
    "constant": lambda rng: np.full(300, 0.3),
    "two values": lambda rng: np.repeat([1.0, 1.0000001], 150),
    "sorted": lambda rng: np.linspace(0, 3, 300),
    "reversed": lambda rng: np.linspace(3, 0, 300),
    "organ pipe": lambda rng: np.abs(np.linspace(-3, 3, 300)),
    "one out of order": lambda rng: np.roll(np.linspace(0, 3, 300), 1),
    "far from zero": lambda rng: 1e6 + np.arange(300) / 8,
}


@pytest.mark.parametrize("method", ["laplace", "logistic"])
@machines
def test_adversarial_rows_equal_brute_force_in_float32(method, machine, rng, monkeypatch):
    on(machine, monkeypatch)
    rows = np.stack([make(rng) for make in ADVERSARIAL.values()]).astype(np.float32)
    for temperature in (1e-3, 0.1, 10.0):
        width = np.float64(np.float32(temperature))
        expected = np.array([oracles.soft_rank(row, width, method) for row in rows])
        worst = np.abs(soft_rank(rows, temperature=temperature, method=method) - expected).max(
            axis=1
        )
        assert worst.max() <= 1e-3, dict(zip(ADVERSARIAL, worst, strict=True))
    if method == "laplace":
        assert np.array_equal(hard_rank(rows), scipy.stats.rankdata(rows, axis=1))


@methods
def test_extreme_temperatures(method):
    x = jnp.array([5.0, 1.0, 2.0, 2.0])

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def weighted(x, temperature):
        ranks = soft_rank(x, temperature=temperature, method=method)
        return jnp.vdot(x, ranks), ranks

    for temperature in (1e-46, 1e-44, 1e-40, 1e-30, 1e30, 1e38):
        (_, ranks), gradients = weighted(x, jnp.float32(temperature))
        assert np.isfinite(ranks).all()
        assert (
            all(np.isfinite(g).all() for g in gradients) or temperature < 1e-30
        )  # a slope of ties has no bound
        if temperature <= 1e-30:
            assert np.allclose(ranks, [4, 1, 2.5, 2.5])
