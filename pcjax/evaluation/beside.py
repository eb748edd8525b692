"""Evaluate other models beside the student: those that one might use in its place."""

from typing import Any

from pcjax import config
from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation.evaluate import Other, evaluate_features, rated_pairs
from pcjax.evaluation.tables import MODELS
from pcjax.teachers import Encoder, Teacher, load_source, read_source

BESIDE = "beside"  # their name in result.json and comparison.json


def check_beside(section: config.Evaluation, dataset: Dataset) -> None:
    """Refuse models that cannot be read, or that cannot read the examples."""
    for source in section.beside:
        try:
            outputs = read_source(source, dataset)
            if isinstance(outputs, Encoder):
                outputs.check(dataset)
        except RequestError as error:
            raise RequestError(f"evaluation.beside: {error}") from error


def evaluate_beside(
    section: config.Evaluation,
    teacher: Teacher,
    dataset: Dataset,
    other: Other | None,
    display: Display,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of the models that evaluation.beside names, by name.

    Args:
      section: the settings.
      teacher: the models are compared with it, as students are.
      dataset: the examples.
      other: pairs of texts, where the section names some.
      display: shows the progress of what is not in the cache.
    """
    results = {}
    for source in section.beside:
        model = load_source(source, dataset, section.batch, display)
        pairs = None if other is None else other.pairs
        rated = rated_pairs(model.model, pairs, model.view, section)
        name = source if model.encoder is None else model.encoder.name
        if name in results or name in {*MODELS, *MODELS.values()}:
            name = source
        results[name] = evaluate_features(
            model.model, model.features, teacher, model.seen or dataset, section, rated
        )
    return results
