"""The numbers behind the figures: two representations of the same examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from pcjax.dissimilarity import DISSIMILARITIES

ANCHORS = 2000


def sample(count: int) -> Int[np.ndarray, "n"]:
    """Return the positions of all examples, or of an even sample of 2,000."""
    return np.unique(np.linspace(0, count - 1, min(count, ANCHORS)).astype(np.int64))


def ranks(
    features: Float[np.ndarray, "n d"], dissimilarity: str = "cosine"
) -> Float[np.ndarray, "n n"]:
    """Rank all others by their dissimilarity to each example (row): 1 is the nearest.

    The example's own rank is 0.

    >>> ranks(np.array([[0.0], [1.0], [3.0]], np.float32), "euclidean")
    array([[0., 1., 2.],
           [1., 0., 2.],
           [2., 1., 0.]], dtype=float32)
    """
    points = jnp.asarray(features, jnp.float32)
    d = np.array(jax.jit(DISSIMILARITIES[dissimilarity])(points, points))
    np.fill_diagonal(d, -np.inf)
    return (rankdata(d, axis=1) - 1).astype(np.float32)


def correlations(
    one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"]
) -> Float[np.ndarray, "n"]:
    """Correlate two models' ranks as seen from each example (Spearman)."""
    apart = ~np.eye(len(one), dtype=bool)
    u, v = (of[apart].reshape(len(of), -1).astype(np.float64) for of in (one, other))
    u, v = (of - of.mean(axis=1, keepdims=True) for of in (u, v))
    spread = np.sqrt((u**2).sum(axis=1) * (v**2).sum(axis=1))
    # Two constants agree; a constant and a variable do not.
    constant = ((u == 0).all(axis=1) & (v == 0).all(axis=1)).astype(np.float64)
    return np.where(spread > 0, (u * v).sum(axis=1) / np.where(spread > 0, spread, 1), constant)


def density(
    one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"], bins: int
) -> Float[np.ndarray, "b b"]:
    """Count how often two ranks meet, in bins of relative ranks; 1 everywhere if unrelated."""
    apart = ~np.eye(len(one), dtype=bool)
    most = len(one) - 1
    row, column = (
        np.minimum((of[apart] - 0.5) / most * bins, bins - 1).astype(np.int64)
        for of in (one, other)
    )
    counts = np.bincount(row * bins + column, minlength=bins * bins).reshape(bins, bins)
    return counts / counts.sum() * bins**2


def nearest(of: Float[np.ndarray, "n n"], k: int) -> Int[np.ndarray, "n k"]:
    """Return the k nearest of each example by their ranks; the first among equals."""
    return np.argsort(of, axis=1, kind="stable")[:, 1 : k + 1]


def voted(near: Int[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Return the most frequent class among the nearest; on a tie the one with nearer members."""
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    k = near.shape[1]
    for place in range(k):
        # Positions add up to less than one vote.
        np.add.at(
            votes, (np.arange(len(labels)), labels[near[:, place]]), 1 + (k - place) / (k + 1) ** 2
        )
    return votes.argmax(axis=1)


class Map(NamedTuple):
    """Points in the plane in which they vary most, and the share of the variance there."""

    points: Float[np.ndarray, "n 2"]
    share: float  # of all variance


def plane(features: Float[np.ndarray, "n d"]) -> Map:
    """Project onto the first two principal components, scaled to a mean square of 1."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(features), 2))
    points[:, : len(values)] = left[:, :2] * values[:2]
    total = float((values**2).sum())
    scale = float(np.sqrt((points**2).mean()))
    return Map(
        points / (scale if scale > 0 else 1),
        float((values[:2] ** 2).sum()) / total if total > 0 else 1.0,
    )


def turned(
    points: Float[np.ndarray, "n 2"], onto: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n 2"]:
    """Rotate or mirror points onto others as well as possible (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(points.T @ onto)
    return points @ left @ right


def confusion(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "c c"]:
    """Count how many of each class (row) were taken for each class (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def telling(
    coherence: Float[np.ndarray, "n"], worst: int, middle: int, best: int
) -> Int[np.ndarray, "q"]:
    """Choose examples to show: those of the lowest coherence, some typical ones, the best."""
    order = np.argsort(coherence, kind="stable")
    start = max(0, (len(order) - middle) // 2)
    chosen = [*order[:worst], *order[start : start + middle], *order[max(0, len(order) - best) :]]
    return np.array(list(dict.fromkeys(int(place) for place in chosen)))
