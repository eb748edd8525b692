"""Losses on features, maps and prototypes against loops in float64 and by hand."""

import functools
import re

import jax
import numpy as np
import oracles
import pytest
from jax import jit

from pcjax import losses

N = 4


def values_of(loss, student, teacher, **given):
    return np.asarray(jit(functools.partial(loss, reduce_fn=None, **given))(student, teacher))


def maps(rng, *shape):
    return rng.normal(size=(N, *shape))


def test_hint(rng, x64):
    student, teacher = maps(rng, 3, 3, 2), maps(rng, 3, 3, 2)
    assert np.allclose(
        values_of(losses.hint, student, teacher),
        [np.mean((student[i] - teacher[i]) ** 2) for i in range(N)],
    )


def test_variational_information(rng, x64):
    mean, teacher, variance = maps(rng, 3, 2, 5), maps(rng, 3, 2, 5), rng.uniform(0.1, 3, size=5)
    result = values_of(losses.variational_information, mean, teacher, variance=variance)
    for i in range(N):
        # The likelihood of a Gaussian, less its constant.
        density = np.exp(-((mean[i] - teacher[i]) ** 2) / (2 * variance)) / np.sqrt(
            2 * np.pi * variance
        )
        assert np.isclose(result[i], -np.log(density).mean() - np.log(2 * np.pi) / 2)
    # The best variance is the squared error: where the gradient to it vanishes.
    loss = functools.partial(losses.variational_information, np.full((N, 1), 3.0), np.zeros((N, 1)))
    assert abs(jit(jax.grad(lambda variance: loss(variance=variance)))(9.0)) < 1e-12


def test_embed_distill(rng, x64):
    student, teacher = maps(rng, 3), maps(rng, 3)
    assert np.allclose(
        values_of(losses.embed_distill, student, teacher), np.linalg.norm(student - teacher, axis=1)
    )
    cosines = [
        s @ t / np.linalg.norm(s) / np.linalg.norm(t) for s, t in zip(student, teacher, strict=True)
    ]
    assert np.allclose(
        values_of(losses.embed_distill, student, teacher, distance="cosine"), 1 - np.array(cosines)
    )
    assert not jit(jax.grad(losses.embed_distill))(teacher, teacher).any()


def test_orthogonal_projection():
    # The teacher's features 1, 3, 8 have mean 4 and variance 26 / 3.
    deviation = np.sqrt(26 / 3)
    student, target = np.array([[0.5, 0.0, -2.0]]), np.array([[-3.0, -1.0, 4.0]]) / deviation
    difference = np.abs(student - target)  # 1.52, 0.34 and 3.36
    expected = (difference[0, 0] - 0.5 + difference[0, 1] ** 2 / 2 + difference[0, 2] - 0.5) / 3
    loss = jit(losses.orthogonal_projection)
    assert np.isclose(loss(student, np.array([[1.0, 3.0, 8.0]])), expected, rtol=1e-5)
    same = loss(student, np.array([[2.0, 6.0, 16.0]]) + 1000)
    assert np.isclose(same, expected, rtol=1e-3)


def placed(x):
    x = x - x.mean(axis=0)
    return x / np.linalg.norm(x)


@pytest.mark.parametrize(("ds", "dt"), [(2, 2), (3, 5), (5, 3)])
def test_procrustes(ds, dt, rng, x64):
    student, teacher = rng.normal(size=(8, ds)) + 5, rng.normal(size=(8, dt))
    values = values_of(losses.procrustes, student, teacher)
    nuclear = np.linalg.svd(placed(student).T @ placed(teacher), compute_uv=False).sum()
    assert np.isclose(values.mean(), 2 - 2 * nuclear)
    assert (values >= 0).all()
    if ds == dt == 2:
        angles = np.linspace(0, 2 * np.pi, 20001)
        turns = np.array(
            [[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]]
        ).transpose(2, 0, 1)
        both = np.concatenate([turns, turns @ np.diag([1.0, -1.0])])
        best = (np.linalg.norm(placed(student) @ both - placed(teacher), axis=(1, 2)) ** 2).min()
        assert np.isclose(values.mean(), best, atol=1e-6)


