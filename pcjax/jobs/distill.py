"""`pcjax distill`: the main job. A teacher, a student, and what the student is worth before and after."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.config import Config, Training
from pcjax.data import Examples
from pcjax.data.arrays import members
from pcjax.evaluation import evaluate as judge
from pcjax.evaluation import tables
from pcjax.jobs.prepare import (
    STUDENT_SEED,
    TEACHER_SEED,
    Guide,
    Judge,
    Loaded,
    check,
    classifier_of,
    counts,
    load,
    new_model,
    output_shapes,
    plan,
    promised,
    rehearse,
    steps_of,
    trained,
    weights,
)
from pcjax.jobs.teach import check_teaching, coherence, train_teacher
from pcjax.models import Output
from pcjax.run import (
    CHECKPOINTS,
    RESULT,
    begin_folder,
    check_folder,
    config_of,
    seconds_of,
    write_proven,
)
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.clock import Clock
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen, digest_of, represent, represent_all
from pcjax.training.loop import Plan

STUDENT, TEACHER = "student", "teacher"


def distill(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Trains the student in its folder, and the teacher first if there is none."""
    clock = Clock()
    check_folder(folder, config, "distill")
    loaded = load(config)
    check_distilling(config, loaded)
    begin_folder(folder, config, "distill")
    display.say(f"data: {counts(loaded)} from {config.data.source}; the run lies in {folder}")
    teacher = find_teacher(config, folder, loaded, display, clock)
    first = new_model(config.student, loaded, config.training, STUDENT_SEED)
    chosen = plan_student(config, folder, loaded, teacher, first, display, clock)
    student = trained(chosen, first, display)
    results = worth(config, teacher, first, student, loaded)
    steps = steps_of(config.training, len(loaded.examples.train))
    seconds = seconds_of(folder, clock)
    results |= {"seconds": seconds, "steps": steps, "versions": judge.versions()}
    write_proven(folder / RESULT, results)
    tables.show(results, display)
    display.say(
        f"{seconds} s for {steps} steps and all else; checkpoints, metrics.jsonl and {RESULT} lie in {folder}"
    )
    display.say(f"next: pcjax embed {folder} writes the features; {tables.drawn_by(folder)}")


def check_distilling(config: Config, loaded: Loaded) -> None:
    """Refuses what cannot be trained, before anything is."""
    check(config, config.training, config.losses, loaded)
    shapes, _ = promised(config.student, loaded, config.training)
    rehearse(config.losses, shapes, *_promised_teacher(config, loaded), config.training, loaded)


def plan_student(
    config: Config,
    folder: pathlib.Path,
    loaded: Loaded,
    teacher: "KnownTeacher",
    first: Frozen,
    display: Display,
    clock: Clock,
) -> Plan:
    """The student's training under that teacher."""
    return plan(
        STUDENT,
        folder,
        config,
        config.student,
        config.training,
        config.losses,
        loaded,
        first,
        _guide(config, teacher, loaded),
        _judge_of(config, teacher, loaded),
        display,
        clock,
    )


def _promised_teacher(config: Config, loaded: Loaded) -> tuple[Output, dict[str, Any]]:
    """The shapes of what the teacher says of one example, and of its last layer, before there is a teacher."""
    asked = config.teacher
    if asked.features is not None:
        stored = _stored_features(pathlib.Path(asked.features), loaded)["train"]
        features: Any = jax.ShapeDtypeStruct((1, *stored.shape[1:]), jnp.float32)
        return Output(features, None, {}), {}
    if asked.run is not None:
        theirs = config_of(pathlib.Path(asked.run), "teach", "teacher.run")[1].teacher
        return promised(theirs.model, loaded, theirs.training)
    return check_teaching(config, loaded)


@dataclasses.dataclass(frozen=True, eq=False)
class KnownTeacher:
    """The teacher's features of every split, and the model, where there is one."""

    features: Mapping[str, np.ndarray]
    logits: np.ndarray | None  # of the training examples
    model: Frozen | None

    @functools.cached_property
    def digest(self) -> str:
        """So that nothing goes on with another one; of what it says only where there is no model."""
        return digest_of(self.features) if self.model is None else self.model.digest


def find_teacher(
    config: Config,
    folder: pathlib.Path,
    loaded: Loaded,
    display: Display | None,
    clock: Clock | None = None,
) -> KnownTeacher:
    """The teacher from wherever the config says; trained here if it must be and there is a display to say so."""
    asked = config.teacher
    if asked.features is not None:
        return KnownTeacher(_stored_features(pathlib.Path(asked.features), loaded), None, None)
    if asked.run is None and display is not None:
        own = folder / TEACHER
        own.mkdir(exist_ok=True)
        model = train_teacher(config, own, loaded, display, clock or Clock())
    else:
        model = teacher_model(config, folder, loaded)
    said = represent_all(model, loaded.examples, loaded.normalise, config.evaluation.batch)
    return KnownTeacher(judge.features_of(TEACHER, said), said["train"].logits, model)


def teacher_model(config: Config, folder: pathlib.Path, loaded: Loaded) -> Frozen:
    """The teacher that was trained before, by a run of its own or in that folder."""
    if config.teacher.run is not None:
        return load_teacher(pathlib.Path(config.teacher.run), config, loaded)
    training = config.teacher.training
    like = new_model(config.teacher.model, loaded, training, TEACHER_SEED)
    return trained_model(
        folder / TEACHER, {"role": TEACHER, "data": loaded.examples.fingerprint}, like, training
    )


