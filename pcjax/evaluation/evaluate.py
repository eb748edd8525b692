"""What representations are worth: the numbers of result.json, and the tables a person sees."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.evaluation.extras import judge_beyond
from pcjax.evaluation.measures import (
    by_labels,
    known_labels,
    labels_of,
    likeness,
    neighbours,
    retrieved,
    votes,
)
from pcjax.metrics import nearest
from pcjax.training.embedding import Frozen, Said, represent_all

LEAST = 4  # examples that coherence can be estimated from
NO_MODEL = {"parameters": None, "flops": None, "bytes": None}  # of features that were given


class NotFiniteError(RequestError):
    """A model that diverged: there is nothing to judge."""


def check_judging(asked: Evaluation, data: Dataset, other: Dataset | None) -> None:
    """Refuses what could not be judged as asked, before anything is trained."""
    k = asked.neighbours
    # Of the others as seen from a test example coherence compares k, and k training examples vote.
    for split, most in (("training", len(data.train)), ("test", len(data.test) - 2)):
        got = f"got evaluation.neighbours {k} for the {split} examples from {data.source}"
        _checks.require(
            k <= most, f"{got}: expected at most {most}; lower it, or give more examples"
        )
    labels = labels_of(data)
    if labels is not None:
        classes = np.unique(labels["train"])
        got = f"got training examples of the one class {classes[0]} from {data.source}"
        _checks.require(
            len(classes) > 1,
            f"{got}: expected at least two; leave the labels out to do without them",
        )
    if asked.corruptions:
        shape, got = data.train.shape, f"got evaluation.corruptions for {data.source}"
        _checks.require(
            len(shape) == 3,
            f"{got}, with examples of shape {shape}: only images have them, leave it out",
        )
        _checks.require(
            labels is not None,
            f"{got}, without the class of every example: leave it out, or give labels",
        )
    if data.unseen is not None:
        n, kinds = len(data.unseen), np.unique(np.asarray(data.unseen.labels))
        got = f"got data.unseen with {n} test examples of {len(kinds)} classes from {data.source}"
        least = max(LEAST, k + 2)
        _checks.require(
            n >= least and len(kinds) > 1,
            f"{got}: expected at least {least} of 2; leave out more classes",
        )
    if other is not None:
        theirs = labels_of(other)
        got = f"got evaluation.other {other.source}"
        if theirs is None:
            raise RequestError(f"{got}, without the class of every example: give one with labels")
        n, kinds = len(other.train), np.unique(theirs["train"])
        _checks.require(
            len(kinds) > 1,
            f"{got}, with training examples of one class only: give one with at least two",
        )
        _checks.require(
            k <= n,
            f"{got} with {n} training examples: expected at least evaluation.neighbours, {k}",
        )
        some = len(other.test) > 0 and len(other.validation) > 0
        _checks.require(
            some, f"{got} with no test or no validation examples: expected both; hold out more"
        )


def judge(
    features: Mapping[str, np.ndarray],
    teacher: Mapping[str, np.ndarray],
    data: Dataset,
    asked: Evaluation,
) -> dict[str, Any]:
    """What features are worth by the test examples' classes, and how like the teacher's they are there."""
    found: dict[str, Any] = dict(by_labels(features, data, asked))
    width = teacher["test"].shape[1]
    found["retrieval"] = retrieved(features["test"], known_labels(data.test), width)
    found |= likeness(features["test"], teacher["test"], asked)
    if data.unseen is not None:
        own, labels = features["unseen"], np.asarray(data.unseen.labels)
        among = nearest(own, own, k=neighbours(asked, own), exclude_self=True)
        found["unseen"] = {
            "examples": len(own),
            "classes": len(np.unique(labels)),
            **votes(among, labels, labels),
            "retrieval": retrieved(own, labels, width),
            **likeness(own, teacher["unseen"], asked),
        }
    return found


def judge_model(
    model: Frozen,
    features: Mapping[str, np.ndarray],
    teacher: Mapping[str, np.ndarray],
    data: Dataset,
    normalise: tuple[np.ndarray, np.ndarray],
    asked: Evaluation,
    other: Dataset | None = None,
) -> dict[str, Any]:
    """The same of a model whose features are known, with its size and what was asked for beyond."""
    size = {
        "parameters": model.parameter_count(),
        "flops": model.flops(data.train.shape),
        "bytes": model.size(),
    }
    return (
        judge(features, teacher, data, asked)
        | size
        | judge_beyond(model, features, data, normalise, asked, other)
    )


def judge_all(
    models: Mapping[str, Frozen],
    teacher: Mapping[str, np.ndarray],
    data: Dataset,
    normalise: tuple[np.ndarray, np.ndarray],
    asked: Evaluation,
    other: Dataset | None = None,
) -> dict[str, Any]:
    """Every model by name, as result.json has them."""
    results: dict[str, Any] = {}
    for name, model in models.items():
        features = features_of(name, represent_all(model, data, normalise, asked.batch))
        results[name] = judge_model(model, features, teacher, data, normalise, asked, other)
    return results


def features_of(name: str, said: Mapping[str, Said]) -> dict[str, np.ndarray]:
    """The features of every part, if they are finite."""
    features = {part: one.features for part, one in said.items()}
    if not all(np.all(np.isfinite(one)) for one in features.values()):
        raise NotFiniteError(
            f"the {name}'s features are not finite: lower the learning rate, or give a clip"
        )
    return features


def versions() -> dict[str, str]:
    """Of what a number may depend on."""
    return {
        name: importlib.metadata.version(name)
        for name in (
            "pcjax",
            "jax",
            "jaxlib",
            "flax",
            "optax",
            "orbax-checkpoint",
            "grain",
            "numpy",
        )
    }
