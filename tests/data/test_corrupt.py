"""Laws of corruptions: severity 0 changes nothing, seeds repeat, more severity changes more."""

import numpy as np
import pytest

from pcjax.data import CORRUPTIONS, SEVERITIES, corrupted, corrupted_examples, statistics
from pcjax.data.examples import Arrays, Examples, whole
from pcjax.data.normalise import Normaliser

SEEDS = np.arange(6)


@pytest.fixture
def images(rng):
    """Return smooth images, which a blur changes less the smoother they are."""
    waves = np.sin(np.arange(12) / 2 + rng.uniform(0, 6, size=(6, 1, 1))) * np.cos(
        np.arange(12)[:, None] / 3
    )
    return (0.5 + 0.4 * waves[..., None]).astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_laws(name, images):
    assert (corrupted(images, name, 0, seeds=SEEDS) == images).all()
    changed = [corrupted(images, name, severity, seeds=SEEDS) for severity in SEVERITIES]
    for once, severity in zip(changed, SEVERITIES, strict=True):
        assert once.dtype == np.float32
        assert once.min() >= 0
        assert once.max() <= 1
        assert (corrupted(images, name, severity, seeds=SEEDS) == once).all()
        # of each image alone: neither its place in a batch nor the others matter
        assert (
            corrupted(images[[4, 1]], name, severity, seeds=SEEDS[[4, 1]]) == once[[4, 1]]
        ).all()
    distances = [np.abs(once - images).mean() for once in changed]
    assert 0 < distances[0] < distances[1] < distances[2]
    other = corrupted(images, name, 2, seeds=SEEDS + 6)
    assert (other != changed[1]).any() == (name in ("gaussian_noise", "salt_and_pepper"))


def test_by_hand(images):
    steps = np.zeros((1, 1, 8, 1), np.float32)
    steps[..., 4:, :] = 1
    # a box as wide as two pixels: half of itself, a quarter of each neighbour
    assert np.allclose(
        corrupted(steps, "box_blur", 2, seeds=SEEDS[:1]).ravel(), [0, 0, 0, 0.25, 0.75, 1, 1, 1]
    )
    assert np.allclose(
        corrupted(steps, "contrast", 2, seeds=SEEDS[:1]).ravel(), [0.375] * 4 + [0.625] * 4
    )
    pixels = corrupted(images, "pixelate", 3, seeds=SEEDS)  # 3 x 3 of 12 x 12
    assert (pixels.reshape(6, 3, 4, 3, 4) == pixels[:, ::4, ::4].reshape(6, 3, 1, 3, 1)).all()
    flat = np.full((1, 100, 100, 3), 0.5, np.float32)
    noise = corrupted(flat, "gaussian_noise", 1, seeds=SEEDS[:1]) - flat
    assert abs(noise.std() - 0.1) < 0.002
    peppered = corrupted(flat, "salt_and_pepper", 2, seeds=SEEDS[:1])
    assert abs((peppered == 0).mean() - 0.05) < 0.01
    assert abs((peppered == 1).mean() - 0.05) < 0.01


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_examples_are_corrupted_on_the_scale_that_they_are_normalised_on(dtype, images):
    scale = 255 if dtype == np.uint8 else 7
    stored = np.rint(images * scale) if dtype == np.uint8 else images * scale - 3
    stored.flat[0], stored.flat[-1] = (0, 255) if dtype == np.uint8 else (-3, 4)
    train = whole(Arrays(stored.astype(dtype), None), None)
    pair = Examples(train.store, np.array([5, 2]))
    clean = corrupted_examples(pair, "brightness", 0, train)
    normalise = statistics(train)

    def seen(examples):
        return Normaliser(examples, normalise)(examples.take(np.arange(2)))

    assert np.allclose(seen(clean), seen(pair), atol=1e-4)
    bright = seen(corrupted_examples(pair, "brightness", 1, train)) - seen(pair)
    most = 0.15 / normalise[1] * (1 if dtype == np.uint8 else 7)
    assert np.allclose(
        bright[(bright < 0.99 * most) | (bright > 1.01 * most)].max(initial=0), 0, atol=most
    )
    assert np.isclose(np.median(bright), most, rtol=1e-3)


@pytest.mark.bad_input
def test_refused():
    with pytest.raises(
        ValueError, match="unknown corruption 'fog': expected one of 'gaussian_noise'"
    ):
        corrupted(np.zeros((1, 2, 2, 1)), "fog", 1, seeds=SEEDS[:1])
    with pytest.raises(ValueError, match="got severity 4: expected an integer from 0 to 3"):
        corrupted(np.zeros((1, 2, 2, 1)), "contrast", 4, seeds=SEEDS[:1])
    flat = whole(Arrays(np.ones((3, 2, 2, 1), np.float32), None), None)
    with pytest.raises(ValueError, match=r"images that are all 1\.0: a corruption needs a range"):
        corrupted_examples(flat, "contrast", 1, flat)