def test_procrustes_where_singular_values_are_repeated_or_zero(rng, x64):
    # All four, two pairs and one zero, and none but one.
    cross = np.linalg.qr(rng.normal(size=(6, 4)))[0]
    cross -= cross.mean(axis=0)
    cross = np.linalg.qr(cross)[0]
    loss = jit(jax.value_and_grad(losses.procrustes))
    for scales in ([1, 1, 1, 1], [2, 2, 1, 0], [1, 0, 0, 0]):
        teacher = cross * np.array(scales)
        value, gradient = loss(cross, teacher)
        assert np.isfinite(gradient).all()
        assert np.isclose(value, 2 - 2 * np.sum(scales) / 2 / np.linalg.norm(scales))
        if all(scales):  # with a zero the nuclear norm has a kink
            numeric = oracles.central_differences(
                lambda x: np.array([loss(one, teacher)[0] for one in x]), cross
            )
            assert np.allclose(gradient, numeric, atol=1e-8)


def test_locality_preserving(rng, x64):
    student, teacher = rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    nearest = []
    for i in range(7):
        d = np.sum((teacher - teacher[i]) ** 2, axis=1)
        d[i] = np.inf
        nearest.append([(d[j], j) for j in np.argsort(d)[:2]])
    automatic = np.mean([[d for d, _ in row] for row in nearest])
    for width in (None, 0.7):
        expected = [
            sum(
                np.exp(-d / (width or automatic)) * np.sum((student[i] - student[j]) ** 2)
                for d, j in row
            )
            / 2
            for i, row in enumerate(nearest)
        ]
        result = values_of(losses.locality_preserving, student, teacher, neighbours=2, width=width)
        assert np.allclose(result, expected)
        assert not values_of(
            losses.locality_preserving, 0 * student, teacher, neighbours=2, width=width
        ).any()  # collapse


def attention(x):
    q = np.mean(x**2, axis=2).reshape(-1)
    return q / np.linalg.norm(q)


def test_attention_transfer(rng, x64):
    student, teacher = maps(rng, 3, 2, 4), maps(rng, 3, 2, 5)
    differences = np.array(
        [attention(s) - attention(t) for s, t in zip(student, teacher, strict=True)]
    )
    assert np.allclose(
        values_of(losses.attention_transfer, student, teacher), (differences**2).mean(axis=1)
    )
    result = values_of(losses.attention_transfer, student, teacher, form="distance")
    assert np.allclose(result, np.linalg.norm(differences, axis=1))


def test_maps_of_other_sizes_are_averaged_down(rng, x64):
    student, teacher = maps(rng, 5, 2, 3), maps(rng, 2, 4, 3)
    # Rows 0-2 and 2-4 of five, columns in pairs of four.
    student_small = np.stack([student[:, 0:3].mean(axis=1), student[:, 2:5].mean(axis=1)], axis=1)
    teacher_small = teacher.reshape(N, 2, 2, 2, 3).mean(axis=3)
    for loss in (losses.attention_transfer, losses.neuron_selectivity):
        assert np.allclose(
            values_of(loss, student, teacher), values_of(loss, student_small, teacher_small)
        )


def test_neuron_selectivity(rng, x64):
    student, teacher = maps(rng, 2, 3, 2), maps(rng, 2, 3, 4)
    result = values_of(losses.neuron_selectivity, student, teacher)

    def kernel(a, b):
        a, b = (
            x.reshape(-1, x.shape[2]) / np.linalg.norm(x.reshape(-1, x.shape[2]), axis=0)
            for x in (a, b)
        )
        return np.mean(
            [(a[:, i] @ b[:, j]) ** 2 for i in range(a.shape[1]) for j in range(b.shape[1])]
        )

    for i in range(N):
        s, t = student[i], teacher[i]
        assert np.isclose(result[i], kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))


@pytest.mark.parametrize("active", ["teacher", "student"])
def test_proto2proto(active, rng, x64):
    student, teacher = maps(rng, 3, 2, 3), maps(rng, 3, 2, 3)
    prototypes, others = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    given = {
        "student_prototypes": others,
        "teacher_prototypes": prototypes,
        "threshold": 1.0,
        "active": active,
    }
    result = values_of(
        losses.proto2proto, student, teacher, prototype_weight=2.0, patch_weight=3.0, **given
    )
    seen, by = (teacher, prototypes) if active == "teacher" else (student, others)
    distance, count, marked = np.zeros(N), 0, []
    for i in range(N):
        own, theirs, patches = (x[i].reshape(6, 3) for x in (student, teacher, seen))
        chosen = set()
        for prototype in by:
            d = np.sum((patches - prototype) ** 2, axis=1)
            if d.min() < 1:
                chosen.add(d.argmin())
        distance[i] = sum(np.sum((own[p] - theirs[p]) ** 2) for p in chosen)
        marked.append(len(chosen))
    count = sum(marked)
    assert 0 < count < 4 * N
    prototype_term = np.linalg.norm(others - prototypes, axis=1).mean()
    assert np.allclose(result, 2 * prototype_term + 3 * N * distance / (2 * count + 1))


