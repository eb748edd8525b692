import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pcjax.metrics import knn_accuracy, knn_predict, nearest, vote
from pcjax.metrics.neighbours import QUERIES_AT_A_TIME, VOTES_AT_A_TIME, _search, _vote

K, CLASSES = 7, 4


def clusters(rng, n, d=6):
    """Draw overlapping classes, which no method separates: so agreement means something."""
    labels = rng.integers(0, CLASSES, n)
    centres = np.random.default_rng(7).normal(size=(CLASSES, d))
    return (centres[labels] + 0.8 * rng.normal(size=(n, d))).astype(np.float32), labels


@pytest.fixture
def sets(rng):
    return (*clusters(rng, 50), *clusters(rng, 90))


def by_brute_force(features, gallery, labels, k, temperature, exclude_self=False):
    """Add up votes one by one; temperature None is the majority."""
    x, y = (np.asarray(f, np.float64) for f in (features, gallery))
    x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (x, y))
    predicted = []
    for i, similarities in enumerate(x @ y.T):
        order = np.argsort(-similarities, kind="stable")
        order = order[order != i][:k] if exclude_self else order[:k]
        votes = dict.fromkeys(labels[order], 0.0)  # in the order of the nearest
        for j in order:
            votes[labels[j]] += 1 if temperature is None else np.exp(similarities[j] / temperature)
        predicted.append(max(votes, key=votes.get))  # the first of equal ones
    return np.array(predicted)


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("weighting", ["cosine", "majority"])
def test_equals_brute_force(weighting, exclude_self, sets):
    features, labels, gallery, gallery_labels = sets
    if exclude_self:
        features, labels = gallery, gallery_labels
    for temperature in (0.07, 0.5):
        given = {
            "k": K,
            "weighting": weighting,
            "temperature": temperature,
            "exclude_self": exclude_self,
        }
        expected = by_brute_force(
            features,
            gallery,
            gallery_labels,
            K,
            temperature if weighting == "cosine" else None,
            exclude_self,
        )
        assert (knn_predict(features, gallery, gallery_labels, **given) == expected).all()
        accuracy = knn_accuracy(features, labels, gallery, gallery_labels, **given)
        assert np.allclose(accuracy, np.mean(expected == labels))
        assert 0.5 < accuracy < 1


def test_equals_scikit_learn(sets):
    features, _, gallery, gallery_labels = sets
    for weighting, weights in (
        ("majority", "uniform"),
        ("cosine", lambda distances: np.exp((1 - distances) / 0.07)),
    ):
        k = 1 if weighting == "majority" else K  # scikit-learn breaks ties of votes by class
        oracle = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute")
        expected = oracle.fit(gallery, gallery_labels).predict(features)
        assert (
            knn_predict(features, gallery, gallery_labels, k=k, weighting=weighting) == expected
        ).all()


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("chunk_size", [4, 17])  # less and more than k; neither divides the gallery
def test_chunks_change_nothing(chunk_size, exclude_self, sets, monkeypatch):
    _, _, gallery, labels = sets
    given = {"k": K, "exclude_self": exclude_self}
    whole = knn_predict(gallery, gallery, labels, **given)
    monkeypatch.setattr("pcjax.metrics.neighbours.QUERIES_AT_A_TIME", 20)
    assert (knn_predict(gallery, gallery, labels, chunk_size=chunk_size, **given) == whole).all()


def test_by_hand():
    # Similarities to (1, 0) are 1, 0.8 and 0.6. The weights of the other two, relative to the
    # nearest, sum to e^-1 + e^-2 = 0.50 at temperature 0.2. At temperature 1 it is e^-0.2 + e^-0.4
    # = 1.49.
    gallery, labels = np.array([[3.0, 0.0], [0.8, 0.6], [1.2, -1.6]]), np.array([0, 1, 1])
    query = np.array([[2.0, 0.0]])
    assert knn_predict(query, gallery, labels, k=3, temperature=0.2) == 0
    assert knn_predict(query, gallery, labels, k=3, temperature=1.0) == 1
    assert knn_predict(query, gallery, labels, k=3, weighting="majority") == 1
    assert knn_predict(query, gallery, labels, k=1, weighting="majority") == 0
    assert knn_predict(query, gallery, labels, k=3, temperature=1e-6) == 0


