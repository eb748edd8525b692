"""What a report shows of how models see the same examples: each view with the words that say how to read it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pcjax import metrics
from pcjax.data import Examples
from pcjax.report import charts, embedding_math
from pcjax.report.neighbours import Seen
from pcjax.report.page import Markup, figure, table, tag

COLOURED, MATRIX, LISTED, BINS = 10, 12, 15, 24
A_MAP = "Each test example a dot, in the plane in which the model's features vary most (the first two principal components)"


class Space(NamedTuple):
    """What the test examples look like to one model: those that were sampled."""

    features: np.ndarray
    ranks: np.ndarray


def sampled(examples: Examples, places: np.ndarray) -> Seen:
    """What is known of the examples in these places."""
    labels = examples.labels
    known = None if labels is None else np.asarray(labels)[places]
    return Seen(examples, known, class_names(examples))


def class_names(examples: Examples) -> list[str]:
    """What the classes are called; by their numbers, if they have no names."""
    if examples.classes is not None:
        return list(examples.classes)
    labels = examples.labels
    return (
        []
        if labels is None or not len(labels)
        else [str(number) for number in range(int(labels.max()) + 1)]
    )


def middle_and_tenth(coherence: np.ndarray) -> str:
    """Coherence per anchor in two numbers."""
    return (
        f"median {np.median(coherence):.3f}, lowest tenth below {np.quantile(coherence, 0.1):.3f}"
    )


def histogram(coherence: Mapping[str, np.ndarray]) -> Markup:
    """Coherence per anchor, before the training and after it."""
    said = {name: f"{name}: {middle_and_tenth(found)}" for name, found in coherence.items()}
    count = len(next(iter(coherence.values())))
    caption = (
        f"How alike teacher and student rank all others, seen from each of {count:,} test examples (the anchors): 1 is "
        f"the same order, 0 unrelated. What lies far left is seen differently. {'; '.join(said.values())}."
    )
    return figure(
        charts.histogram(
            "histogram", coherence, f"Histogram of coherence. {'; '.join(said.values())}."
        ),
        caption,
    )


def near_diagonal(density: np.ndarray) -> tuple[float, float]:
    """How many % of the pairs both models give nearly the same rank, and of unrelated models would."""
    places = np.arange(len(density))
    near = np.abs(np.subtract.outer(places, places)) <= len(density) // 10
    return 100 * float(density[near].sum() / density.sum()), 100 * float(near.mean())


def densities(seen: Mapping[str, Space]) -> list[Markup]:
    """The teacher's ranks against the student's, before the training and after it."""
    found = []
    for name in ("student before", "student after"):
        values = embedding_math.density(seen["teacher"].ranks, seen[name].ranks, BINS)
        share, unrelated = near_diagonal(values)
        alternative = f"Density of the {name}'s ranks against the teacher's: {share:.0f} % of the pairs lie near the diagonal."
        caption = (
            f"All pairs of an anchor and another example: how near the teacher ranks it (across) and the {name} (up); "
            f"the stronger the colour, the more pairs. On the diagonal both agree: {share:.0f} % of the pairs lie "
            f"within a tenth of it, of unrelated models {unrelated:.0f} %."
        )
        drawn = charts.rank_density(f"density-{name.replace(' ', '-')}", name, values, alternative)
        found.append(figure(drawn, caption))
    return found


def maps(features: Mapping[str, np.ndarray], test: Seen) -> list[Markup]:
    """Every model's space in a plane of its own, turned onto the first one's."""
    planes = {name: embedding_math.plane(one) for name, one in features.items()}
    onto = next(iter(planes.values())).points
    points = {name: embedding_math.turned(one.points, onto) for name, one in planes.items()}
    groups = most_numerous(test)
    shown = []
    for name, found in points.items():
        share = 100 * planes[name].share
        alternative = f"Map of {len(found)} test examples as the {name} sees them, {len(groups)} classes in colour."
        drawn = charts.scatter(f"map-{name.replace(' ', '-')}", name, found, groups, alternative)
        shown.append(
            figure(
                drawn,
                f"{name.capitalize()}: the plane holds {share:.0f} % of the features' variance.",
            )
        )
    turned = (
        "; the student's maps are turned or mirrored to lie on the teacher's"
        if len(points) > 1
        else ""
    )
    coloured = "; classes have their names where the middle of their dots is" if groups else ""
    return [
        tag("p", f"{A_MAP}{turned}{coloured}{others_grey(test, groups)}."),
        tag("div", *shown, class_="panels"),
    ]


def others_grey(test: Seen, groups: Mapping[str, np.ndarray]) -> str:
    """What is to be said where not all classes have a colour."""
    some = 0 < len(groups) < len(test.classes)
    return f", the {len(groups)} most numerous in colour and the others grey" if some else ""


def most_numerous(test: Seen) -> dict[str, np.ndarray]:
    """The most numerous classes and where their examples are."""
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
    """What the nearest neighbours among the training examples say of the test examples' classes, if there are any."""
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
        found = embedding_math.confusion(true, predicted, count)
        right = f"{name}: {100 * float(np.trace(found)) / len(true):.1f} % of {len(true):,} test examples are right"
        shown.append(
            _matrix(right, found, names) if count <= MATRIX else _list(right, found, names)
        )
    how = f"Each test example is given the class that its {k} nearest training examples vote for, by cosine similarity."
    return [tag("p", how), tag("div", *shown, class_="panels")]


def _matrix(right: str, found: np.ndarray, names: list[str]) -> Markup:
    shares = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    rows = [
        [name, *(str(value) if value else "" for value in row)]
        for name, row in zip(names, found.tolist(), strict=False)
    ]
    caption = f"{right}. A row is a true class, a column the class it was taken for; off the diagonal is wrong."
    return table(caption, ["true", *names[: len(found)]], rows, shares.tolist())


def _list(right: str, found: np.ndarray, names: list[str]) -> Markup:
    rows = [
        [names[true], names[taken], str(count)] for true, taken, count in mistakes(found, LISTED)
    ]
    return table(f"{right}. The most frequent mistakes.", ["true", "taken for", "examples"], rows)


def mistakes(found: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The most frequent ones of a confusion: the true class, the one it was taken for, and how often."""
    wrong = found * (1 - np.eye(len(found), dtype=found.dtype))
    order = [
        int(place)
        for place in np.argsort(-wrong, axis=None, kind="stable")[:most]
        if wrong.flat[place]
    ]
    return [(*divmod(place, len(found)), int(wrong.flat[place])) for place in order]
