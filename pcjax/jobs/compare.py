"""`pcjax compare`: train a student with every loss from the same weights, data and steps.

Every contender trains one student a seed, each in a run's folder of its own, DIR/runs/NAME/SEED.
A repeated command keeps finished runs, resumes a stopped one, and adds seeds or contenders.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pcjax import _fields, _io
from pcjax._checks import RequestError
from pcjax.config import Config, Contender, read_stored
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation import (
    BESIDE,
    Evaluated,
    NotFiniteError,
    Other,
    Outcome,
    check_beside,
    check_evaluation,
    evaluate,
    evaluate_beside,
    load_other,
    summary,
)
from pcjax.jobs.common import (
    REPORT,
    STUDENT,
    TEACHER,
    UNTRAINED,
    build_student,
    check_distillation,
    describe_data,
    load_data,
    student_lesson,
    warn_if_unrelated,
    write_report,
)
from pcjax.jobs.teach import teach
from pcjax.multihost import wait_for_all
from pcjax.run import CONFIG, RESULT, Run, open_run, path_inside, unlock_folder
from pcjax.teachers import Teacher, load_teacher
from pcjax.training.checkpoint import versions
from pcjax.training.embedding import FrozenModel
from pcjax.training.lesson import steps_of
from pcjax.training.loop import BadStepsError, train
from pcjax.training.metrics_log import read_metrics
from pcjax.training.prepare import temporary_bytes

RUNS, OUTCOME = summary.RUNS, "outcome.json"


def compare(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Train the missing runs, and set the contenders side by side."""
    named = {contender.name for contender in config.comparison.contenders}
    config = with_earlier_contenders(config, folder, "compare", RUNS, OUTCOME)
    run = open_run(folder, config, "compare", display)
    dataset = load_data(config)
    other = load_other(config.evaluation, dataset, config.data)
    check_evaluation(config.evaluation, dataset, other)
    check_beside(config.evaluation, dataset)
    check_contenders(run, dataset)
    shared = shared_config(run)
    run.start()
    run.store_config()  # with the contenders and seeds that this command adds
    run.say(f"{describe_data(dataset)}; comparison: {folder}")

    teacher = shared_teacher(run, shared, dataset)
    rivals = Rivals(shared, dataset, teacher, other)
    entries = [(c, seed) for seed in range(config.comparison.seeds) for c in contenders_of(run)]
    outcomes: dict[str, dict[int, Outcome]] = {c.name: {} for c in contenders_of(run)}
    progress = Progress(run, len(entries))
    for contender, seed in entries:
        subrun = contender_run(run, shared, RUNS, contender, seed)
        path = subrun.folder / OUTCOME
        if not path.is_file() and contender.name not in named:
            continue  # an earlier command's contender, which this one does not complete
        if not path.is_file():
            progress.announce(f"{contender.name}, seed {seed}")
            train_contender(subrun, rivals)
            unlock_folder(subrun.folder)
        outcomes[contender.name][seed] = read_outcome(path, teacher, dataset)
        progress.count()
    finish(run, outcomes, rivals)


@dataclasses.dataclass(frozen=True, eq=False)
class Rivals:
    """The parts that all runs of a comparison share."""

    config: Config
    dataset: Dataset
    teacher: Teacher
    other: Other | None
    known: dict[str, Any] = dataclasses.field(default_factory=dict)

    def evaluate(self, models: Mapping[str, FrozenModel], seed: int) -> Evaluated:
        """Evaluate models of a seed; the teacher, and a seed's untrained student, only once."""
        keys = {TEACHER: TEACHER, UNTRAINED: f"{UNTRAINED}, seed {seed}"}
        known = {name: self.known[key] for name, key in keys.items() if key in self.known}
        section = self.config.evaluation
        evaluated = evaluate(models, self.teacher, self.dataset, section, self.other, known)
        self.known.update({key: evaluated.results[name] for name, key in keys.items()})
        return evaluated

    @property
    def identity(self) -> dict[str, str]:
        """Return the digests that runs must share to be compared."""
        return {"data": self.dataset.fingerprint, "teacher": self.teacher.digest}


