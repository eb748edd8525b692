"""Sources: the splits are disjoint, the same every time, and have fingerprints."""

import types

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pcjax.data import Dataset, examples, load, sources
from pcjax.data.examples import Arrays, Examples, hold_out, whole


def parts(data: Dataset):
    return data.train, data.validation, data.test


def test_the_digits():
    digits = load("digits")
    assert [len(part) for part in parts(digits)] == [1294, 144, 359]
    for part in parts(digits):
        assert part.shape == (8, 8, 1)
        assert part.dtype == np.float32
        assert part.classes == tuple("0123456789")
        images = part.take(np.arange(len(part)))
        assert (images.min(), images.max()) == (0, 1)
        assert part.labels.dtype == np.int32
        assert len(part.labels) == len(part)
    rows = np.concatenate([part.rows for part in parts(digits)])
    assert np.array_equal(np.sort(rows), np.arange(1797))
    expected = load_digits()
    images, labels = digits.train.store.read(np.arange(1797))
    np.testing.assert_array_equal(images[..., 0], expected.images / 16)
    np.testing.assert_array_equal(labels, expected.target)


def test_every_class_is_held_out_in_proportion():
    digits = load("digits", validation=0.25)
    everything = np.bincount(np.concatenate([part.labels for part in parts(digits)]))
    for part, share in ((digits.test, 0.2), (digits.validation, 0.8 * 0.25)):
        assert np.abs(np.bincount(part.labels) - share * everything).max() <= 1.5


def test_the_split_is_the_same_on_every_machine():
    one, two = load("digits"), load("digits")
    for a, b in zip(parts(one), parts(two), strict=True):
        assert np.array_equal(a.rows, b.rows)
        assert a.fingerprint == b.fingerprint
    assert one.test.rows[:8].tolist() == [
        0,
        1,
        13,
        15,
        19,
        25,
        26,
        29,
    ]  # no other: results would not compare
    assert len({part.fingerprint for part in parts(one)}) == 3


@pytest.mark.parametrize(
    ("n", "share", "count"),
    [(10, 0.1, 1), (10, 0.0, 0), (3, 0.1, 0), (7, 0.5, 4), (1000, 0.999, 999)],
)
def test_how_many_are_held_out(n, share, count, rng):
    for labels in (None, rng.integers(0, 3, size=n).astype(np.int32)):
        given = Examples(
            Arrays(rng.normal(size=(n + 5, 2)), None if labels is None else np.pad(labels, (5, 0))),
            np.arange(n) + 5,
        )
        kept, held = hold_out(given, share)
        assert len(held) == count
        assert np.array_equal(np.sort(np.concatenate([kept.rows, held.rows])), given.rows)
        assert (np.diff(kept.rows) > 0).all()


@pytest.mark.parametrize("whole_bytes", [2**27, 0])  # hashed entirely, and by samples
def test_the_fingerprint_is_of_data_order_labels_and_split(whole_bytes, rng, monkeypatch):
    monkeypatch.setattr(examples, "HASHED_WHOLE", whole_bytes)
    images, labels = rng.normal(size=(20, 3, 2, 1)), np.arange(20, dtype=np.int32)
    changed = images.copy()
    changed[7, 1, 1] += 1e-9
    given = [
        Examples(Arrays(images, labels), np.arange(20)),
        Examples(Arrays(changed, labels), np.arange(20)),
        Examples(Arrays(images[::-1], labels), np.arange(20)),
        Examples(Arrays(images.reshape(20, 2, 3, 1), labels), np.arange(20)),
        Examples(Arrays(images.astype(np.float32), labels), np.arange(20)),
        Examples(Arrays(images, labels[::-1]), np.arange(20)),
        Examples(Arrays(images, None), np.arange(20)),
        Examples(Arrays(images, labels), np.arange(19)),
        Examples(Arrays(images, labels), np.arange(20)[::-1]),
    ]
    assert len({each.fingerprint for each in given}) == len(given)
    assert given[0].fingerprint == whole(Arrays(images.copy(), labels), ("a",)).fingerprint


def test_samples_of_large_arrays_are_hashed(monkeypatch):
    monkeypatch.setattr(examples, "SAMPLES", 3)
    read = np.zeros(10, bool)

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            read[rows] = True
            return super().__getitem__(rows)

    features = np.zeros((10, 2)).view(Watched)
    monkeypatch.setattr(examples, "HASHED_WHOLE", features.nbytes - 1)
    assert Arrays(features, None).fingerprint
    assert np.flatnonzero(read).tolist() == [0, 4, 9]


