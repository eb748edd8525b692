"""`pcjax tune`: choose each loss's settings on the validation examples, in equally many trials.

The first trial is the setting that is given. The others multiply the learning rate, the loss's
temperatures and other scales, and its weights where there are several, by factors between 1/8 and
8, spread evenly on a logarithmic scale. Test examples are not used.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from scipy.stats import qmc

from pcjax import _fields, _io, metrics
from pcjax._checks import FailedError, RequestError
from pcjax.config import Config, Contender, Loss, Ramp
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation import check_evaluation, coherence_score, load_other
from pcjax.evaluation.evaluate import labels_of
from pcjax.jobs.common import build_student, describe_data, load_data, student_lesson
from pcjax.jobs.compare import (
    Progress,
    Rivals,
    check_contenders,
    contender_run,
    contenders_of,
    shared_config,
    shared_teacher,
    with_earlier_contenders,
)
from pcjax.losses.registry import LOSSES
from pcjax.run import Run, open_run, unlock_folder
from pcjax.training.embedding import embed
from pcjax.training.loop import BadStepsError, train

TRIALS, TRIAL, TUNED = "trials", "trial.json", "tuned.json"
FACTOR = 8.0
SEED = 10_000  # the students that are compared later begin with other weights
RATE = (-1, "learning_rate")  # of the training, not of one loss
SCALES = ("temperature", "teacher_temperature", "sharpness", "alpha", "beta", "gamma", "width")


@dataclasses.dataclass(frozen=True)
class Trial:
    """The outcome of one setting; the score of a training that diverged is None."""

    score: float | None
    data: str
    teacher: str


def tune(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Run the missing trials, and write the best settings as a config for `pcjax compare`."""
    config = with_earlier_contenders(config, folder, "tune", TRIALS, TRIAL)
    run = open_run(folder, config, "tune", display)
    dataset = load_data(config)
    other = load_other(config.evaluation, dataset, config.data)
    check_evaluation(config.evaluation, dataset, other)
    check_contenders(run, dataset)
    shared = shared_config(run)
    run.start()
    run.store_config()
    run.say(f"{describe_data(dataset)}; trials: {folder}")

    rivals = Rivals(shared, dataset, shared_teacher(run, shared, dataset), None)
    count = config.comparison.trials
    rate = config.training.learning_rate
    contenders = [
        dataclasses.replace(contender, learning_rate=contender.learning_rate or rate)
        for contender in contenders_of(run)
    ]
    progress = Progress(run, count * len(contenders))
    best, rows = [], []
    for contender in contenders:
        options = settings(contender, count)
        scores = []
        for number, setting in enumerate(options):
            scores.append(_score_of(run, rivals, setting, number, progress))
            progress.count()
        place = int(np.argmax([-np.inf if score is None else score for score in scores]))
        if scores[place] is not None:
            best.append(options[place])
        shown = ["diverged" if s is None else f"{s:.4f}" for s in (scores[0], scores[place])]
        rows.append([contender.name, *shown, describe(options[place])])
    measure = "k-NN accuracy" if _is_labelled(dataset) else "coherence"
    display.table(f"{measure} on the validation examples", ["", "given", "best", "with"], rows)
    _finish(run, tuple(best))


def _finish(run: Run, best: tuple[Contender, ...]) -> None:
    """Write the best settings; a loss without one is left out."""
    names = {contender.name for contender in best}
    lost = [c.name for c in contenders_of(run) if c.name not in names]
    if not best:
        raise FailedError("Every trial of every loss diverged: lower training.learning_rate.")
    if lost:
        run.say(
            f"All trials of {', '.join(lost)} diverged: lower training.learning_rate, or give "
            "smaller weights."
        )
    comparison = dataclasses.replace(run.config.comparison, contenders=best)
    tuned = dataclasses.replace(run.config, comparison=comparison)
    dataclasses.replace(run, config=tuned, job="compare").store_config(TUNED)
    run.say(f"next: pcjax compare {run.folder / TUNED}")


def _score_of(
    run: Run, rivals: Rivals, setting: Contender, number: int, progress: Progress
) -> float | None:
    """Return the score of a setting; train it if it was not tried before."""
    subrun = contender_run(run, rivals.config, TRIALS, setting, number, seed=SEED)
    path = subrun.folder / TRIAL
    if path.is_file():
        trial = _fields.decode(Trial, _io.read_signed(path, "delete it to repeat the trial"))
        if (trial.data, trial.teacher) != tuple(rivals.identity.values()):
            raise RequestError(
                f"{path} belongs to other data or another teacher; choose another --workdir."
            )
        return trial.score
    progress.announce(f"{setting.name}, {describe(setting)}")
    score = _train_and_score(subrun, rivals)
    if jax.process_index() == 0:
        _io.write_signed(path, dataclasses.asdict(Trial(score, **rivals.identity)))
    unlock_folder(subrun.folder)
    return score


