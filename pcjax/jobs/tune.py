"""`pcjax tune`: the settings of every loss that do best on the validation examples, as many tries for each of them.

The first try is the setting that is given. The others multiply its temperatures and other scales, and its weights where
there are several, by factors between 1/8 and 8, spread evenly on a logarithmic scale. Test examples are not looked at.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import qmc

from pcjax import _checks, metrics
from pcjax.config import Config, Contender, Loss, Ramp
from pcjax.evaluation import evaluate as judge
from pcjax.jobs.compare import MADE_WITH, begin, check_same, of_contender, with_earlier
from pcjax.jobs.distill import KnownTeacher, find_teacher, plan_student
from pcjax.jobs.prepare import STUDENT_SEED, Loaded, load, new_model, trained
from pcjax.jobs.teach import coherence
from pcjax.loss_registry import TERMS
from pcjax.run import (
    CONFIG,
    begin_folder,
    is_number,
    own_place,
    stored_object,
    write_config,
    write_proven,
)
from pcjax.training.clock import Clock
from pcjax.training.disk import let_go
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen, represent
from pcjax.training.guard import BadStepsError

TRIALS, TRIAL, TUNED = "trials", "trial.json", "tuned.json"
FACTOR = 8.0
SEED = 10_000  # the students that are compared later begin with other weights
SCALES = ("temperature", "teacher_temperature", "sharpness", "alpha", "beta", "gamma", "width")


def tune(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Tries what is not tried yet, and writes the best setting of each contender as a config to compare."""

    def begun(contender: Contender) -> bool:
        tries = range(config.comparison.trials)
        return all(
            (own_place(folder, TRIALS, contender.name, str(number)) / TRIAL).exists()
            for number in tries
        )

    config = with_earlier(config, folder, "tune", begun, display)
    loaded, trials = load(config), config.comparison.trials

    def run_of(shared: Config, setting: Contender, number: int) -> tuple[Config, pathlib.Path]:
        return of_contender(shared, setting, SEED), own_place(
            folder, TRIALS, setting.name, str(number)
        )

    def all_runs(shared: Config) -> Iterable[tuple[Config, pathlib.Path]]:
        contenders = config.comparison.contenders
        return [
            run_of(shared, s, n)
            for contender in contenders
            for n, s in enumerate(settings(contender, trials))
        ]

    shared = begin(config, folder, loaded, "tune", all_runs, _tried, display)
    teacher = find_teacher(shared, folder, loaded, display)
    made_with = check_same(all_runs(shared), TRIAL, _tried, teacher, loaded)
    write_config(folder / CONFIG, config, "tune")
    best, rows = [], []
    for contender in config.comparison.contenders:
        tried = []
        for number, setting in enumerate(settings(contender, trials)):
            asked, own = run_of(shared, setting, number)
            known = _tried(own)
            if known is not None:
                score = known["score"]
            else:
                display.say(f"{contender.name}, try {number + 1} of {trials}: {describe(setting)}")
                score = _try(asked, own, loaded, teacher, display)
                write_proven(own / TRIAL, {"score": score} | made_with)
                let_go(own)
            tried.append((score, setting))
        scores = [-np.inf if score is None else score for score, _ in tried]
        at = int(np.argmax(scores))
        if tried[at][0] is not None:
            best.append(tried[at][1])
        rows.append(
            [
                contender.name,
                *(_shown(tried[place][0]) for place in (0, at)),
                describe(tried[at][1]),
            ]
        )
    measure = "coherence" if _labels(loaded) is None else "k-NN accuracy"
    display.table(f"{measure} on the validation examples", ["", "as given", "best", "with"], rows)
    lost = sorted(
        {contender.name for contender in config.comparison.contenders} - {one.name for one in best}
    )
    if lost:
        display.say(
            f"all tries of {', '.join(lost)} diverged: lower training.learning_rate, or give smaller weights"
        )
    _checks.require(bool(best), "every try of every loss diverged: lower training.learning_rate")
    tuned = dataclasses.replace(
        config, comparison=dataclasses.replace(config.comparison, contenders=tuple(best))
    )
    write_config(folder / TUNED, tuned, "compare")
    display.say(f"next: pcjax compare {folder / TUNED}")


def _tried(own: pathlib.Path) -> dict[str, Any] | None:
    """What came of a try, if it has ended."""
    path, remedy = own / TRIAL, "delete it, and that setting is tried again"
    if not path.exists():
        return None
    found = stored_object(path, remedy)
    sound = "score" in found and (found["score"] is None or is_number(found["score"]))
    _checks.require(sound, f"{path} is damaged (score {found.get('score')!r}): {remedy}")
    for name in MADE_WITH:
        _checks.require(isinstance(found.get(name), str), f"{path} is damaged ({name}): {remedy}")
    return found


