"""Choose where the teacher comes from, and load or train it."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import config
from pcjax._checks import RequestError
from pcjax.data import Augmentation, Dataset
from pcjax.display import Display
from pcjax.models import Output
from pcjax.run import CHECKPOINTS, Run, stored_run
from pcjax.teachers.encoder import Encoder
from pcjax.teachers.features import read_features
from pcjax.teachers.live import live_model
from pcjax.teachers.sources import read_source
from pcjax.teachers.teacher import Teacher, classifier_of
from pcjax.teachers.trained import check_teaching, train_teacher
from pcjax.training.build import TEACHER_STREAM, build_model
from pcjax.training.checkpoint import load_trained
from pcjax.training.embedding import FrozenModel, output_shapes

TEACHER = "teacher"  # the folder of a teacher inside the run that trained it


def load_teacher(
    teacher: config.Teacher,
    data: config.Data,
    dataset: Dataset,
    run: Run,
    batch: int,
    *,
    train: bool = True,
) -> Teacher:
    """Return the teacher that a config names; train it first where it has to be.

    Args:
      teacher: a file of features, a model of others, a run, or a model trained inside `run`.
      data: how training images are augmented.
      dataset: the examples whose outputs are needed.
      run: the run that needs the teacher.
      batch: how many examples are computed at a time.
      train: whether a teacher that does not exist yet may be trained; else it is an error.
    """
    augmentation = None
    if teacher.views:
        augmentation = Augmentation(data.crop, data.flip, teacher.views)
    if teacher.features is not None:
        return Teacher.from_features(read_features(pathlib.Path(teacher.features), dataset))
    if teacher.source is not None:
        outputs = read_source(teacher.source, dataset, teacher.side)
        given = {"display": run.display, "augmentation": augmentation, "live": teacher.live}
        return _with_features(outputs, dataset, batch, **given)
    if teacher.run is not None:
        model = read_teacher(stored_run(pathlib.Path(teacher.run), run.display), dataset)
    elif train:
        subrun = run.subrun(TEACHER, clock=run.clock)
        subrun.folder.mkdir(exist_ok=True)
        model = train_teacher(teacher, data, dataset, subrun, batch)
    else:
        like = build_model(teacher.model, dataset, teacher.training, TEACHER_STREAM)
        identity = {"role": TEACHER, "data": dataset.fingerprint}
        folder = run.part(TEACHER, CHECKPOINTS)
        model = load_trained(folder, identity, like, teacher.training.choose)
    return Teacher.from_model(
        model, dataset, batch=batch, live=teacher.live, augmentation=augmentation
    )


def load_source(source: str, dataset: Dataset, batch: int, display: Display) -> Teacher:
    """Return a model of others, or vectors, with the features of all examples."""
    return _with_features(read_source(source, dataset), dataset, batch, display=display)


def _with_features(
    outputs: Encoder | Mapping[str, np.ndarray],
    dataset: Dataset,
    batch: int,
    **given: Any,
) -> Teacher:
    if isinstance(outputs, Encoder):
        return Teacher.from_encoder(outputs, dataset, batch=batch, **given)
    return Teacher.from_features(outputs)


def check_teacher_run(run: Run) -> None:
    """Refuse a run that has no trained teacher of its own."""
    stored = run.config.teacher
    if run.job == "distill" and not stored.is_trained_here:
        names = ("run", "features", "source")
        name = next(name for name in names if getattr(stored, name) is not None)
        origin = f"--teacher.{name} {getattr(stored, name)}"
        raise RequestError(
            f"The run in {run.folder} (teacher.run) trained no teacher of its own; give {origin}."
        )
    if run.job not in ("teach", "distill"):
        raise RequestError(
            f"{run.folder} (teacher.run) holds a run of `pcjax {run.job}`; give a run of "
            "`pcjax teach`."
        )
    if not run.finished:
        raise RequestError(
            f"The run in {run.folder} (teacher.run) is not finished; repeat its command."
        )


def read_teacher(run: Run, dataset: Dataset) -> FrozenModel:
    """Read the trained teacher of a finished `pcjax teach` or `pcjax distill` run."""
    check_teacher_run(run)
    stored = run.config.teacher
    folder = run.folder if run.job == "teach" else run.part(TEACHER)
    like = build_model(stored.model, dataset, stored.training, TEACHER_STREAM)
    identity = {"role": TEACHER, "data": dataset.fingerprint, "config": run.config.digest()}
    return load_trained(folder / CHECKPOINTS, identity, like, stored.training.choose)


def teacher_shapes(
    teacher: config.Teacher, data: config.Data, dataset: Dataset, run: Run
) -> tuple[Output, dict[str, Any]]:
    """Return the shapes of a teacher's outputs for one example, and of its last layer.

    Nothing is computed; a teacher that could not be trained or read is refused.
    """
    if teacher.features is not None or teacher.source is not None:
        if teacher.source is None:
            outputs: Any = read_features(pathlib.Path(str(teacher.features)), dataset)
        else:
            outputs = read_source(teacher.source, dataset, teacher.side)
        if isinstance(outputs, Encoder):
            outputs.check(dataset)
            if teacher.live:
                return output_shapes(live_model(outputs, dataset), dataset), {}
            row: Any = jax.ShapeDtypeStruct((1, outputs.width), jnp.float32)
            return Output(row, None, {}), {}
        if teacher.views or teacher.live:
            field = f"teacher.views={teacher.views}" if teacher.views else "teacher.live"
            raise RequestError(
                f"{field} needs a model, and teacher.source={teacher.source} has vectors of the "
                "plain examples only; remove it."
            )
        row = jax.ShapeDtypeStruct((1, *outputs["train"].shape[1:]), jnp.float32)
        return Output(row, None, {}), {}
    if teacher.run is not None:
        stored = stored_run(pathlib.Path(teacher.run), run.display, field="teacher.run")
        check_teacher_run(stored)
        section = stored.config.teacher
        model = build_model(
            section.model, dataset, section.training, TEACHER_STREAM, shapes_only=True
        )
    else:
        model = check_teaching(teacher, data, dataset)
    return output_shapes(model, dataset), classifier_of(model)
