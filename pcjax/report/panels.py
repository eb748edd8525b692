"""The views of a report: how models see the same examples, with captions that explain the view."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pcjax import metrics
from pcjax.data import Examples
from pcjax.report import charts, embedding_math
from pcjax.report.neighbours import Seen
from pcjax.report.page import Markup, figure, table, tag

COLOURED, MATRIX, LISTED, BINS = 10, 12, 15, 24
A_MAP = (
    "Each dot is a test example, in the plane in which the model's features vary most (the first "
    "two principal components)"
)


class Space(NamedTuple):
    """The features of the sampled test examples by one model, and their ranks."""

    features: np.ndarray
    ranks: np.ndarray


def sampled(examples: Examples, places: np.ndarray) -> Seen:
    """Return the examples at these positions with their labels and class names."""
    labels = examples.labels
    known = None if labels is None else np.asarray(labels)[places]
    return Seen(examples, known, class_names(examples))


def class_names(examples: Examples) -> list[str]:
    """Return the names of the classes; their numbers where they have no names."""
    if examples.classes is not None:
        return list(examples.classes)
    labels = examples.labels
    return (
        []
        if labels is None or not len(labels)
        else [str(number) for number in range(int(labels.max()) + 1)]
    )


def middle_and_tenth(coherence: np.ndarray) -> str:
    """Describe coherence per anchor by two numbers."""
    return (
        f"median {np.median(coherence):.3f}, lowest tenth below {np.quantile(coherence, 0.1):.3f}"
    )


def histogram(coherence: Mapping[str, np.ndarray]) -> Markup:
    """Draw coherence per anchor, before and after the training."""
    summary = "; ".join(f"{name}: {middle_and_tenth(x)}" for name, x in coherence.items())
    count = len(next(iter(coherence.values())))
    caption = (
        f"Seen from each of {count:,} test examples (the anchors): how alike teacher and student "
        "rank all others. 1 is the same order, 0 an unrelated one. Anchors far left are seen "
        f"differently. {summary}."
    )
    return figure(
        charts.histogram("histogram", coherence, f"Histogram of coherence. {summary}."),
        caption,
    )


def near_diagonal(density: np.ndarray) -> tuple[float, float]:
    """Return the % of pairs that both models rank nearly alike, and that of unrelated models."""
    places = np.arange(len(density))
    near = np.abs(np.subtract.outer(places, places)) <= len(density) // 10
    return 100 * float(density[near].sum() / density.sum()), 100 * float(near.mean())


def densities(seen: Mapping[str, Space]) -> list[Markup]:
    """Draw the teacher's ranks against the student's, before and after the training."""
    figures = []
    for name in ("student before", "student after"):
        values = embedding_math.density(seen["teacher"].ranks, seen[name].ranks, BINS)
        share, unrelated = near_diagonal(values)
        alternative = (
            f"Density of the {name}'s ranks against the teacher's: {share:.0f} % of the pairs lie "
            "near the diagonal."
        )
        caption = (
            "All pairs of an anchor and another example: how near the teacher ranks it (across), "
            f"and the {name} (up). A stronger colour means more pairs. On the diagonal both agree: "
            f"{share:.0f} % of the pairs lie within a tenth of it; of unrelated models "
            f"{unrelated:.0f} % would."
        )
        drawn = charts.rank_density(f"density-{name.replace(' ', '-')}", name, values, alternative)
        figures.append(figure(drawn, caption))
    return figures


def maps(features: Mapping[str, np.ndarray], test: Seen) -> list[Markup]:
    """Draw every model's features in a plane of its own, turned onto the first model's."""
    planes = {name: embedding_math.plane(one) for name, one in features.items()}
    onto = next(iter(planes.values())).points
    points = {name: embedding_math.turned(one.points, onto) for name, one in planes.items()}
    groups = most_numerous(test)
    shown = []
    for name, dots in points.items():
        share = 100 * planes[name].share
        alternative = (
            f"Map of {len(dots)} test examples as the {name} sees them, {len(groups)} classes in "
            "colour."
        )
        drawn = charts.scatter(f"map-{name.replace(' ', '-')}", name, dots, groups, alternative)
        caption = f"{name.capitalize()}: the plane holds {share:.0f} % of the features' variance."
        shown.append(figure(drawn, caption))
    turned = (
        "; the student's maps are turned or mirrored to lie on the teacher's"
        if len(points) > 1
        else ""
    )
    coloured = "; the name of a class stands in the middle of its dots" if groups else ""
    return [
        tag("p", f"{A_MAP}{turned}{coloured}{others_grey(test, groups)}."),
        tag("div", *shown, class_="panels"),
    ]


def others_grey(test: Seen, groups: Mapping[str, np.ndarray]) -> str:
    """Explain the colours where not all classes have one."""
    if 0 < len(groups) < len(test.classes):
        return f"; the {len(groups)} most numerous classes are in colour, the others grey"
    return ""


def most_numerous(test: Seen) -> dict[str, np.ndarray]:
    """Return the positions of the examples of the most numerous classes."""
    if test.labels is None:
        return {}
    numbers, counts = np.unique(test.labels[test.labels >= 0], return_counts=True)
    chosen = np.sort(numbers[np.argsort(-counts, kind="stable")[:COLOURED]])
    return {test.name_of(int(number)): np.flatnonzero(test.labels == number) for number in chosen}


def confusions(
    train: Examples,
    test: Examples,
    features: Mapping[str, Mapping[str, np.ndarray]],
    neighbours: int,
) -> list[Markup]:
    """Draw the classes that the nearest training examples vote for, where all have labels."""
    given, true = train.labels, test.labels
    if given is None or true is None or not (np.all(given >= 0) and np.all(true >= 0)):
        return []
    count = int(max(given.max(), true.max())) + 1
    names = class_names(train)
    names += [str(number) for number in range(len(names), count)]
    k = min(neighbours, len(given))
    shown = []
    for name, of in features.items():
        predicted = np.asarray(metrics.knn_predict(of["test"], of["train"], given, k=k))
        counts = embedding_math.confusion(true, predicted, count)
        share = 100 * float(np.trace(counts)) / len(true)
        right = f"{name}: {share:.1f} % of {len(true):,} test examples are right"
        draw = _matrix if count <= MATRIX else _list
        shown.append(draw(right, counts, names))
    how = (
        f"Each test example gets the class that its {k} nearest training examples vote for, by "
        "cosine similarity."
    )
    return [tag("p", how), tag("div", *shown, class_="panels")]


def _matrix(right: str, counts: np.ndarray, names: list[str]) -> Markup:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        [name, *(str(value) if value else "" for value in row)]
        for name, row in zip(names, counts.tolist(), strict=False)
    ]
    caption = (
        f"{right}. A row is a true class, a column the class it was taken for; cells off the "
        "diagonal are mistakes."
    )
    return table(caption, ["true", *names[: len(counts)]], rows, shares.tolist())


def _list(right: str, counts: np.ndarray, names: list[str]) -> Markup:
    rows = [
        [names[true], names[taken], str(count)] for true, taken, count in mistakes(counts, LISTED)
    ]
    return table(f"{right}. The most frequent mistakes.", ["true", "taken for", "examples"], rows)


def mistakes(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes: true class, the class taken for it, and the count."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = [
        int(place)
        for place in np.argsort(-wrong, axis=None, kind="stable")[:most]
        if wrong.flat[place]
    ]
    return [(*divmod(place, len(counts)), int(wrong.flat[place])) for place in order]
