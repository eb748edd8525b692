"""Images in a model's shape: against JAX's resizing, and refused where nothing fits."""

import functools

import jax
import numpy as np
import pytest

from pcjax.data import Dataset, fitted
from pcjax.data.examples import Arrays, whole
from pcjax.data.fitted import resized, sized
from pcjax.data.tfds import Records


def dataset(images, labels=None):
    examples = whole(Arrays(images, labels), None)
    return Dataset("given", examples, examples, examples)


@pytest.mark.parametrize("shape", [(5, 9), (20, 3), (14, 14), (7, 6)])
def test_resizing_is_linear_interpolation_without_aliases(shape, rng):
    images = rng.random((3, 7, 6, 2), np.float32)
    resize = functools.partial(jax.image.resize, method="linear", antialias=True)
    expected = jax.jit(resize, static_argnums=1)(images, (3, *shape, 2))
    assert np.allclose(resized(images, *shape), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (9, 3), (14, 14), (7, 6)])
def test_cutting_resizes_the_middle_with_the_new_proportions(shape, rng):
    images = rng.random((3, 7, 6, 2), np.float32)
    scale = max(shape[0] / 7, shape[1] / 6)
    move = functools.partial(jax.image.scale_and_translate, method="linear", antialias=True)
    expected = jax.jit(move, static_argnums=(1, 2))(
        images,
        (3, *shape, 2),
        (1, 2),
        scale=np.float32([scale, scale]),
        translation=np.float32([(shape[0] - 7 * scale) / 2, (shape[1] - 6 * scale) / 2]),
    )
    assert np.allclose(resized(images, *shape, cut=True), expected, atol=1e-5)


def test_only_other_shapes_are_changed(rng):
    grey = rng.integers(0, 256, (4, 6, 6, 1)).astype(np.uint8)
    data = dataset(grey, np.arange(4, dtype=np.int32))
    assert fitted(data, (6, 6, 1)) is data
    colour = fitted(data, (6, 6, 3))
    rows = np.array([2, 0])
    images, labels = colour.test.take_labelled(rows)
    assert images.dtype == np.uint8
    assert (images == np.repeat(grey[rows], 3, axis=3)).all()
    assert labels.tolist() == [2, 0]
    # and back: of equal channels the luminance is each of them
    assert (
        fitted(dataset(np.repeat(grey, 3, axis=3)), (6, 6, 1)).train.take(np.arange(4)) == grey
    ).all()
    half = fitted(data, (3, 3, 1))
    assert half.train.shape == half.train.take(rows).shape[1:] == (3, 3, 1)
    assert abs(half.train.take(rows).mean() - grey[rows].mean()) < 12
    assert half.train.fingerprint != data.train.fingerprint


class Originals(Arrays):
    """Images that are decoded at a size: here they are filled with it."""

    def at_size(self, side):
        return Originals(np.full((len(self), side, side, 3), side, np.uint8), self.known_labels)


def test_originals_are_used_where_every_part_has_them(rng):
    store = Originals(rng.integers(0, 256, (6, 4, 4, 3)).astype(np.uint8), None)
    part = whole(store, ("a",))
    data = Dataset("given", part, part, part, part, vocabulary="tokens")
    larger = sized(data, (9, 9, 3))
    assert sized(data, (4, 4, 3)) is data
    assert [*larger.parts] == [*data.parts]
    assert len({id(part.store) for part in larger.parts.values()}) == 1
    assert (larger.vocabulary, larger.source, larger.unseen.classes) == ("tokens", "given", ("a",))
    assert (larger.test.take(np.arange(6)) == 9).all()
    assert (sized(data, (9, 9, 1)).test.take(np.arange(6)) == 9).all()
    # others are resized from what is stored
    mixed = Dataset("given", part, part, whole(Arrays(store.images, None), None))
    for given, shape in ((mixed, (9, 9, 3)), (data, (8, 9, 3))):
        expected = fitted(given, shape)
        for name, one in sized(given, shape).parts.items():
            assert (one.take(np.arange(6)) == expected.parts[name].take(np.arange(6))).all()


def test_records_are_decoded_at_another_size():
    records = Records("given", [], "image", None, (8, 8, 3), large=False)
    larger = records.at_size(20)
    assert (records.shape, larger.shape) == ((8, 8, 3), (20, 20, 3))
    assert (larger.name, larger.source) == (records.name, records.source)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("stored", "shape", "message"),
    [
        (
            (2, 5),
            (4, 4, 1),
            "for a model of shape (4, 4, 1): expected them alike, only images can be",
        ),
        ((2, 4, 4, 1), (16,), "expected them alike, only images can be resized"),
        (
            (2, 4, 4, 4),
            (4, 4, 3),
            "expected as many channels, or 1 for 3, or 3 for 1; convert the images",
        ),
    ],
)
def test_other_shapes_and_channels_are_refused(stored, shape, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fitted(dataset(np.zeros(stored, np.float32)), shape)
    assert message in str(caught.value)
