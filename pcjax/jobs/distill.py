"""`pcjax distill`: train a student under a teacher, and evaluate it before and after."""

import pathlib

from pcjax.config import Config
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
    warn_if_unrelated,
)
from pcjax.run import open_run
from pcjax.teachers import load_teacher
from pcjax.training.loop import train


def distill(config: Config, folder: pathlib.Path, display: Display) -> None:
    """Train the student in a folder, and first the teacher where there is none."""
    run = open_run(folder, config, "distill", display)
    dataset = load_data(config)
    other = load_other(config.evaluation, dataset, config.data)
    check_evaluation(config.evaluation, dataset, other)
    check_distillation(config, dataset, run)
    run.start()
    run.say(f"{describe_data(dataset)}; run: {folder}")

    teacher = load_teacher(config.teacher, config.data, dataset, run, config.evaluation.batch)
    untrained = build_student(config, dataset, run.display)
    if config.teacher.features is not None:
        warn_if_unrelated(untrained, teacher, dataset, run)
    targets, validation = teacher.targets(dataset), teacher.features["validation"]
    lesson = student_lesson(config, dataset, untrained, targets, validation)
    student = train(lesson, dataset, run)

    models = {UNTRAINED: untrained, STUDENT: student}
    evaluated = evaluate(models, teacher, dataset, config.evaluation, other)
    finish(run, evaluated, dataset, config.training)
    run.say(f"next: {quoted('pcjax', 'export', folder)} writes the student as one file")
