"""The metrics that an evaluation computes, and how each is shown.

The facts about a metric stand above it, in the `metric` decorator. Everything else is derived from
them: result.json, the tables, the report's titles and the columns of a comparison.

    @metric("my_metric", title="my metric", unit="number")
    def my_metric(context): return float(...)

A package adds its own metric by an entry point of the group "pcjax.metrics" that names the
function. A value is a number, an `Estimate`, or a mapping of several such values. None means that
there is nothing to compute.
"""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


class RatedPairs(NamedTuple):
    """Features of pairs of texts, (n, d) each, and how similar people find them, (n,)."""

    left: np.ndarray
    right: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """A representation to be evaluated.

    features: part -> (n, d) array. "test" is evaluated. k-NN and the probe learn from "train" and
      "validation", which are absent where they must not be used.
    teacher: (n, dt) the teacher's features of the test examples; None where there is no teacher.
    labels: part -> (n,) classes; empty where some example has none.
    dissimilarity: of coherence and retrieval.
    neighbours: number of neighbours to compare.
    teacher_gallery: (m, dt) the teacher's features of the training examples, where there are any.
    rated: features of pairs of texts with a score each, where there are any.
    """

    features: Mapping[str, np.ndarray]
    teacher: np.ndarray | None
    labels: Mapping[str, np.ndarray]
    dissimilarity: str = "cosine"
    neighbours: int = 10
    teacher_gallery: np.ndarray | None = None
    rated: RatedPairs | None = None

    @property
    def test(self) -> np.ndarray:
        """Return the features that are evaluated."""
        return self.features["test"]


class Metric(NamedTuple):
    """A metric and the facts about it.

    titles: title by name of a value; "" is the metric itself where it is one value.
    unit: "share" is shown in percent, "number" with three digits, "count" as an integer.
    column: title of its column in a comparison; None where it has none.
    ranks: whether a comparison may order the losses by it.
    """

    name: str
    function: Callable[[Context], Any]
    titles: Mapping[str, str]
    unit: str = "number"
    column: str | None = None
    ranks: bool = False


_own: dict[str, Metric] = {}
_loaded: list[bool] = []


def metric(
    name: str,
    *,
    title: str | Mapping[str, str],
    unit: str = "number",
    column: str | None = None,
    ranks: bool = False,
) -> Callable[[F], F]:
    """Register a metric under the name that result.json gives it; see `Metric`."""
    titles = {"": title} if isinstance(title, str) else dict(title)

    def register(function: F) -> F:
        _own[name] = Metric(name, function, titles, unit, column, ranks)
        return function

    return register


def all_metrics() -> dict[str, Metric]:
    """Return the metrics of this package and of installed ones, by name."""
    if not _loaded:
        _loaded.append(True)
        for entry in importlib.metadata.entry_points(group="pcjax.metrics"):
            entry.load()  # its decorator registers it
    return _own


def value_specs() -> dict[str, tuple[str, str, Metric]]:
    """Return title, unit and metric of every value, by its path in result.json."""
    specs = {}
    for name, spec in all_metrics().items():
        for part, title in spec.titles.items():
            specs[f"{name}.{part}" if part else name] = (title, spec.unit, spec)
    return specs


def sampled(rows: int, most: int) -> slice:
    """Return an even sample of at most `most` rows."""
    return slice(None, None, -(-rows // most))


def widened(features: np.ndarray, width: int) -> np.ndarray:
    """Add columns of zeros, which change no distance: equal widths share one compiled program."""
    return np.pad(features, ((0, 0), (0, max(0, width - features.shape[1]))))
