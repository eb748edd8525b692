"""Classify an example by its nearest neighbours."""

from __future__ import annotations  # short signatures in help()

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.dissimilarity import _directions
from pcjax.metrics._labelled import (
    require_as_many_features,
    require_classes,
    require_finite,
    require_labels,
)
from pcjax.metrics.registry import Context, metric

WEIGHTINGS = ("cosine", "majority")
QUERIES_AT_A_TIME = 1024
VOTES_AT_A_TIME = 2**25  # pairs of neighbours


class Neighbours(NamedTuple):
    """The nearest in a gallery to each query, nearest first.

    similarity: cosine similarity to the query.
    places: row of the gallery.
    """

    similarity: Float[Array, "n k"]
    places: Int[Array, "n k"]


def nearest(
    features: ArrayLike,
    gallery: ArrayLike,
    *,
    k: int = 20,
    chunk_size: int = 16384,
    exclude_self: bool = False,
) -> Neighbours:
    """Find the k of a gallery with the largest cosine similarity to each query.

    Equal similarities keep the gallery's order. Several votes can use one search, see `vote`.

    Args:
      features: (n, d) features of the queries.
      gallery: (m, d) features to search.
      k: how many to find, at most m.
      chunk_size: limit of gallery rows to compare with 1,024 queries at a time; it bounds the
        memory.
      exclude_self: the gallery is the queries themselves, and none finds itself; then k is at most
        m - 1.

    Returns:
      Neighbours (similarity, places), (n, k) each.

    >>> import pcjax
    >>> gallery = [[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]
    >>> print(pcjax.metrics.nearest([[2.0, 0.1]], gallery, k=2).places)
    [[0 2]]
    """
    require_finite("features", features)
    require_finite("gallery", gallery)
    require_as_many_features("features", features, "gallery", gallery)
    n, m = np.shape(features)[0], np.shape(gallery)[0]
    if exclude_self and n != m:
        raise RequestError(
            f"got {n} features and a gallery of {m} with exclude_self=True: expected the gallery "
            "to be the features themselves; pass them as both"
        )
    largest = m - 1 if exclude_self else m
    without_self = " without the query itself" if exclude_self else ""
    if largest < 1:
        raise RequestError(
            f"got a gallery of {m}{without_self}: expected at least one to find; give a larger one"
        )
    _checks.require_whole("k", k, 1, largest, f" for a gallery of {m}{without_self}")
    _checks.require_whole("chunk_size", chunk_size, 1)
    return _search(
        jnp.asarray(features),
        jnp.asarray(gallery),
        k=int(k),
        rows=max(1, min(n, QUERIES_AT_A_TIME)),
        chunk=min(m, int(chunk_size)),
        exclude_self=bool(exclude_self),
    )


