"""Draw the report of a run: results, training, and how the models see the examples."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.evaluation.tables import MODELS
from pcjax.report import charts, embedding_math, formatting, panels
from pcjax.report.neighbours import rows_of
from pcjax.report.page import Markup, details, figure, page, table, tag, terms
from pcjax.training.metrics_log import METRICS, VALIDATION

WORST, MIDDLE, BEST, NEIGHBOURS = 6, 3, 3, 6  # rows of pictures, and pictures in each
NOT_LOSSES = ("step", "steps_per_second", "gradient_norm", "skipped", "skipped_examples")

Sections = list[tuple[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class ReportInput:
    """Everything that a run's report shows.

    job: "distill" or "teach".
    described: the config in words, by section.
    stored: the whole config, as JSON.
    evaluation: how the models were evaluated.
    result: result.json.
    dataset: the examples.
    embeddings: features by model ("teacher", "untrained", "student") and part.
    metrics: the lines of metrics.jsonl by model.
    folder: the run's folder, which names the page.
    """

    job: str
    described: Mapping[str, str]
    stored: Mapping[str, Any]
    evaluation: Evaluation
    result: Mapping[str, Any]
    dataset: Dataset
    embeddings: Mapping[str, Mapping[str, np.ndarray]]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    folder: pathlib.Path


def run_page(run: ReportInput) -> str:
    """Return the page of a finished run."""
    dissimilarity = run.evaluation.dissimilarity
    stored = {"job": run.job, "config": run.stored}
    lead = [
        tag("p", formatting.conclusion(run.result, dissimilarity), class_="conclusion"),
        tag("p", "Made by ", tag("code", f"pcjax {run.job}"), f" {made(run.result)}"),
        terms(run.described),
        details("The whole config", json.dumps(stored, indent=1)),
    ]
    results = [tag("div", *_results(run)), tag("div", tag("h3", "Training"), *_training(run))]
    sections: Sections = [("Results", [tag("div", *results, class_="beside")])]
    sections += _distilled(run) if "student" in run.embeddings else _taught(run)
    return page(f"{run.folder.resolve().name}: report of pcjax {run.job}", lead, sections)


def made(result: Mapping[str, Any]) -> str:
    """Describe how long a run took, its versions and today's date."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lengths = [f"{value:,} {name}" for name in ("steps", "seconds") if (value := result.get(name))]
    took = f"in {' and '.join(lengths)}, " if lengths else ""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return f"{took}with {versions}. Drawn on {today}."


def _results(run: ReportInput) -> list[str]:
    columns, rows = formatting.result_table(run.result)
    dissimilarity = run.evaluation.dissimilarity
    caption = (
        f"Measured on {len(run.dataset.test):,} test examples, which no training or selection "
        f"uses. Coherence and retrieval use the {dissimilarity} dissimilarity. Below a value "
        "stands its 95 % interval."
    )
    return [table(caption, columns, rows), details("result.json", json.dumps(run.result, indent=1))]


def _training(run: ReportInput) -> list[str]:
    drawn = [curve for name, records in run.metrics.items() for curve in _curves(name, records)]
    if not drawn:
        return [tag("p", f"There is no {METRICS}.")]
    return [tag("div", *drawn, class_="panels")]


def _curves(model: str, records: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Draw losses and validation metrics by step."""
    names = list(dict.fromkeys(name for record in records for name in record))
    losses = [n for n in names if n not in NOT_LOSSES and not n.startswith(VALIDATION)]
    losses = losses[:1] if len(losses) == 2 else losses  # one loss is the sum itself
    figures = []
    curves = {name: charts.curve_of(records, name) for name in losses}
    if curves:
        courses = "; ".join(f"{name} {_course(curve)}" for name, curve in curves.items())
        several = " The loss is the weighted sum of the others." if len(curves) > 1 else ""
        text = f"Each point is a mean over the steps since the previous point.{several}"
        alternative = f"Curve of the {model}'s loss over the steps: {courses}."
        drawn = charts.curves(f"loss-{model}", f"{model}: loss", curves, alternative)
        figures.append(figure(drawn, text))
    validated = [n for n in names if n.startswith(VALIDATION) and n != f"{VALIDATION}score"]
    for place, name in enumerate(validated):
        curve = charts.curve_of(records, name)
        title = name.removeprefix(VALIDATION).replace("_", " ")
        alternative = f"Curve of the {model}'s validation {title} over the steps: {_course(curve)}."
        drawn = charts.curves(
            f"validation-{place}-{model}", f"{model}: {title}", {title: curve}, alternative
        )
        figures.append(figure(drawn, f"{title.capitalize()} on the validation examples."))
    skipped = [record["skipped"] for record in records if record.get("skipped")]
    if skipped:
        text = f"The {model} skipped {skipped[-1]:.0f} steps that were not finite."
        figures.append(tag("p", text))
    return figures


def _course(curve: charts.Curve) -> str:
    finite = curve.values[np.isfinite(curve.values)]
    if not len(finite):
        return "never finite"
    return (
        f"from {finite[0]:.3g} to {finite[-1]:.3g}, lowest {finite.min():.3g}, "
        f"highest {finite.max():.3g}"
    )


def _taught(run: ReportInput) -> Sections:
    features = run.embeddings["teacher"]
    places = embedding_math.sample(len(features["test"]))
    test = panels.sampled(run.dataset.test, places)
    return [
        ("Map", panels.maps({"teacher": features["test"][places]}, test)),
        *_confusions(run, ["teacher"]),
    ]


def _distilled(run: ReportInput) -> Sections:
    dissimilarity = run.evaluation.dissimilarity
    places = embedding_math.sample(len(run.dataset.test))
    test = panels.sampled(run.dataset.test, places)
    spaces = {}
    for name, title in MODELS.items():
        features = run.embeddings[name]["test"][places]
        spaces[title] = panels.Space(features, embedding_math.ranks(features, dissimilarity))
    teacher, student = (spaces[MODELS[name]].ranks for name in ("teacher", "student"))
    k = min(NEIGHBOURS, len(places) - 1)
    near = {
        "the teacher": embedding_math.nearest(teacher, k),
        "the student": embedding_math.nearest(student, k),
    }
    coherence = {"the student": embedding_math.correlations(teacher, student)}
    chosen = embedding_math.telling(coherence["the student"], WORST, MIDDLE, BEST)
    return [
        ("Coherence", panels.coherence(spaces)),
        ("Maps", panels.maps({title: s.features for title, s in spaces.items()}, test)),
        ("Neighbours", rows_of(test, places, chosen, coherence, near)),
        *_confusions(run, ["teacher", "student"]),
    ]


def _confusions(run: ReportInput, names: Sequence[str]) -> Sections:
    features = {MODELS[name]: run.embeddings[name] for name in names}
    drawn = panels.confusions(
        run.dataset.train, run.dataset.test, features, run.evaluation.neighbours
    )
    return [("Confusion", drawn)] if drawn else []
