"""The loss at size: its memory, and rows that the packed network sorts (over 64, on a CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax

from pcjax.losses import perception_coherence

N, TEMPERATURE = 70, 0.2


@pytest.mark.nightly
def test_it_equals_brute_force_alone_and_mapped(rng, x64):
    teacher = rng.normal(size=(N, 6))
    student = teacher[:, :3] + 0.5 * rng.normal(size=(N, 3))

    def loss(student, teacher, axis_name=None):
        return perception_coherence(student, teacher, temperature=TEMPERATURE, axis_name=axis_name)

    result, gradient = jax.jit(jax.value_and_grad(loss))(student, teacher)
    expected = oracles.perception_coherence(student, teacher, temperature=TEMPERATURE)
    assert np.allclose(result, expected.mean(), atol=1e-9)

    def at(moved):
        return np.array(
            [
                oracles.perception_coherence(s, teacher, temperature=TEMPERATURE).mean()
                for s in moved
            ]
        )

    oracles.assert_gradients_agree(gradient, oracles.central_differences(at, student))
    both = jax.vmap(loss)(np.stack([student, student[::-1]]), np.stack([teacher, teacher[::-1]]))
    assert np.allclose(both, result, atol=1e-12)
    halves = [x.reshape(2, N // 2, -1) for x in (student, teacher)]
    mapped = jax.pmap(
        lambda s, t: lax.pmean(loss(s, t, "x"), "x"), axis_name="x", devices=jax.devices()[:2]
    )
    assert np.allclose(mapped(*halves), result, atol=1e-12)


@pytest.mark.gate
def test_memory_of_the_chunked_sweep():
    features = jax.ShapeDtypeStruct((8192, 128), jnp.float32)

    def loss(student, teacher):
        return perception_coherence(student, teacher, temperature=0.1, chunk_size=256)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(features, features).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 64e6


@pytest.mark.nightly
def test_all_of_a_large_request_stays_small():
    # With every part at once and the pairwise rank: still blocks of anchors, never pairs of pairs.
    features = jax.ShapeDtypeStruct((2048, 16), jnp.float32)
    for given in (
        {"ranking": "logistic"},
        {"weighting": "neighbours", "scale": "batch", "teacher_temperature": 0.1},
    ):

        def loss(student, teacher):
            return perception_coherence(student, teacher, temperature=0.1, chunk_size=256, **given)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(features, features).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 32e6
