"""The report of a run: how its training went, and how its student sees the world beside its teacher."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcjax import metrics
from pcjax._checks import require
from pcjax.config import Config
from pcjax.data import Examples
from pcjax.jobs import evaluate
from pcjax.jobs.distill import find_teacher
from pcjax.jobs.folder import config_of, result_of
from pcjax.jobs.prepare import Loaded, load
from pcjax.jobs.represent import represent, represent_all
from pcjax.report import charts, space, words
from pcjax.report.neighbours import Seen, rows_of
from pcjax.report.page import Markup, details, figure, page, table, tag, terms
from pcjax.training.loop import METRICS

COLOURED, MATRIX, LISTED, BINS = 10, 12, 15, 24

Sections = list[tuple[str, Sequence[str]]]


def run_page(folder: pathlib.Path) -> str:
    """The page of a run that has ended; nothing in its folder is changed."""
    job, config = config_of(folder)
    drawn = ("distill", "teach", "compare")
    require(job in drawn, f"{folder} is of `pcjax {job}`, which is not drawn: expected one of {', '.join(drawn)}")
    result = result_of(folder)
    loaded = load(config)
    stored = json.loads(config.to_json())
    name = folder.resolve().name
    what = "A student and its teacher" if job == "distill" else "A teacher"
    lead = [
        tag("p", f"{what}, trained by ", tag("code", f"pcjax {job}"), f". {_made(result)}"),
        terms(words.asked(job, stored)),
        details("The whole config", json.dumps({"job": job, "config": stored}, indent=1)),
    ]
    sections: Sections = [("Results", _results(result, loaded)), ("Training", _training(job, folder))]
    sections += _taught(config, folder, loaded) if job == "teach" else _distilled(config, folder, loaded)
    return page(f"{name}: report of pcjax {job}", lead, sections)


def records_of(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics; what a crash cut short is left out."""
    found = []
    path = folder / METRICS
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append(record)
    return found


def _made(result: Mapping[str, Any]) -> str:
    said = [f"{value:,} {name}" for name in ("steps", "seconds") if (value := result.get(name))]
    made = ", ".join(f"{name} {version}" for name, version in dict(result.get("versions") or {}).items())
    return f"It took {' and '.join(said)}; made with {made}." if said else f"Made with {made}."


def _results(result: Mapping[str, Any], loaded: Loaded) -> list[str]:
    columns, rows = words.results(result)
    count = f"{len(loaded.examples.test):,} test examples"
    caption = f"On {count}, which no choice was made by; below a number its 95 % interval, where it has one."
    more = words.leaves({k: v for k, v in result.items() if k not in (*words.TITLES, "versions", "steps", "seconds")})
    also = [[words.title_of(name), words.cell(name, value)] for name, value in more.items()]
    return [
        table(caption, columns, rows),
        *([table("What else was measured.", ["", "value"], also)] if also else []),
        details("result.json", json.dumps(result, indent=1)),
    ]


def _training(job: str, folder: pathlib.Path) -> list[str]:
    own = _curves("teacher" if job == "teach" else "student", records_of(folder))
    taught = _curves("teacher", records_of(folder / "teacher")) if job == "distill" else []
    return [tag("div", *own, *taught, class_="panels")] if own or taught else [tag("p", f"There is no {METRICS}.")]


def _curves(who: str, records: list[dict[str, Any]]) -> list[Markup]:
    """The losses, and what was judged on validation examples."""
    found = []
    numbers = list(dict.fromkeys(name for record in records for name in record))
    apart = ("step", "steps_per_second", "gradient_norm", "skipped", "validation_score")
    terms_ = [name for name in numbers if name not in apart and not name.startswith("validation_")]
    # With one loss only, it is the sum.
    terms_ = terms_[:1] if len(terms_) == 2 else terms_
    shown = {name: charts.curve_of(records, name) for name in terms_}
    if shown:
        said = "; ".join(f"{name} {_course(curve)}" for name, curve in shown.items())
        several = " It is the weighted sum of the others." if len(shown) > 1 else ""
        caption = f"What the {who} minimises, each point a mean over the steps since the point before.{several}"
        drawn = charts.curves(
            f"loss-{who}", f"{who}: loss", shown, f"Curve of the {who}'s loss over the steps: {said}."
        )
        found.append(figure(drawn, caption))
    judged = [name for name in numbers if name.startswith("validation_") and name != "validation_score"]
    for place, name in enumerate(judged):
        curve = charts.curve_of(records, name)
        what = name.removeprefix("validation_").replace("_", " ")
        drawn = charts.curves(
            f"judged-{place}-{who}",
            f"{who}: validation {what}",
            {what: curve},
            f"Curve of the {who}'s {what} on validation examples over the steps: {_course(curve)}.",
        )
        found.append(figure(drawn, f"{what.capitalize()} on validation examples, judged at every checkpoint."))
    skipped = [record["skipped"] for record in records if record.get("skipped")]
    if skipped:
        found.append(tag("p", f"The {who} skipped {skipped[-1]} steps whose loss or gradient was not finite."))
    return found


