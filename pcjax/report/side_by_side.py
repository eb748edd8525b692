"""Draw how the students of a comparison, and their teacher, see the same test examples."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.evaluation.summary import DONE, RUNS
from pcjax.report import charts, embedding_math, panels
from pcjax.report.neighbours import Seen, rows_of
from pcjax.report.page import Markup, figure, joined, table, tag
from pcjax.run import path_inside

TEACHER = "the teacher"
FEATURES = "test_features.npy"  # of a run: features of the sampled test examples
BINS, DOTS, MAX_CLASSES = 16, 500, 100  # of the small panels
WORST, MIDDLE, BEST, SHOWN = 2, 1, 1, 6  # rows of pictures, and pictures in each


class _Sight(NamedTuple):
    """One model's view of the examples."""

    plane: embedding_math.Map
    near: np.ndarray
    coherence: np.ndarray
    density: np.ndarray
    confusion: np.ndarray | None


class _Given(NamedTuple):
    """The examples of all models, and the teacher's view of them."""

    section: Evaluation
    total: int  # of test examples
    places: np.ndarray  # the sampled ones among them
    test: Seen
    ranks: np.ndarray  # the teacher's
    plane: embedding_math.Map  # the teacher's


def sections_of(
    folder: pathlib.Path,
    losses: Mapping[str, Any],
    dataset: Dataset,
    teacher: np.ndarray,
    section: Evaluation,
) -> list[tuple[str, list[Markup]]]:
    """Draw the first finished run of every loss.

    Args:
      folder: of the comparison.
      losses: "losses" of comparison.json, the best first.
      dataset: the examples.
      teacher: the teacher's features of the test examples.
      section: the dissimilarity and the number of neighbours.
    """
    finished = {label: first_finished(loss) for label, loss in losses.items()}
    first = {label: seed for label, seed in finished.items() if seed is not None}
    if not first:
        return [("Representations", [tag("p", "No run is finished.")])]
    places = embedding_math.sample(len(dataset.test))
    ranks = embedding_math.ranks(teacher[places], section.dissimilarity)
    plane = embedding_math.plane(teacher[places])
    test = panels.sampled(dataset.test, places)
    given = _Given(section, len(dataset.test), places, test, ranks, plane)
    seen = {TEACHER: _sight(given, ranks, plane)}
    for label, seed in first.items():
        path = path_inside(folder, RUNS, label, seed, FEATURES)
        if not path.is_file():
            continue
        features = np.load(path, allow_pickle=False)
        own_ranks = embedding_math.ranks(features, section.dissimilarity)
        seen[label] = _sight(given, own_ranks, embedding_math.plane(features))
    missing = [label for label in losses if label not in seen]
    lead = _lead(given, {label: first[label] for label in seen if label in first}, missing)
    if len(seen) == 1:
        return [("Representations", lead)]
    drawn = [
        *(tag("h3", "Maps"), _maps(seen, given)),
        *(tag("h3", "Coherence per anchor"), _histograms(seen)),
        *(tag("h3", "Rank against rank"), _densities(seen)),
    ]
    neighbours, confusions = _neighbours(seen, given), _confusions(seen, given)
    spaces = [*lead, _table(seen, first, given.test), *drawn]
    sections = [("Representations", spaces), ("Neighbours", neighbours)]
    return [*sections, ("Confusion", confusions)] if confusions else sections


def first_finished(loss: Mapping[str, Any]) -> str | None:
    """Return the lowest seed with a finished run."""
    done = [seed for seed, run in loss["runs"].items() if run["status"] == DONE]
    return min(done, key=lambda seed: (len(seed), seed), default=None)


def _sight(given: _Given, ranks: np.ndarray, plane: embedding_math.Map) -> _Sight:
    k = min(max(SHOWN, given.section.neighbours), len(ranks) - 1)
    near = embedding_math.nearest(ranks, k)
    labels, confusion = given.test.labels, None
    if labels is not None and np.all(labels >= 0):
        voted = embedding_math.voted(near[:, : given.section.neighbours], labels)
        confusion = embedding_math.confusion(
            labels, voted, max(int(labels.max()) + 1, len(given.test.classes))
        )
    coherence, density = (
        embedding_math.correlations(given.ranks, ranks),
        embedding_math.density(given.ranks, ranks, BINS),
    )
    turned = plane._replace(points=embedding_math.turned(plane.points, given.plane.points))
    return _Sight(turned, near[:, :SHOWN], coherence, density, confusion)


def _lead(given: _Given, first: Mapping[str, str], missing: Sequence[str]) -> list[Markup]:
    """Describe the drawn runs."""
    seeds = set(first.values())
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first finished seed of each loss"
    count = f"{len(given.places):,} of " if len(given.places) < given.total else ""
    text = f"The students of {seed} on the same {count}{given.total:,} test examples."
    lead = [tag("p", text)] if first else []
    if missing:
        lead.append(tag("p", f"Not drawn, as no run is finished: {', '.join(missing)}."))
    return lead


def _students(seen: Mapping[str, _Sight]) -> dict[str, _Sight]:
    return {label: sight for label, sight in seen.items() if label != TEACHER}


