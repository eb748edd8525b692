"""Random changes against loops; statistics against NumPy in float64."""

import numpy as np
import pytest

from pcjax.data import horizontal_flip, normalise, random_crop, statistics
from pcjax.data.examples import Arrays, whole


def looped_crop(images, offsets, padding):
    result = np.zeros_like(images)
    _, height, width, _ = images.shape
    for i, (down, right) in enumerate(offsets):
        for a in range(height):
            for b in range(width):
                row, column = a + down - padding, b + right - padding
                if 0 <= row < height and 0 <= column < width:
                    result[i, a, b] = images[i, row, column]
    return result


@pytest.mark.parametrize(("padding", "channels"), [(1, 3), (2, 1), (5, 2)])
def test_crops_are_those_of_a_loop(padding, channels, rng):
    images = rng.integers(1, 255, size=(9, 4, 3, channels), dtype=np.uint8)
    offsets = rng.integers(0, 2 * padding + 1, size=(9, 2))
    offsets[:3] = [(0, 0), (2 * padding, 2 * padding), (padding, padding)]
    crops = random_crop(images, offsets, padding=padding)
    assert crops.dtype == np.uint8
    assert np.array_equal(crops, looped_crop(images, offsets, padding))
    assert np.array_equal(crops[2], images[2])


def test_flips_are_those_of_a_loop(rng):
    images = rng.normal(size=(6, 2, 3, 2))
    before = images.copy()
    flipped = np.array([True, False, True, True, False, False])
    result = horizontal_flip(images, flipped)
    expected = [
        [row[::-1] for row in image] if turn else image
        for image, turn in zip(images, flipped, strict=True)
    ]
    assert np.array_equal(result, expected)
    assert np.array_equal(images, before)


def examples_of(images):
    return whole(Arrays(images, None), None)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int16])
def test_statistics_are_those_of_all_numbers_at_once(dtype, rng, monkeypatch):
    monkeypatch.setattr(normalise, "BLOCK", 100)  # several turns, the last one short
    images = rng.integers(0, 255, size=(37, 3, 4, 2)).astype(dtype)
    mean, std = statistics(examples_of(images))
    x = images.astype(np.float64).reshape(-1, 2) / (255.0 if dtype == np.uint8 else 1.0)
    assert np.allclose(mean, x.mean(axis=0), rtol=1e-12)
    assert np.allclose(std, x.std(axis=0), rtol=1e-12)


def test_statistics_where_the_mean_is_large_and_a_channel_constant(rng, monkeypatch):
    monkeypatch.setattr(normalise, "BLOCK", 30)
    features = 1e9 + rng.normal(size=(50, 3))
    features[:, 1] = 7
    mean, std = statistics(examples_of(features))
    assert np.allclose(std[[0, 2]], features.std(axis=0)[[0, 2]], rtol=1e-6)
    assert (mean[1], std[1]) == (7, 1)


def test_a_constant_whose_rounding_differs_from_its_mean_is_a_constant():
    features = np.stack(
        [np.full(1000, 0.1), np.linspace(1e-44, 9e-44, 1000), np.linspace(1e6, 1e6 + 4, 1000)],
        axis=1,
    )
    assert features[:, 0].std() > 0
    mean, std = statistics(examples_of(features))
    assert std[:2].tolist() == [1, 1]
    assert np.allclose(std[2], features[:, 2].std())
    others = np.array([[0.2, 0.0, 1e6 + 2]])
    assert np.allclose(
        normalise.Normaliser(examples_of(features), (mean, std))(others), [[0.1, 0, 0]], atol=1e-6
    )


def test_statistics_of_many_examples_are_those_of_an_even_sample(rng, monkeypatch):
    monkeypatch.setattr(normalise, "MAX_SAMPLE", 5)
    features = rng.normal(size=(9, 2))
    mean, _ = statistics(examples_of(features))
    assert np.allclose(mean, features[::2].mean(axis=0), rtol=1e-12)


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="got no examples"):
        statistics(examples_of(np.zeros((0, 2))))
