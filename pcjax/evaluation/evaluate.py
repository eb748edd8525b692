"""Evaluate frozen models: on test examples, unseen classes, other data and corrupted images."""

import functools
import inspect
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pcjax import config, data
from pcjax._checks import FailedError, RequestError
from pcjax.data import CORRUPTIONS, SEVERITIES, Dataset, Examples
from pcjax.data.sources import find_source
from pcjax.data.tokens import tokenised
from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.evaluation.pairs import Pairs, load_pairs
from pcjax.metrics._ranks import row_ranks
from pcjax.metrics.registry import Context, RatedPairs, all_metrics, sampled
from pcjax.teachers import Teacher
from pcjax.training.embedding import FrozenModel, embed, features_of_all

MIN_EXAMPLES = 4  # that coherence can be estimated from
MAX_CORRUPTED = 10_000  # test examples
MAX_SCORED = 1_000  # validation examples


class NotFiniteError(FailedError):
    """A model diverged: its features are not finite."""


class Evaluated(NamedTuple):
    """The metrics of models, as result.json has them, and the features they were computed from."""

    results: dict[str, dict[str, Any]]
    embeddings: dict[str, Mapping[str, np.ndarray]]


def known_labels(examples: Examples) -> np.ndarray | None:
    """Return the labels if every example has one."""
    labels = examples.labels
    return labels if labels is not None and np.all(labels >= 0) else None


def labels_of(dataset: Dataset) -> dict[str, np.ndarray]:
    """Return the labels of the parts in which every example has one."""
    labels = {part: known_labels(examples) for part, examples in dataset.parts.items()}
    return {part: known for part, known in labels.items() if known is not None}


class Other(NamedTuple):
    """More data to evaluate on, besides the test examples; None where there are none."""

    dataset: Dataset | None = None
    pairs: Pairs | None = None


def load_other(section: config.Evaluation, dataset: Dataset, own: config.Data) -> Other:
    """Load the data that evaluation.other and evaluation.pairs name, as the student reads them."""
    pairs = None if section.pairs is None else load_pairs(section.pairs, dataset)
    return Other(_load_other(section, dataset, own), pairs)


def _load_other(section: config.Evaluation, dataset: Dataset, own: config.Data) -> Dataset | None:
    if section.other is None:
        return None
    shape = dataset.train.shape
    square = len(shape) == 3 and shape[0] == shape[1]
    try:
        options = inspect.signature(find_source(section.other)[0].read).parameters
        own_options: dict[str, Any] = {
            "data_dir": section.other_dir or own.data_dir,
            "text_column": own.text_column,
            "label_column": own.label_column,
            "image_labels": own.image_labels,
        }
        # Images of these sources differ in size; those of arrays are resized when they are used.
        if square and section.other.startswith(("tfds:", "images:")):
            own_options["image_size"] = shape[0]
        known: Any = {name: value for name, value in own_options.items() if name in options}
        other = data.load(section.other, validation=own.validation, **known)
        if dataset.vocabulary is not None:
            return tokenised(other, dataset.vocabulary)
        return data.fitted(other, shape)
    except RequestError as error:
        raise RequestError(f"evaluation.other: {error}") from error


def check_evaluation(
    section: config.Evaluation, dataset: Dataset, other: Other | None = None
) -> None:
    """Refuse an evaluation that is impossible, before anything is trained."""
    k, source = section.neighbours, dataset.source
    for part in ("validation", "test"):
        count = len(dataset.parts[part])
        if count < MIN_EXAMPLES:
            raise RequestError(
                f"{source} has {count} {part} examples, {MIN_EXAMPLES} are needed: add examples, "
                "or hold out more."
            )
    for part, most in (("training", len(dataset.train)), ("test", len(dataset.test) - 2)):
        if k > most:
            raise RequestError(
                f"evaluation.neighbours={k}, but the {part} examples of {source} allow {most}: "
                "lower it, or add examples."
            )
    labels = labels_of(dataset)
    if "train" in labels and len(np.unique(labels["train"])) == 1:
        raise RequestError(
            f"All training examples of {source} have one class: leave the labels out."
        )
    if section.corruptions and len(dataset.train.shape) != 3:
        raise RequestError(
            f"evaluation.corruptions needs images, but the examples of {source} have shape "
            f"{dataset.train.shape}; remove it."
        )
    if dataset.unseen is not None:
        count, classes = len(dataset.unseen), len(np.unique(np.asarray(dataset.unseen.labels)))
        least = max(MIN_EXAMPLES, k + 2)
        if count < least or classes < 2:
            raise RequestError(
                f"data.unseen leaves {count} test examples of {classes} classes, at least {least} "
                "of 2 are needed: leave out more classes."
            )
    if other is not None and other.dataset is not None:
        _check_other(k, other.dataset)


