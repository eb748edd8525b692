"""Devices make of a draw the very batch that the data pipeline makes."""

import dataclasses
import itertools

import jax
import numpy as np
import optax
import pytest

from pcjax.data import Augmentation, Sampling, training_batches
from pcjax.data.examples import Arrays, Examples, whole
from pcjax.data.fitted import Fitted
from pcjax.training import resident
from pcjax.training.parallel import ParallelStep
from pcjax.training.resident import batch_of, resident_examples

N, BATCH = 23, 8
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (N + 3, 5, 4, 3), np.uint8)
LABELS = RANDOM.integers(-1, 4, N + 3).astype(np.int32)
ROWS = RANDOM.permutation(N + 3)[:N]
VIEWS = tuple(RANDOM.normal(size=(N, 6)).astype(np.float16) for _ in range(3))
NEIGHBOURS = RANDOM.integers(0, N, (N, 2))
NORMALISE = (np.array([0.2, 0.5, 0.7]), np.array([0.3, 0.2, 0.4]))
COLUMNS = {"teacher": VIEWS[0], "teacher_logits": np.arange(N, dtype=np.float32)}
CASES = {
    "bytes": {},
    "without labels": {"store": Arrays(IMAGES, None)},
    "half precision": {"store": Arrays((IMAGES / 255).astype(np.float16), LABELS)},
    "double precision": {"store": Arrays(IMAGES / 255, LABELS)},
    "wide integers": {"store": Arrays(IMAGES.astype(np.int64), LABELS)},
    "features": {"store": Arrays(RANDOM.normal(size=(N + 3, 7)), LABELS), "normalise": None},
    "shifted": {"augmentation": Augmentation(crop=2)},
    "mirrored": {"augmentation": Augmentation(flip=True)},
    "both, with neighbours": {
        "augmentation": Augmentation(crop=1, flip=True),
        "sampling": Sampling(BATCH, 3, neighbours=NEIGHBOURS),
    },
    "a part of every batch": {
        "augmentation": Augmentation(crop=1),
        "sampling": Sampling(BATCH, 3, NEIGHBOURS, process_index=1, process_count=2),
    },
    "views": {
        "augmentation": Augmentation(crop=1, flip=True, views=3),
        "columns": {"teacher": VIEWS},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_device_makes_the_same_batch(case):
    given = CASES[case]
    examples = Examples(given.get("store", Arrays(IMAGES, LABELS)), ROWS)
    normalise, columns = given.get("normalise", NORMALISE), given.get("columns", COLUMNS)
    augmentation = given.get("augmentation", Augmentation())
    one, two = (
        training_batches(
            examples,
            given.get("sampling", Sampling(BATCH, 3)),
            augmentation=augmentation,
            normalise=normalise,
            columns=columns,
        )
        for _ in range(2)
    )
    stored = resident_examples(examples, normalise, columns)
    make = jax.jit(batch_of, static_argnums=2)
    for batch in itertools.islice(one, 2 * (N // BATCH) + 1):
        made = make(stored, two.draw(), augmentation.crop)
        assert made.keys() == batch.keys()
        for name, rows in batch.items():
            assert made[name].dtype == rows.dtype, name
            assert np.array_equal(made[name], rows), name
    assert one.get_state() == two.get_state()
    two.set_state(one.get_state())
    assert np.array_equal(next(two)["image"], next(one)["image"])
    one.close()
    two.close()


def test_what_does_not_fit_or_is_decoded_from_files_stays_on_the_host(monkeypatch):
    examples = whole(Arrays(IMAGES, LABELS), None)
    changed = dataclasses.replace(examples, store=Fitted(examples.store, (4, 4, 3)))
    assert resident_examples(changed, None, {}) is None
    assert resident_examples(examples, None, {}) is not None
    size = IMAGES.nbytes * jax.local_device_count()
    monkeypatch.setattr(resident, "CPU_BYTES", size)
    assert resident_examples(examples, None, {}) is not None
    assert resident_examples(examples, None, {"one": np.zeros((len(examples), 1))}) is None
    monkeypatch.setattr(resident, "CPU_BYTES", size - 1)
    assert resident_examples(examples, None, {}) is None


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_several_steps_are_those_steps(how):
    """Over four devices, of which each takes its part of every batch."""

    def step(frozen, state, batch):
        total = jax.lax.psum(optax.tree.sum(batch["x"] * frozen), "batch")
        return state * 2 + total, {"total": total}

    x = np.random.default_rng(1).integers(0, 9, (5, 8, 3)).astype(np.float32)
    parallel = ParallelStep(step, jax.devices()[:4], how, most=5)
    place = parallel.place
    for count in (1, 3, 5):
        split = parallel.split_stacked({"x": x})
        many, metrics = parallel.several(place(np.float32(2)), place(np.float32(7)), split, count)
        state = np.float32(7)
        for k in range(count):
            state = state * 2 + 2 * x[k].sum()
            assert metrics["total"][k] == 2 * x[k].sum()
        assert many == state
        assert metrics["total"].shape == (5,)
