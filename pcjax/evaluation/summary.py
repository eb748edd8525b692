"""The results of a comparison: means over seeds, differences to the best, as JSON and as tables."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import special

from pcjax import _io
from pcjax.display import Display
from pcjax.metrics.registry import Metric, value_specs

COMPARISON, MARKDOWN, RUNS = "comparison.json", "comparison.md", "runs"
DONE, DIVERGED = "done", "diverged"
MIN_SEEDS = 3  # for an interval
COSTS = ("seconds_per_step", "temporary_bytes")
SAME_FOR_ALL = ("parameters", "flops", "bytes", "examples", "classes")  # not compared


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one run of a comparison, as outcome.json has it."""

    status: str
    metrics: dict[str, float]
    untrained: dict[str, float]
    teacher_metrics: dict[str, float]
    seconds_per_step: float | None
    temporary_bytes: int | None
    data: str
    teacher: str


def numbers(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the metrics of one model by their paths, "coherence.spearman"; estimates by value."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        if isinstance(value, Mapping) and "value" in value:
            flat[prefix + name] = float(value["value"])
        elif isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and name not in SAME_FOR_ALL:
            flat[prefix + name] = float(value)
    return flat


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and its 95 % interval by Student's t; no interval of fewer than 3 values."""
    mean, n = statistics.fmean(values), len(values)
    if n < MIN_SEEDS:
        return {"mean": mean, "low": None, "high": None, "n": n}
    half = float(special.stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def summarise(
    runs: Mapping[str, Mapping[int, Outcome]], labelled: Mapping[str, bool]
) -> dict[str, Any]:
    """Summarise every loss over its seeds, and its differences to the best.

    Args:
      runs: name -> seed -> outcome.
      labelled: name -> whether the training used labels.

    Returns:
      {"losses": {name: {"labelled", "runs", "summary", "paired", and the costs of a step}},
      "primary": the metric by which the losses are ordered, "untrained", "teacher"}.
    """
    done = {
        name: {seed: run.metrics for seed, run in seeds.items() if run.status == DONE}
        for name, seeds in runs.items()
    }
    metrics = list(
        dict.fromkeys(m for seeds in done.values() for run in seeds.values() for m in run)
    )
    losses: dict[str, Any] = {}
    for name, seeds in runs.items():
        finished = list(done[name].values())
        common = [m for m in metrics if finished and all(m in run for run in finished)]
        losses[name] = {
            "labelled": labelled[name],
            "runs": {str(seed): dataclasses.asdict(run) for seed, run in seeds.items()},
            "summary": {m: estimate([run[m] for run in finished]) for m in common},
            "paired": {},
        }
        for cost in COSTS:
            known = [x for run in seeds.values() if (x := getattr(run, cost)) is not None]
            losses[name][cost] = statistics.median(known) if known else None
    for metric in metrics:
        _add_differences(metric, losses, done)
    ranking = [path for path, spec in table_columns().items() if spec.ranks and path in metrics]
    primary = ranking[0] if ranking else None
    ordered = sorted(losses.items(), key=lambda item: _position(item[1], primary))
    outcomes = [run for seeds in runs.values() for run in seeds.values()]
    untrained = {seed: run.untrained for seeds in runs.values() for seed, run in seeds.items()}
    names = dict.fromkeys(m for run in untrained.values() for m in run)
    return {
        "losses": dict(ordered),
        "primary": primary,
        "untrained": {m: estimate([run[m] for run in untrained.values()]) for m in names},
        "teacher": outcomes[0].teacher_metrics if outcomes else {},
    }


def _add_differences(
    metric: str, losses: dict[str, Any], done: Mapping[str, Mapping[int, Mapping[str, float]]]
) -> None:
    """Add each loss's mean difference to the best one, over the seeds that both have.

    Runs of one seed share initial weights and the order of the data.
    """
    means = {
        name: loss["summary"][metric]["mean"]
        for name, loss in losses.items()
        if metric in loss["summary"]
    }
    # The surviving runs of a loss that diverged may be the lucky ones.
    best = max(means, key=lambda name: (not _diverged(losses[name]), means[name]))
    for name in means:
        seeds = [seed for seed in done[name] if seed in done[best]]
        if seeds and name != best:
            differences = [done[name][s][metric] - done[best][s][metric] for s in seeds]
            losses[name]["paired"][metric] = {"to": best, **estimate(differences)}


def _diverged(loss: Mapping[str, Any]) -> int:
    return sum(run["status"] == DIVERGED for run in loss["runs"].values())


def _position(loss: Mapping[str, Any], primary: str | None) -> tuple[bool, float]:
    mean = -loss["summary"][primary]["mean"] if primary in loss["summary"] else math.inf
    return _diverged(loss) > 0, mean


def table_columns() -> dict[str, Metric]:
    """Return the metrics that are columns of a comparison, by the path of their first value."""
    columns: dict[str, Metric] = {}
    specs = sorted(value_specs().items(), key=lambda item: item[1][1] != "share")
    for path, (_, _, spec) in specs:
        if spec.column is not None and spec not in columns.values():
            columns[path] = spec
    return columns


def table(summary: Mapping[str, Any], *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table, the best loss first.

    Args:
      summary: see `summarise`.
      short: leave out what 80 columns have no room for.
    """
    measured = {m for loss in summary["losses"].values() for m in loss["summary"]}
    columns = {path: spec for path, spec in table_columns().items() if path in measured}
    if short:
        columns = {path: spec for path, spec in columns.items() if spec.ranks}
    header = ["loss", *(str(spec.column) for spec in columns.values()), "to the best", "ms a step"]
    header += [] if short else ["MB a step"]
    rows = []
    for name, loss in summary["losses"].items():
        diverged = _diverged(loss)
        title = f"{name} (labels)" if loss["labelled"] else name
        title += f" ({diverged} of {len(loss['runs'])} diverged)" if diverged else ""
        row = [title, *(_values(loss, path, spec.unit) for path, spec in columns.items())]
        primary = summary["primary"]
        unit = columns[primary].unit if primary in columns else "number"
        row.append(_cell(loss["paired"].get(primary), unit, signed=True))
        seconds, size = loss["seconds_per_step"], loss["temporary_bytes"]
        row.append("" if seconds is None else f"{1e3 * seconds:.1f}")
        row += [] if short else ["" if size is None else f"{size / 1e6:.1f}"]
        rows.append(row)
    empty = [""] * (len(header) - 1 - len(columns))
    for title, values in fixed_rows(summary).items():
        cells = [_cell(values.get(m), spec.unit) for m, spec in columns.items()]
        rows.append([title, *cells, *empty])
    return header, rows


def fixed_rows(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the estimates of what no loss trained here: other models, untrained, teacher."""
    fixed = {**summary.get("beside", {}), "teacher": summary["teacher"]}
    rows: dict[str, Mapping[str, Any]] = {
        title: {m: {"mean": x, "low": None, "high": None} for m, x in values.items()}
        for title, values in fixed.items()
    }
    teacher = rows.pop("teacher")
    return rows | {"untrained": summary["untrained"], "teacher": teacher}


def _values(loss: Mapping[str, Any], metric: str, unit: str) -> str:
    """Format the mean over the seeds with its interval; of two seeds both values."""
    runs = [run["metrics"] for run in loss["runs"].values() if run["status"] == DONE]
    if len(runs) != 2 or any(metric not in run for run in runs):
        return _cell(loss["summary"].get(metric), unit)
    scale, digits = (100.0, 1) if unit == "share" else (1.0, 3)
    text = " / ".join(f"{scale * run[metric]:.{digits}f}" for run in runs)
    return text + (" %" if unit == "share" else "")


def _cell(value: Mapping[str, Any] | None, unit: str, signed: bool = False) -> str:
    """Format a mean with half the width of its interval, which a share does not leave."""
    if value is None:
        return ""
    scale, digits = (100.0, 2) if unit == "share" else (1.0, 3)
    text = f"{scale * value['mean']:{'+' if signed else ''}.{digits}f}"
    if value["low"] is not None:
        half = (value["high"] - value["low"]) / 2
        if unit == "share" and not signed:
            half = min(half, max(value["mean"], 1 - value["mean"]))
        text += f" ± {scale * half:.{digits}f}"
    return text + (" %" if unit == "share" else "")


def show(summary: Mapping[str, Any], display: Display) -> None:
    """Print the table within 80 columns."""
    seeds = max((len(loss["runs"]) for loss in summary["losses"].values()), default=0)
    intervals = "± is a 95 % interval over seeds" if seeds >= MIN_SEEDS else "each seed's value"
    dissimilarity = summary.get("config", {}).get("evaluation", {}).get("dissimilarity", "cosine")
    columns, rows = table(summary, short=True)
    display.table(f"on the test examples ({dissimilarity}; {intervals})", columns, rows)
    if seeds < MIN_SEEDS:
        display.say(f"For intervals, add --seeds {MIN_SEEDS}.")


def write(folder: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Write comparison.json, and the table in Markdown."""
    _io.write_signed(folder / COMPARISON, summary)
    columns, rows = table(summary)
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    _io.write_text(folder / MARKDOWN, text)
