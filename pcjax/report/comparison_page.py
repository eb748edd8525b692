"""The report of a comparison: the losses' ranks, their certainty and their costs."""

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
from pcjax.evaluation.summary import COMPARISON, DIVERGED, table_columns
from pcjax.report import charts, formatting
from pcjax.report.charts import Interval
from pcjax.report.page import Markup, details, figure, joined, page, table, tag
from pcjax.report.run_page import Sections, made
from pcjax.report.side_by_side import RUNS, sections_of
from pcjax.run import path_inside
from pcjax.training.metrics_log import VALIDATION, read_metrics

COSTS = {
    "seconds_per_step": ("time a step", 1e3, "ms"),
    "temporary_bytes": ("memory a step", 1e-6, "MB"),
}
LABELS = "class-aware"
REMEDY = "delete it and repeat the comparison's command"


def comparison_page(
    folder: pathlib.Path, dataset: Dataset, teacher: np.ndarray, section: Evaluation
) -> str:
    """Return the page of a comparison.

    Args:
      folder: holds comparison.json and the runs.
      dataset: the examples.
      teacher: its features of the test examples.
      section: the dissimilarity and the number of neighbours.
    """
    comparison = _io.read_signed(folder / COMPARISON, REMEDY)
    losses = comparison["losses"]  # the best first
    order = list(losses)
    metrics = list(dict.fromkeys(m for loss in losses.values() for m in loss["summary"]))
    shown = [metric for metric in table_columns() if metric in metrics]
    seeds = max(len(loss["runs"]) for loss in losses.values())
    lead = [
        tag("p", _conclusion(comparison, section.dissimilarity), class_="conclusion"),
        tag(
            "p",
            f"{len(losses)} losses, each trained from {seeds} seeds with the same initial weights, "
            "order of the data and number of steps. Made by ",
            tag("code", "pcjax compare"),
            f" {made(comparison)}",
        ),
        *_diverged(losses, order),
        details("The whole config", json.dumps(comparison["config"], indent=1)),
    ]
    costs = [_cost(cost, losses, order) for cost in COSTS]
    drawn = [_intervals(comparison, order, metric, place) for place, metric in enumerate(shown)]
    sections: Sections = [
        ("Results", [_table(comparison, order, shown), *_all_numbers(comparison, order, metrics)]),
        ("Means and intervals", [tag("div", *drawn, class_="panels")]),
        ("Differences to the best", _paired(losses, order, shown)),
        (
            "Time and memory",
            [tag("div", *(cost for cost in costs if cost), class_="panels"), *_unknown(costs)],
        ),
        ("Training", _training(folder, losses, order)),
        *sections_of(folder, losses, dataset, teacher, section),
    ]
    return page(f"{folder.resolve().name}: report of pcjax compare", lead, sections)


def _conclusion(comparison: Mapping[str, Any], dissimilarity: str) -> str:
    """State which loss is best in each metric."""
    sentences = []
    for metric in table_columns():
        means = {
            name: loss["summary"][metric]["mean"]
            for name, loss in comparison["losses"].items()
            if metric in loss["summary"]
        }
        if means:
            best = max(means, key=lambda name: means[name])
            title, unit = formatting.title_and_unit(metric)
            sentences.append(f"{title}: {best} ({formatting.number(means[best], unit)})")
    return (
        f"Best by {'; by '.join(sentences)}. Coherence is that of {dissimilarity} dissimilarities."
    )


def _interval(estimate: Mapping[str, Any], scale: float) -> Interval:
    low, high = (
        None if estimate[end] is None else scale * estimate[end] for end in ("low", "high")
    )
    return Interval(scale * estimate["mean"], low, high)


def _fails(loss: Mapping[str, Any]) -> list[str]:
    return [seed for seed, run in loss["runs"].items() if run["status"] == DIVERGED]


def _diverged(losses: Mapping[str, Any], order: Sequence[str]) -> list[Markup]:
    failed = [f"{x} ({_of(_fails(losses[x]))})" for x in order if _fails(losses[x])]
    if not failed:
        return []
    rest = f": {'; '.join(failed)}. Their means are of the other runs."
    return [tag("p", tag("span", "Some runs diverged", class_="word"), rest)]