def test_ties_go_to_the_nearest_and_then_to_the_first():
    gallery = np.array([[0.0, 1.0], [1.0, 0.5], [1.0, 0.1], [1.0, 0.5]])
    query = np.array([[1.0, 0.0]])
    # two votes each: the class of the nearest wins, whatever its number
    assert knn_predict(query, gallery, np.array([5, 5, 9, 9]), k=4, weighting="majority") == 9
    assert knn_predict(query, gallery, np.array([9, 9, 5, 5]), k=4, weighting="majority") == 5
    # equally far: only the earlier one fits, in chunks too
    for chunk_size in (1, 3, 4):
        duplicates = np.array([[1.0, 0.5], [1.0, 0.5], [1.0, 0.5], [1.0, 0.5]])
        assert (
            knn_predict(query, duplicates, np.array([3, 1, 1, 2]), k=1, chunk_size=chunk_size) == 3
        )


def test_a_zero_vector_has_no_direction():
    gallery, labels = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 1e-3]]), np.array([0, 1, 2])
    assert knn_predict(np.array([[1.0, 0.0]]), gallery, labels, k=1) == 2
    assert knn_predict(np.array([[0.0, 0.0]]), gallery, labels, k=1) == 0
    # a zero vector is nearer to (1, 0) than its opposite
    gallery[2] = gallery[1]
    assert knn_predict(np.array([[1.0, 0.0]]), gallery, labels, k=1) == 0


def test_rotation_and_scale_change_nothing(sets, rng):
    features, _, gallery, labels = sets
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    lengths = rng.uniform(0.1, 1e6, size=(50, 1))
    expected = knn_predict(features, gallery, labels, k=K)
    assert (
        knn_predict(lengths * features @ turn, 1e-3 * gallery @ turn, labels, k=K) == expected
    ).all()


def test_leave_one_out_never_sees_the_example_itself(rng):
    # With random labels and k = 1, an example that sees itself is always right.
    features, labels = rng.normal(size=(100, 4)), rng.integers(0, 4, 100)
    assert knn_accuracy(features, labels, features, labels, k=1) == 1
    assert knn_accuracy(features, labels, features, labels, k=1, exclude_self=True) < 0.5
    # a duplicate is another example and votes
    twice, both = np.tile(features[:50], (2, 1)), np.tile(labels[:50], 2)
    assert knn_accuracy(twice, both, twice, both, k=1, exclude_self=True) == 1


def test_half_precision_under_jit_and_any_classes(sets):
    features, _, gallery, labels = sets
    half = [jnp.asarray(x, jnp.bfloat16) for x in (features, gallery)]
    expected = knn_predict(*(x.astype(jnp.float32) for x in half), labels, k=K)
    assert (jax.jit(lambda x, y, c: knn_predict(x, y, c, k=K))(*half, labels) == expected).all()
    many = np.array([7, 2**31 - 1, 0, 123_456])
    assert (knn_predict(*half, many[labels], k=K) == many[np.asarray(expected)]).all()
    assert (
        knn_predict(*half, many[labels].astype(np.uint32), k=K) == many[np.asarray(expected)]
    ).all()


