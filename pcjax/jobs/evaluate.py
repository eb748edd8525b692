"""`pcjax evaluate RUN` and `pcjax embed RUN`: what a run that has ended is worth, and its features as a file."""

import dataclasses
import pathlib
import shlex
from typing import Any

import jax
import numpy as np

from pcjax import _checks
from pcjax.config import Config, Evaluation
from pcjax.evaluation import evaluate as judge
from pcjax.evaluation import tables
from pcjax.evaluation.extras import throughput
from pcjax.evaluation.results import result_of
from pcjax.jobs.distill import STUDENT, TEACHER, find_teacher, trained_model, worth
from pcjax.jobs.prepare import STUDENT_SEED, TEACHER_SEED, Loaded, load, new_model
from pcjax.jobs.teach import worth_of_teacher
from pcjax.models.functional import functional_shapes
from pcjax.run import CONFIG, RESULT, config_of, write_proven
from pcjax.training.disk import replacing
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen, represent_all

FEATURES = "features.npz"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What of a run is judged beside its own table; what is None is as the run's config has it."""

    other: str | None = None
    """another data set, as data.source, that the frozen representations are judged on by its labels"""
    other_dir: str | None = None
    """where TFDS keeps that one; None: where the run's own data are"""
    corruptions: tuple[str, ...] | None = None
    """names of what is done to test images; none after the option: all"""
    throughput: bool = False
    """measure how many examples a second each model takes here, in batches of evaluation.batch"""

    def evaluation(self, config: Config) -> Evaluation:
        """The run's, with what is asked for instead."""
        there = config.evaluation
        if self.other is not None:
            there = dataclasses.replace(there, other=self.other, other_dir=self.other_dir)
        else:
            _checks.require(
                self.other_dir is None,
                f"got --other-dir {self.other_dir} without --other: give it too",
            )
        names = there.corruptions if self.corruptions is None else self.corruptions or ("all",)
        return dataclasses.replace(there, corruptions=names)


def evaluate(folder: pathlib.Path, display: Display, asked: Asked | None = None) -> None:
    """Computes a run's table again, from its best checkpoint, and what else is asked for."""
    asked = asked or Asked()
    stored = folder / RESULT
    job, config = run_of(folder)
    before = result_of(folder)
    judged = dataclasses.replace(config, evaluation=asked.evaluation(config))
    loaded = load(judged)
    judge.check_judging(judged.evaluation, loaded.examples, loaded.other)
    if job == "teach":
        model = model_of(job, config, folder, loaded)
        judged_models = {TEACHER: model}
        results = {TEACHER: worth_of_teacher(judged, model, loaded)}
    else:
        teacher = find_teacher(config, folder, loaded, None)
        model, first = models(config, folder, loaded, teacher.digest)
        taught = {} if teacher.model is None else {TEACHER: teacher.model}
        judged_models = {"untrained": first, STUDENT: model} | taught
        results = worth(judged, teacher, first, model, loaded)
    if asked.throughput:
        for name, one in judged_models.items():
            batch = judged.evaluation.batch
            results[name]["throughput"] = throughput(
                one, loaded.examples.test, loaded.normalise, batch
            )
    # What was asked for earlier stays, of other data sets too.
    for name, found in results.items():
        known = before.get(name, {})
        other = known.get("other", {}) | found.get("other", {})
        results[name] = known | found | ({"other": other} if other else {})
    results = before | results | {"versions": judge.versions()}
    write_proven(stored, results)
    tables.show(results, display)


def run_of(folder: pathlib.Path) -> tuple[str, Config]:
    """The job and the config of a run of one model."""
    job, config = config_of(folder)
    several = job in ("compare", "tune")
    _checks.require(
        not several,
        f"{folder} is of `pcjax {job}`, which has many runs: name one, LOSS/SEED, in it",
    )
    return job, config


def embed(folder: pathlib.Path, display: Display) -> None:
    """Writes the features of a run's model for every example; `--teacher.features` reads them."""
    job, config = run_of(folder)
    result_of(folder)
    loaded = load(config)
    model = model_of(job, config, folder, loaded)
    said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    path = folder / FEATURES
    arrays: dict[str, Any] = {part: one.features for part, one in said.items()}
    if jax.process_index() == 0:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, fingerprint=np.array(loaded.examples.fingerprint), **arrays)
    shapes = ", ".join(f"{split} {one.features.shape}" for split, one in said.items())
    display.say(f"{path}: {shapes}")
    run, other = (
        shlex.quote(str(folder)),
        "" if config.teacher.run is None else " --teacher.run None",
    )
    next_ = f"pcjax distill {run}/{CONFIG}{other} --teacher.features {run}/{FEATURES} --workdir {run}-student"
    display.say(f"next: {next_}")


def models(
    config: Config, folder: pathlib.Path, loaded: Loaded, teacher: str
) -> tuple[Frozen, Frozen]:
    """A student that was trained under that teacher, and the same with its first weights."""
    first = new_model(config.student, loaded, config.training, STUDENT_SEED)
    return model_of("distill", config, folder, loaded, teacher), first


def model_of(
    job: str, config: Config, folder: pathlib.Path, loaded: Loaded, teacher: str | None = None
) -> Frozen:
    """The run's model, from the checkpoint that counts; where a digest is given, refused if of another teacher."""
    taught = job == "teach"
    model, training = (
        (config.teacher.model, config.teacher.training)
        if taught
        else (config.student, config.training)
    )
    manifest = {
        "role": TEACHER if taught else STUDENT,
        "data": loaded.examples.fingerprint,
        "config": config.digest(),
    }
    manifest |= {} if teacher is None else {"teacher": teacher}
    like = new_model(
        model, loaded, training, TEACHER_SEED if taught else STUDENT_SEED, functional_shapes
    )
    return trained_model(folder, manifest, like, training)
