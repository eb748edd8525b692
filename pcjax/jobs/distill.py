"""`pcjax distill`: train a student under a teacher, and evaluate it before and after."""

import pathlib

import numpy as np

from pcjax import metrics
from pcjax.config import Config
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation import check_evaluation, evaluate, load_other
from pcjax.jobs.common import (
    STUDENT,
    UNTRAINED,
    build_student,
    check_distillation,
    describe_data,
    finish,
    load_data,
    quoted,
    student_lesson,
)
from pcjax.run import Run, open_run
from pcjax.teachers import Teacher, load_teacher
from pcjax.training.embedding import FrozenModel, embed
from pcjax.training.loop import train


def distill(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Train the student in a folder, and first the teacher where there is none."""
    run = open_run(folder, config, "distill", display)
    dataset = load_data(config.data)
    other = load_other(config.evaluation, dataset, config.data)
    check_evaluation(config.evaluation, dataset, other)
    check_distillation(config, dataset, run)
    run.start()
    run.say(f"{describe_data(dataset)}; run: {folder}")

    teacher = load_teacher(config.teacher, config.data, dataset, run, config.evaluation.batch)
    untrained = build_student(config, dataset)
    if config.teacher.features is not None:
        warn_if_unrelated(untrained, teacher, dataset, run)
    targets, validation = teacher.targets(dataset), teacher.features["validation"]
    lesson = student_lesson(config, dataset, untrained, targets, validation)
    student = train(lesson, dataset, run)

    models = {UNTRAINED: untrained, STUDENT: student}
    evaluated = evaluate(models, teacher, dataset, config.evaluation, other)
    finish(run, evaluated, dataset, config.training)
    run.say(f"next: {quoted('pcjax', 'export', folder)} writes the student as one file")


def warn_if_unrelated(student: FrozenModel, teacher: Teacher, dataset: Dataset, run: Run) -> None:
    """Warn where a file's features look as if their rows belonged to other examples.

    Even an untrained student orders the examples a little as any teacher does.
    """
    features = embed(student, dataset.validation, dataset.normalise, 512).features
    rows = slice(None, None, -(-len(features) // 2000))
    k = min(10, len(features[rows]) - 2)
    degree = metrics.coherence(features[rows], teacher.features["validation"][rows], k=k).spearman
    if degree.low <= 0 or not np.isfinite(degree.value):
        run.say(
            f"WARNING: the teacher's features are unrelated to the examples (coherence "
            f"{degree.value:.3f}, its 95 % interval reaches 0). Are the rows in the order of "
            f"{dataset.source}? Stop with Ctrl-C to check."
        )
