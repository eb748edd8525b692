"""The loss inside a training step of one's own, in both of Flax's interfaces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pcjax


@pytest.fixture
def batch(rng):
    images = rng.normal(size=(48, 8, 8, 1)).astype(np.float32)
    teacher = np.tanh(images.reshape(48, -1) @ rng.normal(size=(64, 32)).astype(np.float32))
    return images, teacher


def spearman(student, teacher):
    return float(pcjax.metrics.coherence(student, teacher, k=5).spearman.value)


def test_in_a_linen_training_step(batch):
    images, teacher = batch

    class Student(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
            return nn.Dense(8)(x.reshape(x.shape[0], -1))

    student = Student()
    params = jax.jit(student.init)(jax.random.key(0), images)
    optimiser = optax.adam(3e-3)
    state = jax.jit(optimiser.init)(params)

    @jax.jit
    def step(params, state, images, teacher):
        def loss_fn(params):
            return pcjax.losses.perception_coherence(
                student.apply(params, images), teacher, temperature=0.1
            )

        loss, gradients = jax.value_and_grad(loss_fn)(params)
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    features = jax.jit(student.apply)
    before, losses = spearman(features(params, images), teacher), []
    for _ in range(60):
        params, state, loss = step(params, state, images, teacher)
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert spearman(features(params, images), teacher) > before + 0.2


def test_in_an_nnx_training_step(batch):
    images, teacher = batch

    class Student(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.dense = nnx.Linear(128, 8, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            return self.dense(x.reshape(x.shape[0], -1))

    student = Student(nnx.Rngs(0))
    optimiser = nnx.Optimizer(student, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(student, optimiser, images, teacher, temperature):
        def loss_fn(student):
            return pcjax.losses.perception_coherence(
                student(images), teacher, temperature=temperature, dissimilarity="cosine"
            )

        loss, gradients = nnx.value_and_grad(loss_fn)(student)
        optimiser.update(student, gradients)
        return loss

    losses = [float(step(student, optimiser, images, teacher, 0.3 * 0.97**i)) for i in range(60)]
    assert losses[-1] < 0.6 * losses[0]
    assert spearman(student(jnp.asarray(images)), teacher) > 0.5
