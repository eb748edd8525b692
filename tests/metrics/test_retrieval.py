import functools
import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from sklearn.metrics import average_precision_score

from pcjax.metrics import Retrieval, retrieval
from pcjax.metrics.retrieval import _compiled_search, _Labelled

module = importlib.import_module("pcjax.metrics.retrieval")  # the name itself is the function

KS = (1, 3, 6)


def values(result):
    """Return everything but the count, as one vector."""
    return np.array([*result.recall_at.values(), *result[1:4]])


def of_order(relevant, ks):
    """Compute the values of one query, given which of the sorted gallery are relevant."""
    r, total = np.asarray(relevant, float), int(np.sum(relevant))
    precision = np.cumsum(r) / np.arange(1, len(r) + 1)
    recall = [float(r[:k].any()) for k in ks]
    return np.array(
        [
            *recall,
            (r * precision).sum() / total,
            precision[total - 1],
            (r * precision)[:total].sum() / total,
        ]
    )


def by_brute_force(d, labels, gallery_labels, ks, itself=False):
    """Average the values over all orders of the ties."""
    result = []
    for i, row in enumerate(d):
        keep = np.arange(len(row)) != i if itself else np.ones(len(row), bool)
        row, relevant = row[keep], gallery_labels[keep] == labels[i]
        if not relevant.any():
            continue
        runs = [relevant[row == value] for value in np.unique(row)]
        orders = itertools.product(*(list(itertools.permutations(run)) for run in runs))
        result.append(np.mean([of_order(np.concatenate(order), ks) for order in orders], axis=0))
    return np.mean(result, axis=0), len(result)


def drawn(rng):
    """Draw twenty queries, one of which has nothing to find, and a gallery.

    The gallery is long enough for the sorting network.
    """
    labels = rng.integers(0, 3, 20)
    labels[3] = 9
    return rng.normal(size=(20, 3)), labels, rng.normal(size=(90, 3)), rng.integers(0, 3, 90)


def test_equals_brute_force_and_scikit_learn(rng):
    queries, labels, gallery, gallery_labels = drawn(rng)
    result = retrieval(queries, labels, gallery, gallery_labels, ks=KS)
    d = oracles.dissimilarity("cosine", queries, gallery)
    expected, counted = by_brute_force(d, labels, gallery_labels, KS)
    assert isinstance(result, Retrieval)
    assert tuple(result.recall_at) == KS
    assert np.allclose(values(result), expected, atol=1e-6)
    assert result.queries == counted == 19
    precisions = [
        average_precision_score(gallery_labels == y, -row)
        for y, row in zip(labels, d, strict=True)
        if y < 3
    ]
    assert np.allclose(result.mean_average_precision, np.mean(precisions))


def itself(features, labels, dissimilarity="euclidean"):
    """Search sixty queries among themselves, so that one program serves many tests."""
    return retrieval(features, labels, dissimilarity=dissimilarity, ks=KS)


def test_none_finds_itself(rng):
    features, labels = rng.normal(size=(60, 4)), rng.integers(0, 5, 60)
    labels[3] = 9
    expected, counted = by_brute_force(
        oracles.dissimilarity("euclidean", features, features), labels, labels, KS, itself=True
    )
    result = itself(features, labels)
    assert np.allclose(values(result), expected, atol=1e-6)
    assert result.queries == counted == 59


@functools.cache
def of_a_line(points, labels):
    features = np.array(points, np.float32)[:, None]
    rest = np.array(labels[:1]), features[1:], np.array(labels[1:])
    return retrieval(features[:1], *rest, dissimilarity="euclidean", ks=(1, 2, 4, 6))


def test_by_hand():
    # Seen from 0, the second and the fourth of the others are of its class: R = 2.
    result = of_a_line((0, 1, 2, 3, 4, 5, 6), (1, 0, 1, 0, 1, 0, 0))
    assert np.allclose(list(result.recall_at.values()), [0, 1, 1, 1])
    assert np.allclose(result.mean_average_precision, (1 / 2 + 2 / 4) / 2)
    assert np.allclose(result.r_precision, 1 / 2)
    assert np.allclose(result.map_at_r, (1 / 2) / 2)


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ((0, 1, 1, 1, 1, 1, 1), (1, 0, 1, 0, 0, 1, 0)),  # one run of ties
        ((0, 1, 1, 2, 2, 2, 3), (1, 0, 0, 1, 1, 0, 1)),  # within the first k, across, beyond
        ((0, 0, 0, 1, 1, -1, -1), (1, 0, 1, 1, 0, 0, 0)),
        ((0, 2, 2, 1, 1, 1, 2), (1, 1, 1, 1, 1, 0, 1)),
    ],
)
def test_ties_count_as_their_mean_over_all_orders(points, labels):
    d = np.abs(np.array(points[:1])[:, None] - np.array(points[1:]))
    expected, _ = by_brute_force(d, np.array(labels[:1]), np.array(labels[1:]), (1, 2, 4, 6))
    assert np.allclose(values(of_a_line(points, labels)), expected, atol=1e-6)


