"""Draw how the students of a comparison, and their teacher, see the same test examples."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.evaluation.summary import DONE
from pcjax.report import charts, embedding_math, panels
from pcjax.report.neighbours import Seen, rows_of
from pcjax.report.page import Markup, figure, joined, table, tag
from pcjax.run import path_inside

RUNS, TEACHER = "runs", "the teacher"
FEATURES = "test_features.npy"  # of a run: features of the sampled test examples
BINS, DOTS, MAX_CLASSES = 16, 500, 100  # of the small panels
WORST, MIDDLE, BEST, SHOWN = 2, 1, 1, 6  # rows of pictures, and pictures in each


class _Sight(NamedTuple):
    """The examples as one model sees them."""

    plane: embedding_math.Map
    near: np.ndarray
    coherence: np.ndarray
    density: np.ndarray
    confusion: np.ndarray | None


class _Given(NamedTuple):
    """The examples that all models see, and the teacher's view of them."""

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
) -> list[tuple[str, list[str]]]:
    """Draw the first finished run of every loss.

    Args:
      folder: of the comparison.
      losses: as comparison.json has them, the best first.
      dataset: the examples.
      teacher: its features of the test examples.
      section: the dissimilarity and the number of neighbours.
    """
    first = {label: seed for label in losses if (seed := _first(losses[label])) is not None}
    if not first:
        return [("Spaces", [tag("p", "No run is finished, so no space can be drawn.")])]
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
        return [("Spaces", lead)]
    drawn = [
        *(tag("h3", "Maps"), _maps(seen, given)),
        *(tag("h3", "Coherence per anchor"), _histograms(seen)),
        *(tag("h3", "Rank against rank"), _densities(seen)),
    ]
    neighbours, confusions = _neighbours(seen, given), _confusions(seen, given)
    spaces = [*lead, _table(seen, first, given.test), *drawn]
    sections: list[tuple[str, list[str]]] = [("Spaces", spaces), ("Neighbours", neighbours)]
    return [*sections, ("Confusion", confusions)] if confusions else sections


def _first(loss: Mapping[str, Any]) -> str | None:
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


def _lead(given: _Given, first: Mapping[str, str], missing: Sequence[str]) -> list[str]:
    """Describe the drawn runs."""
    seeds = sorted(set(first.values()), key=lambda seed: (len(seed), seed))
    of = f"seed {seeds[0]}" if len(seeds) == 1 else "its first finished seed (see the table)"
    count = f"{len(given.places):,} of " if len(given.places) < given.total else ""
    text = (
        f"The students of {of}, on the same {count}{given.total:,} test examples. The report of "
        "a run shows more."
    )
    lead: list[str] = [tag("p", text)] if first else []
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
                f"{test.name_of(true)} for {test.name_of(taken)}"
                for true, taken, _ in panels.mistakes(sight.confusion, 1)
            ]
            row += [f"{_right(sight.confusion):.1f} %", *(most or ["none"])]
        rows.append(row)
    columns = ["loss", "seed", "coherence", "lowest tenth", "ranked alike", "in the plane"]
    columns += ["neighbours right", "most frequent mistake"] * labelled
    caption = (
        "The figures in numbers: the median and the lowest tenth of coherence over the anchors, "
        "the pairs near the diagonal, the share of the variance that the map holds"
    )
    right = ", and the share of classes that the nearest examples get right" if labelled else ""
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
    dots = np.unique(
        np.linspace(0, len(given.places) - 1, min(len(given.places), DOTS)).astype(np.int64)
    )
    few = {name: np.flatnonzero(np.isin(dots, members)) for name, members in groups.items()}
    drawings = {}
    for place, (label, sight) in enumerate(seen.items()):
        share = f"{100 * sight.plane.share:.0f} % of the variance"
        alternative = (
            f"Map of {len(dots)} test examples as {label} sees them, {len(groups)} classes in "
            "colour."
        )
        points = sight.plane.points[dots]
        drawn = charts.scatter(f"space-{place}", label, points, few, alternative, small=True)
        drawings[label] = share, drawn
    how = f"{panels.A_MAP}; the students' maps are turned or mirrored to lie on the teacher's"
    colours = [
        tag("li", name, style=f"--dot: var(--class-{place})") for place, name in enumerate(groups)
    ]
    legend = [tag("ul", *colours, class_="legend")] * bool(groups)
    return _panels(drawings, f"{how}{panels.others_grey(given.test, groups)}.", *legend)


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
    return _panels(
        drawings,
        f"Seen from each of {len(everyone) // len(drawings):,} test examples: how alike teacher "
        "and student rank all others, in % of the examples. 1 is the same order, 0 an unrelated "
        "one. The grey line is all students together.",
    )


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
    return _panels(
        drawings,
        "All pairs of an anchor and another example: how near the teacher ranks it (across), and "
        "the student (up). A stronger colour means more pairs. On the diagonal both agree; of "
        f"unrelated models {unrelated:.0f} % of the pairs would lie near it.",
    )


def _neighbours(seen: Mapping[str, _Sight], given: _Given) -> list[str]:
    students = _students(seen)
    mean = np.mean([sight.coherence for sight in students.values()], axis=0)
    chosen = embedding_math.telling(mean, WORST, MIDDLE, BEST)
    near = {label: sight.near for label, sight in seen.items()}
    how = (
        f"Test examples and their {min(SHOWN, len(mean) - 1)} nearest among {len(mean):,} sampled "
        "ones, the nearest first, by the teacher and every student. A frame marks neighbours that "
        "a student shares with the teacher, and in the teacher's row those that all share. First "
        f"{WORST} examples with the lowest mean coherence, then a typical one, then the one with "
        "the highest."
    )
    coherence = {label: sight.coherence for label, sight in students.items()}
    return [tag("p", how), *rows_of(given.test, given.places, chosen, coherence, near)]


def _confusions(seen: Mapping[str, _Sight], given: _Given) -> list[str]:
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
        f"Each example gets the most frequent class among its {k} nearest test examples. A row is "
        "a true class, a column the class it was taken for, in the order of their numbers; off "
        "the diagonal are mistakes. The accuracies above, and a run's own report, use the training "
        "examples instead."
    )
    return [_panels(drawings, how)]