def _table(seen: Mapping[str, _Sight], first: Mapping[str, str], test: Seen) -> Markup:
    labelled = seen[TEACHER].confusion is not None
    rows = []
    for label, sight in seen.items():
        numbers = [np.median(sight.coherence), np.quantile(sight.coherence, 0.1)]
        row = [label, first.get(label, ""), *(f"{number:.3f}" for number in numbers)]
        row += [
            f"{panels.near_diagonal(sight.density)[0]:.0f} %",
            f"{100 * sight.plane.share:.0f} %",
        ]
        if sight.confusion is not None:
            most = [
                f"{test.name_of(true)} as {test.name_of(predicted)}"
                for true, predicted, _ in panels.mistakes(sight.confusion, 1)
            ]
            row += [f"{_right(sight.confusion):.1f} %", *(most or ["none"])]
        rows.append(row)
    columns = ["loss", "seed", "coherence", "lowest tenth", "near diagonal", "in the map"]
    columns += ["right", "frequent mistake"] * labelled
    caption = (
        "The figures as numbers: the median and lowest tenth of coherence over the anchors, the "
        "pairs near the diagonal, and the features' variance in the map"
    )
    right = ". The last two columns describe a vote of the nearest test examples" * labelled
    return table(f"{caption}{right}.", columns, rows)


def _right(confusion: np.ndarray) -> float:
    return 100 * float(np.trace(confusion) / confusion.sum())


def _panels(drawings: Mapping[str, tuple[str, Markup]], how: str, *below: Markup) -> Markup:
    """Draw a small panel for each model, with its name and a note above it."""
    shown = [
        tag("div", tag("p", label, tag("br"), tag("small", note)), drawn)
        for label, (note, drawn) in drawings.items()
    ]
    return figure(joined([tag("div", *shown, class_="small panels"), *below]), how)


def _maps(seen: Mapping[str, _Sight], given: _Given) -> Markup:
    groups = panels.most_numerous(given.test)
    count = len(given.places)
    dots = np.unique(np.linspace(0, count - 1, min(count, DOTS)).astype(np.int64))
    few = {name: np.flatnonzero(np.isin(dots, members)) for name, members in groups.items()}
    drawings = {}
    for place, (label, sight) in enumerate(seen.items()):
        points = sight.plane.points[dots]
        alternative = panels.map_alternative(points, label, groups)
        drawn = charts.scatter(f"space-{place}", label, points, few, alternative, small=True)
        drawings[label] = f"{100 * sight.plane.share:.0f} % of the variance", drawn
    colours = [
        tag("li", name, style=f"--dot: var(--class-{place})") for place, name in enumerate(groups)
    ]
    legend = [tag("ul", *colours, class_="legend")] * bool(groups)
    return _panels(drawings, panels.map_description(given.test, groups, turned=True), *legend)


def _histograms(seen: Mapping[str, _Sight]) -> Markup:
    everyone = np.concatenate([sight.coherence for sight in _students(seen).values()])
    edges = np.linspace(min(0.0, np.floor(10 * float(np.quantile(everyone, 0.01))) / 10), 1, 31)
    shares = {label: _shares(sight.coherence, edges) for label, sight in _students(seen).items()}
    all_, top = (
        _shares(everyone, edges),
        1.05 * max(float(share.max()) for share in shares.values()),
    )
    drawings = {}
    for place, (label, share) in enumerate(shares.items()):
        own = seen[label].coherence
        alternative = f"Histogram of {label}'s coherence: {panels.middle_and_tenth(own)}."
        drawn = charts.histogram_against_all(
            f"anchors-{place}", share, all_, edges, top, alternative
        )
        drawings[label] = f"median {np.median(own):.3f}", drawn
    how = f"{panels.COHERENCE} Bars are % of the anchors. The grey line shows all students."
    return _panels(drawings, how)


def _shares(coherence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(coherence, edges[0], edges[-1]), edges)[0] / len(coherence) * 100


def _densities(seen: Mapping[str, _Sight]) -> Markup:
    drawings, unrelated = {}, 0.0
    for place, (label, sight) in enumerate(_students(seen).items()):
        share, unrelated = panels.near_diagonal(sight.density)
        alternative = (
            f"Density of {label}'s ranks against the teacher's: {share:.0f} % of the pairs lie "
            "near the diagonal."
        )
        drawn = charts.rank_density(f"ranks-{place}", "", sight.density, alternative, charts.PANEL)
        drawings[label] = f"{share:.0f} % near the diagonal", drawn
    how = f"{panels.RANKS} Of unrelated models, {unrelated:.0f} % of the pairs would lie near it."
    return _panels(drawings, how)


def _neighbours(seen: Mapping[str, _Sight], given: _Given) -> list[Markup]:
    students = _students(seen)
    mean = np.mean([sight.coherence for sight in students.values()], axis=0)
    chosen = embedding_math.telling(mean, WORST, MIDDLE, BEST)
    near = {label: sight.near for label, sight in seen.items()}
    coherence = {label: sight.coherence for label, sight in students.items()}
    return rows_of(given.test, given.places, chosen, coherence, near)


def _confusions(seen: Mapping[str, _Sight], given: _Given) -> list[Markup]:
    drawings = {}
    for place, (label, sight) in enumerate(seen.items()):
        if sight.confusion is None or len(sight.confusion) > MAX_CLASSES:
            return []
        right = _right(sight.confusion)
        shares = sight.confusion / np.maximum(sight.confusion.sum(axis=1, keepdims=True), 1)
        alternative = (
            f"Confusion of {len(shares)} classes as {label} sees them: {right:.1f} % are right."
        )
        drawn = charts.confusion_map(f"classes-{place}", shares, alternative)
        drawings[label] = f"{right:.1f} % right", drawn
    k = min(given.section.neighbours, len(given.places) - 1)
    how = (
        f"The {k} nearest test examples vote for the class of a test example. {panels.CONFUSION} "
        "The accuracies above and the runs' own reports use the nearest training examples instead."
    )
    return [_panels(drawings, how)]
