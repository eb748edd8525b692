"""`pcjax evaluate RUN` and `pcjax embed RUN`: what a run that has ended is worth, and its features as a file."""

import json
import pathlib

import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.config import Config
from pcjax.jobs import judge
from pcjax.jobs.distill import STUDENT, TEACHER, find_teacher, trained_model, worth
from pcjax.jobs.folder import RESULT, config_of, write_json
from pcjax.jobs.prepare import STUDENT_SEED, TEACHER_SEED, Loaded, load, new_model
from pcjax.jobs.represent import Frozen, represent_all
from pcjax.training.display import Display

FEATURES = "features.npz"


def evaluate(folder: pathlib.Path, display: Display) -> None:
    """Computes a run's table again, from its best checkpoint."""
    job, config = config_of(folder)
    loaded = load(config)
    model, first = models(job, config, folder, loaded)
    if job == "teach":
        said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
        features = {split: one.features for split, one in said.items()}
        results = judge.judge_all({TEACHER: model}, features, loaded.examples, loaded.normalise, config.evaluation)
    else:
        results = worth(config, find_teacher(config, folder, loaded, None), first, model, loaded)
    stored = folder / RESULT
    _checks.require(stored.is_file(), f"no {RESULT} in {folder}: run the command that trains it to its end first")
    try:
        before = dict(json.loads(stored.read_text()))
    except ValueError as error:
        raise RequestError(f"{stored} is damaged ({error}): delete it, and give the run's command again") from error
    write_json(stored, before | results | {"versions": judge.versions()})
    judge.show(results, display)


def embed(folder: pathlib.Path, display: Display) -> None:
    """Writes the features of a run's model for every example; `--teacher.features` reads them."""
    job, config = config_of(folder)
    loaded = load(config)
    model, _ = models(job, config, folder, loaded)
    said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    path = folder / FEATURES
    try:
        np.savez(
            path,
            fingerprint=np.array(loaded.examples.train.fingerprint),
            train=said["train"].features,
            validation=said["validation"].features,
            test=said["test"].features,
        )
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error
    shapes = ", ".join(f"{split} {one.features.shape}" for split, one in said.items())
    display.say(f"{path}: {shapes}")
    display.say(f"next: pcjax distill CONFIG --teacher.features {path}")


def models(job: str, config: Config, folder: pathlib.Path, loaded: Loaded) -> tuple[Frozen, Frozen]:
    """The run's model, and the same with its first weights."""
    if job == "teach":
        role, training = TEACHER, config.teacher.training
        first = new_model(config.teacher.model, loaded, training, TEACHER_SEED)
    else:
        role, training = STUDENT, config.training
        first = new_model(config.student, loaded, training, STUDENT_SEED)
    manifest = {"role": role, "data": loaded.examples.train.fingerprint, "config": config.digest()}
    return trained_model(folder, manifest, first, training), first
