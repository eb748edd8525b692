"""Draw how models see the same examples, with captions that explain the figures."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pcjax import metrics
from pcjax.data import Examples
from pcjax.evaluation.tables import MODELS
from pcjax.report import charts, embedding_math
from pcjax.report.neighbours import Seen
from pcjax.report.page import Markup, figure, table, tag

COLOURED, MATRIX, LISTED, BINS = 10, 12, 15, 24
STUDENTS = (MODELS["untrained"], MODELS["student"])
COHERENCE = (
    "Seen from one test example, the anchor, teacher and student rank all others. Coherence is the "
    "correlation of the two rankings: 1 for the same order, 0 for an unrelated one."
)
RANKS = (
    "A square shows all pairs of an anchor and another example: the teacher's rank across, the "
    "student's up. A stronger colour means more pairs. The models agree on the diagonal."
)
CONFUSION = (
    "A row is a true class, a column the predicted one; cells off the diagonal are mistakes."
)


class Space(NamedTuple):
    """The features of the sampled test examples by one model, and their ranks."""

    features: np.ndarray
    ranks: np.ndarray


def sampled(examples: Examples, places: np.ndarray) -> Seen:
    """Return the examples with the labels of the sample."""
    labels = examples.labels
    known = None if labels is None else np.asarray(labels)[places]
    return Seen(examples, known, class_names(examples))


def class_names(examples: Examples) -> list[str]:
    """Return the names of the classes, or their numbers."""
    if examples.classes is not None:
        return list(examples.classes)
    labels = examples.labels
    count = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    return [str(number) for number in range(count)]


def middle_and_tenth(coherence: np.ndarray) -> str:
    """Describe coherence per anchor by two numbers."""
    return (
        f"median {np.median(coherence):.3f}, lowest tenth below {np.quantile(coherence, 0.1):.3f}"
    )


def coherence(spaces: Mapping[str, Space]) -> list[Markup]:
    """Compare the teacher's ranks with the student's, before and after training."""
    teacher = spaces[MODELS["teacher"]]
    per_anchor = {
        name: embedding_math.correlations(teacher.ranks, spaces[name].ranks) for name in STUDENTS
    }
    drawn = [_histogram(per_anchor), *(_density(name, teacher, spaces[name]) for name in STUDENTS)]
    return [tag("p", f"{COHERENCE} {RANKS}"), tag("div", *drawn, class_="panels")]


def _histogram(coherence: Mapping[str, np.ndarray]) -> Markup:
    summary = " ".join(
        f"{name.capitalize()}: {middle_and_tenth(x)}." for name, x in coherence.items()
    )
    drawn = charts.histogram("histogram", coherence, f"Histogram of coherence. {summary}")
    return figure(drawn, summary)


def _density(name: str, teacher: Space, student: Space) -> Markup:
    values = embedding_math.density(teacher.ranks, student.ranks, BINS)
    share, unrelated = near_diagonal(values)
    alternative = (
        f"Density of the {name}'s ranks against the teacher's: {share:.0f} % of the pairs lie near "
        "the diagonal."
    )
    caption = (
        f"{share:.0f} % of the pairs lie within a tenth of the diagonal. Of unrelated models, "
        f"{unrelated:.0f} % would."
    )
    drawn = charts.rank_density(f"density-{name.replace(' ', '-')}", name, values, alternative)
    return figure(drawn, caption)


def near_diagonal(density: np.ndarray) -> tuple[float, float]:
    """Return the % of pairs near the diagonal, for these models and for unrelated ones."""
    places = np.arange(len(density))
    near = np.abs(np.subtract.outer(places, places)) <= len(density) // 10
    return 100 * float(density[near].sum() / density.sum()), 100 * float(near.mean())


def maps(features: Mapping[str, np.ndarray], test: Seen) -> list[Markup]:
    """Draw every model's features in a plane of its own, turned onto the first model's."""
    planes = {name: embedding_math.plane(x) for name, x in features.items()}
    onto = next(iter(planes.values())).points
    groups = most_numerous(test)
    drawn = []
    for name, plane in planes.items():
        points = embedding_math.turned(plane.points, onto)
        alternative = map_alternative(points, name, groups)
        svg = charts.scatter(f"map-{name.replace(' ', '-')}", name, points, groups, alternative)
        caption = f"The plane holds {100 * plane.share:.0f} % of the features' variance."
        drawn.append(figure(svg, caption))
    named = " The name of a class stands in the middle of its dots." if groups else ""
    how = map_description(test, groups, turned=len(planes) > 1)
    return [tag("p", how + named), tag("div", *drawn, class_="panels")]


def map_alternative(points: np.ndarray, model: str, groups: Mapping[str, np.ndarray]) -> str:
    """Describe a map without its picture."""
    coloured = f", {len(groups)} classes in colour" if groups else ""
    return f"Map of {len(points)} test examples as {model} sees them{coloured}."


def map_description(test: Seen, groups: Mapping[str, np.ndarray], *, turned: bool) -> str:
    """Explain how to read maps."""
    text = (
        "Each dot is a test example, in the plane of the features' first two principal components."
    )
    if turned:
        text += " A student's map is turned or mirrored to match the teacher's."
    if 0 < len(groups) < len(test.classes):
        text += f" The {len(groups)} most numerous classes are in colour, the others grey."
    return text


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
    """Compare true classes with those of the nearest training examples, if all have labels."""
    known, true = train.labels, test.labels
    if known is None or true is None or not (np.all(known >= 0) and np.all(true >= 0)):
        return []
    count = int(max(known.max(), true.max())) + 1
    names = class_names(train)
    names += [str(number) for number in range(len(names), count)]
    k = min(neighbours, len(known))
    shown = []
    for name, parts in features.items():
        predicted = np.asarray(metrics.knn_predict(parts["test"], parts["train"], known, k=k))
        counts = embedding_math.confusion(true, predicted, count)
        share = 100 * float(np.trace(counts)) / len(true)
        right = f"{name}: {share:.1f} % of {len(true):,} test examples are right"
        draw = _matrix if count <= MATRIX else _list
        shown.append(draw(right, counts, names))
    how = (
        f"The {k} nearest training examples by cosine similarity vote for the class of a test "
        f"example.{f' {CONFUSION}' if count <= MATRIX else ''}"
    )
    return [tag("p", how), tag("div", *shown, class_="panels")]


def _matrix(right: str, counts: np.ndarray, names: list[str]) -> Markup:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = [
        [name, *(str(value) if value else "" for value in row)]
        for name, row in zip(names, counts.tolist(), strict=False)
    ]
    return table(f"{right}.", ["true", *names[: len(counts)]], rows, shares.tolist())


def _list(right: str, counts: np.ndarray, names: list[str]) -> Markup:
    rows = [
        [names[true], names[predicted], str(count)]
        for true, predicted, count in mistakes(counts, LISTED)
    ]
    return table(f"{right}. The most frequent mistakes.", ["true", "predicted", "examples"], rows)


def mistakes(counts: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return the most frequent mistakes: true class, predicted class and count."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = [
        int(place)
        for place in np.argsort(-wrong, axis=None, kind="stable")[:most]
        if wrong.flat[place]
    ]
    return [(*divmod(place, len(counts)), int(wrong.flat[place])) for place in order]