class Progress:
    """Announce each run with its number and the time that is left."""

    def __init__(self, run: Run, total: int):
        self._run, self._total, self._number = run, total, 0
        self._seconds: list[float] = []
        self._start = time.monotonic()

    def announce(self, name: str) -> None:
        """Print which run starts, and how long this and the remaining runs will take."""
        left = self._total - self._number
        remaining = ""
        if self._seconds:
            remaining = f", {_duration(left * statistics.median(self._seconds))} left"
        self._run.say(f"run {self._number + 1} of {self._total}: {name}{remaining}")
        self._start = time.monotonic()

    def count(self) -> None:
        """Count a finished run; the time of a run that was finished before is not measured."""
        self._number += 1
        seconds = time.monotonic() - self._start
        if seconds > 1:  # a run that was finished before takes less
            self._seconds.append(seconds)
        self._start = time.monotonic()


def _duration(seconds: int | float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def with_earlier_contenders(
    config: Config, folder: pathlib.Path, job: str, part: str, outcome: str
) -> Config:
    """Return the config with the contenders of earlier commands that have results in the folder.

    One that never had a result is left out: it may be impossible to train.
    """
    if not (folder / CONFIG).is_file():
        return config
    stored_job, stored = read_stored(folder / CONFIG)
    if stored_job != job:  # `open_run` refuses it
        return config
    names = {contender.name for contender in config.comparison.contenders}
    earlier = [
        contender
        for contender in stored.comparison.contenders
        if contender.name not in names
        and any(path_inside(folder, part, contender.name).glob(f"*/{outcome}"))
    ]
    comparison = dataclasses.replace(
        config.comparison, contenders=(*earlier, *config.comparison.contenders)
    )
    return dataclasses.replace(config, comparison=comparison)


def contenders_of(run: Run) -> tuple[Contender, ...]:
    """Return the contenders of a comparison; refuse a comparison without any."""
    contenders = run.config.comparison.contenders
    if not contenders:
        raise RequestError(f"There is nothing to {run.job}; give --losses a,b,c.")
    return contenders


def check_contenders(run: Run, dataset: Dataset) -> None:
    """Refuse contenders that cannot be trained."""
    for contender in contenders_of(run):
        config = dataclasses.replace(run.config, losses=contender.losses)
        check_distillation(config, dataset, run)


def shared_config(run: Run) -> Config:
    """Return the config that all runs share.

    A teacher that the comparison trains itself becomes a run, DIR/teacher.
    """
    alone = dataclasses.replace(run.config.evaluation, beside=())  # evaluated once, at the end
    shared = dataclasses.replace(run.config, comparison=Config().comparison, evaluation=alone)
    if shared.teacher.is_trained_here:
        own = str(run.part(TEACHER).resolve())
        shared = dataclasses.replace(shared, teacher=dataclasses.replace(shared.teacher, run=own))
    return shared


def shared_teacher(run: Run, shared: Config, dataset: Dataset) -> Teacher:
    """Train the teacher of a comparison where it has none, and load it."""
    config = run.config
    if config.teacher.is_trained_here:
        own = run.part(TEACHER)
        if not (own / RESULT).is_file():
            teacher_config = dataclasses.replace(config, comparison=Config().comparison)
            teach(teacher_config, own, run.display, part_of_another=True)
            unlock_folder(own)
    teacher = load_teacher(shared.teacher, shared.data, dataset, run, shared.evaluation.batch)
    if teacher.is_from_a_file:
        warn_if_unrelated(build_student(shared, dataset, run.display), teacher, dataset, run)
    return teacher


def contender_run(
    run: Run,
    shared: Config,
    part: str,
    contender: Contender,
    number: int,
    *,
    seed: int | None = None,
) -> Run:
    """Return the run of one contender.

    Its last checkpoint counts: the best one is chosen by coherence, which favours some losses.
    """
    seed = shared.training.seed + (number if seed is None else seed)
    rate = contender.learning_rate or shared.training.learning_rate
    training = dataclasses.replace(shared.training, seed=seed, choose="last", learning_rate=rate)
    config = dataclasses.replace(shared, losses=contender.losses, training=training)
    return open_run(run.part(part, contender.name, str(number)), config, "distill", run.display)


def train_contender(subrun: Run, rivals: Rivals) -> None:
    """Train and evaluate one student, and write its outcome."""
    config, dataset, teacher = subrun.config, rivals.dataset, rivals.teacher
    subrun.start()
    untrained = build_student(config, dataset, subrun.display)
    targets, validation = teacher.targets(dataset), teacher.features["validation"]
    lesson = student_lesson(config, dataset, untrained, targets, validation)
    metrics: Mapping[str, float] = {}
    try:
        student = train(lesson, dataset, subrun)
        models = {UNTRAINED: untrained, STUDENT: student}
        evaluated = rivals.evaluate(models, config.training.seed)
        metrics = summary.numbers(evaluated.results[STUDENT])
        if not all(map(np.isfinite, metrics.values())):
            raise NotFiniteError("the student's metrics are not finite")
    except (NotFiniteError, BadStepsError) as error:
        subrun.say(f"diverged: {error}")
        status = summary.DIVERGED
        models = {UNTRAINED: untrained}
        evaluated = rivals.evaluate(models, config.training.seed)
    else:
        status = summary.DONE
        steps = steps_of(config.training, len(dataset.train))
        results = evaluated.results | {"steps": steps, "versions": versions()}
        results["seconds"] = subrun.finish(results)
        write_report(subrun, results, dataset, evaluated.embeddings)
        store_test_features(subrun.folder, evaluated.embeddings[STUDENT]["test"])
    outcome = Outcome(
        status=status,
        metrics=dict(metrics),
        untrained=summary.numbers(evaluated.results[UNTRAINED]),
        teacher_metrics=summary.numbers(evaluated.results[TEACHER]),
        seconds_per_step=seconds_per_step(read_metrics(subrun.folder)),
        temporary_bytes=temporary_bytes(lesson, dataset),
        **rivals.identity,
    )
    if jax.process_index() == 0:
        _io.write_signed(subrun.folder / OUTCOME, dataclasses.asdict(outcome))
    wait_for_all(f"wrote {subrun.folder / OUTCOME}")  # every process reads it


def store_test_features(folder: pathlib.Path, features: np.ndarray) -> None:
    """Write the student's features of the test examples that the comparison's report shows."""
    from pcjax.report.embedding_math import sample
    from pcjax.report.side_by_side import FEATURES

    if jax.process_index() == 0:
        with _io.atomic_path(folder / FEATURES) as path, path.open("wb") as file:
            np.save(file, features[sample(len(features))])


def read_outcome(path: pathlib.Path, teacher: Teacher, dataset: Dataset) -> Outcome:
    """Read the outcome of a run; refuse one of other data or another teacher."""
    remedy = "delete it, and the run is evaluated again"
    outcome = _fields.decode(Outcome, _io.read_signed(path, remedy), str(path))
    for name, now in (("data", dataset.fingerprint), ("teacher", teacher.digest)):
        if getattr(outcome, name) != now:
            raise RequestError(
                f"The {name} of {path} differs from this command's: choose another --workdir, or "
                f"bring the {name} back."
            )
    return outcome


def seconds_per_step(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median time of a step; the first measurement contains the compilation."""
    rates = [rate for record in records if (rate := record.get("steps_per_second"))]
    return 1 / statistics.median(rates[1:]) if len(rates) > 1 else None


def page_of(run: Run, rivals: Rivals) -> str:
    """Return the comparison's page."""
    from pcjax.report.comparison_page import comparison_page  # loads matplotlib

    section = rivals.config.evaluation
    return comparison_page(run.folder, rivals.dataset, rivals.teacher.features["test"], section)


def finish(run: Run, outcomes: Mapping[str, Mapping[int, Outcome]], rivals: Rivals) -> None:
    """Write, print and draw the comparison."""
    labelled = {c.name: c.needs_labels for c in contenders_of(run)}
    comparison = summary.summarise(outcomes, labelled)
    section, teacher, other = run.config.evaluation, rivals.teacher, rivals.other
    beside = evaluate_beside(section, teacher, rivals.dataset, other, run.display)
    comparison[BESIDE] = {name: summary.numbers(results) for name, results in beside.items()}
    comparison |= {"versions": versions(), "config": json.loads(run.config.to_json())}
    if jax.process_index() == 0:
        summary.write(run.folder, comparison)
        _io.write_text(run.folder / REPORT, page_of(run, rivals))
    summary.show(comparison, run.display)
    run.say(f"{summary.COMPARISON}, {summary.MARKDOWN}, {REPORT} and the runs are in {run.folder}")
    run.say("With more --seeds or --losses the same command adds them.")
