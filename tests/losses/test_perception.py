"""The flagship loss against brute force in float64, and its invariances."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.losses import perception_coherence
from pcjax.metrics import coherence
from pcjax.ranking import METHODS


def pair(rng, n=10, student=4, teacher=6, dtype=np.float64):
    """Draw a student that resembles the teacher."""
    t = rng.normal(size=(n, teacher))
    return (t[:, :student] + 0.5 * rng.normal(size=(n, student))).astype(dtype), t.astype(dtype)


def near(ranks):
    return 1 / (8 + ranks) / np.mean(1 / (8 + ranks))


# Every argument away from its default, one or more at a time; (the loss's, the oracle's)
VARIANTS = {
    "default": ({}, {}),
    "squared_euclidean": (
        {"dissimilarity": "squared_euclidean"},
        {"dissimilarity_name": "squared_euclidean"},
    ),
    "euclidean": ({"dissimilarity": "euclidean"}, {"dissimilarity_name": "euclidean"}),
    "angular": ({"dissimilarity": "angular"}, {"dissimilarity_name": "angular"}),
    "manhattan": ({"dissimilarity": "manhattan"}, {"dissimilarity_name": "manhattan"}),
    "correlation": ({"dissimilarity": "correlation"}, {"dissimilarity_name": "correlation"}),
    "permutahedron": (
        {"ranking": "permutahedron", "dissimilarity": "euclidean"},
        {"ranking": "permutahedron", "dissimilarity_name": "euclidean"},
    ),
    "logistic": ({"ranking": "logistic"}, {"ranking": "logistic"}),
    "batch scale": ({"scale": "batch"}, {"scale": "batch"}),
    "soft teacher": ({"teacher_temperature": 0.3}, {"teacher_temperature": 0.3}),
    "soft teacher, batch scale": ({"teacher_temperature": 0.3, "scale": "batch"},) * 2,
    "squares": ({"power": 2}, {"power": 2}),
    "power 1.5": ({"power": 1.5}, {"power": 1.5}),
    "neighbours": ({"weighting": "neighbours"}, {"weights": near}),
    "own weights": ({"weighting": lambda ranks: 1 / ranks}, {"weights": lambda ranks: 1 / ranks}),
    "teacher's frame": ({"frame": "teacher"}, {"frame": "teacher"}),
    "teacher's frame, batch scale": ({"frame": "teacher", "scale": "batch"},) * 2,
}
# In chunks and with references only what takes another path through the sweep.
SWEPT = (
    "default",
    "permutahedron",
    "soft teacher, batch scale",
    "neighbours",
    "teacher's frame, batch scale",
)
# Every argument and every path, but not every combination. What is left out of these differs by a
# dissimilarity that has tests of its own, or is among the others with chunks or references.
FEW = {
    *(("default", None), ("euclidean", None), ("manhattan", None), ("permutahedron", None)),
    *(("logistic", None), ("batch scale", None), ("soft teacher", None), ("power 1.5", None)),
    *(("own weights", None), ("teacher's frame", None)),
    *((name, 4) for name in SWEPT if name != "permutahedron"),
}
variants_and_chunks = pytest.mark.parametrize(
    ("name", "chunk_size"),
    [
        pytest.param(*case, marks=[pytest.mark.nightly] * (case not in FEW))
        for case in [(name, None) for name in VARIANTS] + [(name, 4) for name in SWEPT]
    ],
)
# A law that computes differences for every variant.
costly = pytest.mark.parametrize(
    ("name", "chunk_size"),
    [("default", None)]
    + [
        pytest.param(name, 4, marks=[pytest.mark.nightly] * ((name, 4) not in FEW))
        for name in SWEPT
    ]
    + [pytest.param(name, None, marks=pytest.mark.nightly) for name in [*VARIANTS][1:]],
)
TEMPERATURE = 0.2


def features_for(name, rng, **kwargs):
    return pair(rng, student=6 if "frame" in name else 4, **kwargs)


@functools.cache
def compiled(name, chunk_size=None, **given):
    """Everything there is to know of a variant, in one compilation for all the laws."""
    given = {**VARIANTS[name][0], "chunk_size": chunk_size, **given}

    def loss(student, temperature, teacher, where, references, reduce_fn=jnp.mean):
        return perception_coherence(
            student,
            teacher,
            temperature=temperature,
            where=where,
            references=references,
            reduce_fn=reduce_fn,
            **given,
        )

    @jax.jit
    def everything(student, teacher, where=None, references=None, temperature=TEMPERATURE):
        rest = (temperature, teacher, where, references)
        mean, (gradient, temperature_gradient) = jax.value_and_grad(loss, argnums=(0, 1))(
            student, *rest
        )
        return {
            "mean": mean,
            "gradient": gradient,
            "temperature": temperature_gradient,
            "values": loss(student, *rest, None),
        }

    return everything


def assert_matches_brute_force(result, student, teacher, name, anchors=None, **given):
    """Values against float64 brute force, the gradients against its differences."""
    given = {"temperature": TEMPERATURE, **VARIANTS[name][1], **given, "anchors": anchors}
    losses = oracles.perception_coherence(student, teacher, **given)
    assert np.allclose(result["values"], losses, atol=1e-9)
    assert np.allclose(result["mean"], losses.mean(), atol=1e-9)

    def losses_at(moved):
        batch = [
            np.concatenate([part.reshape(-1, student.shape[1]), student[anchors:]])
            for part in moved
        ]
        batch = batch if anchors is not None else moved
        return np.array([oracles.perception_coherence(s, teacher, **given).mean() for s in batch])

    rows = student if anchors is None else student[:anchors]
    oracles.assert_gradients_agree(result["gradient"], oracles.central_differences(losses_at, rows))

    def losses_of(temperatures):
        return np.array(
            [
                oracles.perception_coherence(student, teacher, **{**given, "temperature": t}).mean()
                for t in temperatures
            ]
        )

    numeric = oracles.central_differences(losses_of, np.float64(TEMPERATURE))
    assert abs(result["temperature"] - numeric) <= 1e-6 * max(
        abs(numeric), np.abs(result["gradient"]).max()
    )


@variants_and_chunks
def test_equals_brute_force(name, chunk_size, rng, x64):
    student, teacher = features_for(name, rng)
    everything = np.ones(10, bool)
    assert_matches_brute_force(
        compiled(name, chunk_size)(student, teacher, everything), student, teacher, name
    )


@pytest.mark.parametrize(
    "name",
    [
        "default",
        *(pytest.param(x, marks=pytest.mark.nightly) for x in ("permutahedron", "logistic")),
    ],
)
def test_fifty_gradients_equal_differences(name, rng, x64):
    for _ in range(50):
        student, teacher = features_for(name, rng, n=6)
        result = compiled(name)(student, teacher)["gradient"]
        given = {"temperature": TEMPERATURE, **VARIANTS[name][1]}

        def losses_at(moved):
            return np.array(
                [oracles.perception_coherence(s, teacher, **given).mean() for s in moved]
            )

        oracles.assert_gradients_agree(result, oracles.central_differences(losses_at, student))


@costly
def test_masked_equals_subset(name, chunk_size, rng, x64):
    student, teacher = features_for(name, rng)
    where = np.arange(10) != 0
    where[[4, 8]] = False
    student[~where], teacher[~where] = np.nan, np.inf
    result = compiled(name, chunk_size)(student, teacher, where)
    assert (result["gradient"][~where] == 0).all()
    assert (result["values"][~where] == 0).all()
    result = {**result, "gradient": result["gradient"][where], "values": result["values"][where]}
    assert_matches_brute_force(result, student[where], teacher[where], name)


@variants_and_chunks
def test_all_masked_is_zero(name, chunk_size, rng, x64):
    student, teacher = features_for(name, rng)
    for valid in range(3):  # one neighbour has no order either
        result = compiled(name, chunk_size)(student, teacher, np.arange(10) < valid)
        assert valid > 0 or all((value == 0).all() for value in result.values())
        assert all(np.isfinite(value).all() for value in result.values())


@variants_and_chunks
def test_the_batch_may_come_in_any_order(name, chunk_size, rng, x64):
    student, teacher = features_for(name, rng)
    where, order = np.arange(10) != 7, rng.permutation(10)
    result = compiled(name, chunk_size)(student, teacher, where)
    shuffled = compiled(name, chunk_size)(student[order], teacher[order], where[order])
    for key in ("values", "gradient"):
        assert np.allclose(shuffled[key], result[key][order], atol=1e-10)
    for key in ("mean", "temperature"):
        assert np.allclose(shuffled[key], result[key], atol=1e-10)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.nightly] * (x == "permutahedron")) for x in SWEPT],
)
def test_references_are_points_without_gradient(name, rng, x64):
    student, teacher = features_for(name, rng)
    result = compiled(name)(student[:6], teacher[:6], None, (student[6:], teacher[6:]))
    assert_matches_brute_force(result, student, teacher, name, anchors=6)


@pytest.mark.nightly
def test_references_of_chunks_masks_and_none_at_all(rng, x64):
    student, teacher = pair(rng)
    more = student[6:], teacher[6:]
    result = compiled("default", 4)(student[:6], teacher[:6], None, more)
    assert_matches_brute_force(result, student, teacher, "default", anchors=6)
    where = np.arange(6) < 4
    result = compiled("default")(student[:6], teacher[:6], where, more)
    expected = compiled("default")(student[:4], teacher[:4], None, more)
    assert np.allclose(result["mean"], expected["mean"], atol=1e-12)
    assert np.allclose(result["gradient"][:4], expected["gradient"], atol=1e-12)
    # A third array says which of the references there are, whatever the others hold.
    places = np.array([2, 0, 5, 3])
    padded = [np.full((6, x.shape[1]), np.nan) for x in more]
    for x, points in zip(padded, more, strict=True):
        x[places] = points
    for mask in (None, where):
        result = compiled("default")(
            student[:6], teacher[:6], mask, (*padded, np.isin(np.arange(6), places))
        )
        expected = compiled("default")(student[:6], teacher[:6], mask, more)
        assert np.allclose(result["mean"], expected["mean"], atol=1e-12)
        assert np.allclose(result["gradient"], expected["gradient"], atol=1e-12)
    none = compiled("default")(student, teacher, None, (student[:0], teacher[:0]))
    assert np.allclose(
        none["gradient"], compiled("default")(student, teacher)["gradient"], atol=1e-12
    )


@pytest.mark.parametrize("frame", ["own", "teacher"])
def test_no_gradient_reaches_the_teacher_or_the_references(frame, rng):
    _, teacher = pair(rng)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3))
    def gradient(student, teacher, student_points, teacher_points):
        return perception_coherence(
            student,
            teacher,
            temperature=0.2,
            references=(student_points, teacher_points),
            frame=frame,
        )

    student, *fixed = gradient(teacher**2, teacher, teacher + 1, teacher + 2)
    assert np.abs(student).max() > 0
    assert all((g == 0).all() for g in fixed)


@pytest.mark.parametrize(
    ("scale", "chunk_size"),
    [
        ("row", 32),
        pytest.param("row", 1000, marks=pytest.mark.nightly),
        pytest.param("batch", 32, marks=pytest.mark.nightly),
    ],
)
def test_chunked_equals_unchunked_in_float32(scale, chunk_size, rng):
    student, teacher = pair(rng, n=100, student=32, teacher=64, dtype=np.float32)

    def loss(student, chunk_size):
        return perception_coherence(
            student, teacher, temperature=0.2, chunk_size=chunk_size, scale=scale
        )

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (expected, expected_gradient), (value, gradient) = (
        gradient(student, size) for size in (None, chunk_size)
    )
    assert abs(value - expected) <= 1e-6
    assert np.abs(gradient - expected_gradient).max() <= 1e-6


INVARIANCES = {  # name: (translation, rotation)
    "default": (False, True),
    "euclidean": (True, True),
    "squared_euclidean": (True, True),
    "angular": (False, True),
    "manhattan": (True, False),
    "correlation": (True, False),
    "batch scale": (False, True),
    "permutahedron": (True, True),
    "logistic": (False, True),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.nightly] * ((x, None) not in FEW)) for x in INVARIANCES],
)
def test_invariances_of_the_student(name, rng, x64):
    student, teacher = pair(rng)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    where = np.ones(10, bool)

    def loss(student):
        return compiled(name)(student, teacher, where)["mean"]

    value = loss(student)
    assert np.allclose(loss(1e3 * student), value, atol=1e-12)
    assert np.allclose(loss(1e-3 * student), value, atol=1e-12)
    translated, rotated = INVARIANCES[name]
    assert (abs(loss(student + 3) - value) < 1e-10) == translated
    assert (abs(loss(student @ rotation) - value) < 1e-10) == rotated
    gradient = compiled(name)(student, teacher, where)["gradient"]
    assert abs(np.sum(gradient * student)) < 1e-10 * np.abs(gradient).max()  # no radial part


def test_a_stopped_scale_would_have_a_radial_part(rng, x64):
    # The reason for the law above: with a fixed width the features' norm drifts.
    student, teacher = pair(rng)

    def fixed_width(student):
        d = jnp.sqrt(jnp.sum((student[:, None] - student[None]) ** 2, axis=-1) + jnp.eye(10))
        from pcjax.ranking import hard_rank, soft_rank

        where = ~np.eye(10, dtype=bool)
        target = hard_rank(jnp.linalg.norm(teacher[:, None] - teacher[None], axis=-1), where=where)
        return jnp.sum(jnp.abs(soft_rank(d, temperature=0.2, where=where) - target))

    gradient = jax.jit(jax.grad(fixed_width))(student)
    assert abs(np.sum(gradient * student)) > 1e-3 * np.abs(gradient).max()


@pytest.mark.parametrize(
    ("ranking", "scale", "changes"),
    [("laplace", "row", [jnp.exp])]
    + [
        pytest.param(*case, marks=pytest.mark.nightly)
        for case in (
            ("laplace", "row", [jnp.log1p, lambda d: d**3]),
            ("laplace", "batch", [jnp.exp, jnp.log1p, lambda d: d**3]),
            ("permutahedron", "row", [jnp.exp]),
            ("logistic", "row", [jnp.exp]),
        )
    ],
)
def test_monotone_change_of_the_dissimilarity_does_not_matter_as_temperature_goes_to_0(
    ranking, scale, changes, rng, x64
):
    student, teacher = pair(rng)

    def loss(change):
        measure = lambda x, y: change(DISSIMILARITIES["euclidean"](x, y))
        given = {"temperature": 1e-7, "ranking": ranking, "scale": scale}
        given |= {"dissimilarity": measure, "teacher_dissimilarity": "euclidean"}
        return jax.jit(functools.partial(perception_coherence, **given))(student, teacher)

    expected = loss(lambda d: d)
    assert expected > 0.01
    for change in changes:
        assert np.allclose(loss(change), expected, atol=1e-9)


@pytest.mark.parametrize(
    "ranking",
    [pytest.param(x, marks=[pytest.mark.nightly] * (x == "logistic")) for x in METHODS],
)
def test_zero_for_a_student_that_is_the_teacher(ranking, rng, x64):
    _, teacher = pair(rng)
    turned = 7 * teacher @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    for student in (teacher, turned):
        for temperature in (0.01, 0.1, 1.0):
            loss = perception_coherence(
                student,
                teacher,
                temperature=temperature,
                teacher_temperature=temperature,
                ranking=ranking,
            )
            assert loss < 1e-12
        assert perception_coherence(student, teacher, temperature=1e-9, ranking=ranking) < 1e-9
        assert perception_coherence(student, teacher, temperature=1.0, ranking=ranking) > 0.01
        assert all(np.allclose(e, 1) for e in coherence(student, teacher, k=3))


def test_symmetric_in_student_and_teacher_as_temperature_goes_to_0(rng, x64):
    student, teacher = pair(rng)
    one = perception_coherence(student, teacher, temperature=1e-8)
    assert np.allclose(one, perception_coherence(teacher, student, temperature=1e-8), atol=1e-9)


def test_by_hand():
    # Three points a, b, c on a line, at 0, 1, 3 for the teacher and at 0, 2, 1.9 for the student.
    # From a, the teacher has b before c (1, 3), the student c before b (1.9, 2). From b, it is a
    # before c (1, 2) against c before a (0.1, 2). From c, both have b before a. An anchor with the
    # two others swapped has both ranks wrong by 1, and the value 1 / m = 1 / 2.
    teacher = np.array([[0.0], [1.0], [3.0]])
    student = np.array([[0.0], [2.0], [1.9]])
    given = {"temperature": 1e-6, "dissimilarity": "euclidean", "reduce_fn": None}
    loss = perception_coherence(student, teacher, **given)
    assert np.allclose(loss, [0.5, 0.5, 0.0], atol=1e-6)


DEGENERATE = {
    "duplicates": lambda x: x.at[1].set(x[0]).at[3].set(x[2]).at[4].set(x[2]),
    "all equal": lambda x: jnp.ones_like(x),
    "zero vectors": lambda x: x.at[:4].set(0),
    "all zero": jnp.zeros_like,
    "an outlier": lambda x: x.at[2].multiply(1e6),
    "an enormous outlier": lambda x: x.at[2].multiply(1e18),
    "the largest outlier": lambda x: x.at[2].set(3e38),
    "a huge batch": lambda x: x * 1e20,
}


@functools.cache
def gradient_of(dissimilarity, ranking, scale):
    @jax.jit
    @jax.value_and_grad
    def loss(student, teacher):
        given = {"dissimilarity": dissimilarity, "ranking": ranking, "scale": scale}
        return perception_coherence(
            student, teacher, temperature=0.1, teacher_temperature=0.1, **given
        )

    return loss


@pytest.mark.parametrize(
    ("dissimilarity", "ranking", "scale", "dtype"),
    [(name, "laplace", "row", jnp.float32) for name in ("euclidean", "cosine", "correlation")]
    + [("euclidean", "permutahedron", "row", jnp.bfloat16)]
    + [
        pytest.param(*given, marks=pytest.mark.nightly)
        for given in [(name, "laplace", "batch", jnp.float32) for name in DISSIMILARITIES]
        + [
            (name, "laplace", "row", jnp.float32)
            for name in ("squared_euclidean", "angular", "manhattan")
        ]
        + [(name, "laplace", "row", jnp.bfloat16) for name in ("euclidean", "cosine")]
        + [
            ("euclidean", "permutahedron", "row", jnp.float32),
            ("euclidean", "logistic", "row", jnp.float32),
            ("euclidean", "logistic", "row", jnp.bfloat16),
        ]
    ],
)
def test_gradients_are_finite_on_degenerate_features(dissimilarity, ranking, scale, dtype, rng):
    three = {"three": lambda x: x[:3]} if dissimilarity == "euclidean" else {}
    for name, degenerate in (DEGENERATE | three).items():
        student, teacher = (degenerate(jnp.asarray(x, dtype)) for x in pair(rng))
        value, gradient = gradient_of(dissimilarity, ranking, scale)(student, teacher)
        assert np.isfinite(value), name
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), name
        assert gradient.dtype == dtype
        assert value.dtype == jnp.float32


def test_half_precision_is_computed_in_float32(rng):
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in pair(rng, n=40))
    loss = perception_coherence(student, teacher, temperature=0.1)
    assert loss == perception_coherence(
        student.astype(jnp.float32), teacher.astype(jnp.float32), temperature=0.1
    )


def test_a_changed_temperature_does_not_recompile(rng):
    student, teacher = pair(rng)

    @jax.jit
    @chex.assert_max_traces(1)
    def loss(student, temperature):
        return perception_coherence(student, teacher, temperature=temperature)

    assert loss(student, 0.1) != loss(student, 0.5)


def test_nothing_of_a_callers_function_is_kept(rng):
    student, teacher = pair(rng)

    class Weighted:
        weights = 1.0

        def __call__(self, x, y):
            return DISSIMILARITIES["euclidean"](x * self.weights, y * self.weights)

    def loss(dissimilarity):
        given = {"dissimilarity": dissimilarity, "teacher_dissimilarity": "euclidean"}
        again = functools.partial(perception_coherence, temperature=0.1, **given)
        return float(jax.jit(again)(student, teacher))  # quicker, and compiled anew in each call

    weighted, fresh = Weighted(), Weighted()
    before = loss(weighted)
    weighted.weights = fresh.weights = np.array([1.0, 0, 0, 0])
    assert before != loss(weighted) == loss(fresh)


@pytest.mark.parametrize("chunk_size", [None, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_dissimilarity_may_close_over_what_is_learnt(chunk_size, rng, x64):
    student, teacher = pair(rng)

    def loss(weights):
        return perception_coherence(
            student,
            teacher,
            temperature=0.2,
            dissimilarity=lambda x, y: DISSIMILARITIES["euclidean"](x @ weights, y @ weights),
            teacher_dissimilarity="euclidean",
            chunk_size=chunk_size,
        )

    def transformed(weights):
        return np.array(
            [
                oracles.perception_coherence(
                    student @ w, teacher, temperature=0.2, dissimilarity_name="euclidean"
                ).mean()
                for w in weights
            ]
        )

    weights = rng.normal(size=(4, 4))
    oracles.assert_gradients_agree(
        jax.jit(jax.grad(loss))(weights), oracles.central_differences(transformed, weights)
    )


@pytest.mark.parametrize("scale", ["row", "batch"])
def test_self_pairs_never_enter(scale, rng, x64):
    student, teacher = pair(rng)

    def infinite_for_itself(x, y):
        d = DISSIMILARITIES["euclidean"](x, y)
        return jnp.where(d == 0, jnp.inf, d)

    def loss(student, dissimilarity):
        given = {"dissimilarity": dissimilarity, "scale": scale, "teacher_temperature": 0.1}
        return perception_coherence(student, teacher, temperature=0.2, **given)

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    result, expected = gradient(student, infinite_for_itself), gradient(student, "euclidean")
    assert all(np.allclose(*both, atol=1e-12) for both in zip(result, expected, strict=True))


@pytest.mark.parametrize("broken", ["student", "teacher", "references"])
def test_what_is_not_a_number_shows(broken, rng):
    student, teacher = pair(rng)
    more = pair(rng)
    {"student": student, "teacher": teacher, "references": more[0]}[broken][2, 1] = np.nan
    for name in ("euclidean", "cosine", "correlation"):
        loss = perception_coherence(
            student, teacher, temperature=0.1, references=more, dissimilarity=name
        )
        assert np.isnan(loss)


@pytest.mark.nightly
def test_mixed_dtypes_under_x64(rng, x64):
    student, teacher = pair(rng, dtype=np.float32)
    where = np.arange(10) < 8
    for other in (np.float64, np.float32):
        for chunk_size in (None, 4):

            def loss(student):
                given = {
                    "where": where,
                    "chunk_size": chunk_size,
                    "references": (student[:3], teacher[:3]),
                }
                return perception_coherence(
                    student, teacher.astype(other), temperature=np.float32(0.1), **given
                )

            value, gradient = jax.value_and_grad(loss)(student)
            assert value.dtype == other
            assert gradient.dtype == np.float32


def test_an_asymmetric_dissimilarity_is_seen_from_the_anchor(rng, x64):
    student, teacher = pair(rng, student=6)

    def lopsided(x, y):
        return jnp.sum(jnp.maximum(x[:, None] - y[None], 0) * jnp.arange(1.0, 7), axis=-1)

    given = {"temperature": 1e-8, "dissimilarity": lopsided, "reduce_fn": None}
    result = jax.jit(functools.partial(perception_coherence, **given))(student, teacher)
    d = [np.maximum(f[:, None] - f[None], 0) @ np.arange(1.0, 7) for f in (student, teacher)]
    keep = ~np.eye(10, dtype=bool)
    ranks = [oracles.scipy.stats.rankdata(x[keep].reshape(10, 9), axis=1) for x in d]
    assert np.allclose(result, np.abs(ranks[0] - ranks[1]).mean(axis=1) / 9, atol=1e-7)


@pytest.mark.nightly
def test_under_vmap(rng):
    students, teachers = (
        np.stack(x) for x in zip(*(pair(rng, dtype=np.float32) for _ in range(3)), strict=True)
    )
    for chunk_size in (None, 4):

        def gradient(s, t):
            return jax.grad(
                lambda s: perception_coherence(s, t, temperature=0.2, chunk_size=chunk_size)
            )(s)

        together = jax.vmap(gradient)(students, teachers)
        for i in range(3):
            assert np.allclose(together[i], gradient(students[i], teachers[i]), atol=1e-6)
