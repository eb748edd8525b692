"""Compute the numbers behind the figures: two representations of the same examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.metrics._ranks import row_ranks

ANCHORS = 2000


def sample(count: int) -> Int[np.ndarray, "n"]:
    """Return the positions of all examples, or of an even sample of 2,000."""
    return np.unique(np.linspace(0, count - 1, min(count, ANCHORS)).astype(np.int64))


def ranks(
    features: Float[np.ndarray, "n d"], dissimilarity: str = "cosine"
) -> Float[np.ndarray, "n n"]:
    """Rank all others by their dissimilarity to each example (row).

    The nearest has rank 1, the example itself 0.

    >>> ranks(np.array([[0.0], [1.0], [3.0]], np.float32), "euclidean")
    array([[0., 1., 2.],
           [1., 0., 2.],
           [2., 1., 0.]], dtype=float32)
    """
    points = jnp.asarray(features, jnp.float32)
    d = np.array(jax.jit(DISSIMILARITIES[dissimilarity])(points, points))
    np.fill_diagonal(d, -np.inf)
    return (row_ranks(d) - 1).astype(np.float32)


def correlations(
    one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"]
) -> Float[np.ndarray, "n"]:
    """Correlate two models' ranks, seen from each example (Spearman)."""
    apart = ~np.eye(len(one), dtype=bool)
    u, v = (ranks[apart].reshape(len(one), -1).astype(np.float64) for ranks in (one, other))
    u, v = (x - x.mean(axis=1, keepdims=True) for x in (u, v))
    spread = np.sqrt((u**2).sum(axis=1) * (v**2).sum(axis=1))
    # Two constants agree. A constant and a variable do not.
    constant = ((u == 0).all(axis=1) & (v == 0).all(axis=1)).astype(np.float64)
    return np.where(spread > 0, (u * v).sum(axis=1) / np.where(spread > 0, spread, 1), constant)


def density(
    one: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"], bins: int
) -> Float[np.ndarray, "b b"]:
    """Compute the density of pairs of relative ranks; it is 1 everywhere if they are unrelated."""
    apart = ~np.eye(len(one), dtype=bool)
    most = len(one) - 1
    row, column = (
        np.minimum((ranks[apart] - 0.5) / most * bins, bins - 1).astype(np.int64)
        for ranks in (one, other)
    )
    counts = np.bincount(row * bins + column, minlength=bins * bins).reshape(bins, bins)
    return counts / counts.sum() * bins**2


def nearest(ranks: Float[np.ndarray, "n n"], k: int) -> Int[np.ndarray, "n k"]:
    """Return the k examples with the lowest ranks, by example; the first among equals."""
    return np.argsort(ranks, axis=1, kind="stable")[:, 1 : k + 1]


def voted(near: Int[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Return the most frequent class among the nearest; nearer members decide a tie."""
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    k = near.shape[1]
    for place in range(k):
        # Together the terms that break ties are less than one vote.
        np.add.at(
            votes, (np.arange(len(labels)), labels[near[:, place]]), 1 + (k - place) / (k + 1) ** 2
        )
    return votes.argmax(axis=1)


class Map(NamedTuple):
    """Points in the plane of their largest variance, and its share of all variance."""

    points: Float[np.ndarray, "n 2"]
    share: float


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
    """Rotate or mirror points onto others with the least squared error (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(points.T @ onto)
    return points @ left @ right


def confusion(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "c c"]:
    """Count the predictions (column) by true class (row)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def telling(
    coherence: Float[np.ndarray, "n"], worst: int, middle: int, best: int
) -> Int[np.ndarray, "q"]:
    """Choose examples to show: those of lowest coherence, typical ones, those of highest."""
    order = np.argsort(coherence, kind="stable")
    start = max(0, (len(order) - middle) // 2)
    chosen = [*order[:worst], *order[start : start + middle], *order[max(0, len(order) - best) :]]
    return np.array(list(dict.fromkeys(int(place) for place in chosen)))