def _course(curve: charts.Curve) -> str:
    known = curve.values[np.isfinite(curve.values)]
    if not len(known):
        return "never finite"
    return f"from {known[0]:.3g} to {known[-1]:.3g}, at its lowest {known.min():.3g}, at its highest {known.max():.3g}"


class _Space(NamedTuple):
    """What the test examples look like to one model: those that were sampled."""

    features: np.ndarray
    ranks: np.ndarray


def _taught(config: Config, folder: pathlib.Path, loaded: Loaded) -> Sections:
    model, _ = evaluate.models("teach", config, folder, loaded)
    said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    features = {split: one.features for split, one in said.items()}
    places = space.sample(len(features["test"]))
    test = _sampled(loaded.examples.test, places)
    return [
        ("Map", _maps({"teacher": features["test"][places]}, test)),
        *_confusions(config, loaded, {"teacher": features}),
    ]


def _distilled(config: Config, folder: pathlib.Path, loaded: Loaded) -> Sections:
    model, first = evaluate.models("distill", config, folder, loaded)
    teacher = find_teacher(config, folder, loaded, None).features
    student = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    features = {split: one.features for split, one in student.items()}
    before = represent(first, loaded.examples.test, loaded.normalise, config.evaluation.batch).features
    places = space.sample(len(before))
    test = _sampled(loaded.examples.test, places)
    seen = {
        name: _Space(rows[places], space.ranks(rows[places]))
        for name, rows in (
            ("teacher", teacher["test"]),
            ("student before", before),
            ("student after", features["test"]),
        )
    }
    coherence = {
        name: space.correlations(seen["teacher"].ranks, seen[name].ranks)
        for name in ("student before", "student after")
    }
    return [
        ("Coherence", [tag("div", _histogram(coherence), *_densities(seen), class_="panels")]),
        ("Maps", _maps({name: one.features for name, one in seen.items()}, test)),
        (
            "Neighbours",
            rows_of(test, places, coherence["student after"], seen["teacher"].ranks, seen["student after"].ranks),
        ),
        *_confusions(config, loaded, {"teacher": teacher, "student after": features}),
    ]


def _sampled(examples: Examples, places: np.ndarray) -> Seen:
    labels = examples.labels
    known = None if labels is None else np.asarray(labels)[places]
    return Seen(examples, known, class_names(examples))


def class_names(examples: Examples) -> list[str]:
    """What the classes are called; by their numbers, if they have no names."""
    if examples.classes is not None:
        return list(examples.classes)
    labels = examples.labels
    return [] if labels is None or not len(labels) else [str(number) for number in range(int(labels.max()) + 1)]


def _histogram(coherence: Mapping[str, np.ndarray]) -> Markup:
    said = {
        name: f"{name}: median {np.median(found):.3f}, lowest tenth below {np.quantile(found, 0.1):.3f}"
        for name, found in coherence.items()
    }
    count = len(next(iter(coherence.values())))
    caption = (
        f"How alike teacher and student rank all others, seen from each of {count:,} test examples (the anchors): 1 is "
        f"the same order, 0 unrelated. What lies far left is seen differently. {'; '.join(said.values())}."
    )
    return figure(
        charts.histogram("histogram", coherence, f"Histogram of coherence. {'; '.join(said.values())}."), caption
    )


