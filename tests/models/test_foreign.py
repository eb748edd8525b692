"""A Linen module and a plain function behave as our own models do."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax._checks import RequestError
from pcjax.models import Output, from_function, from_linen


class Net(nn.Module):
    """A linear layer, batch normalisation and a classifier, with the argument `train`."""

    @nn.compact
    def __call__(self, x, train):
        hidden = nn.Dense(4)(x)
        features = nn.BatchNorm(use_running_average=not train, momentum=0.9)(hidden)
        return Output(features.astype(jnp.bfloat16), nn.Dense(3)(features), {"stage1": hidden})

    def doubled(self, x, train):
        return 2 * self(x, train).features


MODES = {"training": {"train": True}, "evaluation": {"train": False}}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(2, 3, size=(6, 5)), jnp.float32)


@pytest.fixture
def variables(x):
    return Net().init(jax.random.key(0), x, train=False)


def test_a_linen_module_evaluates_and_trains_as_in_linen(x, variables):
    model = from_linen(Net(), variables, **MODES)
    model.eval()
    output, expected = nnx.jit(model)(x), Net().apply(variables, x, train=False)
    assert np.allclose(output.features, expected.features.astype(jnp.float32))
    assert np.allclose(output.logits, expected.logits, atol=1e-6)
    assert np.allclose(output.maps["stage1"], expected.maps["stage1"], atol=1e-6)
    assert output.features.dtype == output.logits.dtype == jnp.float32
    chex.assert_trees_all_equal(pure(model, nnx.BatchStat), variables["batch_stats"])

    model.train()
    features = model(x).features
    expected, changed = Net().apply(variables, x, train=True, mutable=["batch_stats"])
    assert np.allclose(features, expected.features.astype(jnp.float32), atol=1e-2)
    assert jax.tree.all(
        jax.tree.map(np.allclose, pure(model, nnx.BatchStat), changed["batch_stats"])
    )
    assert not np.allclose(pure(model, nnx.BatchStat)["BatchNorm_0"]["mean"], 0)


def pure(model, kind):
    (state,) = nnx.to_pure_dict(nnx.state(model, kind)).values()
    return state


def test_gradients_are_those_of_linen(x, variables):
    graph, params, rest = nnx.split(from_linen(Net(), variables, **MODES), nnx.Param, ...)

    def loss(params):
        module = nnx.merge(graph, params, rest, copy=True)
        return jnp.sum(module(x).logits ** 2), nnx.state(module, nnx.BatchStat)

    def expected(params):
        output, _ = Net().apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(output.logits**2)

    gradients, moved = jax.jit(jax.grad(loss, has_aux=True))(params)
    (computed,) = nnx.to_pure_dict(gradients).values()
    close = jax.tree.map(
        lambda a, b: np.allclose(a, b, atol=1e-4), computed, jax.grad(expected)(variables["params"])
    )
    assert jax.tree.all(close)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))


def test_another_method_of_a_linen_module(x, variables):
    expected = 2 * Net().apply(variables, x, train=False).features
    for method in ("doubled", lambda module, x, train: 2 * module(x, train).features):
        model = from_linen(Net(), variables, method=method, **MODES)
        model.eval()
        assert np.allclose(model(x).features, expected.astype(jnp.float32))


def test_a_function_and_its_parameters(x):
    params = {
        "layers": [(np.ones((5, 4), np.float32), jnp.zeros(4)), (2 * jnp.eye(4), jnp.ones(4))]
    }

    def function(params, x):
        for w, b in params["layers"]:
            x = x @ w + b
        return x

    model = from_function(function, params)
    assert np.allclose(nnx.jit(model)(x).features, function(params, x), atol=1e-5)
    graph, state = nnx.split(model, nnx.Param)
    assert len(jax.tree.leaves(state)) == 4
    gradients = jax.grad(lambda state: nnx.merge(graph, state, copy=True)(x).features.sum())(state)
    expected = jax.grad(lambda params: function(params, x).sum())(params)
    leaves = jax.tree.leaves(gradients), jax.tree.leaves(expected)
    chex.assert_trees_all_close(*leaves, rtol=1e-5, atol=1e-8)
    assert from_function(lambda params, x: 2 * x, {})(x).logits is None


@pytest.mark.bad_input
def test_unsupported_models_are_refused(x, variables):
    with pytest.raises(
        RequestError, match="collections 'cache', 'params': expected 'params' and perhaps 'batch_s"
    ):
        from_linen(Net(), {"params": variables["params"], "cache": {}}, **MODES)
    with pytest.raises(
        RequestError, match=r"parameter \['n'\] of dtype int32: expected floating-point"
    ):
        from_function(lambda params, x: x, {"n": jnp.arange(3)})
    with pytest.raises(RequestError, match="got tuple from the model: expected features"):
        from_function(lambda params, x: (x, x), {})(x)
    with pytest.raises(
        RequestError, match=r"got features of shape \(6, 5, 1\): expected \(rows, features\)"
    ):
        from_function(lambda params, x: x[..., None], {})(x)
