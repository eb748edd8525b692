"""What representations are worth: the numbers of result.json, and the table a person sees."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Evaluation
from pcjax.data import Dataset, Examples
from pcjax.jobs.represent import SPLITS, Frozen, Said, represent_all
from pcjax.training.display import Display

PROBED = 50_000  # at most so many examples are given to the linear probe, and to coherence a fifth of it
DEGREES = ("footrule", "spearman", "kendall", "neighbours")


class NotFiniteError(RequestError):
    """A model that diverged: there is nothing to judge."""


def judge(
    features: Mapping[str, np.ndarray], teacher: Mapping[str, np.ndarray], data: Dataset, asked: Evaluation
) -> dict[str, Any]:
    """k-NN and linear-probe accuracy on the test examples, and coherence with the teacher there."""
    found: dict[str, Any] = {"knn_accuracy": None, "linear_probe_accuracy": None}
    labels = {split: known for split in SPLITS if (known := known_labels(getattr(data, split))) is not None}
    if len(labels) == len(SPLITS):
        k = min(asked.neighbours, len(features["train"]))
        found["knn_accuracy"] = float(
            metrics.knn_accuracy(features["test"], labels["test"], features["train"], labels["train"], k=k)
        )
        probed = slice(None, None, -(-len(features["train"]) // PROBED))
        found["linear_probe_accuracy"] = float(
            metrics.linear_probe(
                features["train"][probed],
                labels["train"][probed],
                features["test"],
                labels["test"],
                validation=(features["validation"], labels["validation"]),
            ).accuracy
        )
    compared = slice(None, None, -(-len(features["test"]) // (PROBED // 5)))
    coherence = metrics.coherence(
        features["test"][compared], teacher["test"][compared], k=neighbours(asked, features["test"][compared])
    )
    found["coherence"] = {
        name: {part: float(getattr(getattr(coherence, name), part)) for part in ("value", "low", "high")}
        for name in DEGREES
    }
    return found


def known_labels(examples: Examples) -> np.ndarray | None:
    """The examples' classes, if every one has a class."""
    labels = examples.labels
    return labels if labels is not None and np.all(labels >= 0) else None


def neighbours(asked: Evaluation, features: np.ndarray) -> int:
    """How many neighbours there are to compare, at most as many as asked for."""
    return max(1, min(asked.neighbours, len(features) - 2))


def judge_all(
    models: Mapping[str, Frozen],
    teacher: Mapping[str, np.ndarray],
    data: Dataset,
    normalise: tuple[np.ndarray, np.ndarray],
    asked: Evaluation,
) -> dict[str, Any]:
    """Every model by name, as result.json has them."""
    results: dict[str, Any] = {}
    for name, model in models.items():
        said: Mapping[str, Said] = represent_all(model, data, normalise, asked.batch)
        features = {split: one.features for split, one in said.items()}
        if not all(np.all(np.isfinite(one)) for one in features.values()):
            raise NotFiniteError(f"the {name}'s features are not finite: lower the learning rate, or give a clip")
        results[name] = judge(features, teacher, data, asked) | {
            "parameters": model.parameter_count(),
            "flops": model.flops(data.train.shape),
        }
    return results


def versions() -> dict[str, str]:
    """Of what a number may depend on."""
    return {name: importlib.metadata.version(name) for name in ("pcjax", "jax", "jaxlib", "flax")}


def show(results: Mapping[str, Any], display: Display) -> None:
    """The table."""
    names = [name for name in ("teacher", "untrained", "student") if name in results]
    titles = {"teacher": "teacher", "untrained": "student before", "student": "student after"}

    def percent(value: float | None) -> str:
        return "no labels" if value is None else f"{100 * value:.1f} %"

    rows = [
        ["parameters", *(f"{results[name]['parameters']:,}" for name in names)],
        ["FLOPs an example", *(f"{results[name]['flops']:,}" for name in names)],
        ["k-NN accuracy", *(percent(results[name]["knn_accuracy"]) for name in names)],
        ["linear probe", *(percent(results[name]["linear_probe_accuracy"]) for name in names)],
    ]
    for degree in DEGREES:
        cells = []
        for name in names:
            found = results[name]["coherence"][degree]
            cells.append(f"{found['value']:.3f} ± {(found['high'] - found['low']) / 2:.3f}")
        rows.append([f"coherence: {degree}", *cells])
    display.table("on the test examples (95 % intervals)", ["", *(titles[name] for name in names)], rows)