def _of(seeds: Sequence[str]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _aware(losses: Mapping[str, Any]) -> bool:
    """Return whether any loss uses labels."""
    return any(loss.get("labelled") for loss in losses.values())


def _name(label: str, loss: Mapping[str, Any]) -> Markup:
    """Return a loss's name, with a note where it uses labels or diverged."""
    notes = [LABELS] if loss.get("labelled") else []
    notes += [f"{len(_fails(loss))} of {len(loss['runs'])} diverged"] if _fails(loss) else []
    return joined([label, *([tag("br"), tag("small", ", ".join(notes))] if notes else [])])


def _number(metric: str, estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return ""
    unit = formatting.title_and_unit(metric)[1]
    return formatting.interval(estimate["mean"], estimate["low"], estimate["high"], unit)


def _table(comparison: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str]) -> Markup:
    losses, rows = comparison["losses"], []
    for label in order:
        loss = losses[label]
        values = [_number(metric, loss["summary"].get(metric)) for metric in metrics]
        costs = [_amount(cost, loss[cost]) for cost in COSTS]
        done = [seed for seed in loss["runs"] if seed not in _fails(loss)]
        name: str = _name(label, loss)
        if done:
            name = tag("a", name, href=f"{RUNS}/{label}/{done[0]}/report.html")
        rows.append([name, *values, *costs])
    nothing = [""] * len(COSTS)
    teacher = {m: {"mean": x, "low": None, "high": None} for m, x in comparison["teacher"].items()}
    for title, values in (("teacher", teacher), ("student before", comparison["untrained"])):
        rows.append([title, *(_number(metric, values.get(metric)) for metric in metrics), *nothing])
    primary = comparison["primary"]
    by = f", the best by {_title(primary)} first" if primary is not None else ""
    aware = f" “{LABELS}” marks losses that use labels." if _aware(losses) else ""
    caption = (
        f"Students on the test examples{by}: means over the seeds, 95 % intervals below them from "
        f"three seeds on. A name links to the report of its first run.{aware}"
    )
    costs = [title for title, _, _ in COSTS.values()]
    return table(caption, ["loss", *map(_title, metrics), *costs], rows)


def _title(metric: str | None) -> str:
    return formatting.title_and_unit(str(metric))[0]


def _scale(metric: str) -> float:
    return 100.0 if formatting.title_and_unit(metric)[1] == "share" else 1.0


def _all_numbers(
    comparison: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str]
) -> list[Markup]:
    """Return a folded table of every metric of every run."""
    rows = []
    for label in order:
        loss = comparison["losses"][label]
        for seed, run in loss["runs"].items():
            values = [
                formatting.number(run["metrics"].get(metric), formatting.title_and_unit(metric)[1])
                for metric in metrics
            ]
            rows.append([f"{label}, seed {seed}", str(run.get("status", "")), *values])
    whole = table("Every run.", ["run", "status", *map(_title, metrics)], rows)
    return [tag("details", tag("summary", "Every run"), whole)]


def _intervals(
    comparison: Mapping[str, Any], order: Sequence[str], metric: str, place: int
) -> Markup:
    percent = _scale(metric)
    losses = comparison["losses"]
    known = [label for label in order if metric in losses[label]["summary"]]
    shown = {
        _plain(label, losses[label]): _interval(losses[label]["summary"][metric], percent)
        for label in known
    }
    lines, beside = {}, []
    untrained, teacher = (
        dict(comparison.get("untrained") or {}).get(metric),
        dict(comparison.get("teacher") or {}).get(metric),
    )
    for dash, word, who, value in (
        (
            ":",
            "dotted",
            "The student before training",
            None if untrained is None else untrained["mean"],
        ),
        ("--", "dashed", "The teacher", teacher),
    ):
        if value is not None:
            lines[dash] = percent * value
            beside.append(f"{who} ({word}, unless it is too far away) has {percent * value:.4g}.")
    unit = " in %" if percent == 100 else ""
    best = max(shown, key=lambda label: shown[label].mean)
    hollow = [_plain(label, losses[label]) for label in known if losses[label].get("labelled")]
    alternative = (
        f"{_title(metric)}{unit}, means with intervals of {len(shown)} losses; the highest mean, "
        f"{best}: {shown[best].mean:.4g}."
    )
    drawn = charts.intervals(
        f"intervals-{place}",
        f"{_title(metric)}{unit}",
        shown,
        alternative,
        hollow=hollow,
        lines=lines,
    )
    rings = f" A ring and “{LABELS}” mark a loss that uses labels." if hollow else ""
    caption = (
        "A dot is the mean over the seeds, its line the 95 % interval; farther right is better."
        f"{rings}"
    )
    return figure(drawn, " ".join([caption, *beside]))


def _plain(label: str, loss: Mapping[str, Any]) -> str:
    return f"{label}\n({LABELS})" if loss.get("labelled") else label


