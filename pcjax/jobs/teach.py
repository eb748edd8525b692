"""`pcjax teach`: trains the teacher alone, with labels."""

import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Config, Loss
from pcjax.evaluation import evaluate as judge
from pcjax.evaluation import tables
from pcjax.jobs.prepare import (
    TEACHER_SEED,
    Guide,
    Loaded,
    check,
    counts,
    load,
    new_model,
    plan,
    promised,
    rehearse,
    steps_of,
    trained,
)
from pcjax.models import Output
from pcjax.run import CONFIG, RESULT, begin_folder, check_folder, seconds_of, write_proven
from pcjax.training.clock import Clock
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen, represent, represent_all

LOSSES = (Loss("cross_entropy"),)


def teach(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Trains the teacher in its folder, and says what it is worth."""
    clock = Clock()
    check_folder(folder, config, "teach")
    loaded = load(config)
    check_teaching(config, loaded)
    begin_folder(folder, config, "teach")
    display.say(f"data: {counts(loaded)} from {config.data.source}; the run lies in {folder}")
    teacher = train_teacher(config, folder, loaded, display, clock)
    results: dict[str, Any] = {"teacher": worth_of_teacher(config, teacher, loaded)}
    steps = steps_of(config.teacher.training, len(loaded.examples.train))
    seconds = seconds_of(folder, clock)
    results |= {"seconds": seconds, "steps": steps, "versions": judge.versions()}
    write_proven(folder / RESULT, results)
    tables.show(results, display)
    display.say(f"{seconds} s; everything lies in {folder}")
    run = shlex.quote(str(folder))
    display.say(f"next: pcjax distill {run}/{CONFIG} --teacher.run {run} --workdir {run}-student")


def worth_of_teacher(config: Config, teacher: Frozen, loaded: Loaded) -> dict[str, Any]:
    """The teacher alone, as result.json has it."""
    said = represent_all(teacher, loaded.examples, loaded.normalise, config.evaluation.batch)
    features = judge.features_of("teacher", said)
    data = loaded.examples, loaded.normalise, config.evaluation, loaded.other
    return judge.judge_model(teacher, features, features, *data)


def check_teaching(config: Config, loaded: Loaded) -> tuple[Output, dict[str, Any]]:
    """Refuses what cannot be trained; the shapes of what the teacher will say, and of its last layer."""
    if loaded.examples.train.labels is None or loaded.examples.validation.labels is None:
        raise RequestError(
            f"{config.data.source} has no labels to train a teacher with: give --teacher.run or --teacher.features"
        )
    asked = config.teacher
    check(config, asked.training, LOSSES, loaded, "teacher.training")
    shapes, classifier = promised(asked.model, loaded, asked.training)
    rehearse(LOSSES, shapes, None, {}, asked.training, loaded)
    return shapes, classifier


def train_teacher(
    config: Config, folder: pathlib.Path, loaded: Loaded, display: Display, clock: Clock
) -> Frozen:
    """The teacher, trained to the end in that folder."""
    asked = config.teacher
    first = new_model(asked.model, loaded, asked.training, TEACHER_SEED)
    validation = loaded.examples.validation
    labels = np.asarray(validation.labels)

    def judged(model: Frozen, between: Callable[[], None]) -> Mapping[str, float]:
        said = represent(model, validation, loaded.normalise, config.evaluation.batch, between)
        right = (np.argmax(np.asarray(said.logits), axis=1) == labels)[labels >= 0]
        accuracy = float(np.mean(right)) if len(right) else float("nan")
        return {"score": accuracy, "accuracy": accuracy}

    chosen = plan(
        "teacher",
        folder,
        config,
        asked.model,
        asked.training,
        LOSSES,
        loaded,
        first,
        Guide(),
        judged,
        display,
        clock,
    )
    return trained(chosen, first, display)


def coherence(student: np.ndarray, teacher: np.ndarray, neighbours: int) -> float:
    """Spearman's degree of coherence, of at most 2,000 examples; of a student that diverged there is none."""
    some = slice(None, None, -(-len(student) // 2000))
    if not np.all(np.isfinite(student[some])):
        return float("nan")
    return float(metrics.coherence(student[some], teacher[some], k=neighbours).spearman.value)
