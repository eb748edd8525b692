"""The heads compute the maps of their docstrings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax._checks import RequestError
from pcjax.models import heads


def test_linear_by_hand(rng):
    head = heads.Linear(3, 2, rngs=nnx.Rngs(0))
    x = rng.normal(size=(4, 3)).astype(np.float32)
    expected = x @ np.asarray(head.map.kernel[...]) + np.asarray(head.map.bias[...])
    assert np.allclose(head(jnp.asarray(x)), expected, atol=1e-6)


def test_mlp_by_hand(rng):
    head = heads.MLP(3, 2, hidden=7, rngs=nnx.Rngs(0))
    x = rng.normal(size=(4, 3)).astype(np.float32)
    hidden = np.maximum(x @ np.asarray(head.first.kernel[...]), 0)
    assert np.allclose(
        head(jnp.asarray(x)), hidden @ np.asarray(head.second.kernel[...]), atol=1e-6
    )
    assert heads.MLP(3, 2, rngs=nnx.Rngs(0)).first.out_features == 3


@pytest.mark.parametrize("head", [heads.Linear, heads.MLP])
def test_a_head_returns_float32_and_learns_all_it_has(head):
    graph, state = nnx.split(head(3, 2, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.arange(-6, 6).reshape(4, 3) ** 2, jnp.bfloat16)
    gradients = jax.grad(lambda state: nnx.merge(graph, state)(x).sum())(state)
    assert nnx.merge(graph, state)(x).dtype == jnp.float32
    assert all(isinstance(variable, nnx.Param) for _, variable in nnx.to_flat_state(state))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.bad_input
def test_other_dimensions_are_refused():
    with pytest.raises(
        RequestError,
        match="got dimension 0 of the outgoing features: expected an integer of at least 1",
    ):
        heads.Linear(3, 0, rngs=nnx.Rngs(0))
    with pytest.raises(
        RequestError, match=r"features of shape \(4, 2\): this head was built for \(n, 3\)"
    ):
        heads.MLP(3, 2, rngs=nnx.Rngs(0))(jnp.ones((4, 2)))
    with pytest.raises(
        RequestError, match=r"got features of shape \(4,\): expected \(rows, features\)"
    ):
        heads.Linear(3, 2, rngs=nnx.Rngs(0))(jnp.ones(4))
