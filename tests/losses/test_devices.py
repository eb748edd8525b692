"""The loss over a batch that is split over eight devices is the loss over the batch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcjax.losses import _estimator, _inputs, perception_coherence
from pcjax.ranking import METHODS, soft_rank

DEVICES = 8
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
VARIANTS = {
    "default": {},
    **{ranking: {"ranking": ranking} for ranking in METHODS if ranking != "laplace"},
    "batch scale, soft teacher": {"scale": "batch", "teacher_temperature": 0.3},
    "chunks": {"chunk_size": 2},
    "chunks, batch scale": {"chunk_size": 2, "scale": "batch"},
    "neighbours, squares": {"weighting": "neighbours", "power": 2},
    "teacher's frame": {"frame": "teacher"},
    "sum": {"reduce_fn": jnp.sum},
}


def problem(rng, dtype, masked, references):
    x, weights = (
        rng.normal(size=(3 * DEVICES, 5)).astype(dtype),
        rng.normal(size=(5, 4)).astype(dtype),
    )
    teacher = np.tanh(x[:, :4] * 2)
    where = (rng.random(3 * DEVICES) < 0.7) if masked else np.ones(3 * DEVICES, bool)
    where[:3] = not masked  # one device with nothing at all
    more = (
        (rng.normal(size=(4, 4)).astype(dtype), rng.normal(size=(4, 4)).astype(dtype))
        if references
        else None
    )
    return x, weights, teacher, where, more


def loss_of(weights, x, teacher, where, more, axis_name, **kwargs):
    return perception_coherence(
        x @ weights,
        teacher,
        temperature=0.2,
        where=where,
        references=more,
        axis_name=axis_name,
        **kwargs,
    )


@functools.cache
def compiled_for_one_device(**kwargs):
    return jax.jit(jax.value_and_grad(functools.partial(loss_of, axis_name=None, **kwargs)))


def one_device(x, weights, teacher, where, more, **kwargs):
    return compiled_for_one_device(**kwargs)(weights, x, teacher, where, more)


def by_pmap(x, weights, teacher, where, more, **kwargs):
    def step(weights, x, teacher, where, more):
        loss = functools.partial(loss_of, axis_name="batch", **kwargs)
        return lax.pmean(jax.value_and_grad(loss)(weights, x, teacher, where, more), "batch")

    split = [a.reshape(DEVICES, -1, *a.shape[1:]) for a in (x, teacher, where)]
    results = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0, 0, None))(
        weights, *split, more
    )
    return jax.tree.map(lambda a: a[0], results)


def by_shard_map(x, weights, teacher, where, more, check=True, **kwargs):
    def step(weights, x, teacher, where, more):
        if check:
            # Varying by device in name: each device's gradients are its own, as under pmap.
            weights = lax.pcast(weights, "batch", to="varying")
        loss = functools.partial(loss_of, axis_name="batch", **kwargs)
        return lax.pmean(jax.value_and_grad(loss)(weights, x, teacher, where, more), "batch")

    split = P("batch")
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), split, split, split, P()), out_specs=P(), check_vma=check
    )
    return jax.jit(mapped)(weights, x, teacher, where, more)


def by_shard_map_of_the_mean(x, weights, teacher, where, more, **kwargs):
    """Let shard_map add up the gradients of what all devices share."""

    def step(weights, x, teacher, where, more):
        def mean(weights):
            return lax.pmean(
                loss_of(weights, x, teacher, where, more, axis_name="batch", **kwargs), "batch"
            )

        return jax.value_and_grad(mean)(weights)

    split = P("batch")
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), split, split, split, P()), out_specs=P())
    return jax.jit(mapped)(weights, x, teacher, where, more)


def by_sharded_inputs(x, weights, teacher, where, more, **kwargs):
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    rows, everywhere = NamedSharding(mesh, P("batch")), NamedSharding(mesh, P())
    x, teacher, where = (jax.device_put(a, rows) for a in (x, teacher, where))
    weights, more = jax.device_put((weights, more), everywhere)
    return one_device(x, weights, teacher, where, more, **kwargs)


WAYS = {
    "pmap": by_pmap,
    "shard_map": by_shard_map,
    "shard_map without checks": functools.partial(by_shard_map, check=False),
    "shard_map of the mean": by_shard_map_of_the_mean,
    "jit": by_sharded_inputs,
}


def assert_same(result, expected, dtype):
    for one, other in zip(result, expected, strict=True):
        assert np.abs(one - other).max() <= TOLERANCE[dtype] * np.abs(other).max()


# The two mapped axes are under shard_map with its checks.
ONCE = {(way, np.float64, True) for way in WAYS if way != "shard_map"}


@pytest.mark.parametrize(
    ("way", "dtype", "masked"),
    [
        pytest.param(*case, marks=[pytest.mark.nightly] * (case not in ONCE))
        for case in itertools.product(WAYS, TOLERANCE, (False, True))
    ],
)
def test_eight_devices_equal_one(way, dtype, masked, rng, x64):
    given = problem(rng, dtype, masked, references=masked)
    expected = one_device(*given)
    assert np.abs(expected[1]).max() > 1e-3
    assert_same(WAYS[way](*given), expected, dtype)


QUICK = ("chunks, batch scale", "teacher's frame")


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, "pmap", marks=pytest.mark.gate) for name in QUICK]
    + [
        pytest.param(name, way, marks=pytest.mark.nightly)
        for name, way in [(name, "pmap") for name in VARIANTS if name not in ("default", *QUICK)]
        + [
            (name, "shard_map")
            for name in ("permutahedron", "chunks, batch scale", "teacher's frame")
        ]
    ],
)
def test_eight_devices_equal_one_in_every_variant(way, name, rng, x64):
    given = problem(rng, np.float64, masked=True, references=True)
    assert_same(
        WAYS[way](*given, **VARIANTS[name]), one_device(*given, **VARIANTS[name]), np.float64
    )


pmap_quickly = pytest.mark.parametrize(
    "way", ["pmap", pytest.param("shard_map", marks=pytest.mark.nightly)]
)


@pmap_quickly
@pytest.mark.gate
def test_a_stopped_gradient_on_the_gathered_features_is_caught(way, rng, x64, monkeypatch):
    given = problem(rng, np.float64, masked=False, references=False)
    expected = one_device(*given)

    class Mutated:
        def __getattr__(self, name):
            return getattr(lax, name)

        @staticmethod
        def all_gather(*args, **kwargs):
            return lax.stop_gradient(lax.all_gather(*args, **kwargs))

    monkeypatch.setattr(_estimator, "lax", Mutated())
    jax.clear_caches()  # what was traced without the mutation
    compiled_for_one_device.cache_clear()
    try:
        with pytest.raises(AssertionError):
            assert_same(WAYS[way](*given), expected, np.float64)
    finally:
        monkeypatch.undo()
        jax.clear_caches()
    assert_same(WAYS[way](*given), expected, np.float64)


@pytest.mark.nightly
def test_local_ranks_are_not_global_ranks(rng, x64):
    given = problem(rng, np.float64, masked=False, references=False)

    def local(x, weights, teacher, where, more):
        split = [a.reshape(DEVICES, -1, *a.shape[1:]) for a in (x, teacher)]
        loss = functools.partial(loss_of, where=None, more=None, axis_name=None)
        results = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0, 0))(weights, *split)
        return jax.tree.map(lambda a: a.mean(axis=0), results)

    with pytest.raises(AssertionError):
        assert_same(local(*given), one_device(*given), np.float64)


def test_two_mapped_axes(rng, x64):
    x, weights, teacher, where, more = problem(rng, np.float64, masked=True, references=True)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("host", "local"))
    both = ("host", "local")

    def step(weights, x, teacher, where, more):
        weights = lax.pcast(weights, both, to="varying")
        loss = functools.partial(loss_of, axis_name=both)
        return lax.pmean(jax.value_and_grad(loss)(weights, x, teacher, where, more), both)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(both), P(both), P(both), P()), out_specs=P()
    )
    result = jax.jit(mapped)(weights, x, teacher, where, more)
    assert_same(result, one_device(x, weights, teacher, where, more), np.float64)


def test_one_example_a_device(rng, x64):
    x, weights, teacher, where, more = problem(rng, np.float64, masked=True, references=True)
    where = np.arange(3 * DEVICES) < DEVICES
    expected = one_device(x, weights, teacher, where, more)
    result = by_pmap(x[where], weights, teacher[where], where[where], more)
    assert_same(result, expected, np.float64)


def test_what_is_masked_lies_amid_the_others_on_every_device(rng):
    # Elsewhere it would move the centre of the distances, and cost them their digits.
    features = 300 + rng.normal(size=(DEVICES, 3, 4)).astype(np.float32)
    where = rng.random((DEVICES, 3)) < 0.6
    where[0] = False
    fill = jax.pmap(functools.partial(_inputs.without_masked, axis_name="batch"), axis_name="batch")
    filled = np.asarray(fill(features, where))
    assert np.array_equal(filled[where], features[where])
    assert np.allclose(filled[~where], features[where].mean(axis=0), rtol=1e-6)


@pytest.mark.nightly
def test_what_only_some_arguments_vary_over(rng):
    # Under shard_map's checks a custom gradient wants all that it meets to vary over the same axes.
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    x, where = rng.normal(size=5), rng.random((DEVICES, 5)) < 0.7
    student, teachers = rng.normal(size=(4, 3)), rng.normal(size=(DEVICES, 4, 6))

    def rank_gradient(where):
        def total(x):
            return jnp.sum(soft_rank(x, temperature=0.3, where=where[0]) ** 2)

        return jax.grad(lambda x: lax.psum(total(x), "batch"))(x)

    result = jax.shard_map(rank_gradient, mesh=mesh, in_specs=P("batch"), out_specs=P())(where)
    expected = sum(
        jax.grad(lambda x: jnp.sum(soft_rank(x, temperature=0.3, where=row) ** 2))(x)
        for row in where
    )
    assert np.allclose(result, expected, atol=1e-4)

    def loss(student, teacher, chunk_size):
        return perception_coherence(student, teacher, temperature=0.3, chunk_size=chunk_size)

    def gradient(student, teachers):
        return jax.grad(lambda student: lax.pmean(loss(student, teachers[0], 2), "batch"))(student)

    result = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())(
        student, teachers
    )
    expected = np.mean([jax.grad(loss)(student, teacher, None) for teacher in teachers], axis=0)
    assert np.allclose(result, expected, atol=1e-6)
