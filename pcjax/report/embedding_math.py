"""What the figures show of two representations of the same examples, as numbers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from pcjax.dissimilarity import DISSIMILARITIES

ANCHORS = 2000


def sample(count: int) -> Int[np.ndarray, "n"]:
    """The same places whenever it is asked: all of them, or an even sample of 2,000."""
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
    """Spearman's correlation of two models' ranks, as seen from each example."""
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
    """How often ranks (by shares of the others, in that many bins) meet; 1 everywhere for unrelated models."""
    apart = ~np.eye(len(one), dtype=bool)
    most = len(one) - 1
    row, column = (
        np.minimum((of[apart] - 0.5) / most * bins, bins - 1).astype(np.int64)
        for of in (one, other)
    )
    found = np.bincount(row * bins + column, minlength=bins * bins).reshape(bins, bins)
    return found / found.sum() * bins**2


def nearest(of: Float[np.ndarray, "n n"], k: int) -> Int[np.ndarray, "n k"]:
    """The k nearest of each, from their ranks; of equally near ones the first."""
    return np.argsort(of, axis=1, kind="stable")[:, 1 : k + 1]


def voted(near: Int[np.ndarray, "n k"], labels: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The class that most of each one's nearest have; of equally many the one whose members are nearer."""
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    k = near.shape[1]
    for place in range(k):
        # All that one vote may gain by its place is less than a vote.
        np.add.at(
            votes, (np.arange(len(labels)), labels[near[:, place]]), 1 + (k - place) / (k + 1) ** 2
        )
    return votes.argmax(axis=1)


class Map(NamedTuple):
    """Points in the plane in which they vary most."""

    points: Float[np.ndarray, "n 2"]
    share: float  # of all variance


def plane(features: Float[np.ndarray, "n d"]) -> Map:
    """The first two principal components, scaled to a mean square of 1."""
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
    """The points rotated, or mirrored, so that they lie as near as they can to those others (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(points.T @ onto)
    return points @ left @ right


def confusion(
    labels: Int[np.ndarray, "n"], predicted: Int[np.ndarray, "n"], classes: int
) -> Int[np.ndarray, "c c"]:
    """How many of each class (row) were taken for each (column)."""
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def telling(
    coherence: Float[np.ndarray, "n"], worst: int, middle: int, best: int
) -> Int[np.ndarray, "q"]:
    """Examples worth a look, the same ones whenever it is asked: of the least coherence, some usual ones, the best."""
    order = np.argsort(coherence, kind="stable")
    start = max(0, (len(order) - middle) // 2)
    chosen = [*order[:worst], *order[start : start + middle], *order[max(0, len(order) - best) :]]
    return np.array(list(dict.fromkeys(int(place) for place in chosen)))
