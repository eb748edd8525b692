"""The numbers of result.json as the tables that a person sees."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from pcjax.data import SEVERITIES
from pcjax.evaluation.measures import DEGREES
from pcjax.training.display import Display

TITLES = {"teacher": "teacher", "untrained": "student before", "student": "student after"}
BY_LABELS = {
    "knn_accuracy": "k-NN accuracy",
    "knn_majority_accuracy": "k-NN by majority",
    "linear_probe_accuracy": "linear probe",
}
RETRIEVAL = {
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "mean_average_precision": "mAP",
    "r_precision": "R-precision",
}
NONE = "-"


def show(results: Mapping[str, Any], display: Display) -> None:
    """All that was judged, in groups."""
    models = {name: results[name] for name in TITLES if name in results}

    def table(title: str, rows: list[list[str]]) -> None:
        # What no model has is no row.
        some = [row for row in rows if any(cell != NONE for cell in row[1:])]
        display.table(title, ["", *(TITLES[name] for name in models)], some)

    def rows(names: Mapping[str, str], written: Any, *path: str) -> list[list[str]]:
        return [
            [title, *(written(_at(found, *path, name)) for found in models.values())]
            for name, title in names.items()
        ]

    sizes = {"parameters": "parameters", "bytes": "bytes", "flops": "FLOPs an example"}
    use = rows(sizes, _count) + rows(
        {"examples_per_second": "examples a second"}, _count, "throughput"
    )
    if "seconds" in results:
        use.append(
            ["wall time of the run", *[NONE] * (len(models) - 1), f"{results['seconds']:.0f} s"]
        )
    probe = rows(
        {"linear_probe_converged": "its optimisation"},
        lambda found: "cut short" if found is False else NONE,
    )
    table(
        "on the test examples",
        use + rows(BY_LABELS, _percent) + probe + rows(RETRIEVAL, _percent, "retrieval"),
    )
    degrees, cka = {name: f"coherence: {name}" for name in DEGREES}, {"linear_cka": "linear CKA"}
    alike = rows(degrees, _interval, "coherence") + rows(cka, _number)
    table("likeness to the teacher there (95 % intervals)", alike)

    first = next(iter(models.values()), {})
    if "unseen" in first:
        unseen = rows(BY_LABELS, _percent, "unseen") + rows(
            RETRIEVAL, _percent, "unseen", "retrieval"
        )
        unseen += rows(degrees, _interval, "unseen", "coherence") + rows(
            {"linear_cka": "linear CKA"}, _number, "unseen"
        )
        examples, classes = first["unseen"]["examples"], first["unseen"]["classes"]
        table(f"on {examples:,} test examples of {classes} classes that no training saw", unseen)
    for source in dict.fromkeys(
        source for found in models.values() for source in found.get("other", {})
    ):
        table(f"on {source}, the models frozen", rows(BY_LABELS, _percent, "other", source))
    names = dict.fromkeys(
        name for found in models.values() for name in found.get("corruptions", {})
    )
    if names:
        table(
            "k-NN accuracy in % of corrupted test images: severity 1 / 2 / 3",
            rows({name: name.replace("_", " ") for name in names}, _severities, "corruptions"),
        )


def drawn_by(folder: pathlib.Path) -> str:
    """How the run in that folder is drawn, and what is needed first if it is not there."""
    there = importlib.util.find_spec("matplotlib") is not None
    return f"pcjax report {folder} draws it" + (
        "" if there else ' (after `pip install "pcjax[report]"`)'
    )


def _at(found: Any, *path: str) -> Any:
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _count(value: float | None) -> str:
    return NONE if value is None else f"{round(value):,}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _interval(value: Mapping[str, float] | None) -> str:
    return (
        NONE
        if value is None
        else f"{value['value']:.3f} ± {(value['high'] - value['low']) / 2:.3f}"
    )


def _severities(value: Mapping[str, float] | float | None) -> str:
    """Of every severity; of what is clean or a mean there is one."""
    if value is None:
        return NONE
    several = (
        [value[severity] for severity in map(str, SEVERITIES)]
        if isinstance(value, Mapping)
        else [value]
    )
    return " / ".join(f"{100 * accuracy:.1f}" for accuracy in several)
