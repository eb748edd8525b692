"""Every sort is exact for every column and every mask, and the recurrences agree."""

import functools

import jax
import numpy as np
import pytest

from pcjax import _pallas, _sorting

N, COLUMNS = 301, 3


def columns(kind, rng):
    normal = rng.normal(size=(N, COLUMNS)).astype(np.float32)
    far = normal.copy()
    far[3], far[5] = 1e30, -1e-38
    dense = (1 + rng.random((N, COLUMNS)) * 1e-4).astype(np.float32)
    dense[0], dense[1] = 1e30, -1e30
    strange = far.copy()
    strange[7], strange[8], strange[9], strange[10], strange[11] = (
        np.nan,
        np.inf,
        -np.inf,
        0.0,
        -0.0,
    )
    return {
        "normal": normal,
        "narrow": 1 + rng.random((N, COLUMNS)).astype(np.float32) / 4,
        "reversed": np.sort(normal, axis=0)[::-1].copy(),
        "constant": normal * 0,
        "tied": np.round(normal),
        "subnormal": normal * np.float32(1e-40),
        "far outliers": far,
        "crowded beside far outliers": dense,
        "heavy tails": (rng.standard_cauchy((N, COLUMNS)) ** 5).astype(np.float32),
        "not finite": strange,
    }[kind]


def whole_numbers(rng):
    x = rng.integers(-(2**31), 2**31 - 1, (N, COLUMNS)).astype(np.int32)
    x[0], x[1] = -(2**31), 2**31 - 1
    return x


@functools.cache
def compiled(machine):
    return jax.jit(lambda x, valid: _sorting.sort_columns(x, valid, machine))


ordered_bits = jax.jit(_sorting.ordered_bits)


def assert_sorted(x, valid, machine=_sorting.CPU):
    bits = np.asarray(ordered_bits(x))
    bits = np.where(valid, bits, np.iinfo(bits.dtype).max - 1)
    result = compiled(machine)(x, valid)
    sorted_bits, order = np.asarray(result.bits), np.asarray(result.order)
    assert (sorted_bits == np.sort(bits, axis=0)).all()
    assert (np.take_along_axis(bits, order, axis=0) == sorted_bits).all()
    assert (np.sort(order, axis=0) == np.arange(len(x))[:, None]).all()


KINDS = (
    "normal",
    "narrow",
    "reversed",
    "constant",
    "tied",
    "subnormal",
    "far outliers",
    "crowded beside far outliers",
    "heavy tails",
    "not finite",
)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sort_of_float32(kind, rng):
    x = columns(kind, rng)
    for share in (1.0, 0.7, 0.0):
        assert_sorted(x, rng.random(x.shape) < share)


@pytest.mark.parametrize("name", _sorting.CANDIDATES)
def test_the_sorts_of_accelerators(name, rng):
    for kind in KINDS:
        valid = rng.random((N, COLUMNS)) < 0.8
        assert_sorted(columns(kind, rng), valid, _sorting.CANDIDATES[name])


@functools.partial(jax.jit, static_argnames=("name", "reverse"))
def by_scan_and_by_kernel(name, rate, value, reverse):
    kernel = getattr(_pallas, name)(rate, value, reverse, interpret=True)
    return getattr(_sorting.ACCELERATOR, name)(rate, value, reverse), kernel


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1), (150, 130), pytest.param((64, 3), marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("name", ["recur", "relax"])
def test_the_recurrences_of_accelerators(name, shape, reverse, rng):
    """Against a loop in float64, also where blocks of the kernel are not full."""
    rate = rng.random(shape) * (rng.random(shape) < 0.9)
    value = rng.normal(size=shape)
    expected, y = np.zeros(shape), np.zeros(shape[1])
    for k in range(shape[0])[:: -1 if reverse else 1]:
        y = rate[k] * y + value[k] if name == "recur" else y + rate[k] * (value[k] - y)
        expected[k] = y
    given = rate.astype(np.float32), value.astype(np.float32)
    for result in by_scan_and_by_kernel(name, *given, reverse):
        assert np.abs(result - expected).max() < 1e-5


def test_the_kernels_are_lowered_for_a_gpu():
    lines = jax.ShapeDtypeStruct((200, 130), np.float32)
    for kernel in (_pallas.recur, _pallas.relax):
        traced = jax.jit(lambda x, y, kernel=kernel: kernel(x, y, False)).trace(lines, lines)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_other_primitives_serve_in_a_context_alone(monkeypatch):
    """Check it without dropping what all the tests have compiled."""
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(_sorting.primitives(1000)))
    before = _sorting.primitives(1000)
    with _sorting.using(_sorting.ACCELERATOR):
        assert _sorting.primitives(1000) is _sorting.ACCELERATOR
        assert cleared == [_sorting.ACCELERATOR]
    assert _sorting.primitives(1000) is before
    assert cleared == [_sorting.ACCELERATOR, before]


def test_packed_sort_of_float64(rng, x64):
    crowded = 1 + rng.random((N, COLUMNS)) * 1e-12
    crowded[0], crowded[1] = 1e300, -1e300
    for x in (crowded, rng.standard_cauchy((N, COLUMNS)) ** 9):
        assert_sorted(x, rng.random(x.shape) < 0.8)


def test_packed_sort_of_whole_numbers(rng):
    x = whole_numbers(rng)
    for share in (1.0, 0.7):
        assert_sorted(x, rng.random(x.shape) < share)


def test_crowded_columns_need_every_digit(rng):
    """Check that the column of the slow path needs it.

    The leading digits and a few exchanges do not sort it.
    """
    x = columns("crowded beside far outliers", rng)
    bits = np.asarray(ordered_bits(x)).astype(np.int64)
    room = 31 - (N - 1).bit_length()
    excess = bits - bits.min(axis=0)
    leading = excess >> (int(excess.max()).bit_length() - room)
    crowd = max(np.unique(leading[:, 0], return_counts=True)[1])
    assert crowd > 2 * _sorting.EXCHANGES


def test_narrow_columns_leave_no_digit_out(rng):
    """Check that the columns of the short path fit it.

    One packed integer holds every digit of a narrow column, but not of a normal one.
    """
    room = 31 - (N - 1).bit_length()
    for kind, fits in (("narrow", True), ("normal", False)):
        bits = np.asarray(ordered_bits(columns(kind, rng))).astype(np.int64)
        assert (int((bits - bits.min(axis=0)).max()).bit_length() <= room - 1) == fits


@pytest.mark.nightly
def test_packed_sort_of_long_columns(rng):
    x = (rng.standard_cauchy((4096, COLUMNS)) ** 5).astype(np.float32)
    assert_sorted(x, rng.random(x.shape) < 0.8)