def _paired(losses: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str]) -> list[str]:
    how = (
        "Runs of one seed share their initial weights and data, so each seed's difference to the "
        "best loss is compared. Seeds do not explain a difference whose interval does not reach "
        "0. With many losses, some such differences are chance."
    )
    charts_, rows = [], []
    for place, metric in enumerate(metrics):
        percent = _scale(metric)
        known = [label for label in order if metric in losses[label]["paired"]]
        differences = {label: losses[label]["paired"][metric] for label in known}
        best = {of.get("to") for of in differences.values()}
        if not differences or len(best) != 1:
            continue
        (to,) = best
        shown = {
            _plain(label, losses[label]): _interval(of, percent)
            for label, of in differences.items()
            if label != to
        }
        if not shown:
            continue
        unit = " in points" if percent == 100 else ""
        clear = [label for label, of in shown.items() if of.high is not None and of.high < 0]
        several = any(of.high is not None for of in shown.values())
        count = f"{len(clear)} of {len(shown)} losses lie below it with their whole interval"
        summary = f"to {to}{unit}: {count if several else 'one seed, without an interval'}."
        alternative = f"Differences in {_title(metric)} {summary}"
        hollow = [_plain(label, losses[label]) for label in known if losses[label].get("labelled")]
        drawn = charts.intervals(
            f"paired-{place}",
            f"{_title(metric)}{unit}",
            shown,
            alternative,
            hollow=hollow,
            zero=True,
        )
        charts_.append(figure(drawn, f"Difference {summary}"))
        others = {label: shown[_plain(label, losses[label])] for label in known if label != to}
        rows += [[label, _title(metric), str(to), _difference(of)] for label, of in others.items()]
    if not charts_:
        return [tag("p", "There are no two losses with a finished run of the same seed.")]
    written = table(
        "The differences as numbers; accuracies in percentage points.",
        ["loss", "metric", "best", "difference"],
        rows,
    )
    return [
        tag("p", how),
        tag("div", *charts_, class_="panels"),
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


def _cost(cost: str, losses: Mapping[str, Any], order: Sequence[str]) -> Markup | None:
    title, scale, unit = COSTS[cost]
    amounts = {label: value for label in order if (value := losses[label][cost]) is not None}
    if not amounts:
        return None
    shown = {label: scale * value for label, value in amounts.items()}
    most = max(shown, key=lambda label: shown[label])
    alternative = (
        f"Bars of {title} in {unit} for {len(shown)} losses; the most: {most}, "
        f"{shown[most]:.3g} {unit}."
    )
    drawn = charts.bars(f"cost-{cost}", f"{title} in {unit}", shown, alternative)
    caption = f"{title.capitalize()}: the median over the runs on their machine. Less is better."
    return figure(drawn, caption)


def _unknown(costs: Sequence[Markup | None]) -> list[Markup]:
    return [] if any(costs) else [tag("p", "Neither time nor memory was measured.")]


def _training(folder: pathlib.Path, losses: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """Draw the validation coherence of every run, a small panel for each loss."""
    name = f"{VALIDATION}coherence"
    curves: dict[str, list[charts.Curve]] = {}
    for label in order:
        folders = [path_inside(folder, RUNS, label, seed) for seed in losses[label]["runs"]]
        of = [charts.curve_of(read_metrics(path), name).thinned() for path in folders]
        curves[label] = [curve for curve in of if len(curve.steps)]
    everything = [curve for of in curves.values() for curve in of]
    finite = [float(x) for curve in everything for x in curve.values if math.isfinite(x)]
    if not finite:
        return [tag("p", "No run has validation coherence in its metrics.")]
    margin = 0.05 * max(max(finite) - min(finite), 1e-3)
    limits = min(finite) - margin, max(finite) + margin
    drawings = []
    for place, label in enumerate(order):
        last = [float(c.values[-1]) for c in curves[label] if math.isfinite(c.values[-1])]
        end = f"at the end {statistics.fmean(last):.3f}" if last else "not finite at the end"
        alternative = f"{label}: curves of validation coherence, {end}."
        drawn = charts.against_all(
            f"course-{place}", curves[label], everything, limits, alternative
        )
        drawings.append(tag("div", tag("p", label), drawn))
    text = (
        "Coherence with the teacher on validation examples over the steps, a panel for each loss: "
        "its runs in colour, all others in grey."
    )
    if _aware(losses):
        text += " A class-aware loss may do well in accuracy and poorly here."
    return [figure(tag("div", *drawings, class_="small panels"), text)]
