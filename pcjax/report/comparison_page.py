"""Draw the report of a comparison: how the losses rank, how certainly, and at what cost."""

import json
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcjax import _io
from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.evaluation.summary import (
    COMPARISON,
    DIVERGED,
    DONE,
    MIN_SEEDS,
    RUNS,
    fixed_rows,
    table_columns,
)
from pcjax.evaluation.tables import MODELS
from pcjax.report import charts, formatting
from pcjax.report.charts import Interval
from pcjax.report.page import Markup, details, figure, joined, page, table, tag
from pcjax.report.run_page import Sections, made
from pcjax.report.side_by_side import first_finished, sections_of
from pcjax.run import path_inside
from pcjax.training.metrics_log import VALIDATION, read_metrics

COSTS = {
    "seconds_per_step": ("time a step", 1e3, "ms"),
    "temporary_bytes": ("memory a step", 1e-6, "MB"),
}
LABELS = "class-aware"
REMEDY = "delete it and repeat the comparison's command"

Losses = Mapping[str, Mapping[str, Any]]


def comparison_page(
    folder: pathlib.Path, dataset: Dataset, teacher: np.ndarray, section: Evaluation
) -> str:
    """Return the page of a comparison.

    Args:
      folder: holds comparison.json and the runs.
      dataset: the examples.
      teacher: the teacher's features of the test examples.
      section: the dissimilarity and the number of neighbours.
    """
    comparison = _io.read_signed(folder / COMPARISON, REMEDY)
    losses = comparison["losses"]  # the best first
    metrics = list(dict.fromkeys(m for loss in losses.values() for m in loss["summary"]))
    shown = [metric for metric in table_columns() if metric in metrics]
    costs = [cost for cost in COSTS if any(loss[cost] is not None for loss in losses.values())]
    seeds = max(len(loss["runs"]) for loss in losses.values())
    lead = [
        tag("p", _conclusion(losses, shown, section.dissimilarity), class_="conclusion"),
        tag(
            "p",
            f"{_count(len(losses), 'loss')}, {_count(seeds, 'seed')}. Runs of one seed share their "
            "initial weights, batches and number of steps. Made by ",
            tag("code", "pcjax compare"),
            f" {made(comparison)}",
        ),
        *_diverged(losses),
        details("The whole config", json.dumps(comparison["config"], indent=1)),
    ]
    drawn = [_intervals(comparison, metric, place) for place, metric in enumerate(shown)]
    results = [_table(comparison, shown, costs), _all_numbers(losses, metrics)]
    sections: Sections = [
        ("Results", results),
        ("Means and intervals", [tag("p", _how(losses)), tag("div", *drawn, class_="panels")]),
        ("Differences to the best", _paired(losses, shown)),
        ("Time and memory", _costs(losses, costs)),
        ("Training", _training(folder, losses)),
        *sections_of(folder, losses, dataset, teacher, section),
    ]
    return page(f"{folder.resolve().name}: report of pcjax compare", lead, sections)


def _conclusion(losses: Losses, metrics: Sequence[str], dissimilarity: str) -> str:
    """State which loss is best in each metric."""
    sentences = []
    for metric in metrics:
        best, mean = _best(losses, metric)
        sentences.append(f"by {_title(metric)}: {best} ({formatting.number(mean, _unit(metric))})")
    if not sentences:
        return "No run is finished."
    return f"Best {'; '.join(sentences)}. Coherence uses the {dissimilarity} dissimilarity."


def _best(losses: Losses, metric: str) -> tuple[str, float]:
    """Return the loss with the highest mean, and the mean."""
    means = {
        name: loss["summary"][metric]["mean"]
        for name, loss in losses.items()
        if metric in loss["summary"]
    }
    best = max(means, key=lambda name: means[name])
    return best, means[best]


def _count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def _interval(estimate: Mapping[str, Any], scale: float, *, ring: bool) -> Interval:
    low, high = (
        None if estimate[end] is None else scale * estimate[end] for end in ("low", "high")
    )
    return Interval(scale * estimate["mean"], low, high, ring)


def _failed(loss: Mapping[str, Any]) -> list[str]:
    """Return the seeds of the diverged runs."""
    return [seed for seed, run in loss["runs"].items() if run["status"] == DIVERGED]


def _diverged(losses: Losses) -> list[Markup]:
    seeds = {label: failed for label, loss in losses.items() if (failed := _failed(loss))}
    if not seeds:
        return []
    names = [
        f"{label} (seed{'s' if len(failed) > 1 else ''} {', '.join(failed)})"
        for label, failed in seeds.items()
    ]
    rest = f": {'; '.join(names)}. Means are over the other runs."
    return [tag("p", tag("span", "Some runs diverged", class_="word"), rest)]


def _aware(losses: Losses) -> bool:
    """Return whether any loss uses labels."""
    return any(loss["labelled"] for loss in losses.values())


