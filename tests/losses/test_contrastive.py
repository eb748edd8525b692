"""Contrastive losses against loops in float64, by hand, and over devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import jit
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pcjax import losses
from pcjax.losses import empty_queue, enqueue, noise_contrastive

N, D = 6, 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def both(rng):
    return rng.normal(size=(N, D)), rng.normal(size=(N, D))


@pytest.fixture
def points(rng):
    """Seven points in a queue of ten."""
    return rng.normal(size=(7, D)) * rng.uniform(1, 5, size=(7, 1))


def queue_of(points):
    widths = tuple(x.shape[1] for x in points) if isinstance(points, tuple) else points.shape[1]
    return jit(enqueue)(empty_queue(10, widths, jnp.float64), points)


def values_of(loss, student, teacher, **given):
    return np.asarray(jit(functools.partial(loss, reduce_fn=None, **given))(student, teacher))


@pytest.mark.parametrize(("symmetric", "with_queue"), [(True, True), (False, True), (True, False)])
def test_info_nce(symmetric, with_queue, both, points, x64):
    student, teacher = both
    queue = {"queue": queue_of(points)} if with_queue else {}
    actual = values_of(
        losses.info_nce, student, teacher, temperature=0.3, symmetric=symmetric, **queue
    )
    u, v, k = unit(student), unit(teacher), unit(points) if with_queue else np.zeros((0, D))
    for i in range(N):
        positive = np.exp(u[i] @ v[i] / 0.3)
        one = -np.log(positive / (np.exp(v @ u[i] / 0.3).sum() + np.exp(k @ u[i] / 0.3).sum()))
        other = -np.log(positive / np.exp(u @ v[i] / 0.3).sum())
        assert np.isclose(actual[i], (one + other) / 2 if symmetric else one)


def test_the_teachers_head_may_be_learnt(both, x64):
    for name, rest in (("info_nce", {}), ("crd", crd_given(started=True))):

        @jit
        def everything(student, teacher):
            moving = functools.partial(getattr(losses, name), teacher_gradient=True, **rest)
            held = jax.grad(getattr(losses, name), argnums=(0, 1))
            return jax.value_and_grad(moving, argnums=(0, 1))(student, teacher), held(
                student, teacher, **rest
            )

        student, teacher = both
        (_, moving), held = jax.tree.map(np.asarray, everything(student, teacher))
        assert not held[1].any()
        assert np.allclose(held[0], moving[0])
        step = 1e-6 * np.eye(N * D)[4].reshape(N, D)
        above, below = (everything(student, teacher + move)[0][0] for move in (step, -step))
        assert np.isclose(moving[1].reshape(-1)[4], (above - below) / 2e-6, rtol=1e-5)


def test_relational_representation(both, points, x64):
    student, teacher = both
    given = {"temperature": 0.5, "teacher_temperature": 0.2}
    actual = values_of(
        losses.relational_representation, student, teacher, queue=queue_of(points), **given
    )
    p = scipy.special.softmax(unit(teacher) @ unit(points).T / 0.2, axis=1)
    q = scipy.special.softmax(unit(student) @ unit(points).T / 0.5, axis=1)
    assert np.allclose(actual, -(p * np.log(q)).sum(axis=1))


def test_similarity_kl_with_one_queue_and_with_two(both, points, rng, x64):
    student, teacher = both
    wide, more = rng.normal(size=(N, 5)), rng.normal(size=(7, 5))
    for s, queue, anchors in ((student, points, points), (wide, (more, points), more)):
        actual = values_of(losses.similarity_kl, s, teacher, queue=queue_of(queue), temperature=0.3)
        p = scipy.special.softmax(unit(teacher) @ unit(points).T / 0.3, axis=1)
        q = scipy.special.softmax(unit(s) @ unit(anchors).T / 0.3, axis=1)
        assert np.allclose(actual, scipy.special.rel_entr(p, q).sum(axis=1))


def test_an_empty_queue_says_nothing(both):
    student, teacher = both
    for name in ("similarity_kl", "relational_representation"):
        loss = functools.partial(getattr(losses, name), queue=empty_queue(10, D))
        value, gradient = jit(jax.value_and_grad(loss))(student, teacher)
        assert value == 0
        assert not gradient.any()


def test_bingo(both, points, rng, x64):
    student, teacher = both
    u_p, v_p, u_m = (rng.normal(size=(N, D)) for _ in range(3))
    share = rng.random(N)
    given = {
        "student_neighbours": u_p,
        "teacher_neighbours": v_p,
        "student_mixtures": u_m,
        "share": share,
    }
    actual = values_of(losses.bingo, student, teacher, queue=queue_of(points), own=0.7, **given)

    def loss(query, key):
        query, key = unit(query), unit(key)
        positive = np.exp(query @ key / 0.2)
        return -np.log(positive / (positive + np.exp(unit(points) @ query / 0.2).sum()))

    for i in range(N):
        own = loss(student[i], teacher[i]) + loss(u_p[i], v_p[i])
        other = loss(student[i], v_p[i]) + loss(u_p[i], teacher[i])
        mixed = share[i] * loss(u_m[i], teacher[i]) + (1 - share[i]) * loss(u_m[i], v_p[i])
        assert np.isclose(actual[i], (0.7 * own + 0.3 * other + mixed) / 3)


def crd_given(started=False, **given):
    memory = losses.crd_memory(jax.random.key(3), 20, D)
    memory = memory._replace(
        started=jnp.asarray(started), log_normalisers=jnp.array([12.0, 13.0]) * started
    )
    return {
        "memory": memory,
        "indices": jnp.arange(N) * 3,
        "key": jax.random.key(1),
        "negatives": 8,
        **given,
    }


@pytest.mark.parametrize("labels", [None, np.array([4, 9])], ids=["all", "classes"])
def test_crd_where_there_is_but_one_negative(labels, x64):
    # Of two examples each is the other's only negative, however many are drawn.
    memory = losses.crd_memory(jax.random.key(0), 2, 2, labels=labels)
    assert np.abs(memory.student).max() <= np.sqrt(3 / 2)
    student, teacher = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 2.0], [1.2, 1.6]])
    given = {
        "indices": np.array([1, 0]),
        "key": jax.random.key(5),
        "negatives": 3,
        "temperature": 0.5,
    }
    expected, normalisers = np.zeros(2), []
    for embeddings, points in ((unit(teacher), memory.student), (unit(student), memory.teacher)):
        e = np.exp(
            embeddings @ np.asarray(points, np.float64)[[1, 0]].T / 0.5
        )  # own place on the diagonal
        positive, negative = np.diag(e), np.diag(e[:, ::-1])
        z = 2 * (positive + 3 * negative).mean() / 4
        noise = 3 / 2
        expected -= np.log(positive / z / (positive / z + noise)) + 3 * np.log(
            noise / (negative / z + noise)
        )
        normalisers.append(np.log(z))
    loss = jit(lambda memory: losses.crd(student, teacher, memory=memory, reduce_fn=None, **given))
    assert np.allclose(loss(memory), expected)

    @jit
    def update(memory, where):
        return losses.crd_update(memory, student, teacher, where=where, **given)

    new = update(memory, np.ones(2, bool))
    assert new.started
    assert np.allclose(new.log_normalisers, normalisers)
    for points, old, embeddings in zip(new[:2], memory[:2], (student, teacher), strict=True):
        assert np.allclose(points, unit(old / 2 + unit(embeddings)[[1, 0]] / 2))
    again = update(new, np.array([False, True]))
    assert np.array_equal(again.log_normalisers, new.log_normalisers)
    assert np.array_equal(again.student[1], new.student[1])
    assert not np.array_equal(again.student[0], new.student[0])
    # The loss with the normalisers fixed is that of a first batch, had it had these.
    fixed = memory._replace(log_normalisers=new.log_normalisers, started=new.started)
    assert np.allclose(loss(fixed), expected)


@pytest.mark.parametrize("labels", [None, np.array([2, 7, 2, 5, 5, 2])], ids=["all", "classes"])
def test_negatives_are_others_and_all_as_likely(labels):
    memory = losses.crd_memory(jax.random.key(0), 6, 2, labels=labels)
    draw = jit(functools.partial(noise_contrastive._draw, negatives=6000))
    for index in range(6):
        counts = np.bincount(draw(memory, index, jax.random.key(index)), minlength=6)
        others = np.arange(6) != index if labels is None else labels != labels[index]
        assert not counts[~others].any()
        expected = 6000 / others.sum()
        assert np.abs(counts[others] - expected).max() < 5 * np.sqrt(expected)


def test_each_example_has_negatives_of_its_own(both):
    given = crd_given()
    loss = jit(functools.partial(losses.crd, negatives=given.pop("negatives"), reduce_fn=None))
    values = loss(*both, **given)
    turned = loss(*(x[::-1] for x in both), **given | {"indices": given["indices"][::-1]})
    assert np.allclose(turned[::-1], values)
    assert not np.allclose(loss(*both, **given | {"key": jax.random.key(2)}), values)


@pytest.mark.parametrize("way", ["pmap", pytest.param("shard_map", marks=pytest.mark.nightly)])
def test_the_memory_of_eight_devices_is_that_of_one(way, rng):
    student, teacher = rng.normal(size=(2, 16, D)).astype(np.float32)
    given = crd_given()
    memory, key = given["memory"], given["key"]
    indices, where = rng.permutation(20)[:16], rng.random(16) < 0.7
    student[~where] = np.nan

    def step(memory, student, teacher, indices, where, axis_name="batch"):
        rest = {
            "indices": indices,
            "key": key,
            "negatives": 8,
            "where": where,
            "axis_name": axis_name,
        }
        return losses.crd_update(memory, student, teacher, **rest)

    batch = student, teacher, indices, where
    expected = jit(functools.partial(step, axis_name=None))(memory, *batch)
    memory, expected = jax.tree.map(np.asarray, (memory, expected))
    assert np.isfinite(expected.log_normalisers).all()
    untouched = np.setdiff1d(np.arange(20), indices[where])
    assert np.array_equal(expected.teacher[untouched], memory.teacher[untouched])

    if way == "pmap":
        split = [x.reshape(8, 2, *x.shape[1:]) for x in batch]
        mapped = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0, 0, 0))
        result = jax.tree.map(lambda x: np.asarray(x)[5], mapped(memory, *split))
    else:
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), *[P("batch")] * 4), out_specs=P())
        result = jit(mapped)(memory, *batch)
    chex.assert_trees_all_close(result, expected, rtol=1e-5, atol=1e-6)


def test_nothing_valid_starts_nothing():
    given = crd_given(where=np.zeros(N, bool))
    x = np.ones((N, D), np.float32)
    update = jit(functools.partial(losses.crd_update, negatives=given.pop("negatives")))
    memory = update(given.pop("memory"), x, x, **given)
    assert not memory.started


X, WIDE = np.ones((4, 3), np.float32), np.ones((4, 5), np.float32)
QUEUE = {"queue": empty_queue(8, 3)}
BINGO = {
    "student_neighbours": X,
    "teacher_neighbours": X,
    "student_mixtures": X,
    "share": 0.5,
    **QUEUE,
}


def crd(**given):
    memory = losses.crd_memory(jax.random.key(0), 10, 3)
    start = {"memory": memory, "indices": np.arange(4), "key": jax.random.key(0), "negatives": 2}
    return losses.crd(X, X, **start | given)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            lambda: losses.info_nce(X, WIDE),
            "expected as many columns in both, give one of them a linear head",
        ),
        (
            lambda: losses.info_nce(X, X, temperature=0.0),
            "got temperature 0.0: expected a positive, finite number",
        ),
        (
            lambda: losses.info_nce(X, X, queue=X),
            "got queue ndarray: expected one made by empty_queue",
        ),
        (
            lambda: losses.info_nce(X, X, queue=empty_queue(8, 4)),
            "expected one array (capacity, 3), as many features",
        ),
        (
            lambda: losses.info_nce(X, X, queue=empty_queue(8, (3, 3))),
            "expected one array (capacity, 3)",
        ),
        (
            lambda: losses.relational_representation(X, X, teacher_temperature=-1, **QUEUE),
            "got teacher_temperature -1",
        ),
        (
            lambda: losses.similarity_kl(X, WIDE, **QUEUE),
            "got a queue of the teacher of shapes [(8, 3)]: expected one",
        ),
        (
            lambda: losses.similarity_kl(X, X, queue=empty_queue(8, (3, 3, 3))),
            "got a queue of 3 arrays: expected",
        ),
        (
            lambda: losses.bingo(X, X, **BINGO | {"student_mixtures": WIDE}),
            "got student_mixtures (4, 5) for a student",
        ),
        (
            lambda: losses.bingo(X, X, **BINGO | {"share": np.ones(3)}),
            "got share of shape (3,): expected () or (4,)",
        ),
        (
            lambda: losses.bingo(X, X, **BINGO, own=1.5),
            "got own 1.5: expected a number from 0 to 1",
        ),
        (
            lambda: losses.crd_memory(jax.random.key(0), 1, 3),
            "got examples 1: expected an integer of at least 2",
        ),
        (
            lambda: losses.crd_memory(jax.random.key(0), 4, 3, labels=[1, 1, 1, 1]),
            "got labels of 1 class",
        ),
        (
            lambda: losses.crd_memory(jax.random.key(0), 4, 3, labels=[0.5, 1]),
            "expected 4 integers",
        ),
        (lambda: crd(memory=X), "got memory ndarray: expected one of crd_memory"),
        (lambda: crd(negatives=0), "got negatives 0: expected an integer of at least 1"),
        (
            lambda: crd(indices=np.arange(3)),
            "got indices of shape (3,) and dtype int32: expected 4 integers",
        ),
        (
            lambda: crd(indices=X[:, 0]),
            "got indices of shape (4,) and dtype float32: expected 4 integers",
        ),
        (
            lambda: crd(memory=losses.crd_memory(jax.random.key(0), 10, 5)),
            "got embeddings (4, 3) for a memory (10, 5)",
        ),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(request_)