def test_a_million_in_the_gallery_and_ten_thousand_queries_fit_into_2_gb():
    n, m, d, k = 10_000, 1_000_000, 128, 200
    features, gallery = (jax.ShapeDtypeStruct((rows, d), jnp.float32) for rows in (n, m))
    given = {"k": k, "rows": QUERIES_AT_A_TIME, "chunk": 16384, "exclude_self": False}
    neighbours = (jax.ShapeDtypeStruct((n, k), dtype) for dtype in (jnp.float32, jnp.int32))
    labels = jax.ShapeDtypeStruct((m,), jnp.int32)
    searched = _search.lower(features, gallery, **given).compile().memory_analysis()
    voted = (
        _vote.lower(*neighbours, labels, 0.07, rows=VOTES_AT_A_TIME // k**2)
        .compile()
        .memory_analysis()
    )
    for memory in (searched, voted):
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2e9
    # both at once, with the features themselves
    together = searched.temp_size_in_bytes + voted.temp_size_in_bytes + voted.argument_size_in_bytes
    assert searched.argument_size_in_bytes + together < 2e9


def test_neighbours_found_once_serve_every_vote(sets):
    features, _, gallery, labels = sets
    neighbours = nearest(features, gallery, k=K)
    x, y = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, gallery))
    similarities = x @ y.T
    assert (neighbours.places == np.argsort(-similarities, axis=1, kind="stable")[:, :K]).all()
    assert np.allclose(neighbours.similarity, -np.sort(-similarities, axis=1)[:, :K], atol=1e-6)
    for weighting in ("cosine", "majority"):
        expected = knn_predict(features, gallery, labels, k=K, weighting=weighting)
        assert (vote(neighbours, labels, weighting=weighting) == expected).all()


X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 3
WITH_NAN = np.where(np.arange(8)[:, None] == 5, np.nan, X)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 9}, "got k 9 for a gallery of 8: expected an integer from 1 to 8"),
        (
            {"k": 8, "exclude_self": True},
            "got k 8 for a gallery of 8 without the query itself: expected an integer from 1 to 7",
        ),
        ({"gallery": X[:7], "gallery_labels": Y[:7], "exclude_self": True}, "pass them as both"),
        ({"gallery": X[:0], "gallery_labels": Y[:0]}, "got a gallery of 0: expected at least one"),
        ({"features": X[:0], "labels": Y[:0]}, "got features (0, 4): expected at least one row"),
        (
            {"features": WITH_NAN},
            "got features with 1 of 8 rows that hold NaN or infinity, row 5 the first",
        ),
        (
            {"gallery": np.full((8, 4), np.inf)},
            "got gallery with 8 of 8 rows that hold NaN or infinity, row 0",
        ),
        (
            {"features": X[:, :3]},
            "got features (8, 3) and gallery (8, 4): expected as many features in both; embed",
        ),
        ({"features": X[0]}, "got features of shape (4,): expected (rows, features)"),
        ({"labels": Y[:5]}, "got labels of shape (5,): expected (8,), one class per row"),
        (
            {"labels": np.eye(8)},
            "got labels of shape (8, 8): expected (8,), one class per row of features; of one-hot",
        ),
        (
            {"labels": Y.astype(np.float32)},
            "got labels of dtype float32: expected integers; number the classes by",
        ),
        ({"labels": Y > 0}, "got labels of dtype bool: expected integers"),
        (
            {"gallery_labels": Y - 1},
            "got gallery_labels with -1 among them: expected classes 0, 1, ...; leave out",
        ),
        (
            {"gallery_labels": Y + 2**31},
            "got gallery_labels up to 2147483650: expected less than 2^31; number",
        ),
        (
            {"gallery_labels": 0 * Y + 2},
            "got gallery_labels of the one class 2: expected at least two; add examples",
        ),
        (
            {"weighting": "distance"},
            "unknown weighting 'distance': expected one of 'cosine', 'majority'",
        ),
        ({"temperature": 0}, "got temperature 0: expected a positive, finite number"),
        ({"chunk_size": 0}, "got chunk_size 0: expected an integer of at least 1"),
    ],
    ids=str,
)
def test_refused(given, message):
    given = {"features": X, "labels": Y, "gallery": X, "gallery_labels": Y, "k": 3} | given
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        knn_accuracy(**given)
    assert message in str(caught.value)
