"""`pcjax distill`: train a student under a teacher, and evaluate it before and after."""

import pathlib

from pcjax.config import Config
from pcjax.display import Display
from pcjax.evaluation import (
    BESIDE,
    check_beside,
    check_evaluation,
    evaluate,
    evaluate_beside,
    load_other,
)
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
    check_beside(config.evaluation, dataset)
    check_distillation(config, dataset, run)
    run.start()
    run.say(f"{describe_data(dataset)}; run: {folder}")

    teacher = load_teacher(config.teacher, config.data, dataset, run, config.evaluation.batch)
    untrained = build_student(config, dataset, run.display)
    if teacher.is_from_a_file:
        warn_if_unrelated(untrained, teacher, dataset, run)
    targets, validation = teacher.targets(dataset), teacher.features["validation"]
    lesson = student_lesson(config, dataset, untrained, targets, validation)
    student = train(lesson, dataset, run)

    models = {UNTRAINED: untrained, STUDENT: student}
    evaluated = evaluate(models, teacher, dataset, config.evaluation, other)
    beside = evaluate_beside(config.evaluation, teacher, dataset, other, display)
    if beside:
        evaluated.results[BESIDE] = beside
    finish(run, evaluated, dataset, config.training)
    run.say(f"next: {quoted('pcjax', 'export', folder)} writes the student as one file")