def _densities(seen: Mapping[str, _Space]) -> list[Markup]:
    found = []
    for name in ("student before", "student after"):
        values = space.density(seen["teacher"].ranks, seen[name].ranks, BINS)
        near = np.abs(np.subtract.outer(np.arange(BINS), np.arange(BINS))) <= BINS // 10
        share = 100 * float(values[near].sum() / values.sum())
        alternative = (
            f"Density of the {name}'s ranks against the teacher's: {share:.0f} % of the pairs lie near the diagonal."
        )
        caption = (
            f"All pairs of an anchor and another example: how near the teacher ranks it (across) and the {name} (up); "
            f"the stronger the colour, the more pairs. On the diagonal both agree: {share:.0f} % of the pairs lie "
            f"within a tenth of it, of unrelated models {100 * float(near.mean()):.0f} %."
        )
        drawn = charts.rank_density(f"density-{name.replace(' ', '-')}", name, values, alternative)
        found.append(figure(drawn, caption))
    return found


def _maps(features: Mapping[str, np.ndarray], test: Seen) -> list[str]:
    planes = {name: space.plane(one) for name, one in features.items()}
    onto = next(iter(planes.values())).points
    points = {name: space.turned(one.points, onto) for name, one in planes.items()}
    groups = _groups(test)
    shown = []
    for name, found in points.items():
        share = 100 * planes[name].share
        alternative = f"Map of {len(found)} test examples as the {name} sees them, {len(groups)} classes in colour."
        drawn = charts.scatter(f"map-{name.replace(' ', '-')}", name, found, groups, alternative)
        shown.append(figure(drawn, f"{name.capitalize()}: the plane holds {share:.0f} % of the features' variance."))
    what = (
        "Each test example a dot, in the plane in which the model's features vary most (the first two principal "
        "components)"
    )
    turned = "; the student's maps are turned or mirrored to lie on the teacher's" if len(points) > 1 else ""
    coloured = "; classes have their names where the middle of their dots is" if groups else ""
    more = f", the {len(groups)} most numerous in colour and the others grey" if len(groups) < len(test.classes) else ""
    return [tag("p", f"{what}{turned}{coloured}{more if groups else ''}."), tag("div", *shown, class_="panels")]


def _groups(test: Seen) -> dict[str, np.ndarray]:
    """The most numerous classes and where their examples are."""
    if test.labels is None:
        return {}
    numbers, counts = np.unique(test.labels[test.labels >= 0], return_counts=True)
    chosen = np.sort(numbers[np.argsort(-counts, kind="stable")[:COLOURED]])
    return {test.name_of(int(number)): np.flatnonzero(test.labels == number) for number in chosen}


def _confusions(config: Config, loaded: Loaded, features: Mapping[str, Mapping[str, np.ndarray]]) -> Sections:
    """What the nearest neighbours among the training examples say of the test examples' classes."""
    train, test = (examples.labels for examples in (loaded.examples.train, loaded.examples.test))
    if train is None or test is None or not (np.all(train >= 0) and np.all(test >= 0)):
        return []
    count = int(max(train.max(), test.max())) + 1
    names = class_names(loaded.examples.train)
    names += [str(number) for number in range(len(names), count)]
    k = min(config.evaluation.neighbours, len(train))
    shown = []
    for name, of in features.items():
        predicted = np.asarray(metrics.knn_predict(of["test"], of["train"], train, k=k))
        found = space.confusion(test, predicted, count)
        right = f"{name}: {100 * float(np.trace(found)) / len(test):.1f} % of {len(test):,} test examples are right"
        shown.append(_matrix(right, found, names) if count <= MATRIX else _list(right, found, names))
    how = f"Each test example is given the class that its {k} nearest training examples vote for, by cosine similarity."
    return [("Confusion", [tag("p", how), tag("div", *shown, class_="panels")])]


def _matrix(right: str, found: np.ndarray, names: list[str]) -> Markup:
    shares = found / np.maximum(found.sum(axis=1, keepdims=True), 1)
    rows = [
        [name, *(str(value) if value else "" for value in row)]
        for name, row in zip(names, found.tolist(), strict=False)
    ]
    caption = f"{right}. A row is a true class, a column the class it was taken for; off the diagonal is wrong."
    return table(caption, ["true", *names[: len(found)]], rows, shares.tolist())


def _list(right: str, found: np.ndarray, names: list[str]) -> Markup:
    wrong = found * (1 - np.eye(len(found), dtype=found.dtype))
    order = [place for place in np.argsort(-wrong, axis=None, kind="stable")[:LISTED] if wrong.flat[place]]
    pairs = [divmod(int(place), len(found)) for place in order]
    rows = [[names[true], names[taken], str(int(wrong[true, taken]))] for true, taken in pairs]
    return table(f"{right}. The most frequent mistakes.", ["true", "taken for", "examples"], rows)
