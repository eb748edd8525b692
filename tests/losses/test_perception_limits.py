"""The flagship loss by hand, in its limits, on degenerate features and for callers' functions."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.losses import perception_coherence
from pcjax.ranking import METHODS


def pair(rng, n=10, student=4, teacher=6, dtype=np.float64):
    """Draw a student that resembles the teacher."""
    t = rng.normal(size=(n, teacher))
    return (t[:, :student] + 0.5 * rng.normal(size=(n, student))).astype(dtype), t.astype(dtype)


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

    @jax.jit
    def soft_and_hard(student, temperature):
        loss = functools.partial(
            perception_coherence, student, teacher, temperature=temperature, ranking=ranking
        )
        return loss(teacher_temperature=temperature), loss()

    for student in (teacher, turned):
        for temperature in (0.01, 0.1, 1.0):
            assert soft_and_hard(student, temperature)[0] < 1e-12
        assert soft_and_hard(student, 1e-9)[1] < 1e-9
        assert soft_and_hard(student, 1.0)[1] > 0.01


def test_symmetric_in_student_and_teacher_as_temperature_goes_to_0(rng, x64):
    student, teacher = pair(rng, student=6)
    loss = jax.jit(functools.partial(perception_coherence, temperature=1e-8))
    assert np.allclose(loss(student, teacher), loss(teacher, student), atol=1e-9)


def test_by_hand():
    # Three points a, b, c on a line, at 0, 1, 3 for the teacher and at 0, 2, 1.9 for the student.
    # From a, the teacher has b before c (1, 3), the student c before b (1.9, 2). From b, it is a
    # before c (1, 2) against c before a (0.1, 2). From c, both have b before a. An anchor with the
    # two others swapped has both ranks wrong by 1, and the value 1 / m = 1 / 2.
    teacher = np.array([[0.0], [1.0], [3.0]])
    student = np.array([[0.0], [2.0], [1.9]])
    given = {"temperature": 1e-6, "dissimilarity": "euclidean", "reduce_fn": None}
    loss = jax.jit(functools.partial(perception_coherence, **given))
    assert np.allclose(loss(student, teacher), [0.5, 0.5, 0.0], atol=1e-6)


DEGENERATE = {  # ten rows each
    "duplicates": lambda x: x[[0, 0, 2, 2, 2, *range(5, 10)]],
    "all equal": np.ones_like,
    "zero vectors": lambda x: x * (np.arange(10) >= 4)[:, None],
    "all zero": np.zeros_like,
    "an outlier": lambda x: x * np.where(np.arange(10) == 2, 1e6, 1)[:, None],
    "an enormous outlier": lambda x: x * np.where(np.arange(10) == 2, 1e18, 1)[:, None],
    "the largest outlier": lambda x: np.where(np.arange(10)[:, None] == 2, 3e38, x),
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
    [(name, "laplace", "row", jnp.float32) for name in ("euclidean", "correlation")]
    + [("euclidean", "permutahedron", "row", jnp.bfloat16)]
    + [
        pytest.param(*given, marks=pytest.mark.nightly)
        for given in [(name, "laplace", "batch", jnp.float32) for name in DISSIMILARITIES]
        + [
            (name, "laplace", "row", jnp.float32)
            # The correlation is the cosine of centred rows.
            for name in ("cosine", "squared_euclidean", "angular", "manhattan")
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
    for name, degenerate in DEGENERATE.items():
        student, teacher = (degenerate(x).astype(dtype) for x in pair(rng))
        value, gradient = gradient_of(dissimilarity, ranking, scale)(student, teacher)
        assert np.isfinite(value), name
        assert np.isfinite(np.asarray(gradient, np.float32)).all(), name
        assert gradient.dtype == dtype
        assert value.dtype == jnp.float32


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


@pytest.mark.parametrize("broken", ["student", "teacher", "references"])
def test_what_is_not_a_number_shows(broken, rng):
    student, teacher = pair(rng)
    more = pair(rng)
    {"student": student, "teacher": teacher, "references": more[0]}[broken][2, 1] = np.nan
    assert np.isnan(losses_by_dissimilarity(student, teacher, more)).all()


@jax.jit
def losses_by_dissimilarity(student, teacher, references):
    loss = functools.partial(perception_coherence, student, teacher, references=references)
    return [loss(dissimilarity=name) for name in ("euclidean", "cosine", "correlation")]


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