def _name(label: str, loss: Mapping[str, Any]) -> Markup:
    """Return a loss's name, with a note if it uses labels or diverged."""
    notes = [LABELS] if loss["labelled"] else []
    notes += [f"{len(_failed(loss))} of {len(loss['runs'])} diverged"] if _failed(loss) else []
    return joined([label, *([tag("br"), tag("small", ", ".join(notes))] if notes else [])])


def _link(content: str, label: str, seed: str) -> Markup:
    """Link to the report of a run."""
    return tag("a", content, href=f"{RUNS}/{label}/{seed}/report.html")


def _number(metric: str, estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    return formatting.interval(estimate["mean"], estimate["low"], estimate["high"], _unit(metric))


def _table(comparison: Mapping[str, Any], metrics: Sequence[str], costs: Sequence[str]) -> Markup:
    losses, rows = comparison["losses"], []
    for label, loss in losses.items():
        values = [_number(metric, loss["summary"].get(metric)) for metric in metrics]
        amounts = [_amount(cost, loss[cost]) for cost in costs]
        seed = first_finished(loss)
        name = _name(label, loss)
        rows.append([name if seed is None else _link(name, label, seed), *values, *amounts])
    for name, values in fixed_rows(comparison).items():
        cells = [_number(metric, values.get(metric)) for metric in metrics]
        rows.append([MODELS.get(name, name), *cells, *[""] * len(costs)])
    primary = comparison["primary"]
    by = f", the best by {_title(primary)} first" if primary is not None else ""
    aware = f" “{LABELS}” marks losses that use labels." if _aware(losses) else ""
    caption = (
        f"Students on the test examples{by}. The values are means over the seeds; from "
        f"{MIN_SEEDS} seeds on, 95 % intervals stand below them. A name links to the report of the "
        f"first finished run.{aware}"
    )
    titles = [COSTS[cost][0] for cost in costs]
    return table(caption, ["loss", *map(_title, metrics), *titles], rows)


def _title(metric: str) -> str:
    return formatting.title_and_unit(metric)[0]


def _unit(metric: str) -> str:
    return formatting.title_and_unit(metric)[1]


def _scale(metric: str) -> float:
    return 100.0 if _unit(metric) == "share" else 1.0


def _all_numbers(losses: Losses, metrics: Sequence[str]) -> Markup:
    """Return a folded table of all metrics by run, with links to the runs' reports."""
    rows = []
    for label, loss in losses.items():
        for seed, run in loss["runs"].items():
            values = [formatting.number(run["metrics"].get(m), _unit(m)) for m in metrics]
            name = f"{label}, seed {seed}"
            done = run["status"] == DONE
            rows.append([_link(name, label, seed) if done else name, run["status"], *values])
    caption = "All metrics of every run. A name links to the run's report."
    whole = table(caption, ["run", "status", *map(_title, metrics)], rows)
    return tag("details", tag("summary", "Every run"), whole)


def _how(losses: Losses) -> str:
    """Explain the charts of means."""
    rings = f" A ring and “{LABELS}” mark a loss that uses labels." if _aware(losses) else ""
    return (
        "A dot is the mean over the seeds, its line the 95 % interval. Farther right is better. A "
        "dotted line marks the student before training, a dashed line the teacher. Lines that are "
        f"too far away are not drawn.{rings}"
    )


def _intervals(comparison: Mapping[str, Any], metric: str, place: int) -> Markup:
    scale, losses = _scale(metric), comparison["losses"]
    known = {label: loss for label, loss in losses.items() if metric in loss["summary"]}
    shown = {
        _plain(label, loss): _interval(loss["summary"][metric], scale, ring=loss["labelled"])
        for label, loss in known.items()
    }
    best, mean = _best(losses, metric)
    values = {f"Best: {best}": mean}
    lines = {}
    if metric in comparison["untrained"]:
        before = comparison["untrained"][metric]["mean"]
        values["Student before training"] = before
        lines[":"] = scale * before
    if metric in comparison["teacher"]:
        values["Teacher"] = comparison["teacher"][metric]
        lines["--"] = scale * values["Teacher"]
    title = f"{_title(metric)}{' in %' if scale == 100 else ''}"
    alternative = (
        f"{title}, means with intervals of {len(shown)} losses; the highest mean, {best}: "
        f"{scale * mean:.4g}."
    )
    drawn = charts.intervals(f"intervals-{place}", title, shown, alternative, lines=lines)
    texts = [f"{name}, {formatting.number(x, _unit(metric))}." for name, x in values.items()]
    return figure(drawn, " ".join(texts))


def _plain(label: str, loss: Mapping[str, Any]) -> str:
    return f"{label}\n({LABELS})" if loss["labelled"] else label


def _paired(losses: Losses, metrics: Sequence[str]) -> list[Markup]:
    """Draw each loss's difference to the best loss."""
    drawn, rows = [], []
    for place, metric in enumerate(metrics):
        known = {label: loss for label, loss in losses.items() if metric in loss["paired"]}
        if not known:
            continue
        scale = _scale(metric)
        best = next(iter(known.values()))["paired"][metric]["to"]
        differences = {
            label: _interval(loss["paired"][metric], scale, ring=loss["labelled"])
            for label, loss in known.items()
        }
        shown = {_plain(label, known[label]): value for label, value in differences.items()}
        highs = [value.high for value in shown.values() if value.high is not None]
        lower = sum(high < 0 for high in highs)
        count = (
            f"{lower} of {_count(len(shown), 'loss')} {'is' if lower == 1 else 'are'} clearly lower"
        )
        title = f"{_title(metric)}{' in points' if scale == 100 else ''}"
        summary = f"to {best}: {count if highs else 'too few seeds for an interval'}."
        alternative = f"Differences in {title} {summary}"
        chart = charts.intervals(f"paired-{place}", title, shown, alternative, zero=True)
        drawn.append(figure(chart, f"Difference {summary}"))
        rows += [
            [label, _title(metric), best, _difference(value)]
            for label, value in differences.items()
        ]
    if not drawn:
        return [tag("p", "There are no two losses with a finished run of the same seed.")]
    how = (
        "Each run is compared with the best loss's run of the same seed, which has the same "
        "initial weights and batches. A difference is clear if its interval does not reach 0. "
        "With many losses, a few clear differences are chance."
    )
    caption = "Differences as numbers; those of accuracies are percentage points."
    written = table(caption, ["loss", "metric", "best", "difference"], rows)
    return [
        tag("p", how),
        tag("div", *drawn, class_="panels"),
        tag("details", tag("summary", "As a table"), written),
    ]


def _difference(interval: Interval) -> Markup:
    if interval.low is None:
        return joined([f"{interval.mean:+.3f}"])
    return joined(
        [
            f"{interval.mean:+.3f}",
            tag("br"),
            tag("small", f"{interval.low:+.3f} to {interval.high:+.3f}"),
        ]
    )


def _amount(cost: str, value: int | float | None) -> str:
    _, scale, unit = COSTS[cost]
    return "" if value is None else f"{scale * value:.3g} {unit}"


def _costs(losses: Losses, costs: Sequence[str]) -> list[Markup]:
    """Draw time and memory of a step."""
    if not costs:
        return [tag("p", "Neither time nor memory was measured.")]
    drawn = []
    for cost in costs:
        title, scale, unit = COSTS[cost]
        known = {label: loss[cost] for label, loss in losses.items() if loss[cost] is not None}
        most = max(known, key=lambda label: known[label])
        alternative = (
            f"Bars of {title} in {unit} for {len(known)} losses; the most: {most}, "
            f"{_amount(cost, known[most])}."
        )
        values = {label: scale * value for label, value in known.items()}
        chart = charts.bars(f"cost-{cost}", f"{title} in {unit}", values, alternative)
        drawn.append(figure(chart, "Median over the runs. Less is better."))
    return [tag("div", *drawn, class_="panels")]


def _training(folder: pathlib.Path, losses: Losses) -> list[Markup]:
    """Draw the validation coherence of all runs in a small panel for each loss."""
    name = f"{VALIDATION}coherence"
    curves: dict[str, list[charts.Curve]] = {}
    for label, loss in losses.items():
        folders = [path_inside(folder, RUNS, label, seed) for seed in loss["runs"]]
        own = [charts.curve_of(read_metrics(path), name).thinned() for path in folders]
        curves[label] = [curve for curve in own if len(curve.steps)]
    everything = [curve for own in curves.values() for curve in own]
    finite = [float(x) for curve in everything for x in curve.values if math.isfinite(x)]
    if not finite:
        return [tag("p", "No run has validation coherence in its metrics.")]
    margin = 0.05 * max(max(finite) - min(finite), 1e-3)
    limits = min(finite) - margin, max(finite) + margin
    drawings = []
    for place, (label, own) in enumerate(curves.items()):
        last = [float(c.values[-1]) for c in own if math.isfinite(c.values[-1])]
        end = f"at the end {statistics.fmean(last):.3f}" if last else "not finite at the end"
        alternative = f"{label}: curves of validation coherence, {end}."
        drawn = charts.against_all(f"course-{place}", own, everything, limits, alternative)
        drawings.append(tag("div", tag("p", label), drawn))
    text = (
        "Coherence with the teacher on the validation examples, by step. Each panel shows the runs "
        "of one loss in colour and all others in grey."
    )
    if _aware(losses):
        text += " A loss that uses labels may reach high accuracy and low coherence."
    return [figure(tag("div", *drawings, class_="small panels"), text)]
