"""The report of a comparison: how the losses stand, with what certainty, and at what cost."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

from pcjax._checks import RequestError, require
from pcjax.report import charts
from pcjax.report import formatting as words
from pcjax.report.charts import Interval
from pcjax.report.page import Markup, details, figure, joined, page, table, tag
from pcjax.report.run_page import Sections, left_out
from pcjax.report.side_by_side import run_folder, sections_of
from pcjax.run import are_numbers, is_number, stored_object
from pcjax.training.metrics_log import Records, read_records

COMPARISON = "comparison.json"
DRAWN = {
    "knn_accuracy": "k-NN accuracy",
    "linear_probe_accuracy": "linear probe",
    "spearman": "coherence (Spearman)",
}
COSTS = {
    "seconds_per_step": ("time a step", 1e3, "ms"),
    "temporary_bytes": ("memory a step", 1e-6, "MB"),
}
LABELS = "class-aware"
VALIDATION = "validation_coherence"
ENDS = ("low", "high")


def comparison_page(folder: pathlib.Path) -> str:
    """The page of a comparison, some of whose runs may have diverged."""
    found = _read(folder)
    losses = found["losses"]
    primary = found.get("primary")
    order = sorted(
        losses,
        key=lambda label: (len(_fails(losses[label])) > 0, -_mean(losses[label], primary), label),
    )
    metrics = list(
        dict.fromkeys(metric for loss in losses.values() for metric in loss.get("summary", {}))
    )
    drawn = [metric for metric in DRAWN if metric in metrics]
    drawn += [metric for metric in metrics if metric == primary and metric not in drawn]
    seeds = max(len(loss.get("runs", {})) for loss in losses.values())
    name = folder.resolve().name
    made = ", ".join(
        f"{what} {version}" for what, version in dict(found.get("versions") or {}).items()
    )
    lead = [
        tag(
            "p",
            f"{len(losses)} losses, each trained from {seeds} seeds with the same first weights, order of the "
            "data and budget, by ",
            tag("code", "pcjax compare"),
            f". Made with {made}." if made else ".",
        ),
        *_diverged(losses, order),
        *(
            [details("The whole config", json.dumps(found["config"], indent=1))]
            if found.get("config")
            else []
        ),
    ]
    costs = [_cost(cost, losses, order) for cost in COSTS]
    sections: Sections = [
        ("Results", [_table(found, order, drawn, primary), *_all_numbers(found, order, metrics)]),
        (
            "Means and intervals",
            [
                tag(
                    "div",
                    *(
                        _intervals(found, order, metric, place)
                        for place, metric in enumerate(drawn)
                    ),
                    class_="panels",
                )
            ],
        ),
        ("Differences to the best", _paired(losses, order, drawn)),
        (
            "Time and memory",
            [tag("div", *(one for one in costs if one), class_="panels"), *_unknown(costs)],
        ),
        ("Training", _training(folder, losses, order)),
        *sections_of(folder, losses, order),
    ]
    return page(f"{name}: report of pcjax compare", lead, sections)


def _read(folder: pathlib.Path) -> dict[str, Any]:
    stored, remedy = folder / COMPARISON, "delete it, and give the comparison's command again"
    found = stored_object(stored, remedy)
    losses: Any = found.get("losses")
    require(isinstance(losses, dict) and bool(losses), f"{stored} has no losses: {remedy}")
    for label, loss in found["losses"].items():
        whole = _is_loss(loss)
        require(
            whole, f"{stored} is damaged (what it has of {label!r} is no summary of runs): {remedy}"
        )
    others = {
        "teacher": are_numbers(found.get("teacher") or {}),
        "untrained": _are(_is_estimate, found.get("untrained") or {}),
        "versions": isinstance(found.get("versions") or {}, dict),
        "primary": isinstance(found.get("primary"), (str, NoneType)),
    }
    for name, whole in others.items():
        require(whole, f"{stored} is damaged ({name}): {remedy}")
    return found


def _is_loss(loss: Any) -> bool:
    if not isinstance(loss, dict):
        return False
    paired = loss.get("paired", {})
    return (
        _are(_is_run, loss.get("runs", {}))
        and _are(_is_estimate, loss.get("summary", {}))
        and _are(_is_estimate, paired)
        and all(isinstance(one.get("to"), str) for one in paired.values())
    )


def _is_run(run: Mapping[str, Any]) -> bool:
    costs = all(run.get(cost) is None or is_number(run[cost]) for cost in COSTS)
    return (
        costs and run.get("status") in ("done", "diverged") and are_numbers(run.get("metrics", {}))
    )


def _is_estimate(found: Mapping[str, Any]) -> bool:
    return is_number(found.get("mean")) and all(
        found.get(end) is None or is_number(found[end]) for end in ENDS
    )


def _are(what: Callable[[Mapping[str, Any]], bool], found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(one, dict) and what(one) for one in found.values()
    )


def _mean(loss: Mapping[str, Any], metric: str | None) -> float:
    """What the losses are sorted by; what has no result comes last."""
    value = loss.get("summary", {}).get(metric, {}).get("mean")
    return -math.inf if value is None else float(value)


def _interval(found: Mapping[str, Any], scale: float) -> Interval:
    low, high = (
        None if found.get(part) is None else scale * found[part] for part in ("low", "high")
    )
    return Interval(scale * found["mean"], low, high)


def _fails(loss: Mapping[str, Any]) -> list[str]:
    return [seed for seed, run in loss.get("runs", {}).items() if run.get("status") == "diverged"]


def _diverged(losses: Mapping[str, Any], order: Sequence[str]) -> list[Markup]:
    said = [f"{label} ({_of(_fails(losses[label]))})" for label in order if _fails(losses[label])]
    if not said:
        return []
    rest = f": {'; '.join(said)}. Their means are of the runs that were done."
    return [tag("p", tag("span", "Some runs diverged", class_="word"), rest)]


def _of(seeds: Sequence[str]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _aware(losses: Mapping[str, Any]) -> bool:
    """Whether any of them is told the classes."""
    return any(loss.get("labelled") for loss in losses.values())


def _name(label: str, loss: Mapping[str, Any]) -> Markup:
    """A loss, and in words what one must know about it."""
    said = [LABELS] if loss.get("labelled") else []
    said += [f"{len(_fails(loss))} of {len(loss['runs'])} diverged"] if _fails(loss) else []
    return joined([label, *([tag("br"), tag("small", ", ".join(said))] if said else [])])


def _number(metric: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if found.get("low") is None or found.get("high") is None:
        return words.number(metric, found["mean"])
    return words.interval(metric, found["mean"], found["low"], found["high"])


def _table(
    found: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str], primary: str | None
) -> Markup:
    losses = found["losses"]
    rows = []
    for label in order:
        loss = losses[label]
        summary = loss.get("summary", {})
        costs = [_cost_of(loss, cost) for cost in COSTS]
        shown = [_amount(cost, value) for cost, value in zip(COSTS, costs, strict=True)]
        rows.append(
            [
                _name(label, loss),
                *(_number(metric, summary.get(metric)) for metric in metrics),
                *shown,
            ]
        )
    teacher, untrained = dict(found.get("teacher") or {}), dict(found.get("untrained") or {})
    nothing = [""] * len(COSTS)
    if teacher:
        values = [
            words.number(metric, teacher[metric]) if metric in teacher else "" for metric in metrics
        ]
        rows.append(["teacher", *values, *nothing])
    if untrained:
        rows.append(
            [
                "student before training",
                *(_number(metric, untrained.get(metric)) for metric in metrics),
                *nothing,
            ]
        )
    by = f", the best by {_title(primary)} first" if primary is not None else ""
    marked = (
        f" “{LABELS}” marks a loss that is told the classes; the others see no label."
        if _aware(losses)
        else ""
    )
    caption = f"Students on the test examples{by}: means over the seeds, and below them the 95 % intervals.{marked}"
    return table(
        caption, ["loss", *map(_title, metrics), *(title for title, _, _ in COSTS.values())], rows
    )


def _title(metric: str | None) -> str:
    return DRAWN.get(str(metric), words.title_of(str(metric)))


def _all_numbers(
    found: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str]
) -> list[Markup]:
    """Every metric of every loss and every run."""
    rows = []
    for label in order:
        loss = found["losses"][label]
        for seed, run in loss.get("runs", {}).items():
            values = [
                words.number(metric, of[metric]) if metric in (of := run.get("metrics", {})) else ""
                for metric in metrics
            ]
            rows.append([f"{label}, seed {seed}", str(run.get("status", "")), *values])
    whole = table("Every run by itself.", ["run", "status", *map(_title, metrics)], rows)
    return [tag("details", tag("summary", "Every run"), whole)]


def _intervals(found: Mapping[str, Any], order: Sequence[str], metric: str, place: int) -> Markup:
    percent = 100.0 if "accuracy" in metric else 1.0
    losses = found["losses"]
    known = [label for label in order if metric in losses[label].get("summary", {})]
    shown = {
        _plain(label, losses[label]): _interval(losses[label]["summary"][metric], percent)
        for label in known
    }
    lines, beside = {}, []
    untrained, teacher = (
        dict(found.get("untrained") or {}).get(metric),
        dict(found.get("teacher") or {}).get(metric),
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
        f"{_title(metric)}{unit}, means with intervals of {len(shown)} losses; the highest mean, {best}: "
        f"{shown[best].mean:.4g}."
    )
    drawn = charts.intervals(
        f"intervals-{place}",
        f"{_title(metric)}{unit}",
        shown,
        alternative,
        hollow=hollow,
        lines=lines,
    )
    rings = f" A ring, and “{LABELS}”, marks a loss that is told the classes." if hollow else ""
    caption = f"A dot is the mean over the seeds, its line the 95 % interval; the farther right the better.{rings}"
    return figure(drawn, " ".join([caption, *beside]))


def _plain(label: str, loss: Mapping[str, Any]) -> str:
    return f"{label}\n({LABELS})" if loss.get("labelled") else label


def _paired(losses: Mapping[str, Any], order: Sequence[str], metrics: Sequence[str]) -> list[str]:
    how = (
        "Runs with the same seed have the same first weights and data, so what is compared is each seed's difference "
        "to the best loss. An interval that does not reach 0 is a difference that the seeds do not explain; with many "
        "losses some will be so by chance."
    )
    charts_, rows = [], []
    for place, metric in enumerate(metrics):
        percent = 100.0 if "accuracy" in metric else 1.0
        known = [label for label in order if metric in losses[label].get("paired", {})]
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
        said = f"to {to}{unit}: {count if several else 'of one seed, without an interval'}."
        alternative = f"Differences in {_title(metric)} {said}"
        hollow = [_plain(label, losses[label]) for label in known if losses[label].get("labelled")]
        drawn = charts.intervals(
            f"paired-{place}",
            f"{_title(metric)}{unit}",
            shown,
            alternative,
            hollow=hollow,
            zero=True,
        )
        charts_.append(figure(drawn, f"Difference {said}"))
        others = {label: shown[_plain(label, losses[label])] for label in known if label != to}
        rows += [[label, _title(metric), str(to), _difference(of)] for label, of in others.items()]
    if not charts_:
        return [tag("p", "There are no two losses with a finished run of the same seed.")]
    written = table(
        "The same as numbers; accuracies in percentage points.",
        ["loss", "metric", "best", "difference"],
        rows,
    )
    return [
        tag("p", how),
        tag("div", *charts_, class_="panels"),
        tag("details", tag("summary", "As a table"), written),
    ]


def _difference(found: Interval) -> Markup:
    if found.low is None:
        return joined([f"{found.mean:+.3f}"])
    return joined(
        [f"{found.mean:+.3f}", tag("br"), tag("small", f"{found.low:+.3f} to {found.high:+.3f}")]
    )


def _cost_of(loss: Mapping[str, Any], cost: str) -> float | None:
    """The median over the runs: one that was disturbed does not count."""
    known = [value for run in loss.get("runs", {}).values() if (value := run.get(cost)) is not None]
    return float(statistics.median(known)) if known else None


def _amount(cost: str, value: float | None) -> str:
    _, scale, unit = COSTS[cost]
    return "" if value is None else f"{scale * value:.3g} {unit}"


def _cost(cost: str, losses: Mapping[str, Any], order: Sequence[str]) -> Markup | None:
    title, scale, unit = COSTS[cost]
    amounts = {
        label: value for label in order if (value := _cost_of(losses[label], cost)) is not None
    }
    if not amounts:
        return None
    shown = {label: scale * value for label, value in amounts.items()}
    most = max(shown, key=lambda label: shown[label])
    alternative = f"Bars of {title} in {unit} for {len(shown)} losses; the most: {most}, {shown[most]:.3g} {unit}."
    drawn = charts.bars(f"cost-{cost}", f"{title} in {unit}", shown, alternative)
    return figure(
        drawn,
        f"{title.capitalize()}, the median over the runs, on the machine they ran on: the shorter the better.",
    )


def _unknown(costs: Sequence[Markup | None]) -> list[Markup]:
    return [] if any(costs) else [tag("p", "Neither time nor memory was measured.")]


def _training(folder: pathlib.Path, losses: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """Validation coherence of every run, a small panel for each loss."""
    read = {
        label: [_records_of(folder, label, seed) for seed in losses[label].get("runs", {})]
        for label in order
    }
    found = {
        label: [charts.curve_of(records.sound, VALIDATION).thinned() for records in of]
        for label, of in read.items()
    }
    found = {label: [curve for curve in of if len(curve.steps)] for label, of in found.items()}
    everything = [curve for of in found.values() for curve in of]
    damaged = sum(records.damaged for of in read.values() for records in of)
    said_so = [left_out("of all runs", damaged)] if damaged else []
    finite = [
        float(value) for curve in everything for value in curve.values if math.isfinite(value)
    ]
    if not finite:
        return [tag("p", "No run has validation coherence in its metrics."), *said_so]
    margin = 0.05 * max(max(finite) - min(finite), 1e-3)
    limits = min(finite) - margin, max(finite) + margin
    panels = []
    for place, label in enumerate(order):
        own = found[label]
        last = [float(curve.values[-1]) for curve in own if math.isfinite(curve.values[-1])]
        end = (
            f"at the end {statistics.fmean(last):.3f}"
            if last
            else "never judged, or not finite at the end"
        )
        said = f"{label}: curves of validation coherence, {end}."
        drawn = charts.against_all(f"course-{place}", own, everything, limits, said)
        panels.append(tag("div", tag("p", label), drawn))
    how = (
        "Coherence with the teacher on validation examples over the steps, one panel a loss: its runs in colour, all "
        "others behind them in grey."
    )
    aware = " A class-aware loss may do well in accuracy and poorly here." if _aware(losses) else ""
    return [figure(tag("div", *panels, class_="small panels"), how + aware), *said_so]


def _records_of(folder: pathlib.Path, label: str, seed: str) -> Records:
    try:
        return read_records(run_folder(folder, label, seed))
    except (RequestError, OSError):
        return Records([], 0)  # what else is shown of the run says why
