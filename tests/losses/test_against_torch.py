"""Compare every loss and its gradient with PyTorch, written from the same formula."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch_losses as by_torch

from pcjax import losses

torch = by_torch.torch
pytestmark = pytest.mark.nightly


class Case(NamedTuple):
    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    settings: tuple[dict[str, Any], ...] = ({},)


N, D = 9, 6
FEATURES, SAME = ((N, 5), (N, 7)), ((N, D), (N, D))
MAPS, PATCHES = ((4, 6, 4, 3), (4, 3, 6, 5)), ((4, 3, 3, D), (4, 3, 3, D))
fixed = np.random.default_rng(7)
LABELS = np.array([0, 5, 2, -1, 1, 3, 3, -1, 4])
HEAD = {"kernel": fixed.normal(size=(D, 4))}
PROTOTYPES = {
    "student_prototypes": fixed.normal(size=(5, D)),
    "teacher_prototypes": fixed.normal(size=(5, D)),
}
REFERENCES = {"references": (fixed.normal(size=(4, 5)), fixed.normal(size=(4, 7)))}
BAG = {
    name: fixed.normal(size=(N, D))
    for name in ("student_neighbours", "teacher_neighbours", "student_mixtures")
}


def queue_of(*widths):
    """Eight points in a queue of eleven; the other places hold what must not matter."""
    points = tuple(fixed.normal(size=(11, width)).astype(np.float32) for width in widths)
    return {
        "queue": losses.Queue(points if len(widths) > 1 else points[0], np.int32(8), np.int32(8))
    }


FRESH = losses.crd_memory(jax.random.key(0), 30, D)
STARTED = losses.crd_memory(jax.random.key(2), 30, D, labels=np.arange(30) % 7)._replace(
    started=np.array(True), log_normalisers=np.array([4.0, 5.0])
)
DRAWN = {"key": jax.random.key(1), "indices": fixed.permutation(30)[:N], "negatives": 6}

CASES = {
    "kd": Case(by_torch.kd, SAME, ({}, {"temperature": 1.5})),
    "cross_entropy": Case(
        by_torch.cross_entropy,
        SAME,
        ({"labels": LABELS}, {"labels": LABELS, "label_smoothing": 0.2}),
    ),
    "dkd": Case(
        by_torch.dkd,
        SAME,
        ({"labels": LABELS}, {"labels": LABELS, "alpha": 2.0, "beta": 0.5, "temperature": 1.5}),
    ),
    "dist": Case(by_torch.dist, SAME, ({}, {"beta": 2.0, "gamma": 0.5, "temperature": 4.0})),
    "shared_classifier": Case(
        by_torch.shared_classifier,
        SAME,
        (HEAD, {**HEAD, "bias": np.arange(4.0), "temperature": 1.0}),
    ),
    "simkd": Case(by_torch.mean_squared_error, PATCHES),
    "hint": Case(by_torch.mean_squared_error, PATCHES),
    "variational_information": Case(
        by_torch.variational_information,
        PATCHES,
        ({"variance": np.array(5.0)}, {"variance": np.linspace(0.1, 3, D)}),
    ),
    "embed_distill": Case(by_torch.embed_distill, SAME, ({}, {"distance": "cosine"})),
    "orthogonal_projection": Case(by_torch.orthogonal_projection, SAME),
    "procrustes": Case(by_torch.procrustes, FEATURES),
    "locality_preserving": Case(
        by_torch.locality_preserving, FEATURES, ({}, {"neighbours": 3, "width": 9.0})
    ),
    "attention_transfer": Case(by_torch.attention_transfer, MAPS, ({}, {"form": "distance"})),
    "neuron_selectivity": Case(by_torch.neuron_selectivity, MAPS),
    "proto2proto": Case(
        by_torch.proto2proto,
        PATCHES,
        (
            {**PROTOTYPES, "threshold": 6.0},
            {
                **PROTOTYPES,
                "threshold": 8.0,
                "active": "student",
                "prototype_weight": 1.0,
                "patch_weight": 3.0,
            },
        ),
    ),
    "rkd_distance": Case(by_torch.rkd_distance, FEATURES),
    "rkd_angle": Case(by_torch.rkd_angle, FEATURES),
    "similarity_preserving": Case(by_torch.similarity_preserving, FEATURES),
    "pkt": Case(by_torch.pkt, FEATURES),
    "correlation_congruence": Case(
        by_torch.correlation_congruence, FEATURES, ({}, {"gamma": 1.3, "order": 4})
    ),
    "cka": Case(by_torch.cka, FEATURES),
    "darkrank_hard": Case(
        by_torch.darkrank_hard, FEATURES, ({}, {"alpha": 2.0, "beta": 1.5, "list_length": 6})
    ),
    "darkrank_soft": Case(
        by_torch.darkrank_soft, FEATURES, ({}, {"alpha": 2.0, "beta": 1.5, "list_length": 3})
    ),
    "pairwise_ranking": Case(
        by_torch.pairwise_ranking,
        FEATURES,
        (
            {},
            {
                "penalty": "exponential",
                "margin": "difference",
                "sharpness": 2.0,
                "dissimilarity": "cosine",
            },
            {"penalty": "logistic", "margin": "deviation"},
        ),
    ),
    "perception_coherence": Case(
        by_torch.perception_coherence,
        FEATURES,
        (
            {"temperature": 0.1},
            {
                "temperature": 0.3,
                "dissimilarity": "euclidean",
                "teacher_temperature": 0.2,
                "scale": "batch",
                "power": 2,
            },
            {
                "temperature": 0.2,
                "weighting": "neighbours",
                "teacher_dissimilarity": "manhattan",
                **REFERENCES,
            },
            {"temperature": 0.2, "ranking": "logistic", "dissimilarity": "angular", "power": 1.5},
            {"temperature": 0.2, "ranking": "permutahedron", "dissimilarity": "correlation"},
        ),
    ),
    "perception_coherence in the teacher's frame": Case(
        by_torch.perception_coherence,
        SAME,
        (
            {"temperature": 0.2, "frame": "teacher", "dissimilarity": "squared_euclidean"},
            {
                "temperature": 0.2,
                "frame": "teacher",
                "dissimilarity": "cosine",
                "weighting": "neighbours",
            },
        ),
    ),
    "spearman": Case(
        by_torch.spearman,
        FEATURES,
        (
            {"temperature": 0.2},
            {"temperature": 0.3, "dissimilarity": "euclidean", "ranking": "logistic"},
        ),
    ),
    "info_nce": Case(
        by_torch.info_nce,
        SAME,
        (
            {"temperature": 0.3, "teacher_gradient": True},
            queue_of(D),
            {"symmetric": False} | queue_of(D),
        ),
    ),
    "relational_representation": Case(
        by_torch.relational_representation,
        SAME,
        (queue_of(D), queue_of(D) | {"temperature": 0.3, "teacher_temperature": 0.5}),
    ),
    "similarity_kl": Case(
        by_torch.similarity_kl, SAME, (queue_of(D), {"temperature": 0.3} | queue_of(D))
    ),
    "similarity_kl of pairs": Case(
        by_torch.similarity_kl, FEATURES, ({"temperature": 0.2} | queue_of(5, 7),)
    ),
    "bingo": Case(
        by_torch.bingo,
        SAME,
        (
            {"share": 0.3} | BAG | queue_of(D),
            {"share": np.linspace(0, 1, N), "own": 0.8, "temperature": 0.5} | BAG | queue_of(D),
        ),
    ),
    "crd": Case(
        by_torch.crd,
        SAME,
        (
            {"memory": FRESH, "temperature": 0.3} | DRAWN,
            {"memory": STARTED, "teacher_gradient": True} | DRAWN,
        ),
    ),
}
NO_LOSS = {
    "LOSSES": "the registry",
    "Queue": "a memory",
    "CRDMemory": "a memory",
    "empty_queue": "makes one",
    "crd_memory": "makes one",
    "enqueue": "writes into one",
    "crd_update": "writes into one",
    "valid": "reads one",
}


def drawn_features(rng, shapes, badly_scaled):
    """Draw a student that resembles the teacher where the shapes agree, and the teacher."""
    teacher = rng.normal(size=shapes[1])
    student = rng.normal(size=shapes[0]) + (teacher if shapes[0] == shapes[1] else 0)
    if not badly_scaled:
        return student, teacher
    return 3 + student * np.logspace(-1, 1, shapes[0][-1]), teacher * np.logspace(
        1.5, -1.5, shapes[1][-1]
    ) - 2


def tensors(given):
    if isinstance(given, np.ndarray):
        return torch.tensor(given)
    return tuple(tensors(x) for x in given) if type(given) is tuple else given


@pytest.mark.parametrize(
    ("name", "setting"),
    [(name, i) for name, case in CASES.items() for i in range(len(case.settings))],
)
def test_value_and_gradient_are_those_of_pytorch(name, setting, rng, x64):
    case, given = CASES[name], CASES[name].settings[setting]
    loss = getattr(losses, name.split()[0])
    moved = (0, 1) if given.get("teacher_gradient") else (0,)

    def result(student, teacher):
        both = (student,) if name == "cross_entropy" else (student, teacher)
        return loss(*both, **given)

    evaluate = jax.jit(jax.value_and_grad(result, moved))
    for badly_scaled in (False, True):
        if badly_scaled and name == "proto2proto":  # its threshold is one for all scales
            continue
        arrays = drawn_features(rng, case.shapes, badly_scaled)
        value, gradients = evaluate(*arrays)
        both = [torch.tensor(x, requires_grad=i in moved) for i, x in enumerate(arrays)]
        expected = case.function(*both, **{key: tensors(x) for key, x in given.items()})
        expected_gradients = torch.autograd.grad(expected, [both[i] for i in moved])
        assert expected.dtype == torch.float64
        assert float(value) == pytest.approx(expected.item(), rel=1e-9, abs=1e-12), badly_scaled
        for gradient, wanted in zip(gradients, expected_gradients, strict=True):
            size = wanted.abs().max().item()
            assert size > 1e-9
            assert np.abs(np.asarray(gradient) - wanted.numpy()).max() <= 1e-8 * size, badly_scaled


def test_every_loss_is_there():
    assert {name.split()[0] for name in CASES} | NO_LOSS.keys() == set(losses.__all__)
