"""The metrics of result.json as the tables that a person sees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcjax.data import SEVERITIES
from pcjax.display import Display
from pcjax.metrics.registry import value_specs

MODELS = {"teacher": "teacher", "untrained": "student before", "student": "student after"}
SIZES = {"parameters": "parameters", "bytes": "bytes", "flops": "FLOPs an example"}
NONE = "-"
Row = list[str]


def models_of(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of every model of result.json by its title."""
    own = {title: results[name] for name, title in MODELS.items() if name in results}
    return own | dict(results.get("beside", {}))


def show(results: Mapping[str, Any], display: Display, dissimilarity: str = "cosine") -> None:
    """Print everything that was evaluated, in groups; rows without a value are left out."""
    models = models_of(results)
    columns = ["", *models]

    def table(title: str, rows: Sequence[Row]) -> None:
        filled = [row for row in rows if any(cell != NONE for cell in row[1:])]
        if filled:
            display.table(title, columns, filled)

    def row(title: str, path: str, written: Callable[[Any], str]) -> Row:
        return [title, *(written(value_at(model, path)) for model in models.values())]

    sizes = [row(title, name, _count) for name, title in SIZES.items()]
    sizes.append(row("examples a second", "throughput.examples_per_second", _count))
    table(
        f"on the test examples ({dissimilarity}; ± is a 95 % interval)", [*sizes, *rows_of(models)]
    )

    first = next(iter(models.values()), {})
    if "unseen" in first:
        count, classes = first["unseen"]["examples"], first["unseen"]["classes"]
        title = f"on {count:,} test examples of {classes} classes that no training saw"
        table(title, rows_of({name: model.get("unseen", {}) for name, model in models.items()}))
    for source in dict.fromkeys(s for model in models.values() for s in model.get("other", {})):
        others = {name: model.get("other", {}).get(source, {}) for name, model in models.items()}
        table(f"on {source}, the models frozen", rows_of(others))
    names = dict.fromkeys(name for m in models.values() for name in m.get("corruptions", {}))
    table(
        "corrupted test images, in %: severity 1 / 2 / 3",
        [row(name.replace("_", " "), f"corruptions.{name}", _severities) for name in names],
    )


def rows_of(models: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return a row for every metric, those in percent first."""
    specs = sorted(value_specs().items(), key=lambda item: item[1][1] != "share")
    return [
        [title, *(format_value(value_at(model, path), unit) for model in models.values())]
        for path, (title, unit, _) in specs
    ]


def card_rows(models: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Return the rows of a model card: the metrics that have a value, and the sizes."""
    sizes = [
        [title, *(_count(value_at(model, name)) for model in models.values())]
        for name, title in SIZES.items()
    ]
    return [row for row in (*rows_of(models), *sizes) if any(cell != NONE for cell in row[1:])]


def value_at(results: Any, path: str) -> Any:
    """Return a value of nested results by its dotted path; None where there is none."""
    for name in path.split("."):
        results = results.get(name) if isinstance(results, Mapping) else None
    return results


def format_value(value: Any, unit: str) -> str:
    """Format a value, or an estimate with half the width of its interval."""
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        half = (value["high"] - value["low"]) / 2
        if unit == "share":
            return f"{100 * value['value']:.1f} ± {100 * half:.1f} %"
        return f"{value['value']:.3f} ± {half:.3f}"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return _count(value) if unit == "count" else f"{value:.3f}"


def _count(value: int | float | None) -> str:
    return NONE if value is None else f"{round(value):,}"


def _severities(value: Mapping[str, float] | int | float | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, Mapping):
        values = [value[str(severity)] for severity in SEVERITIES]
    else:
        values = [value]
    return " / ".join(f"{100 * share:.1f}" for share in values)