def _check_other(k: int, other: Dataset) -> None:
    labels = labels_of(other)
    if "train" in labels and len(np.unique(labels["train"])) < 2:
        raise RequestError(
            f"All training examples of evaluation.other={other.source} have one class."
        )
    if len(other.train) < k:
        raise RequestError(
            f"evaluation.other={other.source} has {len(other.train)} training examples, fewer than "
            f"evaluation.neighbours={k}."
        )
    if len(other.test) < max(MIN_EXAMPLES, k + 2) or not len(other.validation):
        raise RequestError(
            f"evaluation.other={other.source} has too few test or validation examples; hold out "
            "more."
        )


def evaluate(
    models: Mapping[str, FrozenModel],
    teacher: Teacher,
    dataset: Dataset,
    section: config.Evaluation,
    other: Other | None = None,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Evaluated:
    """Evaluate a teacher and models on the test examples.

    Args:
      models: the models by name.
      teacher: evaluated under the name "teacher"; the models are compared with it.
      dataset: the examples.
      section: the settings.
      other: the further data that `section` names.
      known: the results of models that were evaluated before, by name.
    """
    teacher_data = teacher.seen or dataset
    pairs = None if other is None else other.pairs
    results = dict(known or {})
    if "teacher" not in results:
        rated = rated_pairs(teacher.model, pairs, teacher.view, section)
        results["teacher"] = evaluate_features(
            teacher.model, teacher.features, teacher, teacher_data, section, rated
        )
    embeddings: dict[str, Mapping[str, np.ndarray]] = {"teacher": teacher.features}
    for name, model in models.items():
        features = features_of_all(model, dataset, section.batch)
        for part, rows in features.items():
            if not np.isfinite(rows).all():
                raise NotFiniteError(
                    f"The {name}'s {part} features are not finite: lower the learning rate, or "
                    "set training.clip."
                )
        embeddings[name] = features
        if name not in results:
            rated = rated_pairs(model, pairs, lambda texts: texts, section)
            results[name] = evaluate_features(model, features, teacher, dataset, section, rated)
    if other is not None and other.dataset is not None:
        add_other(results, models, teacher, other.dataset, section)
    return Evaluated(results, embeddings)


def evaluate_features(
    model: FrozenModel | None,
    features: Mapping[str, np.ndarray],
    teacher: Teacher,
    dataset: Dataset,
    section: config.Evaluation,
    rated: RatedPairs | None,
) -> dict[str, Any]:
    """Evaluate one model, or features without a model."""
    labels = labels_of(dataset)
    common = {"dissimilarity": section.dissimilarity, "neighbours": section.neighbours}
    more = {"teacher_gallery": teacher.features["train"], "rated": rated}
    results = compute(Context(features, teacher.features["test"], labels, **common, **more))
    results |= {"parameters": None, "flops": None, "bytes": None}
    if model is not None:
        results["parameters"] = model.parameter_count()
        results["flops"] = model.flops(dataset.train)
        results["bytes"] = model.size_bytes()
    if dataset.unseen is not None:
        unseen = {"test": features["unseen"]}
        classes = {"test": np.asarray(dataset.unseen.labels)}
        context = Context(unseen, teacher.features["unseen"], classes, **common)
        counts = {"examples": len(unseen["test"]), "classes": len(np.unique(classes["test"]))}
        results["unseen"] = counts | compute(context)
    if section.corruptions and model is not None:
        results["corruptions"] = corruption_metrics(model, features, teacher, dataset, section)
    return results


def rated_pairs(
    model: FrozenModel | None,
    pairs: Pairs | None,
    view: Callable[[Dataset], Dataset],
    section: config.Evaluation,
) -> RatedPairs | None:
    """Return a model's features of the pairs of texts, where there are both."""
    if model is None or pairs is None:
        return None
    seen = view(pairs.texts)
    features = embed(model, seen.test, seen.normalise, section.batch).features
    left, right = np.split(features, 2)
    return RatedPairs(left, right, pairs.scores)


def compute(context: Context) -> dict[str, Any]:
    """Compute every metric of a representation, as plain numbers."""
    return {name: _plain(spec.function(context)) for name, spec in all_metrics().items()}


def _plain(value: Any) -> Any:
    """Return numbers and estimates as JSON can hold them."""
    if hasattr(value, "_asdict"):
        return {name: float(x) for name, x in value._asdict().items()}
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items()}
    return value if value is None or isinstance(value, int) else float(value)