def test_prototypes_get_gradients_as_they_should(rng, x64):
    student, prototypes, others = (
        maps(rng, 2, 2, 3),
        rng.normal(size=(5, 3)),
        rng.normal(size=(5, 3)),
    )

    def loss(others, prototypes):
        return losses.proto2proto(
            student, student, student_prototypes=others, teacher_prototypes=prototypes
        )

    gradient = jit(jax.grad(loss, argnums=(0, 1)))
    own, theirs = gradient(others, prototypes)
    difference = others - prototypes
    assert np.allclose(own, 10 * difference / np.linalg.norm(difference, axis=1, keepdims=True) / 5)
    assert not theirs.any()
    assert not gradient(prototypes, prototypes)[0].any()


def test_a_student_whose_patches_are_all_alike_pays_for_them(rng, x64):
    teacher, prototypes = maps(rng, 2, 3, 3), rng.normal(size=(4, 3))
    given = {"student_prototypes": prototypes, "teacher_prototypes": prototypes}
    patches = teacher.reshape(-1, 3)
    loss = jit(functools.partial(losses.proto2proto, **given))
    for patch in (patches.mean(axis=0), prototypes[0]):
        alike = np.broadcast_to(patch, teacher.shape)
        assert loss(alike, teacher) > 10 * patches.var(axis=0).sum() / 4


FEATURES, MAPS = np.zeros((4, 3), np.float32), np.zeros((4, 2, 2, 3), np.float32)
PROTOTYPES = {"student_prototypes": np.zeros((5, 3)), "teacher_prototypes": np.zeros((5, 3))}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            lambda: losses.hint(MAPS, MAPS[:, :1]),
            "got student (4, 2, 2, 3) and teacher (4, 1, 2, 3): expected",
        ),
        (lambda: losses.hint(MAPS[0, 0, 0], MAPS[0, 0, 0]), "expected the same shape (n, ...)"),
        (
            lambda: losses.variational_information(MAPS, MAPS, variance=0.0),
            "got variance 0.0: expected a positive",
        ),
        (
            lambda: losses.variational_information(MAPS, MAPS, variance=np.ones(2)),
            "got variance of shape (2,) for features (2, 2, 3): expected (), (3,) or (2, 2, 3)",
        ),
        (
            lambda: losses.embed_distill(FEATURES, FEATURES, distance="l2"),
            "unknown distance 'l2': expected one of",
        ),
        (
            lambda: losses.embed_distill(FEATURES, FEATURES[:, :2]),
            "give the student a head into the teacher",
        ),
        (
            lambda: losses.orthogonal_projection(FEATURES, FEATURES[:, :2]),
            "give the student a head",
        ),
        (
            lambda: losses.procrustes(FEATURES[:1], FEATURES[:1]),
            "got 1 example: expected at least 2",
        ),
        (
            lambda: losses.locality_preserving(FEATURES, FEATURES, neighbours=4),
            "got 4 examples: expected at least 5",
        ),
        (
            lambda: losses.locality_preserving(FEATURES, FEATURES, neighbours=0),
            "got neighbours 0: expected an integer",
        ),
        (
            lambda: losses.locality_preserving(FEATURES, FEATURES, neighbours=1, width=-1.0),
            "got width -1.0",
        ),
        (
            lambda: losses.attention_transfer(FEATURES, MAPS),
            "got student (4, 3): expected maps (examples",
        ),
        (lambda: losses.attention_transfer(MAPS, MAPS[:3]), "both need one map per example"),
        (
            lambda: losses.attention_transfer(MAPS, MAPS, form="paper"),
            "unknown form 'paper': expected one of",
        ),
        (
            lambda: losses.neuron_selectivity(MAPS, MAPS[..., :0]),
            "expected at least one position and one channel",
        ),
        (
            lambda: losses.proto2proto(FEATURES, FEATURES, **PROTOTYPES),
            "got student (4, 3): expected maps",
        ),
        (
            lambda: losses.proto2proto(
                MAPS, MAPS, **PROTOTYPES | {"teacher_prototypes": np.zeros((4, 3))}
            ),
            "got prototypes (5, 3) of the student and (4, 3) of the teacher for patches of 3 feat",
        ),
        (
            lambda: losses.proto2proto(MAPS, MAPS, **PROTOTYPES, active="both"),
            "unknown active 'both'",
        ),
        (
            lambda: losses.proto2proto(MAPS, MAPS, **PROTOTYPES, patch_weight=-1.0),
            "got patch_weight -1.0",
        ),
    ],
)
def test_refusals(request_, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(request_)
