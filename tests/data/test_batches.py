"""Laws of the batches: they depend on the seed and the step, and on nothing else."""

import itertools
import json

import numpy as np
import pytest
from test_augment import looped_crop

from pcjax import data
from pcjax.data import Augmentation, Sampling, evaluation_batches
from pcjax.data.examples import Arrays, Examples, whole

N, BATCH, STEPS = 23, 4, 5  # 23 examples are 5 batches of 4, and 3 that sit an epoch out
MEAN, STD = np.array([0.1, 0.4, 0.6]), np.array([0.3, 0.2, 0.5])
RAW = np.random.default_rng(5).integers(1, 255, size=(N, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(N, dtype=np.int32) % 7
TEACHER = np.random.default_rng(6).normal(size=(N, 6)).astype(np.float16)
EXAMPLES = whole(Arrays(RAW, LABELS), None)
WHOLE = {
    "batch": BATCH,
    "seed": 3,
    "crop": 1,
    "flip": True,
    "normalise": (MEAN, STD),
    "columns": {"teacher": TEACHER},
}
PLAIN = {"batch": BATCH, "seed": 3}
NEAR = (np.arange(N)[:, None] + np.array([1, 5, 9])) % N


def training_batches(examples, **given):
    parts = [
        kind(**{name: given.pop(name) for name in names if name in given})
        for kind, names in (
            (Sampling, ("batch", "seed", "neighbours", "process_index", "process_count")),
            (Augmentation, ("crop", "flip", "views")),
        )
    ]
    return data.training_batches(examples, parts[0], augmentation=parts[1], **given)


def steps(count, examples=EXAMPLES, **given):
    return list(itertools.islice(training_batches(examples, **given), count))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        assert np.array_equal(one[name], other[name]), name


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def normalised(raw):
    return (raw / 255 - MEAN) / STD


def test_every_example_comes_with_one_of_its_neighbours():
    given = WHOLE | {"crop": 0, "flip": False, "neighbours": NEAR}
    drawn = set()
    for batch, without in zip(
        steps(6 * STEPS, **given), steps(6 * STEPS, **(given | {"neighbours": None})), strict=True
    ):
        own = {name: rows for name, rows in batch.items() if not name.startswith("neighbour_")}
        assert_same(own, without)
        near = np.argmax(np.all(batch["neighbour_teacher"][:, None] == TEACHER, axis=2), axis=1)
        assert np.allclose(batch["neighbour_image"], normalised(RAW[near]), atol=1e-6)
        drawn |= set(((near - batch["index"]) % N).tolist())
    assert drawn == {1, 5, 9}


def test_neighbours_are_changed_as_the_others_are_and_the_same_for_processes_and_resumptions():
    given = WHOLE | {"neighbours": NEAR}
    alone = steps(3, **given)
    shares = [steps(3, **given, process_index=i, process_count=2) for i in range(2)]
    for step, batch in enumerate(alone):
        assert_same(joined([share[step] for share in shares]), batch)
    one, two = (training_batches(EXAMPLES, **given) for _ in range(2))
    next(one)
    two.set_state(one.get_state())
    assert_same(next(two), alone[1])
    plain = np.concatenate(
        [batch["neighbour_image"] for batch in steps(3, **(given | {"crop": 0, "flip": False}))]
    )
    assert not np.allclose(np.concatenate([batch["neighbour_image"] for batch in alone]), plain)


def test_shapes_dtypes_and_order_in_memory():
    batch = next(training_batches(EXAMPLES, **WHOLE))
    assert {name: (rows.dtype.name, rows.shape) for name, rows in batch.items()} == {
        "image": ("float32", (BATCH, 4, 5, 3)),
        "label": ("int32", (BATCH,)),
        "index": ("int32", (BATCH,)),
        "mask": ("bool", (BATCH,)),
        "teacher": ("float16", (BATCH, 6)),
    }
    for store in (EXAMPLES.store, Arrays(np.asfortranarray(RAW), LABELS)):
        for batch in steps(1, whole(store, None), **WHOLE) + steps(1, whole(store, None), **PLAIN):
            assert all(rows.flags.c_contiguous for rows in batch.values())


def test_rows_are_those_of_the_index():
    for batch in steps(2 * STEPS, **(WHOLE | {"crop": 0, "flip": False})):
        index = batch["index"]
        assert np.allclose(batch["image"], normalised(RAW[index]), atol=1e-6)
        assert np.array_equal(batch["label"], LABELS[index])
        assert np.array_equal(batch["teacher"], TEACHER[index])
        assert batch["mask"].all()


def test_without_statistics_bytes_are_scaled_and_floats_are_left():
    batch = next(training_batches(EXAMPLES, **PLAIN))
    assert np.allclose(batch["image"], RAW[batch["index"]] / 255, atol=1e-7)
    floats = whole(Arrays(RAW.astype(np.float64) * 3, None), None)
    batch = next(training_batches(floats, **PLAIN))
    assert np.array_equal(batch["image"], RAW[batch["index"]].astype(np.float32) * 3)
    assert np.array_equal(batch["label"], [-1] * BATCH)


def test_two_runs_are_equal_and_another_seed_is_another_run():
    one, two, other = (steps(2 * STEPS, **(WHOLE | {"seed": seed})) for seed in (3, 3, 4))
    for a, b in zip(one, two, strict=True):
        assert_same(a, b)
    assert not np.array_equal(joined(one)["index"], joined(other)["index"])


def test_an_epoch_visits_an_example_at_most_once_and_each_in_another_order():
    epochs = np.stack([batch["index"] for batch in steps(40 * STEPS, **PLAIN)]).reshape(
        40, STEPS * BATCH
    )
    assert all(len(set(epoch)) == STEPS * BATCH for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40
    seen = np.bincount(epochs.ravel(), minlength=N)
    # Each example sits out 3 of 23 epochs: a binomial of 40, mean 34.8 and deviation 2.1.
    assert seen.min() >= 25
    assert seen.sum() == 40 * STEPS * BATCH


def test_resumed_at_any_step_of_two_epochs_it_is_as_if_uninterrupted():
    expected = steps(2 * STEPS + 3, **WHOLE)
    for step in range(2 * STEPS + 1):
        first = training_batches(EXAMPLES, **WHOLE)
        for _ in range(step):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        second = training_batches(EXAMPLES, **WHOLE)
        next(second)  # it works ahead from another step
        second.set_state(state)
        assert second.get_state() == state
        for batch in expected[step : step + 3]:
            assert_same(next(first), batch)
            assert_same(next(second), batch)
        first.close()
        second.close()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_together_see_what_one_would(count):
    alone = steps(STEPS + 2, **WHOLE)
    shares = [steps(STEPS + 2, **WHOLE, process_index=i, process_count=count) for i in range(count)]
    for step, batch in enumerate(alone):
        assert_same(joined([share[step] for share in shares]), batch)
    one, two = (
        training_batches(EXAMPLES, **WHOLE, process_index=i, process_count=i + 1) for i in (0, 1)
    )
    next(one)
    two.set_state(one.get_state())  # a run may resume with another number of processes
    assert np.array_equal(next(two)["index"], alone[1]["index"][BATCH // 2 :])


def test_changes_are_those_of_a_loop_and_all_of_them_happen():
    offsets = [(down, right) for down in range(3) for right in range(3)]
    happened = set()
    for batch in steps(10 * STEPS, **WHOLE):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            crops = looped_crop(
                np.repeat(RAW[index : index + 1], 9, axis=0), offsets, 1
            )  # zeros come before the mean
            possible = normalised(np.concatenate([crops, crops[:, :, ::-1]]))
            equal = np.abs(possible - image).max(axis=(1, 2, 3)) < 1e-5
            assert equal.sum() == 1
            happened.add(int(np.argmax(equal)))
    assert happened == set(range(18))


def test_changes_leave_the_order_and_the_data_alone():
    before = RAW.copy()
    plain = joined(steps(STEPS, **PLAIN))
    assert np.array_equal(plain["index"], joined(steps(STEPS, **WHOLE))["index"])
    assert np.array_equal(RAW, before)
    batch = next(training_batches(EXAMPLES, **WHOLE))
    batch["image"][:] = 0  # the caller owns the batch
    batch["index"][:] = 0
    batch["label"][:] = 9
    assert np.array_equal(LABELS, np.arange(N) % 7)
    assert_same(joined(steps(STEPS, **PLAIN)), plain)


def test_columns_may_be_mapped_from_a_file(tmp_path):
    np.save(tmp_path / "teacher.npy", TEACHER)
    mapped = np.load(tmp_path / "teacher.npy", mmap_mode="r")
    batch = next(
        training_batches(EXAMPLES, **PLAIN, columns={"teacher": mapped, "weight": np.arange(N)})
    )
    assert type(batch["teacher"]) is np.ndarray
    assert np.array_equal(batch["teacher"], TEACHER[batch["index"]])
    assert np.array_equal(batch["weight"], batch["index"])


def test_some_rows_of_a_store():
    part = Examples(EXAMPLES.store, np.array([20, 3, 11, 7]))
    assert np.array_equal(part.take(np.array([3, 0])), RAW[[7, 20]])
    assert np.array_equal(part.labels, LABELS[[20, 3, 11, 7]])
    batch = next(training_batches(part, batch=4, seed=0))
    assert sorted(batch["index"]) == [0, 1, 2, 3]
    assert np.allclose(batch["image"], RAW[part.rows[batch["index"]]] / 255, atol=1e-7)
    assert np.array_equal(batch["label"], LABELS[part.rows[batch["index"]]])


@pytest.mark.parametrize("size", [1, 4, 6, 23, 24, 40])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_yields_everything_once_in_order(size, count):
    size *= count
    pieces = [
        list(
            evaluation_batches(
                EXAMPLES, batch=size, normalise=(MEAN, STD), process_index=i, process_count=count
            )
        )
        for i in range(count)
    ]
    batches = [joined(shares) for shares in zip(*pieces, strict=True)]
    assert all(len(batch["image"]) == size for batch in batches)
    every = joined(batches)
    mask = every["mask"]
    assert np.array_equal(every["index"][mask], np.arange(N))
    assert np.array_equal(every["label"][mask], LABELS)
    assert np.allclose(every["image"][mask], normalised(RAW), atol=1e-6)
    assert not mask[N:].any()
    assert np.allclose(every["image"][~mask], normalised(RAW[-1:]), atol=1e-6)


def test_evaluation_may_be_repeated_and_is_empty_without_examples():
    batches = evaluation_batches(EXAMPLES, batch=10)
    for one, two in zip(batches, batches, strict=True):
        assert_same(one, two)
    assert list(evaluation_batches(Examples(EXAMPLES.store, np.arange(0)), batch=10)) == []


OTHERS = {
    "seed was 3 and is 4": {"seed": 4},
    "batch was 4 and is 6": {"batch": 6},
    "crop was 1 and is 2": {"crop": 2},
    "flip was True and is False": {"flip": False},
    "mean was [0.1, 0.4, 0.6] and is [0.0, 0.0, 0.0]": {"normalise": None},
    "columns was {'teacher': 'float16 (23, 6)'} and is {}": {"columns": {}},
    "columns was {'teacher': 'float16 (23, 6)'} and is {'teacher": {
        "columns": {"teacher": TEACHER[:, :5]}
    },
}


@pytest.mark.parametrize("difference", OTHERS)
def test_the_state_of_other_batches_is_refused(difference):
    state = json.loads(json.dumps(training_batches(EXAMPLES, **WHOLE).get_state()))
    other = training_batches(EXAMPLES, **(WHOLE | OTHERS[difference]))
    with pytest.raises(ValueError, match="this state is of other batches") as caught:
        other.set_state(state)
    assert difference in str(caught.value)


def test_the_state_of_other_data_is_refused():
    state = training_batches(EXAMPLES, **WHOLE).get_state()
    for other in (
        Arrays(RAW[::-1], LABELS),
        Arrays(RAW, LABELS[::-1].copy()),
        Arrays(RAW ^ (RAW > 250), LABELS),
    ):
        with pytest.raises(ValueError, match="fingerprint was"):
            training_batches(whole(other, None), **WHOLE).set_state(state)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"step": 1},
        {"step": -1, "pipeline": {}},
        {"step": True, "pipeline": {}},
        {"step": "1"},
        [1],
    ],
)
def test_a_malformed_state_is_refused(state):
    with pytest.raises(ValueError, match="expected one from get_state"):
        training_batches(EXAMPLES, **WHOLE).set_state(state)


FLAT = whole(Arrays(TEACHER, None), None)
REFUSED = [
    ({"batch": 24}, "got a batch of 24 and 23 examples"),
    ({"batch": 0}, "got batch 0: expected an integer of at least 1"),
    ({"batch": 2.0}, "got batch 2.0: expected an integer"),
    ({"batch": 4, "process_count": 3}, "got a batch of 4 for 3 processes: expected a multiple"),
    ({"process_count": 0}, "got process_count 0: expected an integer of at least 1"),
    ({"process_index": 1}, "got process_index 1: expected an integer from 0 to 0"),
    ({"seed": -1}, "got seed -1: expected an integer of at least 0"),
    ({"seed": None}, "got seed None: expected an integer"),
    ({"crop": -1}, "got crop -1: expected an integer of at least 0"),
    ({"flip": 0.5}, "got flip 0.5: expected True or False"),
    ({"normalise": 2}, "got normalise int: expected (mean, std)"),
    (
        {"normalise": (MEAN[:2], STD)},
        "got a mean of shape (2,) and a std of shape (3,): expected a number or (3,)",
    ),
    ({"normalise": (MEAN, 0 * STD)}, "expected finite numbers, and a std above 0"),
    ({"normalise": (np.nan, 1)}, "expected finite numbers, and a std above 0"),
    ({"columns": {"label": LABELS}}, "got a column named 'label', which every batch has"),
    (
        {"neighbours": NEAR[:-1]},
        "got neighbours of shape (22, 3) and dtype int64 for 23 examples: expected (23, k)",
    ),
    ({"neighbours": NEAR + 1}, "got neighbours from 1 to 23: expected 0 to 22"),
    (
        {"columns": {"teacher": TEACHER[:-1]}},
        "got column 'teacher' of shape (22, 6) for 23 examples",
    ),
    ({"columns": {"teacher": np.float32(1)}}, "got column 'teacher' of shape () for 23 examples"),
    (
        {"examples": FLAT, "crop": 1},
        "got crop=1 and flip=False for examples of shape (6,): only images",
    ),
    (
        {"examples": FLAT, "flip": True},
        "got crop=0 and flip=True for examples of shape (6,): only images",
    ),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_with_the_value_and_the_expectation(given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        training_batches(**({"examples": EXAMPLES} | PLAIN | given))
    assert message in str(caught.value)


@pytest.mark.bad_input
def test_evaluation_refuses_what_training_does():
    for given in (
        {"batch": 0},
        {"batch": 3, "process_count": 2},
        {"batch": 4, "normalise": (0, -1)},
    ):
        with pytest.raises(ValueError, match="expected"):
            evaluation_batches(EXAMPLES, **given)


VIEWS = 3
COLUMNS = {"teacher": tuple(TEACHER + view for view in range(VIEWS))}
VIEWED = {"crop": 1, "flip": True, "views": VIEWS, "columns": COLUMNS}


def view(number, examples=EXAMPLES, scale=1.0):
    changed = data.view_of(examples, Augmentation(crop=1, flip=True, views=VIEWS), number, scale)
    return changed.take(np.arange(len(changed)))


@pytest.mark.parametrize(("batch", "seed"), [(4, 3), (7, 0)])
def test_every_epoch_shows_one_view_with_its_own_columns(batch, seed):
    """The pixels are those of `view_of`, whatever the seed, the batch and the number of views."""
    views = [view(number) for number in range(VIEWS)]
    epoch = N // batch
    for step, rows in enumerate(steps(4 * epoch, batch=batch, seed=seed, **VIEWED)):
        number, index = step // epoch % VIEWS, rows["index"]
        np.testing.assert_allclose(rows["image"], views[number][index] / 255, rtol=1e-6)
        assert np.array_equal(rows["teacher"], TEACHER[index] + number)
        assert np.array_equal(rows["label"], LABELS[index])


def test_views_differ_and_are_crops_and_flips():
    views = [view(number) for number in range(VIEWS)]
    assert not np.array_equal(views[0], views[1])
    for images in views:
        for image, original in zip(images, RAW, strict=True):
            moved = [looped_crop(original[None], [at], 1)[0] for at in np.ndindex(3, 3)]
            assert any(np.array_equal(image, m) or np.array_equal(image, m[:, ::-1]) for m in moved)


def test_a_teacher_of_another_size_sees_the_same_part():
    """Twice as large images are shifted twice as far."""
    double = np.kron(RAW, np.ones((1, 2, 2, 1), np.uint8))
    larger = view(1, whole(Arrays(double, LABELS), None), scale=2.0)
    assert np.array_equal(larger, np.kron(view(1), np.ones((1, 2, 2, 1), np.uint8)))


@pytest.mark.parametrize(("own", "other"), [(4, 6), (32, 48), (224, 518), (96, 224), (64, 48)])
def test_shifts_stay_inside_the_padding_at_any_size(own, other):
    for crop in range(1, 12):
        images = np.zeros((9, other, other, 1), np.uint8)
        examples = whole(Arrays(images, None), None)
        augmentation = Augmentation(crop=crop, flip=False, views=1)
        changed = data.view_of(examples, augmentation, 0, other / own)
        assert changed.take(np.arange(9)).shape == images.shape


def test_columns_of_views_are_one_for_each():
    with pytest.raises(ValueError, match="'teacher' of 3 arrays for 2 views"):
        training_batches(EXAMPLES, batch=BATCH, **VIEWED | {"views": 2})
