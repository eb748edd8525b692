"""The report of a run: how its training went, and how its student sees the world beside its teacher."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcjax._checks import require
from pcjax.config import Config
from pcjax.evaluation.results import result_of
from pcjax.jobs import evaluate
from pcjax.jobs.distill import find_teacher
from pcjax.jobs.prepare import Loaded, load
from pcjax.report import charts
from pcjax.report import embedding_math as space
from pcjax.report import formatting as words
from pcjax.report import panels as views
from pcjax.report.neighbours import rows_of
from pcjax.report.page import Markup, details, figure, page, table, tag, terms
from pcjax.run import config_of, own_place
from pcjax.training.embedding import represent, represent_all
from pcjax.training.metrics_log import METRICS, read_records

WORST, MIDDLE, BEST, SHOWN = 6, 3, 3, 6  # rows of pictures, and pictures in each
WHOSE = {"the teacher": "teacher", "the student": "student after"}

Sections = list[tuple[str, Sequence[str]]]


def run_page(folder: pathlib.Path) -> str:
    """The page of a run that has ended; nothing in its folder is changed."""
    job, config = config_of(folder)
    drawn = ("distill", "teach", "compare")
    require(
        job in drawn,
        f"{folder} is of `pcjax {job}`, which is not drawn: expected one of {', '.join(drawn)}",
    )
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
    sections: Sections = [
        ("Results", _results(result, loaded)),
        ("Training", _training(job, folder)),
    ]
    sections += (
        _taught(config, folder, loaded) if job == "teach" else _distilled(config, folder, loaded)
    )
    return page(f"{name}: report of pcjax {job}", lead, sections)


def _made(result: Mapping[str, Any]) -> str:
    said = [f"{value:,} {name}" for name in ("steps", "seconds") if (value := result.get(name))]
    made = ", ".join(
        f"{name} {version}" for name, version in dict(result.get("versions") or {}).items()
    )
    return f"It took {' and '.join(said)}; made with {made}." if said else f"Made with {made}."


def _results(result: Mapping[str, Any], loaded: Loaded) -> list[str]:
    columns, rows = words.results(result)
    count = f"{len(loaded.examples.test):,} test examples"
    caption = f"On {count}, which no choice was made by; below a number its 95 % interval, where it has one."
    more = words.leaves(
        {
            k: v
            for k, v in result.items()
            if k not in (*words.TITLES, "versions", "steps", "seconds")
        }
    )
    also = [[words.title_of(name), words.cell(name, value)] for name, value in more.items()]
    return [
        table(caption, columns, rows),
        *([table("What else was measured.", ["", "value"], also)] if also else []),
        details("result.json", json.dumps(result, indent=1)),
    ]


def _training(job: str, folder: pathlib.Path) -> list[str]:
    found = {"teacher" if job == "teach" else "student": read_records(folder)}
    if job == "distill":
        found["teacher"] = read_records(own_place(folder, "teacher"))
    drawn = [one for who, records in found.items() for one in _curves(who, records.sound)]
    return [
        tag("div", *drawn, class_="panels") if drawn else tag("p", f"There is no {METRICS}."),
        *(
            left_out(f"of the {who}", records.damaged)
            for who, records in found.items()
            if records.damaged
        ),
    ]


def left_out(what: str, lines: int) -> Markup:
    """That there are lines which no curve shows."""
    return tag(
        "p", f"{METRICS} {what}: {lines} lines are not as they were written, and are left out."
    )


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
            f"loss-{who}",
            f"{who}: loss",
            shown,
            f"Curve of the {who}'s loss over the steps: {said}.",
        )
        found.append(figure(drawn, caption))
    judged = [
        name for name in numbers if name.startswith("validation_") and name != "validation_score"
    ]
    for place, name in enumerate(judged):
        curve = charts.curve_of(records, name)
        what = name.removeprefix("validation_").replace("_", " ")
        drawn = charts.curves(
            f"judged-{place}-{who}",
            f"{who}: validation {what}",
            {what: curve},
            f"Curve of the {who}'s {what} on validation examples over the steps: {_course(curve)}.",
        )
        found.append(
            figure(
                drawn, f"{what.capitalize()} on validation examples, judged at every checkpoint."
            )
        )
    skipped = [record["skipped"] for record in records if record.get("skipped")]
    if skipped:
        why = "were not finite, or had a gradient or examples far beyond the others', or examples that are all alike"
        found.append(tag("p", f"The {who} skipped {skipped[-1]} steps that {why}."))
    return found


def _course(curve: charts.Curve) -> str:
    known = curve.values[np.isfinite(curve.values)]
    if not len(known):
        return "never finite"
    return f"from {known[0]:.3g} to {known[-1]:.3g}, at its lowest {known.min():.3g}, at its highest {known.max():.3g}"


def _taught(config: Config, folder: pathlib.Path, loaded: Loaded) -> Sections:
    model = evaluate.model_of("teach", config, folder, loaded)
    said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    features = {split: one.features for split, one in said.items()}
    places = space.sample(len(features["test"]))
    test = views.sampled(loaded.examples.test, places)
    return [
        ("Map", views.maps({"teacher": features["test"][places]}, test)),
        *_confusions(config, loaded, {"teacher": features}),
    ]


def _distilled(config: Config, folder: pathlib.Path, loaded: Loaded) -> Sections:
    known = find_teacher(config, folder, loaded, None)
    model, first = evaluate.models(config, folder, loaded, known.digest)
    teacher = known.features
    student = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    features = {split: one.features for split, one in student.items()}
    before = represent(
        first, loaded.examples.test, loaded.normalise, config.evaluation.batch
    ).features
    places = space.sample(len(before))
    test = views.sampled(loaded.examples.test, places)
    seen = {
        name: views.Space(rows[places], space.ranks(rows[places]))
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
    k = min(SHOWN, len(places) - 1)
    near = {who: space.nearest(seen[name].ranks, k) for who, name in WHOSE.items()}
    chosen = space.telling(coherence["student after"], WORST, MIDDLE, BEST)
    how = (
        f"Test examples and their {k} nearest among the {len(places):,} sampled, the nearest first, as teacher and "
        f"student see them; what both have among them is framed. First the {min(WORST, len(chosen))} whose "
        "surroundings the student sees most differently, then usual ones, then those it sees most alike."
    )
    after = {"the student": coherence["student after"]}
    return [
        (
            "Coherence",
            [tag("div", views.histogram(coherence), *views.densities(seen), class_="panels")],
        ),
        ("Maps", views.maps({name: one.features for name, one in seen.items()}, test)),
        ("Neighbours", [tag("p", how), *rows_of(test, places, chosen, after, near)]),
        *_confusions(config, loaded, {"teacher": teacher, "student after": features}),
    ]


def _confusions(
    config: Config, loaded: Loaded, features: Mapping[str, Mapping[str, np.ndarray]]
) -> Sections:
    shown = views.confusions(
        loaded.examples.train, loaded.examples.test, features, config.evaluation.neighbours
    )
    return [("Confusion", shown)] if shown else []
