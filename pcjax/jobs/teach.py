"""`pcjax teach`: train the teacher alone, with labels."""

import pathlib

from pcjax._checks import RequestError
from pcjax.config import Config
from pcjax.display import Display
from pcjax.evaluation import check_evaluation, evaluate, load_other
from pcjax.jobs.common import describe_data, finish, load_data, quoted
from pcjax.run import CONFIG, open_run
from pcjax.teachers import Teacher, check_teaching, train_teacher


def teach(
    config: Config, folder: pathlib.Path, display: Display, *, part_of_another: bool = False
) -> None:
    """Train the teacher in a folder, and evaluate it.

    Args:
      config: the teacher and its training.
      folder: of the run.
      display: shows the progress.
      part_of_another: whether another job needs the teacher: its table and the next command are
        then left out.
    """
    if not config.teacher.is_trained_here:
        raise RequestError(
            "`pcjax teach` trains a teacher; leave teacher.run, features and source out."
        )
    run = open_run(folder, config, "teach", display)
    dataset = load_data(config)
    other = load_other(config.evaluation, dataset, config.data)
    check_evaluation(config.evaluation, dataset, other)
    check_teaching(config.teacher, config.data, dataset)
    run.start()
    run.say(f"{describe_data(dataset)}; run: {folder}")

    batch = config.evaluation.batch
    model = train_teacher(config.teacher, config.data, dataset, run, batch)
    teacher = Teacher.from_model(model, dataset, batch=batch)
    evaluated = evaluate({}, teacher, dataset, config.evaluation, other)
    finish(run, evaluated, dataset, config.teacher.training, quiet=part_of_another)
    if part_of_another:
        return
    student = quoted("--teacher.run", folder, "--workdir", f"{folder}-student")
    run.say(f"next: {quoted('pcjax', 'distill', folder / CONFIG)} {student}")
