"""Heads of single losses: shapes, promised properties, gradients to all parameters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from pcjax import losses
from pcjax.models.regressors import (
    ConvRegressor,
    OrthogonalProjection,
    Prototypes,
    VariationalRegressor,
)


def built(head, *args, **kwargs):
    """Build a module in one compilation."""
    graph, state = jax.jit(lambda: nnx.split(head(*args, **kwargs, rngs=nnx.Rngs(0))))()
    return nnx.merge(graph, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradients_of(head, args, x):
    """Return the gradients of a new head's parameters."""

    def size(head):
        outputs = jax.tree.leaves(head(x))
        return sum(
            jnp.sum(jnp.sin(output) * jnp.arange(1.0, output.size + 1).reshape(output.shape))
            for output in outputs
        )

    return nnx.grad(size)(head(*args, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("head", "args", "shape", "expected"),
    [
        (ConvRegressor, ((4, 4, 2), (2, 2, 3)), (3, 4, 4, 2), (3, 2, 2, 3)),
        (ConvRegressor, ((2, 4, 2), (4, 8, 3)), (3, 2, 4, 2), (3, 4, 8, 3)),
        (ConvRegressor, ((5, 4, 2), (3, 4, 3)), (3, 5, 4, 2), (3, 3, 4, 3)),
        (VariationalRegressor, (2, 4), (3, 2, 3, 2), ((3, 2, 3, 4), (4,))),
        (VariationalRegressor, (2, 4), (3, 2), ((3, 4), (4,))),
        (OrthogonalProjection, (2, 4), (3, 2), (3, 4)),
        (OrthogonalProjection, (4, 2), (3, 4), (3, 2)),
        (Prototypes, (6, 2), (3, 2, 2, 2), (3, 2, 2, 6)),
    ],
)
def test_shapes_and_gradients(head, args, shape, expected, rng):
    module, x = nnx.eval_shape(lambda: head(*args, rngs=nnx.Rngs(0))), rng.normal(size=shape)
    for dtype in (np.float32, jnp.bfloat16):
        outputs = nnx.eval_shape(lambda module, x: module(x), module, x.astype(dtype))
        assert jax.tree.map(lambda output: output.shape, outputs) == expected
        assert all(output.dtype == np.float32 for output in jax.tree.leaves(outputs))
    gradients = jax.tree.leaves(gradients_of(head, args, x.astype(np.float32)))
    assert len(gradients) == len(jax.tree.leaves(nnx.state(module, nnx.Param)))
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (7, 3), (4, 4)])
def test_the_projection_stays_orthogonal(inputs, outputs, rng):
    x, y = (rng.normal(size=(9, width)).astype(np.float32) for width in (inputs, outputs))

    @jax.jit
    def learn(x, y):
        """Return the matrix before and after three steps, and the outputs after them."""
        graph, params = nnx.split(OrthogonalProjection(inputs, outputs, rngs=nnx.Rngs(0)))

        def apply(params, x):
            return nnx.merge(graph, params)(x)

        def step(params, _):
            gradient = jax.grad(lambda p: losses.orthogonal_projection(apply(p, x), y))(params)
            return jax.tree.map(lambda p, g: p - 3 * g, params, gradient), None

        moved, _ = lax.scan(step, params, length=3)
        return apply(params, jnp.eye(inputs)), apply(moved, jnp.eye(inputs)), apply(moved, x)

    before, matrix, moved = map(np.asarray, learn(x, y))
    assert np.abs(matrix - before).max() > 0.01
    gram = matrix @ matrix.T if inputs <= outputs else matrix.T @ matrix
    assert np.allclose(gram, np.eye(min(inputs, outputs)), atol=1e-5)
    if inputs <= outputs:
        assert np.allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(x, axis=1), rtol=1e-5)


def test_the_sign_of_the_projection_does_not_jump(rng):
    # The sign of QR's own first factor depends on the last bits of the parameters.
    head = built(OrthogonalProjection, 3, 5)
    q, r = np.linalg.qr(np.asarray(head.parameters[...]))
    assert np.allclose(head(jnp.eye(3)), (q * np.sign(np.diag(r))).T, atol=1e-6)
    scaled = nnx.clone(head)
    scaled.parameters[...] = 3 * head.parameters[...]
    assert np.allclose(scaled(jnp.eye(3)), head(jnp.eye(3)), atol=1e-6)


def test_the_variance_is_learnt(rng):
    # Where the mean cannot be predicted, the loss is least at the features' own variance.
    head = built(VariationalRegressor, 1, 2)
    teacher = (rng.normal(size=(400, 2)) * [0.5, 3.0]).astype(np.float32)
    optimiser = nnx.Optimizer(head, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def steps(head, optimiser):
        @nnx.scan(in_axes=(nnx.Carry, None, None), out_axes=nnx.Carry, length=200)
        def scan(both, student, teacher):
            head, optimiser = both

            def loss(head):
                mean, variance = head(student)
                return losses.variational_information(mean, teacher, variance=variance)

            optimiser.update(head, nnx.grad(loss)(head))
            return both

        scan((head, optimiser), jnp.zeros((400, 1)), jnp.asarray(teacher))

    steps(head, optimiser)
    assert np.allclose(head(jnp.zeros((1, 1)))[1], np.mean(teacher**2, axis=0), rtol=0.05)


def test_distances_to_prototypes(rng):
    head, patches = built(Prototypes, 5, 3), rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    points = np.asarray(head.points[...])
    assert ((points >= 0) & (points < 1)).all()
    assert np.allclose(
        head(jnp.asarray(patches)), ((patches[..., None, :] - points) ** 2).sum(axis=-1), atol=1e-5
    )


def test_distances_of_near_patches_do_not_cancel(rng):
    head = built(Prototypes, 5, 64)
    head.points[...] = head.points[...] + 10  # far from the origin
    points = np.asarray(head.points[...], np.float64)
    patches = (points + 0.01 * rng.normal(size=points.shape)).astype(np.float32)
    distances = np.asarray(head(jnp.asarray(patches)[None, None]))[0, 0]
    expected = ((patches[:, None].astype(float) - points) ** 2).sum(axis=-1)
    assert np.allclose(distances, expected, rtol=1e-2)


RNGS = {"rngs": nnx.Rngs(0)}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            lambda: ConvRegressor((4, 4), (2, 2, 3), **RNGS),
            "got maps of shape (4, 4): expected (height",
        ),
        (
            lambda: ConvRegressor((3, 3, 2), (4, 4, 3), **RNGS),
            "got maps (3, 3, 2) of the student and (4, 4, 3)",
        ),
        (
            lambda: ConvRegressor((0, 3, 2), (4, 4, 3), **RNGS),
            "got size 0 in maps of shape (0, 3, 2)",
        ),
        (
            lambda: VariationalRegressor(2, 0, **RNGS),
            "got channels 0: expected an integer of at least 1",
        ),
        (lambda: OrthogonalProjection(0, 2, **RNGS), "got dimension 0 of the incoming features"),
        (lambda: Prototypes(2.5, 2, **RNGS), "got count 2.5: expected an integer"),
        (
            lambda: OrthogonalProjection(3, 5, **RNGS)(jnp.ones((2, 4))),
            "got a batch of shape (2, 4): this head was built for examples of shape (3,)",
        ),
        (
            lambda: Prototypes(5, 3, **RNGS)(jnp.ones((2, 4, 4, 2))),
            "got a batch of shape (2, 4, 4, 2): this head was",
        ),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        request_()
