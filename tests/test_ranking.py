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


def methods_on_machines(*, cpu=_sorting.CPU, nightly=False, names=tuple(METHODS)):
    """Repeat a test for every method on a CPU and on an accelerator.

    `nightly` leaves the accelerator to the nightly run.
    """
    cases = [pytest.param(name, cpu, id=f"{name}-cpu") for name in names]
    for name in names:
        # The logistic one neither sorts nor scans: it is the same on both.
        marks = [pytest.mark.nightly] if nightly or name == "logistic" else []
        machine = _sorting.ACCELERATOR
        cases.append(pytest.param(name, machine, id=f"{name}-accelerator", marks=marks))
    return pytest.mark.parametrize(("method", "machine"), cases)


ROWS, N = 24, 33  # of most tests in float64
SHORT = 50  # entries of the row of most tests in float32
TEMPERATURES = (1e-6, 1e-2, 0.2, 1.0, 30.0, 1e4)

GOLDEN = [
    ("laplace", 1.0, [2.96594865, 1.19309754, 1.84095381]),
    ("permutahedron", 2.0, [3, 1.25, 1.75]),
    ("permutahedron", 1.0, [3, 1, 2]),
    # by hand: 1/2 + 1/2 + sigmoid(4) + sigmoid(3) and so on
    ("logistic", 1.0, [2.93458791, 1.28692763, 1.77848446]),
]


def on(machine, monkeypatch):
    monkeypatch.setattr(_sorting, "primitives", lambda length: machine)


@functools.cache
def compiled_ranks(method, machine):
    return jax.jit(functools.partial(soft_rank, method=method))


def ranks_of(x, temperature, method):
    """Compute soft ranks; tests of one method, machine and shape share what is compiled."""
    ranks = compiled_ranks(method, _sorting.primitives(np.shape(x)[-1]))
    return np.asarray(ranks(x, temperature=np.asarray(temperature)))


@functools.cache
def compiled_gradients(method, machine):
    def weighted(x, temperature, g):
        ranks = soft_rank(x, temperature=temperature, method=method)
        return jnp.vdot(g, ranks), ranks

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))


def ranks_and_gradients(x, temperature, g, method):
    """Compute soft ranks, and the gradients of sum(g * ranks) by x and by the temperature."""
    compiled = compiled_gradients(method, _sorting.primitives(np.shape(x)[-1]))
    (_, ranks), gradients = compiled(x, np.asarray(temperature), g)
    return tuple(np.asarray(result) for result in (ranks, *gradients))


@pytest.mark.parametrize(("method", "temperature", "expected"), GOLDEN)
@pytest.mark.parametrize(
    "machine",
    [_sorting.CPU_SHORT, pytest.param(_sorting.ACCELERATOR, marks=pytest.mark.nightly)],
    ids=["cpu", "accelerator"],
)
def test_golden_values(method, temperature, expected, machine, monkeypatch):
    on(machine, monkeypatch)
    ranks = ranks_of(np.array([5.0, 1.0, 2.0]), temperature, method)
    assert np.abs(ranks - np.array(expected)).max() <= 1e-6


def rows_with_ties(rng):
    """Return rows by name, all as long as each other to share what is compiled."""
    repeated = {
        "all": [3.0],
        "zeros of both signs": [0.0, -0.0, 1.0, -1.0, 0.0, -0.0],
        "infinities": [np.inf, 1.0, -np.inf, np.inf, 0.0, -np.inf],
        "huge and tiny": [1e38, -1e38, 1e-37, -1e-37, 0.0, 1e38],
        "subnormal": [1e-40, 3e-40, -1e-40, 0.0, 2e-40, 1e-40],
        "not a number": [1.0, np.nan, 2.0, 3.0, 3.0, 0.0],
    }
    return {
        **{f"none {i}": rng.normal(size=N) for i in range(4)},
        **{f"some {i}": rng.integers(0, 6 + 20 * i, size=N).astype(float) for i in range(4)},
        **{name: np.resize(row, N) for name, row in repeated.items()},
        "sorted": np.arange(float(N)),
        "reversed": np.arange(float(N))[::-1],
    }


