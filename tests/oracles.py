"""Compute the library's results again: float64, brute force, NumPy and SciPy only."""

import numpy as np
import scipy.optimize
import scipy.spatial.distance
import scipy.stats

SCIPY_NAMES = {
    "euclidean": "euclidean",
    "squared_euclidean": "sqeuclidean",
    "cosine": "cosine",
    "manhattan": "cityblock",
    "correlation": "correlation",
}


def dissimilarity(name, x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if name == "angular":
        return np.arccos(np.clip(1 - scipy.spatial.distance.cdist(x, y, "cosine"), -1, 1)) / np.pi
    return scipy.spatial.distance.cdist(x, y, SCIPY_NAMES[name])


def shared_neighbours(student, teacher, k):
    """Compute the share of the k nearest by cosine that both have, seen from every example."""
    nearest = []
    for features in (student, teacher):
        d = dissimilarity("cosine", features, features)
        np.fill_diagonal(d, np.inf)
        nearest.append(np.argsort(d, axis=1)[:, :k])
    return np.array([len({*a} & {*b}) / k for a, b in zip(*nearest, strict=True)])


def soft_rank(x, temperature, method):
    """Rank one row."""
    x = np.asarray(x, np.float64)
    if method == "permutahedron":
        order = np.argsort(-x, kind="stable")
        s = x[order] / temperature
        v = scipy.optimize.isotonic_regression(s - np.arange(len(x), 0, -1), increasing=False).x
        ranks = np.empty_like(x)
        ranks[order] = s - v
        return ranks
    ranks = []
    for values in np.array_split(x, 1 + x.size**2 // 2**20):  # some blocks fit a cache
        u = np.subtract.outer(values, x) / temperature
        if method == "laplace":
            step = np.exp(-np.abs(u)) / 2
            step = np.where(u <= 0, step, 1 - step)
        else:
            step = 0.5 * (1 + np.tanh(u / 2))
        ranks.append(0.5 + step.sum(axis=1))
    return np.concatenate(ranks)


def perception_coherence(
    student,
    teacher,
    *,
    temperature,
    dissimilarity_name="cosine",
    teacher_temperature=None,
    ranking="laplace",
    scale="row",
    frame="own",
    power=1,
    weights=None,
    anchors=None,
):
    """Compute the loss of the first `anchors` rows, each ranked against all others.

    Masks, devices and chunks are left out.
    """
    n = len(student)
    anchors = n if anchors is None else anchors
    d_teacher = dissimilarity(dissimilarity_name, teacher[:anchors], teacher)
    d_student = dissimilarity(
        dissimilarity_name, student[:anchors], student if frame == "own" else teacher
    )
    keep = np.ones((anchors, n), bool)
    if frame == "own":
        keep[np.arange(anchors), np.arange(anchors)] = False

    def ranks_of(d, temperature):
        rows = d[keep].reshape(anchors, -1)
        if temperature is None:
            return scipy.stats.rankdata(rows, axis=1)
        widths = temperature * (
            rows.std(axis=1) if scale == "row" else np.full(anchors, rows.mean())
        )
        return np.stack([soft_rank(*row, ranking) for row in zip(rows, widths, strict=True)])

    of_teacher, of_student = (
        ranks_of(d_teacher, teacher_temperature),
        ranks_of(d_student, temperature),
    )
    difference = np.abs(of_student - of_teacher) / of_teacher.shape[1]
    factors = 1 if weights is None else np.stack([weights(row) for row in of_teacher])
    return np.mean(factors * difference**power, axis=1)


def central_differences(function, x, step=1e-6):
    """Compute the gradient of a scalar function of one array.

    The function takes a batch of arrays: all entries, moved one at a time.
    """
    x = np.asarray(x, np.float64)
    moves = step * np.eye(x.size).reshape(x.size, *x.shape)
    return ((function(x + moves) - function(x - moves)) / (2 * step)).reshape(x.shape)


def assert_gradients_agree(actual, expected, relative=1e-6):
    """Compare relative to the largest entry.

    A gradient's small entries are differences of large ones.
    """
    size = np.abs(expected).max()
    assert np.abs(np.asarray(actual) - expected).max() <= relative * max(size, 1e-300), (
        actual,
        expected,
    )