def load_teacher(folder: pathlib.Path, config: Config, loaded: Loaded) -> Frozen:
    """The teacher of a `pcjax teach` run."""
    theirs = config_of(folder, "teach", "teacher.run")[1]
    ended = (folder / RESULT).is_file()
    _checks.require(
        ended,
        f"the teacher in {folder} (teacher.run) is not trained to its end: `pcjax teach` goes on",
    )
    like = new_model(theirs.teacher.model, loaded, theirs.teacher.training, TEACHER_SEED)
    manifest = {"role": TEACHER, "data": loaded.examples.fingerprint, "config": theirs.digest()}
    return trained_model(folder, manifest, like, theirs.teacher.training)


def trained_model(
    folder: pathlib.Path, manifest: dict[str, Any], like: Frozen, training: Training
) -> Frozen:
    """The model of a run that has ended, from the checkpoint that its training chooses."""
    there = (folder / CHECKPOINTS).is_dir()
    _checks.require(
        there, f"no checkpoints in {folder}: run the command that trains it to its end first"
    )
    with contextlib.closing(
        Checkpoints(folder / CHECKPOINTS, manifest, writable=False)
    ) as checkpoints:
        return weights(checkpoints, training, like)


def worth(
    config: Config, teacher: KnownTeacher, first: Frozen, student: Frozen, loaded: Loaded
) -> dict[str, Any]:
    """The teacher, the untrained student and the trained one, as result.json has them."""
    data = loaded.examples, loaded.normalise, config.evaluation, loaded.other
    students = judge.judge_all({"untrained": first, STUDENT: student}, teacher.features, *data)
    return {TEACHER: judge_teacher(config, teacher, loaded)} | students


def judge_teacher(config: Config, teacher: KnownTeacher, loaded: Loaded) -> dict[str, Any]:
    """What a model is worth, or features without one."""
    if teacher.model is None:
        return (
            judge.judge(teacher.features, teacher.features, loaded.examples, config.evaluation)
            | judge.NO_MODEL
        )
    data = loaded.examples, loaded.normalise, config.evaluation, loaded.other
    return judge.judge_model(teacher.model, teacher.features, teacher.features, *data)


def _guide(config: Config, teacher: KnownTeacher, loaded: Loaded) -> Guide:
    model = teacher.model
    if config.teacher.live and model is not None:

        def looks(frozen: Any, batch: Mapping[str, jax.Array]) -> Output:
            parameters, statistics = frozen
            return model.function.apply(parameters, statistics, batch["image"], train=False)[0]

        shapes, classifier = output_shapes(model, loaded), classifier_of(model)
        return Guide(
            teacher.digest, model.arrays, looks, shapes, classifier, teacher.features["train"]
        )

    columns = {"teacher": teacher.features["train"]}
    if teacher.logits is not None:
        columns["teacher_logits"] = teacher.logits

    def remembers(_: Any, batch: Mapping[str, jax.Array]) -> Output:
        return Output(batch["teacher"], batch.get("teacher_logits"), {})

    def shape(rows: np.ndarray) -> Any:
        return jax.ShapeDtypeStruct((1, *rows.shape[1:]), jnp.float32)

    logits = None if teacher.logits is None else shape(teacher.logits)
    classifier = {} if model is None else classifier_of(model)
    said = Output(shape(teacher.features["train"]), logits, {})
    return Guide(
        teacher.digest, (), remembers, said, classifier, teacher.features["train"], columns
    )


def _judge_of(config: Config, teacher: KnownTeacher, loaded: Loaded) -> Judge:
    def judged(student: Frozen, between: Callable[[], None]) -> Mapping[str, float]:
        said = represent(
            student, loaded.examples.validation, loaded.normalise, config.evaluation.batch, between
        )
        k = judge.neighbours(config.evaluation, said.features)
        found = coherence(said.features, teacher.features["validation"], k)
        return {"score": found, "coherence": found}

    return judged


def _stored_features(path: pathlib.Path, loaded: Loaded) -> dict[str, np.ndarray]:
    """What `pcjax embed` wrote, if it fits the data."""
    _checks.require(
        path.is_file(), f"no file {path} (teacher.features): `pcjax embed RUN` writes one"
    )
    try:
        _checks.require(path.suffix == ".npz", "expected a file named .npz")
        file = members(
            path, (*loaded.examples.parts, "unseen", "fingerprint"), "what `pcjax embed` writes"
        )
        _checks.require("fingerprint" in file, "it has no fingerprint of the data")
        same = str(file["fingerprint"]) == loaded.examples.fingerprint
        # Of other data there may be no features of some part: they are refused for what they are.
        parts = loaded.examples.parts if same else ()
        missing = ", ".join(
            part for part in parts if part not in file or file[part].dtype.kind not in "uif"
        )
        _checks.require(not missing, f"it has no numbers for {missing}")
        found = {part: np.asarray(file[part], np.float32) for part in parts}
    except (OSError, RequestError) as error:
        raise RequestError(
            f"cannot read {path} (teacher.features): {error}; `pcjax embed RUN` writes one"
        ) from error
    _checks.require(
        same,
        f"{path} is of other data or another split: embed {loaded.examples.source} as it is split here",
    )
    for split, features in found.items():
        examples: Examples = getattr(loaded.examples, split)
        got = f"{path} has {split} features of shape {features.shape} for {len(examples)} examples"
        _checks.require(
            features.ndim == 2 and len(features) == len(examples),
            f"{got}: expected one row per example",
        )
        _checks.require(
            bool(np.isfinite(features).all()), f"{path} has {split} features that are not finite"
        )
    return found