@pytest.mark.parametrize(
    ("machine", "dtype"),
    [(_sorting.CPU, np.float32), (_sorting.CPU, np.float64), (_sorting.ACCELERATOR, np.float32)],
    ids=["cpu", "cpu in float64", "accelerator"],
)
def test_hard_rank_equals_scipy(machine, dtype, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    rows = {name: row.astype(dtype) for name, row in rows_with_ties(rng).items()}
    ranks = np.asarray(jax.jit(lambda x: hard_rank(x))(np.stack([*rows.values()])))
    for (name, row), result in zip(rows.items(), ranks, strict=True):
        assert np.array_equal(result, scipy.stats.rankdata(row, "average"), equal_nan=True), name


def test_hard_rank_on_any_axis_and_dtype(rng):
    x = rng.integers(0, 9, size=(3, 4, 5))
    cases = [(axis, np.int32) for axis in (0, 2, -2)]
    cases += [(1, dtype) for dtype in (np.uint8, np.float16, jnp.bfloat16)]
    ranks = jax.jit(lambda x: [hard_rank(x.astype(dtype), axis=axis) for axis, dtype in cases])(x)
    for (axis, _), result in zip(cases, ranks, strict=True):
        assert result.dtype == jnp.float32
        assert np.array_equal(result, scipy.stats.rankdata(x, "average", axis=axis))


hard_ranks_of_each = jax.jit(lambda rows: [hard_rank(row) for row in rows])


def test_hard_rank_of_large_integers_under_x64(x64):
    rows = [
        np.array([2.0**53, 2.0**53 - 1, 2.0**52]),
        np.array([2**62 + 1, 2**62, 5]),
        np.array([2**63 + 1, 2**63, 5], np.uint64),
    ]
    assert np.array_equal(hard_ranks_of_each(rows), [[3, 2, 1]] * 3)


def test_hard_rank_of_large_integers():
    rows = [np.array([2**24 + 1, 2**24, 0, 2**31 - 1], dtype) for dtype in (np.int32, np.uint32)]
    rows += [np.array([3, 2**32 - 1, 2**31], np.uint32), np.array([7], np.int32)]
    for ranks, expected in zip(
        hard_ranks_of_each(rows), ([3, 2, 1, 4], [3, 2, 1, 4], [1, 3, 2], [1]), strict=True
    ):
        assert np.array_equal(ranks, expected)


def test_hard_rank_has_no_gradient():
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(hard_rank(x) ** 2)))(np.array([3.0, 1.0, 2.0]))
    assert (np.asarray(gradient) == 0).all()