def test_a_collapsed_model_draws_lots(rng):
    # 20 of each of 3 classes, sorted by class: in gallery order the first would seem right.
    labels = np.repeat(np.arange(3), 20)
    result = itself(np.ones((60, 4)), labels)
    assert np.allclose([result.recall_at[1], result.r_precision], 19 / 59, atol=1e-6)
    lots = [of_order(rng.permutation(labels[1:] == 0), KS) for _ in range(3000)]
    assert np.allclose(values(result), np.mean(lots, axis=0), atol=0.03)


def test_perfect_and_hopeless(rng):
    labels = np.arange(60) % 4
    features = np.eye(4)[labels] + 0.01 * rng.normal(size=(60, 4))
    assert np.allclose(values(itself(features, labels)), 1)
    # each class is a pair far apart: all near points are of other classes
    far = np.repeat([[0.0], [1000.0]], 30, axis=0) * [1, 0, 0, 0] + rng.normal(size=(60, 4))
    assert np.allclose(values(itself(far, np.arange(60) % 30))[:-3], 0)


def test_rotation_scale_and_a_monotone_change_of_dissimilarities(rng):
    features, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    expected = values(itself(features, labels))
    assert np.allclose(values(itself(3 * features @ turn + 1, labels)), expected, atol=1e-6)
    assert np.allclose(values(itself(features, labels, "squared_euclidean")), expected)


def test_a_callers_own_dissimilarity_may_be_negative(rng):
    features, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    expected, _ = by_brute_force(-features @ features.T, labels, labels, KS, itself=True)
    assert np.allclose(values(itself(features, labels, inner_product)), expected, atol=1e-6)


def test_blocks_change_nothing(rng, monkeypatch):
    features, labels = rng.normal(size=(60, 4)), rng.integers(0, 3, 60)
    whole = values(itself(features, labels))
    monkeypatch.setattr("pcjax._sorting.cache_rows", lambda length: 8)
    monkeypatch.setattr(module, "ENTRIES_AT_A_TIME", 1)

    def euclidean(x, y):  # a caller's function is compiled anew, here in blocks of 8 queries
        assert x.shape[0] == 8
        return plain_distance(x, y)

    assert np.allclose(values(itself(features, labels, euclidean)), whole, atol=1e-6)


def plain_distance(x, y):
    return jnp.sqrt(jnp.sum((x[:, None] - y) ** 2, axis=-1))


def inner_product(x, y):
    return -x @ y.T


def test_never_all_queries_at_once():
    n, m = 20_000, 4096
    arguments = [
        _Labelled(
            jax.ShapeDtypeStruct((rows, 16), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32)
        )
        for rows in (n, m)
    ]
    compiled = _compiled_search.lower(
        *arguments, dissimilarity=inner_product, ks=(1,), itself=False
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * m * 4 / 10


X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"ks": (1, 8)},
            (
                "got k 8 in ks for 8 queries, none of which finds itself: expected an integer "
                "from 1 to 7"
            ),
        ),
        (
            {"gallery": X[:5], "gallery_labels": Y[:5]},
            "got k 6 in ks for a gallery of 5: expected an integer from 1",
        ),
        ({"ks": ()}, "got ks (): expected one or more, such as (1, 5, 10)"),
        ({"ks": 5}, "got ks 5: expected one or more, such as (1, 5, 10)"),
        ({"gallery": X}, "got a gallery without gallery_labels: expected both, or neither"),
        ({"gallery_labels": Y}, "got gallery_labels without a gallery: expected both, or neither"),
        (
            {"gallery": X[:, :3], "gallery_labels": Y},
            "got queries (8, 4) and gallery (8, 3): expected as many",
        ),
        (
            {"gallery": X * np.nan, "gallery_labels": Y},
            "got gallery with 8 of 8 rows that hold NaN or infinity",
        ),
        (
            {"labels": np.arange(8)},
            "and no class of a query in it: expected at least one; check both sets' labels",
        ),
        (
            {"labels": 0 * Y},
            "got labels of the one class 0: expected at least two; add examples of others",
        ),
        ({"gallery": X, "gallery_labels": 0 * Y}, "got gallery_labels of the one class 0"),
        ({"labels": Y - 1}, "got labels with -1 among them"),
        (
            {"queries": X[:1], "labels": Y[:1]},
            "got 1 queries for 1 queries, none of which finds itself: expected at",
        ),
        ({"dissimilarity": "dot"}, "unknown dissimilarity 'dot'"),
    ],
    ids=str,
)
def test_refused(given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        retrieval(**({"queries": X, "labels": Y, "ks": (1, 6)} | given))
    assert message in str(caught.value)