def settings(contender: Contender, trials: int) -> list[Contender]:
    """The contender as it is, and with its scales multiplied; equal calls give equal settings."""
    places = _scales(contender)
    if not places:
        return [contender] * trials
    # The first point of Halton's sequence is 0 everywhere: the middle of the range is put there.
    points = qmc.Halton(len(places), scramble=False).random(trials)
    factors = FACTOR ** (2 * ((points + 0.5) % 1.0) - 1.0)
    return [_scaled(contender, dict(zip(places, row, strict=True))) for row in factors.tolist()]


def _scales(contender: Contender) -> list[tuple[int, str]]:
    """What of a contender is tuned: (place of the loss, argument or "weight")."""
    found = []
    for place, loss in enumerate(contender.losses):
        given = TERMS[loss.name].numbers | loss.arguments
        found += [
            (place, name)
            for name, value in given.items()
            if name in SCALES and _is_number(value) and value != 0
        ]
        # One factor on a whole sum of losses hardly changes what Adam does.
        if place > 0 or (len(contender.losses) == 1 and not found):
            found.append((place, "weight"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Ramp)) and not isinstance(value, bool)


def _scaled(contender: Contender, factors: dict[tuple[int, str], float]) -> Contender:
    def times(value: Any, factor: float) -> Any:
        if isinstance(value, Ramp):
            return dataclasses.replace(value, start=value.start * factor, end=value.end * factor)
        # Three digits, so that what is shown is what was tried.
        return value if factor == 1 else float(f"{value * factor:.3g}")

    def changed(place: int, loss: Loss) -> Loss:
        own = {name: factor for (at, name), factor in factors.items() if at == place}
        # What is not given stays so where it is not changed.
        there = {
            name: x for name, x in TERMS[loss.name].numbers.items() if own.get(name, 1.0) != 1
        } | loss.arguments
        arguments = {name: times(value, own.get(name, 1.0)) for name, value in there.items()}
        return dataclasses.replace(
            loss, weight=times(loss.weight, own.get("weight", 1.0)), arguments=arguments
        )

    return dataclasses.replace(
        contender, losses=tuple(changed(*each) for each in enumerate(contender.losses))
    )


def describe(contender: Contender) -> str:
    """What is tuned of a contender, as it stands."""

    def value(place: int, name: str) -> Any:
        loss = contender.losses[place]
        found = (
            loss.weight if name == "weight" else (TERMS[loss.name].numbers | loss.arguments)[name]
        )
        return (
            f"{found.start:.3g} to {found.end:.3g}" if isinstance(found, Ramp) else f"{found:.3g}"
        )

    several = len(contender.losses) > 1
    return ", ".join(
        f"{f'{contender.losses[place].name} ' if several else ''}{name} {value(place, name)}"
        for place, name in _scales(contender)
    )


def _try(
    asked: Config, own: pathlib.Path, loaded: Loaded, teacher: KnownTeacher, display: Display
) -> float | None:
    begin_folder(own, asked, "distill")
    first = new_model(asked.student, loaded, asked.training, STUDENT_SEED)
    try:
        student = trained(
            plan_student(asked, own, loaded, teacher, first, display, Clock()), first, display
        )
        score = _score(student, asked, loaded, teacher)
        score = score if is_number(score) else None
    except (judge.NotFiniteError, BadStepsError):
        score = None
    return score


def _score(student: Frozen, asked: Config, loaded: Loaded, teacher: KnownTeacher) -> float | None:
    """k-NN accuracy of the validation examples among the training examples; coherence where there are no labels."""
    train, validation = (
        represent(
            student, getattr(loaded.examples, split), loaded.normalise, asked.evaluation.batch
        ).features
        for split in ("train", "validation")
    )
    if not (np.all(np.isfinite(train)) and np.all(np.isfinite(validation))):
        return None
    labels = _labels(loaded)
    if labels is None:
        return coherence(
            validation,
            teacher.features["validation"],
            judge.neighbours(asked.evaluation, validation),
        )
    k = min(asked.evaluation.neighbours, len(train))
    return float(metrics.knn_accuracy(validation, labels[1], train, labels[0], k=k))


def _labels(loaded: Loaded) -> tuple[np.ndarray, np.ndarray] | None:
    """Of the training and the validation examples, if all are known."""
    train, validation = (
        judge.known_labels(loaded.examples.train),
        judge.known_labels(loaded.examples.validation),
    )
    return None if train is None or validation is None else (train, validation)


def _shown(score: float | None) -> str:
    return "diverged" if score is None else f"{score:.4f}"
