"""The laws that hold for every model, on small ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import CLASSES, SMALL, few_blocks
from flax import nnx
from jax import lax

from pcjax.models import build

N = 8
# "protopnet" has the same head, and "wrn16_1" is the same backbone.
TWICE = {"protopnet of wrn16_1"}
small = pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.nightly] * (x in TWICE)) for x in SMALL]
)
HEAD = {"patches", "prototypes"}  # maps of a head of prototypes, beside the stages


def by_example(maps):
    """Leave out prototypes, which are parameters: of no example, and float32."""
    return {name: x for name, x in maps.items() if name != "prototypes"}


def batches(name):
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(N, *SMALL[name][1])).astype(np.float32) for _ in range(2))


@functools.cache
def observed(name):
    """Compute everything that the laws need, in one compilation a model."""
    model, shape, options, _ = SMALL[name]
    options = {"shape": shape, "classes": CLASSES, **options}

    def everything(key, x, y):
        module = build(model, rngs=nnx.Rngs(key), **options)
        half = nnx.graphdef(build(model, rngs=nnx.Rngs(key), dtype=jnp.bfloat16, **options))
        graph, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)

        def loss(params):
            module = nnx.merge(graph, params, statistics, copy=True)
            output = module(x)
            total = jnp.mean(output.features**3) + jnp.mean(output.logits**3)
            return total, nnx.state(module, nnx.BatchStat)

        gradients, moved = jax.grad(loss, has_aux=True)(params)
        module, rounded = nnx.merge(graph, params, moved), nnx.merge(half, params, moved)
        module.eval()
        rounded.eval()
        # Another second half beside the same first one, in the same shape for the same arithmetic.
        mixed = jnp.concatenate((x[: N // 2], y[N // 2 :]))
        outputs = lax.map(module, jnp.stack((x, x, mixed)))
        return outputs, rounded(x), gradients, (statistics, moved, nnx.state(module, nnx.BatchStat))

    quick = {"xla_backend_optimization_level": "0"}
    with few_blocks():
        compiled = jax.jit(everything, compiler_options=quick)
        return jax.device_get(compiled(jax.random.key(0), *batches(name)))


@small
def test_shapes_of_the_outputs(name):
    (features, logits, maps), _, _, _ = observed(name)
    assert features.shape == (3, N, SMALL[name][3])
    assert logits.shape == (3, N, CLASSES)
    stages = [name for name in maps if name not in HEAD]
    assert stages == [f"stage{i}" for i in range(1, len(stages) + 1)]
    assert (maps.keys() >= HEAD) == ("protopnet" in name)
    assert all(leaf.shape[:2] == (3, N) for leaf in by_example(maps).values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((features, logits, maps)))
    assert features[0].std(axis=0).max() > 0


@small
def test_evaluation_is_repeatable_and_independent_of_other_examples(name):
    outputs, _, _, (_, moved, after) = observed(name)
    for leaf in jax.tree.leaves(outputs._replace(maps=by_example(outputs.maps))):
        first, again, mixed = leaf
        assert (first == again).all()
        assert np.allclose(
            first[: N // 2], mixed[: N // 2], rtol=1e-5, atol=1e-6 * np.abs(first).max()
        )
        assert not np.allclose(first[N // 2 :], mixed[N // 2 :], rtol=1e-3)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), moved, after))


@small
def test_training_moves_every_statistic(name):
    _, _, _, (before, moved, _) = observed(name)
    before, moved = jax.tree.leaves(before), jax.tree.leaves(moved)
    assert (len(before) > 0) == ("vit" not in name)
    assert all((a != b).any() and np.isfinite(b).all() for a, b in zip(before, moved, strict=True))


@small
def test_gradients_reach_every_parameter(name):
    for path, gradient in jax.tree.leaves_with_path(observed(name)[2]):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@small
def test_bfloat16_is_near_float32(name):
    outputs, half, _, _ = observed(name)
    for exact, rounded in ((outputs.features[0], half.features), (outputs.logits[0], half.logits)):
        assert rounded.dtype == jnp.float32
        # Independent errors of half of 2^-7 an operation, over up to a hundred operations.
        assert 0 < np.linalg.norm(exact - rounded) <= 0.06 * np.linalg.norm(exact)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in by_example(half.maps).values())


def test_statistics_over_eight_devices_are_those_of_the_whole_batch():
    options = {"shape": (4, 4, 1), "classes": None}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 4, 4, 1)), jnp.float32)

    def training(axis_name):
        module = build("resnet8", rngs=nnx.Rngs(0), axis_name=axis_name, **options)
        graph, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)

        def step(x):
            module = nnx.merge(graph, params, statistics, copy=True)
            return module(x).features, nnx.state(module, nnx.BatchStat)

        return module, step

    module, whole = training(None)
    features, statistics = jax.jit(whole)(x)
    synchronised, part = training("batch")
    mapped, moved = jax.pmap(part, axis_name="batch")(x.reshape(8, 2, 4, 4, 1))
    assert np.allclose(mapped.reshape(features.shape), features, atol=1e-4)
    for one, eight in zip(jax.tree.leaves(statistics), jax.tree.leaves(moved), strict=True):
        assert np.allclose(eight, one, rtol=1e-4, atol=1e-5)
    _, apart = training(None)
    features_apart, _ = jax.pmap(apart, axis_name="batch")(x.reshape(8, 2, 4, 4, 1))
    assert not np.allclose(features_apart.reshape(features.shape), features, atol=1e-2)

    # Evaluation needs no axis.
    synchronised.eval()
    module.eval()
    assert np.array_equal(nnx.jit(synchronised)(x).features, nnx.jit(module)(x).features)


def test_initial_weights_are_of_unit_gain_and_the_same_under_jit():
    def state(seed):
        return nnx.split(build("resnet8", shape=(8, 8, 3), classes=7, rngs=nnx.Rngs(seed)))[1]

    first, others = state(0), (jax.jit(state, static_argnums=0)(0), state(1))
    same, another = (jax.tree.leaves(jax.tree.map(np.allclose, first, other)) for other in others)
    assert all(same)
    kernels = [
        value
        for path, value in jax.tree.leaves_with_path(first)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    assert sum(another) == len(another) - len(kernels)
    # In units of the standard deviation that keeps the mean square, with and without a ReLU.
    units = [
        np.ravel(kernel) * np.sqrt(np.prod(kernel.shape[:-1]) / (kernel.ndim // 2))
        for kernel in kernels
    ]
    for unit in units:
        assert abs(np.mean(unit)) < 5 / np.sqrt(unit.size)
        assert abs(np.mean(unit**2) - 1) < 5 * np.sqrt(2 / unit.size)
    assert all(not np.array_equal(a[:50], b[:50]) for a, b in itertools.pairwise(units))
