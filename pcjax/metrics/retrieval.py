"""Find the other examples of a query's class by dissimilarity."""

from __future__ import annotations  # short signatures in help()

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks, _sorting
from pcjax._checks import RequestError
from pcjax.dissimilarity import Dissimilarity, resolve
from pcjax.metrics._labelled import (
    require_as_many_features,
    require_classes,
    require_finite,
    require_labels,
)
from pcjax.metrics.registry import Context, metric, sampled, widened

ENTRIES_AT_A_TIME = 2**23


class Retrieval(NamedTuple):
    """Means from 0 to 1 over the queries whose class the gallery holds, and their number."""

    recall_at: dict[int, Float[Array, ""]]
    mean_average_precision: Float[Array, ""]
    r_precision: Float[Array, ""]
    map_at_r: Float[Array, ""]
    queries: Int[Array, ""]


def retrieval(
    queries: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike | None = None,
    gallery_labels: ArrayLike | None = None,
    *,
    dissimilarity: str | Dissimilarity = "cosine",
    ks: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Sort a gallery by dissimilarity to each query, and measure how early its class comes.

    Let r_i be 1 if the i-th of the sorted gallery is of the query's class, else 0. Let P_i be
    (r_1 + ... + r_i) / i, and R the number of examples of that class in the gallery. Each value is
    the mean, over the queries with R > 0, of

        recall_at[k]            [r_1 + ... + r_k > 0]: one of the first k is of the class
        mean_average_precision  sum_i r_i P_i / R
        r_precision             P_R
        map_at_r                sum_{i <= R} r_i P_i / R

    Equal dissimilarities have no order: each value is its expectation over all orders of the ties.
    So a model that maps all examples to one point scores like drawing lots.

    `map_at_r` is defined in "A Metric Learning Reality Check" (arXiv:2003.08505). Queries are
    processed in blocks, so the memory never holds the dissimilarities of all of them.

    Args:
      queries: (n, d) features.
      labels: (n,) their classes, integers from 0.
      gallery: (m, d) features to search; None for the queries themselves, where none finds itself.
      gallery_labels: (m,) their classes, of at least two kinds, if there is a gallery.
      dissimilarity: a name of `pcjax.dissimilarity` or a function (n, d), (m, d) -> (n, m).
      ks: values of k for recall_at, each at most m, or n - 1 without a gallery.

    Returns:
      A Retrieval (recall_at, mean_average_precision, r_precision, map_at_r, queries).

    >>> import pcjax
    >>> features, labels = [[0.0], [1.0], [3.0], [7.0]], [0, 0, 1, 1]
    >>> result = pcjax.metrics.retrieval(features, labels, dissimilarity="euclidean", ks=(1, 2))
    >>> print(result.recall_at[1], result.recall_at[2], result.mean_average_precision.round(4))
    0.75 0.75 0.8333
    """
    require_finite("queries", queries)
    n = np.shape(queries)[0]
    require_labels("labels", labels, n)
    itself = gallery is None
    if itself != (gallery_labels is None):
        given = "gallery_labels without a gallery" if itself else "a gallery without gallery_labels"
        raise RequestError(
            f"got {given}: expected both, or neither to search the queries themselves"
        )
    if gallery is None or gallery_labels is None:
        gallery, gallery_labels, what = queries, labels, f"{n} queries, none of which finds itself"
    else:
        require_finite("gallery", gallery)
        require_as_many_features("queries", queries, "gallery", gallery)
        require_labels("gallery_labels", gallery_labels, np.shape(gallery)[0])
        what = f"a gallery of {np.shape(gallery)[0]}"
    m = np.shape(gallery)[0]
    most = m - 1 if itself else m
    if not (n > 0 and most > 0):
        raise RequestError(f"got {n} queries for {what}: expected at least one of both; give more")
    require_classes("labels" if itself else "gallery_labels", gallery_labels)
    if not (isinstance(ks, (tuple, list, range)) and len(ks) > 0):
        raise RequestError(f"got ks {ks!r}: expected one or more, such as (1, 5, 10)")
    for k in ks:
        _checks.require_whole("k", k, 1, most, f" in ks for {what}")
    arrays = _checks.at_least_float32(queries), _checks.at_least_float32(gallery)
    dtype = jnp.result_type(*arrays)
    search = _search if callable(dissimilarity) else _compiled_search
    result = search(
        _Labelled(arrays[0].astype(dtype), jnp.asarray(labels).astype(jnp.int32)),
        _Labelled(arrays[1].astype(dtype), jnp.asarray(gallery_labels).astype(jnp.int32)),
        dissimilarity=resolve(dissimilarity),
        ks=tuple(int(k) for k in ks),
        itself=itself,
    )
    if not (isinstance(result.queries, Tracer) or int(result.queries) > 0):
        raise RequestError(
            f"got {n} queries for {what}, and no class of a query in it: expected at least one; "
            "check both sets' labels"
        )
    return result


class _Labelled(NamedTuple):
    """Features and their classes."""

    features: Float[Array, "n d"]
    labels: Int[Array, "n"]


def _search(
    queries: _Labelled,
    gallery: _Labelled,
    *,
    dissimilarity: Dissimilarity,
    ks: tuple[int, ...],
    itself: bool,
) -> Retrieval:
    n, m = len(queries.labels), len(gallery.labels)
    # A core's cache holds few columns of a long gallery, but each block reads the whole gallery.
    cached = _sorting.cache_rows(m)
    rows = min(n, max(cached, min(64, ENTRIES_AT_A_TIME // m)))

    def of_block(block: Int[Array, "r"]) -> tuple[Float[Array, "values r"], Int[Array, "r"]]:
        d = dissimilarity(queries.features[block], gallery.features).T
        others = jnp.arange(m)[:, None] != block if itself else jnp.ones(d.shape, bool)
        relevant = (gallery.labels[:, None] == queries.labels[block]) & others
        return _values(d, relevant, others, ks)

    # The last query fills up the last block.
    blocks = jnp.minimum(jnp.arange(-(-n // rows) * rows), n - 1).reshape(-1, rows)
    values, to_find = lax.map(of_block, blocks)
    values = jnp.moveaxis(values, 1, 0).reshape(len(ks) + 3, -1)[:, :n]
    counted = to_find.reshape(-1)[:n] > 0
    count = jnp.sum(counted)
    means = jnp.sum(jnp.where(counted, values, 0), axis=1) / jnp.maximum(count, 1)
    return Retrieval(dict(zip(ks, means, strict=False)), means[-3], means[-2], means[-1], count)


_compiled_search = jax.jit(_search, static_argnames=("dissimilarity", "ks", "itself"))


def _values(
    d: Float[Array, "m r"],
    relevant: Bool[Array, "m r"],
    others: Bool[Array, "m r"],
    ks: tuple[int, ...],
) -> tuple[Float[Array, "values r"], Int[Array, "r"]]:
    """Compute the values of each query (a column), and its R.

    The values are recall at each k, average precision, R-precision and mAP@R.
    """
    m = d.shape[0]
    using = _sorting.metric_primitives(m)
    columns = _sorting.sort_columns(d, others, using)
    first, last = (bound.astype(jnp.int32) for bound in _sorting.run_bounds(columns.bits, using))
    # Count the relevant ones before each position and in its run of ties, and the run's length.
    counts = lax.cumsum(_sorting.in_order(relevant.astype(jnp.int32), columns.order), axis=0)
    to_find = counts[-1]
    counts = jnp.pad(counts, ((1, 0), (0, 0)))
    before = _sorting.in_order(counts, first)
    hits = _sorting.in_order(counts, last + 1) - before
    length = last - first + 1

    position = lax.broadcasted_iota(jnp.int32, d.shape, 0)
    # E r_i = hits / length. If i is relevant, each earlier position of its run is relevant too with
    # probability (hits - 1) / (length - 1).
    expected = hits / length
    earlier = (position - first) * ((hits - 1) / jnp.maximum(length - 1, 1))
    gain = (expected * (before + 1 + earlier) / (position + 1)).astype(d.dtype)
    among_r = position < to_find
    total = jnp.maximum(to_find, 1)
    average_precision = jnp.sum(gain, axis=0) / total
    r_precision = jnp.sum(jnp.where(among_r, expected, 0), axis=0).astype(d.dtype) / total
    map_at_r = jnp.sum(jnp.where(among_r, gain, 0), axis=0) / total

    def recall_at(k: int) -> Float[Array, "r"]:
        drawn = k - first[k - 1]  # positions among the first k of the run that they end in

        def miss(t: Array, chance: Float[Array, "r"]) -> Float[Array, "r"]:
            factor = jnp.maximum(length[k - 1] - hits[k - 1] - t, 0) / jnp.maximum(
                length[k - 1] - t, 1
            )
            return jnp.where(t < drawn, chance * factor, chance)

        missed = lax.fori_loop(0, k, miss, (before[k - 1] == 0).astype(d.dtype))
        return 1 - missed

    return jnp.stack(
        [*(recall_at(k) for k in ks), average_precision, r_precision, map_at_r]
    ), to_find


MAX_QUERIES = 5_000  # test examples, which are their own gallery
RECALLS = (1, 5)


@metric(
    "retrieval",
    title={
        "recall_at_1": "recall@1",
        "recall_at_5": "recall@5",
        "mean_average_precision": "mAP",
        "r_precision": "R-precision",
    },
    unit="share",
)
def _evaluate_retrieval(context: Context) -> dict[str, float] | None:
    if "test" not in context.labels:
        return None
    rows = sampled(len(context.test), MAX_QUERIES)
    features, labels = context.test[rows], context.labels["test"][rows]
    if len(np.unique(labels)) in (1, len(labels)):  # every example is relevant, or none
        return None
    width = 0 if context.teacher is None else context.teacher.shape[1]
    ks = tuple(k for k in RECALLS if k < len(labels))
    dissimilarity = context.dissimilarity
    result = retrieval(widened(features, width), labels, dissimilarity=dissimilarity, ks=ks)
    values = {f"recall_at_{k}": float(result.recall_at[k]) for k in ks}
    values["mean_average_precision"] = float(result.mean_average_precision)
    return {**values, "r_precision": float(result.r_precision)}
