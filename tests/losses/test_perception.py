"""The flagship loss against brute force in float64, and its invariances."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.losses import perception_coherence


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
COMBINED = "logistic, manhattan, power 1.5, own weights"
VARIANTS[COMBINED] = tuple(
    dict(collections.ChainMap(*(VARIANTS[name][side] for name in COMBINED.split(", "))))
    for side in range(2)
)
# In chunks and with references only what takes another path through the sweep.
SWEPT = (
    "default",
    "permutahedron",
    "soft teacher, batch scale",
    "neighbours",
    "teacher's frame, batch scale",
)
# Every argument and every path, but not every combination. test_self_pairs_never_enter has the
# Euclidean dissimilarity and a soft teacher, with both scales.
FEW = {
    ("default", None),
    ("permutahedron", None),
    (COMBINED, None),
    ("teacher's frame, batch scale", None),
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

    def loss(student, temperature, teacher, points, where, present, reduce_fn=jnp.mean):
        return perception_coherence(
            student,
            teacher,
            temperature=temperature,
            where=where,
            references=points if present is None else (*points, present),
            reduce_fn=reduce_fn,
            **given,
        )

    @jax.jit
    def everything(student, teacher, where=None, references=None, present=None):
        arguments = (student, TEMPERATURE, teacher, references, where, present)
        mean, (gradient, temperature, *fixed) = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))(
            *arguments
        )
        return {
            "mean": mean,
            "gradient": gradient,
            "temperature": temperature,
            "fixed": fixed,
            "values": loss(*arguments, None),
        }

    def evaluate(*arguments):
        return jax.tree.map(np.asarray, everything(*arguments))

    return evaluate


def assert_matches_brute_force(result, student, teacher, name, anchors=None, **given):
    """Values against float64 brute force, the gradients against its differences.

    Neither the teacher nor the references get any.
    """
    assert not any(gradient.any() for gradient in jax.tree.leaves(result["fixed"]))
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
    ways = np.random.default_rng(1)
    for _ in range(50):
        student, teacher = features_for(name, rng, n=6)
        padded = [np.pad(x, ((0, 4), (0, 0))) for x in (student, teacher)]
        result = compiled(name)(*padded, np.arange(10) < 6)["gradient"][:6]
        given = {"temperature": TEMPERATURE, **VARIANTS[name][1]}

        def losses_at(moved):
            return np.array(
                [oracles.perception_coherence(s, teacher, **given).mean() for s in moved]
            )

        directions = ways.normal(size=(4, *student.shape))
        above, below = (losses_at(student + step * directions) for step in (1e-6, -1e-6))
        along = np.sum(result * directions, axis=(1, 2))
        oracles.assert_gradients_agree(along, (above - below) / 2e-6)


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
    for valid in range(4):  # one neighbour has no order either
        result = compiled(name, chunk_size)(student, teacher, np.arange(10) < valid)
        assert valid > 0 or all((value == 0).all() for value in jax.tree.leaves(result))
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(result))


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
    # Beside the frame, references take the path of the batch's own points.
    [
        pytest.param(x, marks=[pytest.mark.nightly] * (x not in ("default", SWEPT[-1])))
        for x in SWEPT
    ],
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
            student[:6], teacher[:6], mask, tuple(padded), np.isin(np.arange(6), places)
        )
        expected = compiled("default")(student[:6], teacher[:6], mask, more)
        assert np.allclose(result["mean"], expected["mean"], atol=1e-12)
        assert np.allclose(result["gradient"], expected["gradient"], atol=1e-12)
    none = compiled("default")(student, teacher, None, (student[:0], teacher[:0]))
    assert np.allclose(
        none["gradient"], compiled("default")(student, teacher)["gradient"], atol=1e-12
    )


def test_chunks_of_long_rows_in_float32(rng):
    # The packed network sorts rows of over 64 points.
    student, teacher = pair(rng, n=70, student=8, teacher=16, dtype=np.float32)
    given = {"temperature": TEMPERATURE, "chunk_size": 32}
    loss = jax.jit(jax.value_and_grad(functools.partial(perception_coherence, **given)))
    value, gradient = loss(student, teacher)

    def brute_force(student):
        return oracles.perception_coherence(student, teacher, temperature=TEMPERATURE).mean()

    assert abs(value - brute_force(student)) <= 1e-6
    for direction in rng.normal(size=(5, *student.shape)):
        above, below = (brute_force(student + step * direction) for step in (1e-6, -1e-6))
        difference = np.sum(np.asarray(gradient) * direction) - (above - below) / 2e-6
        assert abs(difference) <= 1e-6 * np.linalg.norm(direction)


@pytest.mark.nightly
@pytest.mark.parametrize(("scale", "chunk_size"), [("row", 32), ("row", 1000), ("batch", 32)])
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


INVARIANCES = {  # (name, chunk_size): (translation, rotation)
    ("default", None): (False, True),
    ("euclidean", None): (True, True),
    ("squared_euclidean", None): (True, True),
    ("angular", None): (False, True),
    ("manhattan", None): (True, False),
    (COMBINED, None): (True, False),
    ("correlation", None): (True, False),
    ("batch scale", None): (False, True),
    ("soft teacher, batch scale", 4): (False, True),
    ("permutahedron", None): (True, True),
    ("logistic", None): (False, True),
}


@pytest.mark.parametrize(
    ("name", "chunk_size"),
    [pytest.param(*x, marks=[pytest.mark.nightly] * (x not in FEW)) for x in INVARIANCES],
)
def test_invariances_of_the_student(name, chunk_size, rng, x64):
    student, teacher = pair(rng)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    where = np.ones(10, bool)

    def loss(student):
        return compiled(name, chunk_size)(student, teacher, where)["mean"]

    value = loss(student)
    assert np.allclose(loss(1e3 * student), value, atol=1e-12)
    assert np.allclose(loss(1e-3 * student), value, atol=1e-12)
    translated, rotated = INVARIANCES[name, chunk_size]
    assert (abs(loss(student + 3) - value) < 1e-10) == translated
    assert (abs(loss(student @ rotation) - value) < 1e-10) == rotated
    gradient = compiled(name, chunk_size)(student, teacher, where)["gradient"]
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


@pytest.mark.parametrize("scale", ["row", "batch"])
def test_self_pairs_never_enter(scale, rng, x64):
    student, teacher = pair(rng)

    def infinite_for_itself(x, y):
        d = DISSIMILARITIES["euclidean"](x, y)
        return jnp.where(d == 0, jnp.inf, d)

    given = {"scale": scale, "teacher_temperature": 0.1}
    result = compiled("euclidean", dissimilarity=infinite_for_itself, **given)(student, teacher)
    assert_matches_brute_force(result, student, teacher, "euclidean", **given)
