"""Steps that several jobs share."""

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pcjax import _io, config, data, metrics
from pcjax.config import Config
from pcjax.data import Augmentation, Dataset
from pcjax.data.texts import Texts
from pcjax.data.tokens import tokenised
from pcjax.display import Display
from pcjax.evaluation import Evaluated, coherence_score, show
from pcjax.run import Run
from pcjax.teachers import (
    Teacher,
    check_initial,
    initialised_by_teacher,
    student_vocabulary,
    teacher_shapes,
)
from pcjax.teachers.load import TEACHER
from pcjax.training.build import STUDENT_STREAM, build_model
from pcjax.training.checkpoint import versions
from pcjax.training.embedding import FrozenModel, embed
from pcjax.training.lesson import Lesson, check_lesson, steps_of
from pcjax.training.metrics_log import read_metrics
from pcjax.training.objective import TeacherTargets

UNTRAINED, STUDENT = "untrained", "student"
REPORT = "report.html"
SAMPLE = 128  # examples of each part


def load_data(config: Config) -> Dataset:
    """Load the examples that a config names, split into parts, as the student reads them."""
    section = config.data
    dataset = data.load(
        section.source,
        data_dir=section.data_dir,
        validation=section.validation,
        image_size=section.image_size,
        unseen=section.unseen,
        part=section.part,
        text_column=section.text_column,
        label_column=section.label_column,
        image_labels=section.image_labels,
    )
    if isinstance(dataset.train.store, Texts):
        return tokenised(dataset, student_vocabulary(config, dataset))
    # Files that are no images are refused here, before a run's folder is made.
    for part in dataset.parts.values():
        part.take(np.arange(len(part))[:: max(1, len(part) // SAMPLE)])
    return dataset


def describe_data(dataset: Dataset) -> str:
    """Say how many examples there are, and how many of them have no label."""
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    labels = [part.labels for part in dataset.parts.values() if part.labels is not None]
    unlabelled = sum(int(np.sum(part < 0)) for part in labels)
    if unlabelled and any(np.any(part >= 0) for part in labels):
        counts += f" ({unlabelled:,} without a label, so k-NN and the linear probe are left out)"
    return f"data: {counts} examples from {dataset.source}"


def student_shapes(config: Config, dataset: Dataset) -> FrozenModel:
    """Return the shapes of a student's weights; nothing is computed."""
    return _student(config, dataset, shapes_only=True)


def build_student(config: Config, dataset: Dataset, display: Display) -> FrozenModel:
    """Build the student of a config with its initial weights.

    It has a classifier only where a loss uses its class scores. A student that reads texts begins
    with what it can take from the teacher.
    """
    student = _student(config, dataset, shapes_only=False)
    return initialised_by_teacher(student, config, dataset, display)


def _student(config: Config, dataset: Dataset, *, shapes_only: bool) -> FrozenModel:
    return build_model(
        config.student,
        dataset,
        config.training,
        STUDENT_STREAM,
        classifier=any(loss.kind in ("logits", "labels") for loss in config.losses),
        shapes_only=shapes_only,
    )


def augmentation_of(config: Config) -> Augmentation:
    """Return how a student's training images are changed."""
    return Augmentation(config.data.crop, config.data.flip, config.teacher.views)


def student_lesson(
    config: Config,
    dataset: Dataset,
    model: FrozenModel,
    targets: TeacherTargets,
    teacher_validation: np.ndarray | None = None,
) -> Lesson:
    """Return the training of a student.

    Args:
      config: the losses, the training and the augmentation.
      dataset: the examples.
      model: the student with its initial weights.
      targets: the teacher, as the losses see it.
      teacher_validation: its features of the validation examples, which score the checkpoints.
    """

    def evaluate(student: FrozenModel, heartbeat: Callable[[], None]) -> Mapping[str, float]:
        batch = config.evaluation.batch
        outputs = embed(student, dataset.validation, dataset.normalise, batch, heartbeat)
        score = coherence_score(
            outputs.features, teacher_validation, config.evaluation.dissimilarity
        )
        return {"score": score, "coherence": score}

    return Lesson(
        name=STUDENT,
        section="training",
        model=model,
        losses=config.losses,
        targets=targets,
        training=config.training,
        augmentation=augmentation_of(config),
        evaluate=evaluate,
    )


def check_distillation(config: Config, dataset: Dataset, run: Run) -> None:
    """Refuse an impossible training, from shapes alone, before anything is trained."""
    shapes, classifier = teacher_shapes(config.teacher, config.data, dataset, run)
    targets = TeacherTargets(shapes=shapes, classifier=classifier)
    student = student_shapes(config, dataset)
    check_initial(student, config, dataset)
    check_lesson(student_lesson(config, dataset, student, targets), dataset)


def warn_if_unrelated(student: FrozenModel, teacher: Teacher, dataset: Dataset, run: Run) -> None:
    """Warn where a file's features look as if their rows belonged to other examples.

    Even an untrained student orders the examples a little as any teacher does.
    """
    features = embed(student, dataset.validation, dataset.normalise, 512).features
    rows = slice(None, None, -(-len(features) // 2000))
    k = min(10, len(features[rows]) - 2)
    degree = metrics.coherence(
        features[rows],
        teacher.features["validation"][rows],
        dissimilarity=run.config.evaluation.dissimilarity,
        k=k,
    ).spearman
    if degree.low <= 0 or not np.isfinite(degree.value):
        run.say(
            f"WARNING: the teacher's features are unrelated to the examples (coherence "
            f"{degree.value:.3f}, its 95 % interval reaches 0). Are the rows in the order of "
            f"{dataset.source}? Stop with Ctrl-C to check."
        )


def finish(
    run: Run,
    evaluated: Evaluated,
    dataset: Dataset,
    training: config.Training,
    *,
    quiet: bool = False,
) -> None:
    """Store and print the results of a run, and draw its report; `quiet` prints nothing."""
    steps = steps_of(training, len(dataset.train))
    results = evaluated.results | {"steps": steps, "versions": versions()}
    seconds = run.finish(results)
    write_report(run, results | {"seconds": seconds}, dataset, evaluated.embeddings)
    if quiet:
        return
    show(results, run.display, run.config.evaluation.dissimilarity)
    student = evaluated.embeddings.get(STUDENT)
    if student is not None and not np.ptp(student["test"], axis=0).any():
        run.say("WARNING: the student has collapsed: its features are equal for all examples.")
    run.say(f"{seconds} s for {steps} steps and everything else; report: {run.folder / REPORT}")


def write_report(
    run: Run,
    results: Mapping[str, Any],
    dataset: Dataset,
    embeddings: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write a run's results as one HTML page."""
    if jax.process_index() != 0:
        return
    from pcjax.report import formatting
    from pcjax.report.run_page import ReportInput, run_page  # loads matplotlib

    config = run.config
    if run.job == "teach":
        folders = {TEACHER: run.folder}
        described = formatting.describe_teaching(config.data, config.teacher)
    else:
        folders = {STUDENT: run.folder, TEACHER: run.part(TEACHER)}
        described = formatting.describe_distillation(
            config.data, config.teacher, config.student, config.losses, config.training
        )
    page = run_page(
        ReportInput(
            job=run.job,
            described=described,
            stored=json.loads(config.to_json()),
            evaluation=config.evaluation,
            result=results,
            dataset=dataset,
            embeddings=embeddings,
            metrics={name: read_metrics(folder) for name, folder in folders.items()},
            folder=run.folder,
        )
    )
    _io.write_text(run.folder / REPORT, page)


def quoted(*words: Any) -> str:
    """Join the words of a command so that a shell reads them as given."""
    return shlex.join(map(str, words))