@machines
def test_hard_rank_of_the_entries_that_count(machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    x, where = rng.normal(size=(3, 20)), rng.random(size=20) < 0.6
    x[:, ~where] = [[np.nan], [np.inf], [1e300]]
    masked = jax.jit(lambda x, where: hard_rank(x, where=where))
    ranks = np.asarray(masked(x, where))
    assert np.array_equal(ranks[:, where], scipy.stats.rankdata(x[:, where], axis=1))
    assert (ranks[:, ~where] == 0).all()
    assert (np.asarray(masked(x, np.zeros(20, bool))) == 0).all()


@methods_on_machines()
def test_equals_brute_force(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    kinds = np.stack([rng.normal(size=N), rng.integers(0, 4, size=N), -np.arange(N)])
    x, temperatures = np.resize(kinds, (ROWS, N)), np.repeat(TEMPERATURES, ROWS // 6)
    ranks, _, _ = ranks_and_gradients(x, temperatures, x, method)
    assert ranks.dtype == np.float64
    expected = [oracles.soft_rank(*row, method) for row in zip(x, temperatures, strict=True)]
    assert np.abs(ranks - np.array(expected)).max() < 1e-9 * N


@methods_on_machines(cpu=_sorting.CPU_SHORT, nightly=True)
def test_one_entry_has_rank_1_and_no_gradient(method, machine, monkeypatch):
    on(machine, monkeypatch)
    for temperature in (1e-9, 1.0, 1e6):
        results = ranks_and_gradients(np.array([4.0]), temperature, np.array([3.0]), method)
        assert [result.item() for result in results] == [1, 0, 0]


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


@methods_on_machines(cpu=_sorting.CPU_SHORT, nightly=True)  # every sort is exact
@pytest.mark.parametrize(
    "temperature",
    [1e-2, *(pytest.param(t, marks=pytest.mark.nightly) for t in (1e-4, 0.5, 3.0, 30.0))],
)
def test_float32_is_within_a_thousandth_of_a_rank_at_4096(
    method, machine, temperature, monkeypatch
):
    on(machine, monkeypatch)
    rows, expected = long_rows(temperature, method)
    assert np.abs(ranks_of(rows, temperature, method) - expected).max() <= 1e-3


@methods
@pytest.mark.parametrize(
    "dtype",
    [
        jnp.bfloat16,  # computed in float32
        *(pytest.param(x, marks=pytest.mark.nightly) for x in (jnp.float32, jnp.float16)),
    ],
)
def test_ranks_sum_to_the_same_at_every_temperature(method, dtype, rng, x64):
    x = rng.normal(size=(ROWS, N)).astype(dtype)
    ranks = ranks_of(x, np.resize(TEMPERATURES, ROWS), method)
    assert ranks.dtype == np.float32
    assert np.abs(ranks.sum(axis=1) / (N * (N + 1) / 2) - 1).max() < 1e-5


@methods
def test_becomes_the_hard_rank_as_the_temperature_goes_to_0(method, rng, x64, monkeypatch):
    on(_sorting.CPU, monkeypatch)
    rows = rows_with_ties(rng)
    del rows["not a number"]
    if method != "laplace":
        del rows["infinities"]
    tiny = ("huge and tiny", "subnormal")
    temperatures = np.array([1e-300 if name in tiny else 1e-9 for name in rows])
    x = np.resize(np.stack([*rows.values()]), (ROWS, N))
    ranks, _, _ = ranks_and_gradients(x, np.resize(temperatures, ROWS), x, method)
    for (name, row), result in zip(rows.items(), ranks, strict=False):
        assert np.abs(result - scipy.stats.rankdata(row)).max() < 1e-6, name


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


@methods_on_machines()
def test_gradients_equal_differences(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)

    def brute_force(rows, temperatures, g):
        rows, temperatures = np.broadcast_arrays(rows, np.reshape(temperatures, (-1, 1)))
        pairs = zip(rows, temperatures[:, 0], strict=True)
        return np.array([oracles.soft_rank(row, t, method) @ g for row, t in pairs])

    x, g = rng.normal(size=(2, ROWS, N))
    temperatures = np.exp(rng.uniform(-2, 1, ROWS)) * (0.3 if method == "permutahedron" else 1)
    _, *gradients = ranks_and_gradients(x, temperatures, g, method)
    for x_row, temperature, g_row, dx, dt in zip(x, temperatures, g, *gradients, strict=True):
        numeric = oracles.central_differences(lambda v: brute_force(v, temperature, g_row), x_row)
        # Differences of sums of ranks, each up to 40, have rounding errors of some 1e-9.
        assert np.abs(dx - numeric).max() <= 1e-6 * max(np.abs(numeric).max(), 1e-2)
        numeric = oracles.central_differences(lambda v: brute_force(x_row, v, g_row), temperature)
        assert abs(dt - numeric) <= 1e-6 * max(np.abs(dx).max(), abs(numeric), 1e-2)


def gradient_of_the_temperature(x, g, method, temperature=0.05):
    return ranks_and_gradients(x, temperature, g, method)[2]


@methods
def test_gradient_of_the_temperature_far_from_the_origin(method, rng):
    # -sum_i x_i dx_i / temperature would cancel to noise at 1e4; measured from the minimum it does
    # not.
    x, g = rng.normal(size=SHORT), rng.normal(size=SHORT)
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
    x, g = rng.normal(size=SHORT), rng.normal(size=SHORT)
    near, far = (
        gradient_of_the_temperature(np.append(x[count:], [position] * count), g, method)
        for position in (np.copysign(1e3, outlier), outlier)
    )
    assert abs(far - near) <= 1e-3 * abs(near)


GROUPS = {  # SHORT entries each
    "two far apart": lambda rng: np.concatenate([rng.normal(size=25), 300 + rng.normal(size=25)]),
    "many low outliers": lambda rng: np.concatenate(
        [rng.normal(size=40), -np.geomspace(1e2, 1e9, 10)]
    ),
    "many high outliers": lambda rng: np.concatenate(
        [rng.normal(size=40), np.geomspace(1e2, 1e9, 10)]
    ),
}


@methods_on_machines(cpu=_sorting.CPU_SHORT)
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


@methods_on_machines(cpu=_sorting.CPU_SHORT, nightly=True)
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.nightly)]
)
def test_gradients_are_finite_on_degenerate_rows(dtype, method, machine, rng, monkeypatch):
    on(machine, monkeypatch)
    rows = {
        "ties": [1.0, 1.0, 2.0, 2.0, 2.0],
        "all equal": [3.0],
        "zeros": [0.0],
        "outlier": [1.0, 2.0, 3.0, 4.0, 1e30],
        "outliers": [-1e38, 1.0, 2.0, 3.0, 3e38],
        "one outlier": [1e30, *range(1, SHORT)],
        "tiny": [1e-38, 2e-38, 3e-38, 0.0, 5e-38],
    }
    for name, row in rows.items():
        for temperature in (1e-6, 1.0, 1e6):
            x = np.resize(row, SHORT).astype(dtype)
            results = ranks_and_gradients(x, temperature, np.arange(1.0, SHORT + 1), method)
            for result in results:
                assert np.isfinite(result.astype(np.float32)).all(), (name, temperature)


