"""What a comparison found: means over seeds with intervals, differences to the best, as JSON and as a table."""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from pcjax.run import write_proven, write_text
from pcjax.training.display import Display

COMPARISON, MARKDOWN = "comparison.json", "comparison.md"
DONE, DIVERGED = "done", "diverged"
PRIMARY = (
    "knn_accuracy",
    "spearman",
)  # what contenders are ordered by: the first of these that was measured
SHOWN = {"knn_accuracy": "k-NN", "linear_probe_accuracy": "linear probe", "spearman": "coherence"}
COSTS = ("seconds_per_step", "temporary_bytes")
_NOT_COMPARED = ("parameters", "flops", "bytes", "examples", "classes")  # the same for all of them


def numbers(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The metrics of one model in result.json, by one name each: those with an interval by their value."""
    flat: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and "value" in value:
            flat[prefix + name] = float(value["value"])
        elif isinstance(value, Mapping):
            flat |= numbers(
                value, prefix if name in ("coherence", "retrieval") else f"{prefix}{name}_"
            )
        elif (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and name not in _NOT_COMPARED
        ):
            flat[prefix + name] = float(value)
    return flat


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """The mean and its 95 % interval by Student's t; no interval of one value."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def summarise(
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]], labelled: Mapping[str, bool]
) -> dict[str, Any]:
    """Of every contender's runs, by seed: each run's numbers, their means, and the differences to the best.

    Args:
      runs: name -> seed -> {"status", "metrics", "seconds_per_step", "temporary_bytes"}.
      labelled: name -> whether it saw labels.

    Returns:
      {"losses": {name: {"labelled", "runs", "summary", "paired", and what a step costs}}, "primary": metric or None}.
    """
    done = {
        name: {seed: run["metrics"] for seed, run in of.items() if run["status"] == DONE}
        for name, of in runs.items()
    }
    measured = {metric: None for of in done.values() for one in of.values() for metric in one}
    losses: dict[str, Any] = {}
    for name, of in runs.items():
        losses[name] = {
            "labelled": labelled[name],
            "runs": {str(seed): dict(run) for seed, run in of.items()},
        }
        losses[name]["summary"] = {
            metric: estimate([one[metric] for one in done[name].values()])
            for metric in measured
            if done[name] and all(metric in one for one in done[name].values())
        }
        for cost in COSTS:
            known = [run[cost] for run in of.values() if run.get(cost) is not None]
            losses[name][cost] = statistics.median(known) if known else None
    for metric in measured:
        means = {
            name: loss["summary"][metric]["mean"]
            for name, loss in losses.items()
            if metric in loss["summary"]
        }
        # Of a contender some of whose runs diverged the others may be the lucky ones.
        best = max(means, key=lambda name: (not _diverged(runs[name]), means[name]))
        for name in means:
            # The same seed is the same first weights and the same order of the data: only what differs is left.
            both = [seed for seed in done[name] if seed in done[best]]
            if both and name != best:
                differences = [done[name][seed][metric] - done[best][seed][metric] for seed in both]
                losses[name].setdefault("paired", {})[metric] = {
                    "to": best,
                    **estimate(differences),
                }
    for loss in losses.values():
        loss.setdefault("paired", {})
    primary = next((metric for metric in PRIMARY if metric in measured), None)
    return {
        "losses": dict(sorted(losses.items(), key=lambda item: _place(item[1], primary))),
        "primary": primary,
    }


def _diverged(runs: Mapping[Any, Mapping[str, Any]]) -> int:
    return sum(run["status"] == DIVERGED for run in runs.values())


def of_untrained(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The students before training, one for every seed."""
    seeds = {seed: run["untrained"] for of in runs.values() for seed, run in of.items()}
    metrics = {metric: None for one in seeds.values() for metric in one}
    return {metric: estimate([one[metric] for one in seeds.values()]) for metric in metrics}


def _place(loss: Mapping[str, Any], primary: str | None) -> tuple[bool, float]:
    return _diverged(loss["runs"]) > 0, -loss["summary"][primary]["mean"] if primary in loss[
        "summary"
    ] else math.inf


def table(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the whole table, the best first."""
    shown = [
        metric
        for metric in SHOWN
        if any(metric in loss["summary"] for loss in found["losses"].values())
    ]
    columns = [
        "loss",
        *(SHOWN[metric] for metric in shown),
        "to the best",
        "ms a step",
        "MB a step",
    ]
    rows = []
    for name, loss in found["losses"].items():
        diverged = _diverged(loss["runs"])
        title = f"{name} (labels)" if loss["labelled"] else name
        title += f" ({diverged} of {len(loss['runs'])} diverged)" if diverged else ""
        row = [title, *(_interval(loss["summary"].get(metric), metric) for metric in shown)]
        row.append(
            _interval(loss["paired"].get(found["primary"]), str(found["primary"]), signed=True)
        )
        row.append(
            "" if loss["seconds_per_step"] is None else f"{1e3 * loss['seconds_per_step']:.1f}"
        )
        row.append(
            "" if loss["temporary_bytes"] is None else f"{loss['temporary_bytes'] / 1e6:.1f}"
        )
        rows.append(row)
    taught = {metric: {"mean": value, "low": None} for metric, value in found["teacher"].items()}
    for title, values in (("untrained", found["untrained"]), ("teacher", taught)):
        rows.append(
            [title, *(_interval(values.get(metric), metric) for metric in shown), "", "", ""]
        )
    return columns, rows


def _interval(found: Mapping[str, Any] | None, metric: str, signed: bool = False) -> str:
    if found is None:
        return ""
    percent = metric.endswith("accuracy")
    scale, digits = (100.0, 2) if percent else (1.0, 3)
    text = f"{scale * found['mean']:{'+' if signed else ''}.{digits}f}"
    if found["low"] is not None:
        text += f" ± {scale * (found['high'] - found['low']) / 2:.{digits}f}"
    return text + (" %" if percent else "")


def show(found: Mapping[str, Any], display: Display) -> None:
    """The table, as much of it as a terminal has room for."""
    columns, rows = table(found)
    kept = [
        place
        for place, column in enumerate(columns)
        if column not in (SHOWN["linear_probe_accuracy"], "MB a step")
    ]
    narrow = [[row[place] for place in kept] for row in rows]
    display.table(
        "students on the test examples (95 % intervals over seeds)",
        [columns[i] for i in kept],
        narrow,
    )


def write(folder: pathlib.Path, found: Mapping[str, Any]) -> None:
    """comparison.json, and the table in Markdown."""
    write_proven(folder / COMPARISON, found)
    columns, rows = table(found)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    write_text(folder / MARKDOWN, "".join(f"| {' | '.join(line)} |\n" for line in lines))
