"""Neighbours are the nearest, and a mixture is as much of each image as it says."""

import jax
import numpy as np

from pcjax.training.neighbour_views import cutmix, nearest_neighbours


def test_nearest_by_brute_force(rng):
    # More than are compared at a time.
    features = rng.normal(size=(1100, 6))
    result = nearest_neighbours(features, k=3)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = directions @ directions.T
    np.fill_diagonal(similarity, -np.inf)
    expected = np.argsort(-similarity, axis=1)[:, :3]
    assert np.array_equal(np.sort(result), np.sort(expected))


def test_an_example_is_never_its_own_neighbour():
    result = nearest_neighbours(np.zeros((4, 2)))
    assert result.shape == (4, 3)
    assert not np.any(result == np.arange(4)[:, None])


def test_a_mixture_is_a_box_of_the_other_image(rng):
    images, others = np.zeros((64, 7, 9, 2), np.float32), np.ones((64, 7, 9, 2), np.float32)
    index = rng.permutation(1000)[:64]
    mixtures, share = jax.jit(cutmix)(jax.random.key(0), images, others, index)
    mixtures = np.asarray(mixtures)
    assert np.allclose(1 - mixtures.mean(axis=(1, 2, 3)), share)
    assert np.array_equal(mixtures[..., 0], mixtures[..., 1])
    for box in mixtures[..., 0]:
        rows, columns = box.any(axis=1), box.any(axis=0)
        assert np.array_equal(box, np.outer(rows, columns))
        assert all(
            np.abs(np.diff(side, prepend=0, append=0)).sum() <= 2
            for side in (rows * 1, columns * 1)
        )
    # All sizes: the share of a box that lies inside is at most its area, which is even from 0 to 1.
    assert np.min(share) < 0.3
    assert np.max(share) > 0.95


def test_what_is_no_image_is_averaged_and_the_rest_of_the_batch_does_not_matter(rng):
    key, index = jax.random.key(1), np.arange(6)
    first, second = rng.normal(size=(2, 6, 5)).astype(np.float32)
    mixtures, share = cutmix(key, first, second, index)
    assert np.allclose(mixtures, share[:, None] * first + (1 - share[:, None]) * second, atol=1e-6)
    part, part_share = cutmix(key, first[3:], second[3:], index[3:])
    assert np.array_equal(part, mixtures[3:])
    assert np.array_equal(part_share, share[3:])