@pytest.mark.parametrize("unseen", [2, 3, 8])
def test_unseen_classes_are_in_no_other_part(unseen):
    everything, data = load("digits"), load("digits", unseen=unseen)
    for before, part in zip(parts(everything), parts(data), strict=True):
        assert part.labels.max() == 9 - unseen
        # the others are where they were
        assert np.array_equal(part.rows, before.rows[before.labels < 10 - unseen])
        assert part.classes == tuple("0123456789")[:-unseen]
        assert part.fingerprint != before.fingerprint
    assert sorted(set(data.unseen.labels.tolist())) == list(range(10 - unseen, 10))
    assert set(data.unseen.rows) == set(everything.test.rows) - set(data.test.rows)
    assert everything.unseen is None


def test_a_part_has_of_every_class_its_share_and_nothing_of_another_part():
    everything, data = load("digits"), load("digits", part=0.3)
    for before, part in zip(parts(everything), parts(data), strict=True):
        assert len(part) == round(0.3 * len(before))
        assert set(part.rows) <= set(before.rows)
        shares = np.bincount(part.labels) / np.bincount(before.labels)
        assert np.abs(shares - 0.3).max() < 0.15
        assert part.fingerprint != before.fingerprint


@pytest.mark.bad_input
@pytest.mark.parametrize("part", [0, -0.5, 1.1, True, "half", float("nan")])
def test_a_part_is_a_share(part):
    with pytest.raises(ValueError, match="got part"):
        load("digits", part=part)


@pytest.mark.bad_input
def test_sources_of_other_packages(monkeypatch):
    def read(name, *, image_size=2):
        store = Arrays(np.ones((10, image_size, image_size, 1), np.float32), None)
        return examples.Splits(store, None, None, (name,))

    entry = types.SimpleNamespace(name="own", load=lambda: sources.Source(read, "own:NAME"))
    own = {"pcjax.sources": [entry]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: own.get(group, []))
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    data = load("own:any", image_size=3)
    assert data.train.shape == (3, 3, 1)
    assert data.train.classes == ("any",)
    for source, options, message in (
        ("own:any", {"data_dir": "here"}, "'own:any' takes no data_dir; remove data_dir='here'"),
        (
            "own",
            {},
            (
                "unknown data source 'own': expected digits or tfds:NAME or arrays:PATH or "
                "images:PATH or text:PATH or own"
            ),
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load(source, **options)


def save(path, labels, **more):
    np.savez(
        path,
        images=np.random.default_rng(0).normal(size=(len(labels), 3)),
        labels=np.array(labels),
        **more,
    )
    return f"arrays:{path}"


@pytest.mark.bad_input
def test_unseen_classes_need_others_and_labels(tmp_path):
    for unseen in (1, 9, 10):
        with pytest.raises(
            ValueError,
            match=f"got unseen {unseen} for 'digits', which has 10 classes: expected at le",
        ):
            load("digits", unseen=unseen)
    with pytest.raises(ValueError, match="got unseen -1: expected an integer of at least 0"):
        load("digits", unseen=-1)
    known = [0, 1, 2, 3] * 10
    assert set(load(save(tmp_path / "known.npz", known), unseen=2).train.labels) == {0, 1}
    for name, given in (("one", [*known, -1]), ("none", [-1] * 40)):
        with pytest.raises(
            ValueError, match="examples without a label: expected the class of each"
        ):
            load(save(tmp_path / f"{name}.npz", given), unseen=2)
    np.save(tmp_path / "plain.npy", np.zeros((40, 3)))
    with pytest.raises(
        ValueError, match="train examples without a label: expected the class of each"
    ):
        load(f"arrays:{tmp_path / 'plain.npy'}", unseen=2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"source": "mnist"},
            "unknown data source 'mnist': did you mean 'tfds:mnist'?",
        ),
        ({"source": "tfds:"}, "unknown data source 'tfds:'"),
        ({"source": "digits:8"}, "unknown data source 'digits:8'"),
        ({"source": None}, "unknown data source None"),
        ({"validation": 1.0}, "got validation 1: expected a share below 1"),
        ({"validation": -0.1}, "got validation -0.1: expected a number from 0 to 1"),
        ({"validation": float("nan")}, "got validation nan: expected a number from 0 to 1"),
        ({"validation": "0.1"}, "got validation '0.1': expected a number from 0 to 1"),
        ({"validation": 0.9999}, "nothing is left of 'digits' to train on"),
        ({"data_dir": "here"}, "'digits' takes no data_dir; remove data_dir='here'"),
        ({"image_size": 8}, "'digits' takes no image_size; remove image_size=8"),
        (
            {"source": "tfds:mnist", "image_size": 0},
            "got image_size 0: expected an integer of at least 1",
        ),
    ],
)
def test_refused_with_the_value_and_the_expectation(given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(**({"source": "digits"} | given))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
