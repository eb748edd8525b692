"""Compare the numbers behind the figures with SciPy, brute force and the package's metrics."""

import numpy as np
import pytest
from scipy import stats

from pcjax import metrics
from pcjax.report import embedding_math as maths


@pytest.fixture(scope="module")
def features():
    random = np.random.default_rng(0)
    teacher = random.normal(size=(60, 7)).astype(np.float32)
    student = (teacher[:, :3] + 0.5 * random.normal(size=(60, 3))).astype(np.float32)
    student[7] = student[3]  # equal examples are ties
    return teacher, student


def test_ranks_equal_the_ranked_distances(features):
    student = features[1].astype(np.float64)
    result = maths.ranks(features[1], "euclidean")
    for anchor in range(len(student)):
        others = np.arange(len(student)) != anchor
        distances = np.linalg.norm(student - student[anchor], axis=1)[others]
        np.testing.assert_array_equal(result[anchor, others], stats.rankdata(distances))
        assert result[anchor, anchor] == 0


def test_the_mean_of_coherence_per_anchor_is_the_metric(features):
    teacher, student = (maths.ranks(x) for x in features)
    result = maths.correlations(teacher, student)
    assert result.mean() == pytest.approx(
        float(metrics.coherence(features[1], features[0]).spearman.value), abs=1e-5
    )
    others = np.arange(60) != 5
    assert result[5] == pytest.approx(stats.pearsonr(teacher[5, others], student[5, others])[0])


def test_equal_ranks_have_a_diagonal_density_and_unrelated_ranks_a_flat_one():
    random = np.random.default_rng(0)
    one, other = (maths.ranks(random.normal(size=(400, 3)).astype(np.float32)) for _ in range(2))
    np.testing.assert_allclose(maths.density(one, one, 8), 8 * np.eye(8), atol=0.2)
    unrelated = maths.density(one, random.permuted(other, axis=1), 4)
    np.testing.assert_allclose(unrelated, 1, atol=0.1)


def test_the_nearest_have_the_least_distances(features):
    result = maths.nearest(maths.ranks(features[0], "euclidean"), 4)
    distances = np.linalg.norm(features[0][:, None] - features[0], axis=2) + 1e9 * np.eye(60)
    np.testing.assert_array_equal(result, np.argsort(distances, axis=1)[:, :4])


def test_a_plane_holds_the_largest_variance_and_a_mirrored_one_is_turned_back(features):
    result = maths.plane(features[0])
    values = np.sort(np.linalg.eigvalsh(np.cov(features[0].T)))[::-1]
    assert result.share == pytest.approx(values[:2].sum() / values.sum(), abs=1e-5)
    assert (result.points**2).mean() == pytest.approx(1)
    mirror = np.array([[0.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(
        maths.turned(result.points @ mirror, result.points), result.points, atol=1e-9
    )
    line = maths.plane(np.arange(5.0)[:, None])
    assert line.points.shape == (5, 2)
    assert not line.points[:, 1].any()


def test_confusion_counts():
    result = maths.confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 3)
    np.testing.assert_array_equal(result, [[1, 0, 1], [0, 1, 0], [0, 0, 1]])


def test_the_most_frequent_class_of_the_nearest():
    labels = np.array([0, 1, 2, 2, 1])
    near = np.array([[1, 2, 3, 4], [2, 4, 3, 0], [1, 0, 3, 4], [1, 2, 4, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(maths.voted(near, labels), [1, 2, 1, 1, 0])
    np.testing.assert_array_equal(maths.voted(near[:, :1], labels), [1, 2, 1, 1, 0])


def test_shown_examples_begin_with_the_worst():
    values = np.array([0.9, 0.1, 0.5, 0.3, 0.7])
    np.testing.assert_array_equal(maths.telling(values, 2, 1, 1), [1, 3, 2, 0])
    np.testing.assert_array_equal(maths.telling(values, 6, 3, 3), [1, 3, 2, 4, 0])


def test_a_sample_is_even_and_reproducible():
    np.testing.assert_array_equal(maths.sample(5), np.arange(5))
    large = maths.sample(100_000)
    assert len(large) == maths.ANCHORS
    assert (large[0], large[-1]) == (0, 99_999)
    np.testing.assert_array_equal(large, maths.sample(100_000))
