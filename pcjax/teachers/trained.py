"""A teacher that is trained with labels."""

from collections.abc import Callable, Mapping

import numpy as np

from pcjax import config
from pcjax._checks import RequestError
from pcjax.config import Loss
from pcjax.data import Augmentation, Dataset
from pcjax.run import Run
from pcjax.training.build import TEACHER_STREAM, build_model
from pcjax.training.embedding import FrozenModel, embed
from pcjax.training.lesson import Lesson, check_lesson
from pcjax.training.loop import train
from pcjax.training.objective import TeacherTargets

LOSSES = (Loss("cross_entropy"),)


def train_teacher(
    teacher: config.Teacher, data: config.Data, dataset: Dataset, run: Run, batch: int
) -> FrozenModel:
    """Train a teacher with labels to the end, in the run's folder.

    Args:
      teacher: the model and how it is trained.
      data: how training images are augmented.
      dataset: the examples.
      run: where the training is stored and resumed from.
      batch: how many validation examples are evaluated at a time.
    """
    return train(teacher_lesson(teacher, data, dataset, batch), dataset, run)


def check_teaching(teacher: config.Teacher, data: config.Data, dataset: Dataset) -> FrozenModel:
    """Refuse a teacher that cannot be trained; return its shapes."""
    if dataset.train.labels is None or dataset.validation.labels is None:
        raise RequestError(
            f"{dataset.source} has no labels to train a teacher with; give --teacher.run or "
            "--teacher.features."
        )
    lesson = teacher_lesson(teacher, data, dataset, batch=1, shapes_only=True)
    check_lesson(lesson, dataset)
    return lesson.model


def teacher_lesson(
    teacher: config.Teacher,
    data: config.Data,
    dataset: Dataset,
    batch: int,
    *,
    shapes_only: bool = False,
) -> Lesson:
    """Return the training of a teacher with cross-entropy."""
    model = build_model(
        teacher.model, dataset, teacher.training, TEACHER_STREAM, shapes_only=shapes_only
    )
    labels = np.asarray(dataset.validation.labels)

    def evaluate(model: FrozenModel, heartbeat: Callable[[], None]) -> Mapping[str, float]:
        outputs = embed(model, dataset.validation, dataset.normalise, batch, heartbeat)
        correct = (np.argmax(np.asarray(outputs.logits), axis=1) == labels)[labels >= 0]
        accuracy = float(np.mean(correct)) if len(correct) else float("nan")
        return {"score": accuracy, "accuracy": accuracy}

    return Lesson(
        name="teacher",
        section="teacher.training",
        model=model,
        losses=LOSSES,
        targets=TeacherTargets(),
        training=teacher.training,
        augmentation=Augmentation(data.crop, data.flip),
        evaluate=evaluate,
    )