def _train_and_score(subrun: Run, rivals: Rivals) -> float | None:
    """Return k-NN accuracy of the validation examples; without labels, coherence."""
    config, dataset, teacher = subrun.config, rivals.dataset, rivals.teacher
    subrun.start()
    validation = teacher.features["validation"]
    model = build_student(config, dataset, subrun.display)
    lesson = student_lesson(config, dataset, model, teacher.targets(dataset), validation)
    try:
        student = train(lesson, dataset, subrun)
    except BadStepsError:
        return None
    features = {
        part: embed(student, dataset.parts[part], dataset.normalise, config.evaluation.batch)
        for part in ("train", "validation")
    }
    train_features, own = (features[part].features for part in ("train", "validation"))
    if not (np.isfinite(train_features).all() and np.isfinite(own).all()):
        return None
    if not _is_labelled(dataset):
        return coherence_score(own, validation, config.evaluation.dissimilarity)
    labels = labels_of(dataset)
    k = min(config.evaluation.neighbours, len(train_features))
    known = labels["validation"], train_features, labels["train"]
    return float(metrics.knn_accuracy(own, *known, k=k))


def _is_labelled(dataset: Dataset) -> bool:
    return {"train", "validation"} <= labels_of(dataset).keys()


def settings(contender: Contender, trials: int) -> list[Contender]:
    """Return the contender as it is, and with its scales multiplied; the same ones every time."""
    places = _tuned(contender)
    # Halton's first point is 0 everywhere: move it to the middle of the range, the factor 1.
    points = qmc.Halton(len(places), scramble=False).random(trials)
    factors = FACTOR ** (2 * ((points + 0.5) % 1.0) - 1.0)
    return [_scaled(contender, dict(zip(places, row, strict=True))) for row in factors.tolist()]


def _tuned(contender: Contender) -> list[tuple[int, str]]:
    """Return the tuned numbers: the position of a loss, and its argument or "weight"."""
    places: list[tuple[int, str]] = [RATE]
    for place, loss in enumerate(contender.losses):
        values = LOSSES[loss.name].number_defaults | loss.arguments
        scales = [n for n, x in values.items() if n in SCALES and _is_number(x) and x != 0]
        places += [(place, name) for name in scales]
        # A factor on a whole sum of losses hardly changes what Adam does.
        if place > 0:
            places.append((place, "weight"))
    return places


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Ramp)) and not isinstance(value, bool)


def _scaled(contender: Contender, factors: dict[tuple[int, str], float]) -> Contender:
    def times(value: Any, factor: float) -> Any:
        if isinstance(value, Ramp):
            return dataclasses.replace(value, start=value.start * factor, end=value.end * factor)
        # Three digits, so that the printed setting is the one that was tried.
        return value if factor == 1 else float(f"{value * factor:.3g}")

    def changed(place: int, loss: Loss) -> Loss:
        own = {name: factor for (at, name), factor in factors.items() if at == place}
        defaults = LOSSES[loss.name].number_defaults
        values = {n: x for n, x in defaults.items() if own.get(n, 1.0) != 1} | loss.arguments
        arguments = {name: times(value, own.get(name, 1.0)) for name, value in values.items()}
        weight = times(loss.weight, own.get("weight", 1.0))
        return dataclasses.replace(loss, weight=weight, arguments=arguments)

    losses = tuple(changed(*item) for item in enumerate(contender.losses))
    rate = times(contender.learning_rate, factors[RATE])
    return dataclasses.replace(contender, losses=losses, learning_rate=rate)


def describe(contender: Contender) -> str:
    """List the tuned values of a contender."""

    def value(place: int, name: str) -> str:
        if (place, name) == RATE:
            return f"{contender.learning_rate:.3g}"
        loss = contender.losses[place]
        numbers = LOSSES[loss.name].number_defaults | loss.arguments
        number = loss.weight if name == "weight" else numbers[name]
        if isinstance(number, Ramp):
            return f"{number.start:.3g} to {number.end:.3g}"
        return f"{number:.3g}"

    several = len(contender.losses) > 1
    return ", ".join(
        f"{f'{contender.losses[place].name} ' if several and place >= 0 else ''}"
        f"{name.replace('_', ' ')} {value(place, name)}"
        for place, name in _tuned(contender)
    )