@methods
def test_permutation_translation_and_reversal(method, rng, x64, monkeypatch):
    on(_sorting.CPU, monkeypatch)

    def ranks_at(x, temperature):
        return ranks_and_gradients(x, np.full(ROWS, temperature), x, method)[0]

    x, order = rng.normal(size=(ROWS, N)), rng.permutation(N)
    ranks = ranks_at(x, 0.3)
    assert np.allclose(ranks_at(x[:, order], 0.3), ranks[:, order], atol=1e-9)
    assert np.allclose(ranks_at(x + 5, 0.3), ranks, atol=1e-9)
    assert np.allclose(ranks_at(7 * x, 2.1), ranks, atol=1e-9)
    assert np.allclose(ranks_at(-x, 0.3), N + 1 - ranks, atol=1e-9)


@methods_on_machines(nightly=True)
def test_masked_equals_subset(method, machine, rng, x64, monkeypatch):
    on(machine, monkeypatch)
    x, g = rng.normal(size=(2, ROWS, 50))
    where = rng.permutation(50) < N
    x[:, ~where] = np.resize([np.nan, np.inf, 1e300], (ROWS, 1))
    temperatures = np.full(ROWS, 0.4)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def masked(x, temperatures, g, where):
        ranks = soft_rank(x, temperature=temperatures, method=method, where=where)
        return jnp.vdot(g, ranks), ranks

    gradient, ranks = map(np.asarray, masked(x, temperatures, g, where))
    subset = ranks_and_gradients(x[:, where], temperatures, g[:, where], method)
    assert np.allclose(ranks[:, where], subset[0])
    assert np.allclose(gradient[:, where], subset[1])
    assert (gradient[:, ~where] == 0).all()
    assert (ranks[:, ~where] == 0).all()


@methods
def test_axes_batches_and_temperatures_per_row(method, rng, x64):
    x, temperature = rng.normal(size=(2, 3, 10)), np.exp(rng.normal(size=(2, 3)))
    expected = np.array(
        [
            [oracles.soft_rank(x[i, j], temperature[i, j], method) for j in range(3)]
            for i in range(2)
        ]
    )

    @jax.jit
    def in_every_way(x, temperature):
        ranks = functools.partial(soft_rank, method=method)
        moved = ranks(jnp.moveaxis(x, -1, 0), temperature=temperature, axis=0)
        return [
            ranks(x, temperature=temperature),
            ranks(x, temperature=temperature[..., None]),
            jnp.moveaxis(moved, 0, -1),
            jax.vmap(jax.vmap(lambda x, t: ranks(x, temperature=t)))(x, temperature),
        ]

    for result in in_every_way(x, temperature):
        assert np.allclose(result, expected, atol=1e-8)


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


@methods_on_machines(names=("laplace", "logistic"))
def test_adversarial_rows_equal_brute_force_in_float32(method, machine, rng, monkeypatch):
    on(machine, monkeypatch)
    rows = np.stack([make(rng) for make in ADVERSARIAL.values()]).astype(np.float32)
    for temperature in (1e-3, 0.1, 10.0):
        width = np.float64(np.float32(temperature))
        expected = np.array([oracles.soft_rank(row, width, method) for row in rows])
        worst = np.abs(ranks_of(rows, temperature, method) - expected).max(axis=1)
        assert worst.max() <= 1e-3, dict(zip(ADVERSARIAL, worst, strict=True))


@methods
def test_extreme_temperatures(method):
    x = np.resize([5.0, 1.0, 2.0, 2.0], SHORT).astype(np.float32)
    for temperature in np.float32([1e-46, 1e-44, 1e-40, 1e-30, 1e30, 1e38]):
        ranks, *gradients = ranks_and_gradients(x, temperature, x, method)
        assert np.isfinite(ranks).all()
        assert (
            all(np.isfinite(g).all() for g in gradients) or temperature < 1e-30
        )  # a slope of ties has no bound
        if temperature <= 1e-30:
            assert np.allclose(ranks, scipy.stats.rankdata(x))
