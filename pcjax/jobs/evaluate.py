"""`pcjax evaluate RUN`: evaluate a finished run again, and on more data."""

import dataclasses
import pathlib
from typing import Any

from pcjax._checks import RequestError
from pcjax.config import Evaluation
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation import (
    BESIDE,
    Evaluated,
    check_beside,
    check_evaluation,
    evaluate_beside,
    load_other,
    show,
    throughput,
)
from pcjax.evaluation import (
    evaluate as evaluate_models,
)
from pcjax.jobs.common import (
    STUDENT,
    TEACHER,
    UNTRAINED,
    build_student,
    load_data,
    student_shapes,
    write_report,
)
from pcjax.run import CHECKPOINTS, Run, read_result, stored_run
from pcjax.teachers import Teacher, load_teacher, read_teacher
from pcjax.training.checkpoint import load_trained, versions
from pcjax.training.embedding import FrozenModel


@dataclasses.dataclass(frozen=True)
class Extras:
    """Evaluations that the command line adds; None keeps the run's own setting."""

    other: str | None = None
    other_dir: str | None = None
    pairs: str | None = None
    corruptions: tuple[str, ...] | None = None
    beside: tuple[str, ...] | None = None
    throughput: bool = False

    def added_to(self, section: Evaluation) -> Evaluation:
        """Return the run's evaluation with the additions."""
        if self.other is not None:
            section = dataclasses.replace(section, other=self.other, other_dir=self.other_dir)
        elif self.other_dir is not None:
            raise RequestError(f"--other-dir {self.other_dir} needs --other; give both.")
        if self.pairs is not None:
            section = dataclasses.replace(section, pairs=self.pairs)
        if self.corruptions is not None:
            section = dataclasses.replace(section, corruptions=self.corruptions or ("all",))
        if self.beside is not None:
            section = dataclasses.replace(section, beside=self.beside)
        return section


def evaluate(folder: pathlib.Path, display: Display, extras: Extras | None = None) -> None:
    """Evaluate a finished run; add the results to result.json and draw the report again."""
    extras = extras or Extras()
    run = single_run(folder, display)
    before = read_result(folder)
    section = extras.added_to(run.config.evaluation)
    dataset = load_data(run.config)
    other = load_other(section, dataset, run.config.data)
    check_evaluation(section, dataset, other)
    check_beside(section, dataset)
    teacher, models = load_models(run, dataset)
    evaluated = evaluate_models(models, teacher, dataset, section, other)
    if extras.throughput:
        measured = {name: (model, dataset) for name, model in models.items()}
        if teacher.model is not None:
            measured[TEACHER] = teacher.model, teacher.view(dataset)
        for name, (model, seen) in measured.items():
            evaluated.results[name]["throughput"] = throughput(model, seen, section.batch)
    beside = evaluate_beside(section, teacher, dataset, other, display)
    evaluated.results.update({BESIDE: before.get(BESIDE, {}) | beside} if beside else {})
    new = merged(before, evaluated, rated=other.pairs is not None)
    results = {**before, **new, "versions": versions()}
    run.finish(results)
    write_report(run, results, dataset, evaluated.embeddings)
    show(results, display, section.dissimilarity)


def merged(before: dict[str, Any], evaluated: Evaluated, *, rated: bool) -> dict[str, Any]:
    """Return the new results of each model; earlier results on other data stay.

    Args:
      before: the earlier results.
      evaluated: the new ones.
      rated: whether these are also of rated pairs; else the earlier result on pairs stays.
    """
    results = {}
    for name, new in evaluated.results.items():
        old = before.get(name, {})
        other = {**old.get("other", {}), **new.get("other", {})}
        more = {"other": other} if other else {}
        more |= {} if rated else {"pairs": old.get("pairs")}
        results[name] = {**old, **new, **more}
    return results


def single_run(folder: pathlib.Path, display: Display) -> Run:
    """Return the run of one model in a folder."""
    run = stored_run(folder, display)
    if run.job in ("compare", "tune"):
        raise RequestError(
            f"{folder} holds a run of `pcjax {run.job}` with many models; name one run inside it."
        )
    return run


def load_models(run: Run, dataset: Dataset) -> tuple[Teacher, dict[str, FrozenModel]]:
    """Return a finished run's teacher and its students."""
    batch = run.config.evaluation.batch
    if run.job == "teach":
        return Teacher.from_model(read_teacher(run, dataset), dataset, batch=batch), {}
    config = run.config
    teacher = load_teacher(config.teacher, config.data, dataset, run, batch, train=False)
    untrained = build_student(config, dataset, run.display)
    return teacher, {UNTRAINED: untrained, STUDENT: read_student(run, dataset, teacher.digest)}


def read_student(run: Run, dataset: Dataset, teacher: str | None = None) -> FrozenModel:
    """Read the trained student of a finished `pcjax distill` run.

    Args:
      run: the run.
      dataset: its examples.
      teacher: the digest of the teacher that it must have been trained under.
    """
    config = run.config
    like = student_shapes(config, dataset)
    identity = {"role": STUDENT, "data": dataset.fingerprint, "config": config.digest()}
    identity |= {} if teacher is None else {"teacher": teacher}
    return load_trained(run.part(CHECKPOINTS), identity, like, config.training.choose)