def vote(
    neighbours: Neighbours,
    gallery_labels: ArrayLike,
    *,
    weighting: str = "cosine",
    temperature: ArrayLike = 0.07,
) -> Int[Array, "n"]:
    """Predict each query's class by the votes of its neighbours, as `knn_predict` defines it.

    Args:
      neighbours: the result of `nearest`.
      gallery_labels: (m,) the gallery's classes, integers from 0, of at least two kinds.
      weighting: "cosine" or "majority".
      temperature: of the weights, positive; a small one lets the nearest decide.

    Returns:
      (n,) predicted classes.

    >>> import pcjax
    >>> gallery = [[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]
    >>> neighbours = pcjax.metrics.nearest([[2.0, 0.1]], gallery, k=1)
    >>> print(pcjax.metrics.vote(neighbours, [3, 4, 5], weighting="majority"))
    [3]
    """
    require_labels(
        "gallery_labels",
        gallery_labels,
        np.shape(gallery_labels)[0] if np.ndim(gallery_labels) else 0,
    )
    require_classes("gallery_labels", gallery_labels)
    _checks.require_name("weighting", weighting, WEIGHTINGS)
    _checks.require_positive("temperature", temperature)
    n, k = np.shape(neighbours.places)
    labels = jnp.asarray(gallery_labels).astype(jnp.int32)
    rows = max(1, min(n, VOTES_AT_A_TIME // k**2))
    return _vote(*neighbours, labels, temperature if weighting == "cosine" else None, rows=rows)


def knn_predict(
    features: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    k: int = 20,
    weighting: str = "cosine",
    temperature: ArrayLike = 0.07,
    chunk_size: int = 16384,
    exclude_self: bool = False,
) -> Int[Array, "n"]:
    """Predict each query's class by the votes of the k nearest in a labelled gallery.

    Let s_j be the cosine similarity of a query to its j-th nearest in the gallery, of class y_j.
    The prediction is

        argmax_c sum_{j <= k} w_j [y_j = c],

    with w_j = exp(s_j / temperature), or 1 by "majority".

    Equal votes go to the class with the nearest member. Equal similarities keep the gallery's
    order. A zero vector is as similar to everything as orthogonal directions are. The function
    works under `jax.jit`, but does not notice NaN there.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
    (arXiv:1805.01978): the weighted vote, with k = 200. Caron et al., "Emerging Properties in
    Self-Supervised Vision Transformers" (arXiv:2104.14294): k = 20. Both use this temperature.

    Args:
      features: (n, d) features of the queries.
      gallery: (m, d) features with known classes.
      gallery_labels: (m,) their classes, integers from 0, of at least two kinds.
      k: how many neighbours vote, at most m.
      weighting: "cosine" or "majority".
      temperature: of the weights, positive; a small one lets the nearest decide.
      chunk_size: limit of gallery rows to compare with 1,024 queries at a time; it bounds the
        memory.
      exclude_self: the gallery is the queries themselves, and none votes for itself; then k is at
        most m - 1.

    Returns:
      (n,) predicted classes.

    >>> import pcjax
    >>> gallery, labels = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 1]
    >>> print(pcjax.metrics.knn_predict([[2.0, 0.1], [0.1, 3.0]], gallery, labels, k=1))
    [0 1]
    """
    require_finite("gallery", gallery)
    require_labels("gallery_labels", gallery_labels, np.shape(gallery)[0])
    require_classes("gallery_labels", gallery_labels)
    _checks.require_name("weighting", weighting, WEIGHTINGS)
    _checks.require_positive("temperature", temperature)
    neighbours = nearest(features, gallery, k=k, chunk_size=chunk_size, exclude_self=exclude_self)
    return vote(neighbours, gallery_labels, weighting=weighting, temperature=temperature)


def knn_accuracy(
    features: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    k: int = 20,
    weighting: str = "cosine",
    temperature: ArrayLike = 0.07,
    chunk_size: int = 16384,
    exclude_self: bool = False,
) -> Float[Array, ""]:
    """Compute how often the k nearest of a labelled gallery vote for the true class.

    This is the mean over the queries of [`knn_predict` = label]. A gallery of a million and ten
    thousand queries need less than 2 GB beside the features.

    Args:
      features: (n, d) features of the queries.
      labels: (n,) their classes, integers from 0.
      gallery: (m, d) features with known classes.
      gallery_labels: (m,) their classes.
      k: how many neighbours vote; see `knn_predict` for this and the arguments below.
      weighting: "cosine" or "majority".
      temperature: of the weights.
      chunk_size: limit of gallery rows to compare at a time.
      exclude_self: leave-one-out, for a gallery that is the queries themselves.

    Returns:
      The accuracy, from 0 to 1.

    >>> import pcjax
    >>> x = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0], [0.8, 0.2]]
    >>> labels = [0, 0, 1, 1, 1]
    >>> print(pcjax.metrics.knn_accuracy(x, labels, x, labels, k=1, exclude_self=True))
    0.8
    """
    require_finite("features", features)
    if np.shape(features)[0] <= 0:
        raise RequestError(f"got features {np.shape(features)}: expected at least one row")
    require_labels("labels", labels, np.shape(features)[0])
    options = {"k": k, "weighting": weighting, "temperature": temperature}
    options |= {"chunk_size": chunk_size, "exclude_self": exclude_self}
    predicted = knn_predict(features, gallery, gallery_labels, **options)
    return jnp.mean((predicted == jnp.asarray(labels)).astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("k", "rows", "chunk", "exclude_self"))
def _search(
    features: Float[Array, "n d"],
    gallery: Float[Array, "m d"],
    *,
    k: int,
    rows: int,
    chunk: int,
    exclude_self: bool,
) -> Neighbours:
    def of_block(block: Int[Array, "r"]) -> tuple[Float[Array, "r k"], Int[Array, "r k"]]:
        queries = _directions(_checks.at_least_float32(features[block]))
        return _nearest(queries, block, gallery, k=k, chunk=chunk, exclude_self=exclude_self)

    n = features.shape[0]
    return Neighbours(*(x.reshape(-1, k)[:n] for x in lax.map(of_block, _blocks(n, rows))))


@functools.partial(jax.jit, static_argnames="rows")
def _vote(
    similarity: Float[Array, "n k"],
    places: Int[Array, "n k"],
    gallery_labels: Int[Array, "m"],
    temperature: ArrayLike | None,
    *,
    rows: int,
) -> Int[Array, "n"]:
    def of_block(block: Int[Array, "r"]) -> Int[Array, "r"]:
        classes = gallery_labels[places[block]]
        weights = jnp.ones_like(similarity[block])
        if temperature is not None:
            # Relative to the nearest one, so that no small temperature overflows; the factor
            # cancels.
            weights = jnp.exp((similarity[block] - similarity[block, :1]) / temperature)
        # Votes for each neighbour's class, not for each class: k by k for any number of classes.
        same = classes[:, :, None] == classes[:, None, :]
        votes = jnp.sum(jnp.where(same, weights[:, None, :], 0), axis=2)
        return jnp.take_along_axis(classes, jnp.argmax(votes, axis=1)[:, None], axis=1)[:, 0]

    n = similarity.shape[0]
    return lax.map(of_block, _blocks(n, rows)).reshape(-1)[:n]


def _blocks(n: int, rows: int) -> Int[Array, "blocks r"]:
    """Split the queries into blocks; the last query fills up the last block."""
    return jnp.minimum(jnp.arange(-(-n // rows) * rows), n - 1).reshape(-1, rows)


def _nearest(
    queries: Float[Array, "r d"],
    block: Int[Array, "r"],
    gallery: Array,
    *,
    k: int,
    chunk: int,
    exclude_self: bool,
) -> tuple[Float[Array, "r k"], Int[Array, "r k"]]:
    """Find the k largest cosine similarities and their gallery rows, chunk by chunk."""
    m, rows = gallery.shape[0], queries.shape[0]

    def merge(best: tuple[Array, Array], first: Int[Array, ""]) -> tuple[tuple[Array, Array], None]:
        # The last chunk overlaps its predecessor; padding would copy the gallery.
        start = jnp.minimum(first, m - chunk)
        places = start + jnp.arange(chunk)
        part = _directions(
            _checks.at_least_float32(lax.dynamic_slice_in_dim(gallery, start, chunk))
        )
        similarity = jnp.matmul(queries, part.T, precision=lax.Precision.HIGHEST)
        hidden = places < first
        if exclude_self:
            hidden = hidden | (places == block[:, None])
        similarity, columns = lax.top_k(jnp.where(hidden, -jnp.inf, similarity), min(k, chunk))
        # Earlier rows come first, so that equal similarities keep the gallery's order.
        together = jnp.concatenate([best[0], similarity], axis=1)
        indices = jnp.concatenate([best[1], start + columns], axis=1)
        similarity, chosen = lax.top_k(together, k)
        return (similarity, jnp.take_along_axis(indices, chosen, axis=1)), None

    nothing = jnp.full((rows, k), -jnp.inf, queries.dtype), jnp.zeros((rows, k), jnp.int32)
    return lax.scan(merge, nothing, jnp.arange(0, m, chunk))[0]


@metric("knn_accuracy", title="k-NN accuracy", unit="share", column="k-NN", ranks=True)
def _evaluate_knn(context: Context) -> float | None:
    return _votes(context, "cosine")


@metric("knn_majority_accuracy", title="k-NN by majority", unit="share")
def _evaluate_majority(context: Context) -> float | None:
    return _votes(context, "majority")


@functools.lru_cache(maxsize=1)  # both votes and the search need the same
def _own_nearest(context: Context, among: str, k: int) -> Neighbours:
    return nearest(context.test, context.features[among], k=k, exclude_self=among == "test")


def _votes(context: Context, weighting: str) -> float | None:
    """Compute how often the nearest training examples vote for a test example's class.

    Without training examples of the same classes, the other test examples vote.
    """
    if "test" not in context.labels:
        return None
    among = "train" if "train" in context.features and "train" in context.labels else "test"
    gallery, labels = context.features[among], context.labels[among]
    itself = among == "test"
    k = max(1, min(context.neighbours, len(gallery) - 2 * itself))
    neighbours = _own_nearest(context, among, k)
    predicted = np.asarray(vote(neighbours, labels, weighting=weighting))
    return float(np.mean(predicted == context.labels["test"]))


def same_results(
    student: ArrayLike,
    student_gallery: ArrayLike,
    teacher: ArrayLike,
    teacher_gallery: ArrayLike,
    *,
    k: int = 10,
) -> Float[Array, "n"]:
    """Compute which share of the teacher's k first search results the student returns too.

    Args:
      student: (n, d) the student's features of the queries.
      student_gallery: (m, d) the student's features of what is searched.
      teacher: (n, dt) the teacher's features of the queries.
      teacher_gallery: (m, dt) the teacher's features of what is searched.
      k: the number of results.

    Returns:
      (n,) a share for every query.

    >>> import pcjax
    >>> gallery = np.eye(3, dtype=np.float32)
    >>> print(pcjax.metrics.same_results(gallery, gallery, gallery, gallery[::-1], k=2))
    [0.5 1.  0.5]
    """
    own = nearest(student, student_gallery, k=k)
    return _shared(own, nearest(teacher, teacher_gallery, k=k))


def _shared(own: Neighbours, expected: Neighbours) -> Float[Array, "n"]:
    """Return the share of the expected neighbours that are among the own ones, by query."""
    same = own.places[:, :, None] == expected.places[:, None, :]
    return jnp.mean(same.any(axis=1), axis=1)


@metric("search_recall", title="search results kept", unit="share", column="search")
def _evaluate_search(context: Context) -> float | None:
    """Search the training examples for every test example."""
    gallery = context.features.get("train")
    if context.teacher is None or context.teacher_gallery is None or gallery is None:
        return None
    k = min(context.neighbours, len(gallery))
    return float(jnp.mean(_shared(_own_nearest(context, "train", k), _expected(context, k))))


@metric("index_recall", title="in the teacher's index", unit="share")
def _evaluate_index(context: Context) -> float | None:
    """Search the teacher's own training features for every test example of a student."""
    gallery = context.teacher_gallery
    if context.teacher is None or gallery is None or context.test is context.teacher:
        return None
    if context.test.shape[1] != gallery.shape[1]:
        return None
    k = min(context.neighbours, len(gallery))
    return float(jnp.mean(_shared(nearest(context.test, gallery, k=k), _expected(context, k))))


@functools.lru_cache(maxsize=1)  # both searches are compared with the same
def _expected(context: Context, k: int) -> Neighbours:
    return nearest(np.asarray(context.teacher), np.asarray(context.teacher_gallery), k=k)
