"""A queue is a queue: the latest points, in order, bit for bit, on one device or several."""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import jit
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pcjax.losses import Queue, empty_queue, enqueue, perception_coherence, valid

put = jit(enqueue)


def in_order(queue):
    """Return the points of a queue, the oldest first."""
    points = np.asarray(queue.points)
    rolled = np.roll(points, -int(queue.position), axis=0)
    return rolled[len(points) - int(queue.filled) :]


@pytest.mark.parametrize("n", [1, 3, 5, 13])
def test_as_a_deque(n, rng):
    # A batch as large as the queue, and one more than twice as large, among them.
    queue, expected = empty_queue(5, 2), collections.deque(maxlen=5)
    for step in range(7):
        batch, where = rng.normal(size=(n, 2)).astype(np.float32), rng.random(n) < 0.6
        batch[0], where[0] = -0.0, where[0] or step == 3
        batch[~where] = np.nan
        queue = put(queue, batch, where=where)
        expected.extend(batch[where])
        assert in_order(queue).tobytes() == np.array(expected, np.float32).reshape(-1, 2).tobytes()
        assert valid(queue).sum() == len(expected)
        assert np.isfinite(queue.points[valid(queue)]).all()
    assert queue.filled.dtype == queue.position.dtype == jnp.int32


def test_pairs_stay_pairs(rng):
    queue = empty_queue(6, (3, 4))
    for _ in range(3):
        student = rng.normal(size=(4, 3)).astype(np.float32)
        teacher = np.concatenate([student, student[:, :1]], axis=1)
        queue = put(queue, (student, teacher))
    assert np.array_equal(queue.points[0], queue.points[1][:, :3])


def test_queues_serve_as_references(rng, x64):
    student, more = rng.normal(size=(4, 3)), rng.normal(size=(10, 3))

    def teacher_of(x):
        return x[:, ::-1] ** 2

    @jit
    def loss(references):
        return perception_coherence(
            student, teacher_of(student), temperature=0.1, references=references
        )

    empty = empty_queue(6, (3, 3), jnp.float64)
    for n in (0, 4, 10):  # an empty queue, one with places left, and a full one
        queue = put(empty, (more, teacher_of(more)), where=np.arange(10) < n)
        points = np.concatenate([student, more[:n][-6:]])
        expected = oracles.perception_coherence(
            points, teacher_of(points), temperature=0.1, anchors=4
        )
        assert np.isclose(loss((*queue.points, valid(queue))), expected.mean(), rtol=1e-9)


def test_no_gradient_and_the_queues_own_dtype(rng):
    def total(x):
        return jnp.sum(enqueue(empty_queue(4, 2, jnp.bfloat16), x).points.astype(jnp.float32))

    value, gradient = jit(jax.value_and_grad(total))(np.full((2, 2), 1 / 3, np.float32))
    assert value == 4 * jnp.float32(jnp.bfloat16(1 / 3))
    assert not gradient.any()


@pytest.mark.parametrize("way", ["pmap", "shard_map"])
def test_eight_devices_put_in_what_one_would(way, rng):
    batch, where = rng.normal(size=(16, 2)).astype(np.float32), rng.random(16) < 0.6
    queue = put(empty_queue(12, 2), rng.normal(size=(7, 2)).astype(np.float32))
    expected = put(queue, batch, where=where)

    def step(queue, batch, where):
        return enqueue(queue, batch, where=where, axis_name="batch")

    if way == "pmap":
        split = batch.reshape(8, 2, 2), where.reshape(8, 2)
        result = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0))(queue, *split)
        assert all((x == x[0]).all() for x in result)
        result = jax.tree.map(lambda x: x[7], result)
    else:
        # That the queues are all the same is known, and does not have to be taken on trust.
        mesh = Mesh(np.array(jax.devices()), ("batch",))
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P()
        )
        result = jit(mapped)(queue, batch, where)
    assert all(np.array_equal(*both) for both in zip(result, expected, strict=True))


X = np.zeros((3, 2), np.float32)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: empty_queue(0, 2), "got capacity 0: expected an integer of at least 1"),
        (lambda: empty_queue(4, 0), "got features 0: expected an integer of at least 1"),
        (lambda: empty_queue(4, ()), "expected at least one number of features"),
        (lambda: enqueue(X, X), "got queue ndarray: expected one made by empty_queue"),
        (
            lambda: enqueue(empty_queue(4, 3), X),
            "got a batch (3, 2) for a queue (4, 3): expected (examples, *(3,))",
        ),
        (lambda: enqueue(empty_queue(4, (2, 2)), X), "got a batch of structure"),
        (lambda: enqueue(empty_queue(4, (2, 2)), (X, X[:2])), "got a batch of [2, 3] examples"),
        (
            lambda: enqueue(empty_queue(4, 2), X, where=np.ones(2, bool)),
            "got where of shape (2,) for 3 examples",
        ),
        (
            lambda: enqueue(empty_queue(4, 2), X, where=np.ones(3)),
            "got where of dtype float64: expected booleans",
        ),
        (
            lambda: enqueue(empty_queue(4, 2), X, axis_name="batch"),
            "got axis_name 'batch', which is not bound here",
        ),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(request_)


def test_an_empty_batch_changes_nothing():
    queue = Queue(jnp.ones((3, 2)), jnp.int32(2), jnp.int32(2))
    again = enqueue(queue, X[:0])
    assert all(np.array_equal(*both) for both in zip(again, queue, strict=True))
