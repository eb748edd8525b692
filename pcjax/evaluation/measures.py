"""The numbers that features alone have: what the labels' classes say of them, and how like a teacher's they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcjax import metrics
from pcjax.config import Evaluation
from pcjax.data import Dataset, Examples
from pcjax.data.examples import SPLITS

PROBED = 50_000  # at most so many examples are given to the linear probe
COMPARED = 10_000  # and to coherence
RETRIEVED = 5_000  # and to retrieval, whose gallery the test examples themselves are
DEGREES = ("footrule", "spearman", "kendall", "neighbours")
RECALLS = (1, 5)


def known_labels(examples: Examples) -> np.ndarray | None:
    """The examples' classes, if every one has a class."""
    labels = examples.labels
    return labels if labels is not None and np.all(labels >= 0) else None


def labels_of(data: Dataset) -> dict[str, np.ndarray] | None:
    """The classes of all splits, if every example has one."""
    known = {
        split: labels
        for split in SPLITS
        if (labels := known_labels(getattr(data, split))) is not None
    }
    return known if len(known) == len(SPLITS) else None


def neighbours(asked: Evaluation, features: np.ndarray) -> int:
    """How many neighbours there are to compare, at most as many as asked for."""
    return max(1, min(asked.neighbours, len(features) - 2))


def by_labels(
    features: Mapping[str, np.ndarray], data: Dataset, asked: Evaluation
) -> dict[str, float | None]:
    """k-NN and linear-probe accuracy of the test examples; what has no labels has none."""
    labels = labels_of(data)
    if labels is None:
        return {"knn_accuracy": None, "knn_majority_accuracy": None, "linear_probe_accuracy": None}
    found = metrics.nearest(
        features["test"], features["train"], k=min(asked.neighbours, len(features["train"]))
    )
    probed = slice(None, None, -(-len(features["train"]) // PROBED))
    probe = metrics.linear_probe(
        features["train"][probed],
        labels["train"][probed],
        features["test"],
        labels["test"],
        validation=(features["validation"], labels["validation"]),
    )
    said = {} if probe.converged else {"linear_probe_converged": False}
    return {
        **votes(found, labels["train"], labels["test"]),
        "linear_probe_accuracy": probe.accuracy,
        **said,
    }


def votes(
    found: metrics.Neighbours, gallery_labels: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """How often the neighbours vote for the true class, by their similarity and one vote each."""
    names = {"knn_accuracy": "cosine", "knn_majority_accuracy": "majority"}
    return {
        name: float(
            np.mean(np.asarray(metrics.vote(found, gallery_labels, weighting=weighting)) == labels)
        )
        for name, weighting in names.items()
    }


def retrieved(
    features: np.ndarray, labels: np.ndarray | None, width: int = 0
) -> dict[str, float] | None:
    """How well these examples find the others of their class; None if that is no question."""
    some = slice(None, None, -(-len(features) // RETRIEVED))
    if labels is None or len(np.unique(labels[some])) in (1, len(labels[some])):
        return None
    ks = tuple(k for k in RECALLS if k < len(labels[some]))
    found = metrics.retrieval(widened(features[some], width), labels[some], ks=ks)
    recalls = {f"recall_at_{k}": float(found.recall_at[k]) for k in ks}
    return recalls | {
        name: float(getattr(found, name)) for name in ("mean_average_precision", "r_precision")
    }


def likeness(features: np.ndarray, teacher: np.ndarray, asked: Evaluation) -> dict[str, Any]:
    """Coherence with the teacher, and linear CKA."""
    some = slice(None, None, -(-len(features) // COMPARED))
    own, theirs = widened(features[some], teacher.shape[1]), teacher[some]
    coherence = metrics.coherence(own, theirs, k=neighbours(asked, own))
    degrees = {
        name: {
            part: float(getattr(getattr(coherence, name), part))
            for part in ("value", "low", "high")
        }
        for name in DEGREES
    }
    return {"coherence": degrees, "linear_cka": float(metrics.linear_cka(own, theirs))}


def widened(features: np.ndarray, width: int) -> np.ndarray:
    """With zeros beside them, which change no distance and no angle: what is as wide is compiled only once."""
    return np.pad(features, ((0, 0), (0, max(0, width - features.shape[1]))))