def add_other(
    results: dict[str, dict[str, Any]],
    models: Mapping[str, FrozenModel],
    teacher: Teacher,
    other: Dataset,
    section: config.Evaluation,
) -> None:
    """Evaluate models on another data set: by its labels, and by the teacher if it is a model."""
    teacher_features = teacher.features_of(other, section.batch)
    everyone = ({"teacher": None} if teacher_features else {}) | dict(models)
    for name, model in everyone.items():
        if "other" in results[name]:
            continue
        parts = teacher_features if model is None else features_of_all(model, other, section.batch)
        metrics = compute(
            Context(
                parts,
                teacher_features.get("test"),
                labels_of(other),
                section.dissimilarity,
                section.neighbours,
                teacher_features.get("train"),
            )
        )
        known = {metric: value for metric, value in metrics.items() if value is not None}
        results[name]["other"] = {other.source: known}


def corruption_metrics(
    model: FrozenModel,
    features: Mapping[str, np.ndarray],
    teacher: Teacher,
    dataset: Dataset,
    section: config.Evaluation,
) -> dict[str, Any]:
    """Evaluate a model on corrupted test images, by corruption and severity.

    The value is k-NN accuracy among the clean training examples. Where labels are missing, it is
    coherence with the teacher, which sees the clean images.
    """
    names = tuple(CORRUPTIONS) if "all" in section.corruptions else section.corruptions
    labels = labels_of(dataset)
    step = sampled(len(dataset.test), MAX_CORRUPTED)
    rows = np.arange(len(dataset.test))[step]
    examples = Examples(dataset.test.store, dataset.test.rows[rows], dataset.test.classes)
    supervised = {"train", "test"} <= labels.keys()

    def value(test: np.ndarray) -> float:
        if not supervised:
            clean = teacher.features["test"][rows]
            return coherence_score(test, clean, section.dissimilarity)
        part_features = {"train": features["train"], "test": test}
        part_labels = {"train": labels["train"], "test": labels["test"][rows]}
        context = Context(part_features, None, part_labels, neighbours=section.neighbours)
        return all_metrics()["knn_accuracy"].function(context)

    results: dict[str, Any] = {"clean": value(features["test"][rows])}
    for name in dict.fromkeys(names):
        severities = {}
        for severity in SEVERITIES:
            corrupted = data.corrupted_examples(examples, name, severity, dataset.train)
            outputs = embed(model, corrupted, dataset.normalise, section.batch)
            severities[str(severity)] = value(outputs.features)
        results[name] = severities | {"mean": statistics.fmean(severities.values())}
    results["mean"] = statistics.fmean(results[name]["mean"] for name in names)
    return results


def coherence_score(
    student: np.ndarray, teacher: np.ndarray | None, dissimilarity: str = "cosine"
) -> float:
    """Compute Spearman's degree of coherence without an interval; NaN where it is undefined.

    It is `pcjax.metrics.coherence(...).spearman.value`, seen from at most 1,000 examples, in NumPy:
    only the dissimilarity is compiled.
    """
    if teacher is None or not np.isfinite(student).all():
        return float("nan")
    rows = sampled(len(student), MAX_SCORED)
    student, teacher = student[rows], teacher[rows]
    n = len(student)
    ranks = []
    for features in (student, teacher):
        d = np.asarray(_jitted(dissimilarity)(features, features))
        others = d[~np.eye(n, dtype=bool)].reshape(n, n - 1)
        centred = row_ranks(others) - n / 2
        ranks.append(centred)
    covariance = (ranks[0] * ranks[1]).mean(axis=1)
    variances = [(x * x).mean(axis=1) for x in ranks]
    both_constant = (variances[0] == 0) & (variances[1] == 0)
    spread = np.sqrt(variances[0] * variances[1])
    degrees = np.divide(covariance, spread, out=both_constant.astype(float), where=spread > 0)
    return float(degrees.mean())


@functools.cache
def _jitted(dissimilarity: str) -> Any:
    return jax.jit(DISSIMILARITIES[dissimilarity])
