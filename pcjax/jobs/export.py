"""`pcjax export RUN`: write the student without what only its training needs."""

import dataclasses
import pathlib
import re
from typing import Any

import jax
import numpy as np

from pcjax import __version__, _io
from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.display import Display
from pcjax.evaluation.tables import card_rows, models_of
from pcjax.export import measure, safetensors
from pcjax.export.card import CardFacts
from pcjax.export.formats import Format, Student, find_format
from pcjax.export.measure import Subject
from pcjax.jobs.common import load_data
from pcjax.jobs.evaluate import read_student, single_run
from pcjax.run import Run, read_result, stored_run
from pcjax.teachers import find_encoder, read_teacher
from pcjax.teachers.encoder import Encoder
from pcjax.training.build import options_for
from pcjax.training.embedding import FrozenModel, output_shapes

ALIGNED = ("hint", "embed_distill")  # without a head they copy the teacher's features
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line.

    format: one of `pcjax list formats`.
    normalise: whether the exported features are scaled to length 1.
    licence: of the student, for its model card.
    """

    format: str = "safetensors"
    normalise: bool = False
    licence: str | None = None


def export(folder: pathlib.Path, display: Display, options: Options | None = None) -> None:
    """Write the trained student into its run's folder."""
    options = options or Options()
    chosen = find_format(options.format)
    run = single_run(folder, display)
    if run.job != "distill":
        raise RequestError(
            f"{folder} holds a run of `pcjax {run.job}`, which has no student; give a run of "
            "`pcjax distill`."
        )
    result = read_result(folder)
    dataset = load_data(run.config)
    _check(options, chosen, dataset)
    model = read_student(run, dataset)
    encoder = _encoder(run)
    card = _card_facts(run, dataset, model, result, encoder, options.licence)
    student = exportable(run, dataset, model, card, options.normalise)
    if jax.process_index() != 0:
        return
    path = chosen.write(folder, student)
    lines: tuple[str, ...] = ()
    if path.is_file():  # a folder has its card inside
        card_path = path.with_name(f"{path.name}.md" if path.parent == folder else "README.md")
        _io.write_text(card_path, student.card_of(options.format))
        own = Subject.of_model(model, dataset)
        uses_teacher = student.tokenizer is None or chosen.onnx == "int8"
        teacher = _teacher(run, dataset, encoder) if uses_teacher else None
        kind = run.config.evaluation.dissimilarity if chosen.onnx == "int8" else None
        lines = _measured(path, student, own, teacher, coherence=kind)
        _io.write_text(card_path, student.card_of(options.format, measured=lines))
    size = _size(path)
    display.say(
        f"{path}: {size:,} bytes, {student.architecture.name} with "
        f"{model.parameter_count():,} parameters and {student.about['features']} features"
    )
    for line in (*chosen.notes(student), *lines):
        display.say(line)
    display.say(f"next: {chosen.use.format(path=str(path))}")


def _check(options: Options, chosen: Format, dataset: Dataset) -> None:
    if options.normalise and dataset.vocabulary is not None:
        raise RequestError(
            "--normalise is for students of images; a student of texts has --student.normalise."
        )
    if options.normalise and not chosen.normalises:
        raise RequestError(
            f"--normalise is not for --format {options.format}; give onnx, onnx-int8 or stablehlo."
        )
    if options.licence is not None and not LICENCE.fullmatch(options.licence):
        raise RequestError(
            f"--licence {options.licence!r} is not the name of a licence; give one like apache-2.0."
        )


def _encoder(run: Run) -> Encoder | None:
    """Return the teacher of others, unless its files are gone."""
    try:
        return find_encoder(run.config.teacher.source, run.config.teacher.side)
    except (RequestError, OSError) as error:
        run.say(f"WARNING: the teacher cannot be read, and its licence is not known: {error}")
        return None


def exportable(
    run: Run, dataset: Dataset, model: FrozenModel, card: CardFacts, normalise: bool
) -> Student:
    """Return a trained student with all facts that an export states."""
    config, vocabulary = run.config, dataset.vocabulary
    arrays = {n: np.asarray(x) for n, x in {**model.parameters, **model.statistics}.items()}
    about = {"version": __version__, "features": card.features, "config": config.digest()}
    classes = dataset.class_count if "classify/kernel" in arrays else None
    options = options_for(config.student, dataset)
    architecture = safetensors.Architecture(
        config.student.name, classes, config.training.compute, options
    )
    inputs = safetensors.inputs_of(dataset.train, dataset.normalise)
    if vocabulary is None:
        return Student(architecture, inputs, arrays, about, card, normalise=normalise)
    inputs = dataclasses.replace(inputs, limit=vocabulary.limit)
    return Student(architecture, inputs, arrays, about, card, vocabulary.tokenizer)


def _card_facts(
    run: Run,
    dataset: Dataset,
    model: FrozenModel,
    result: dict[str, Any],
    encoder: Encoder | None,
    licence: str | None,
) -> CardFacts:
    config, vocabulary = run.config, dataset.vocabulary
    models = models_of(result)
    teacher = config.teacher.source or config.teacher.features or config.teacher.run
    return CardFacts(
        name=run.folder.resolve().name,
        architecture=config.student.name,
        features=int(output_shapes(model, dataset).features.shape[1]),
        parameters=model.parameter_count(),
        size=model.size_bytes(),
        shape=dataset.train.shape,
        stored=str(dataset.train.dtype),
        max_tokens=None if vocabulary is None else vocabulary.limit,
        formats=(),
        teacher=encoder.name if encoder else teacher or config.teacher.model.name,
        losses=tuple(loss.name for loss in config.losses),
        examples=len(dataset.train),
        fingerprint=dataset.fingerprint,
        columns=("on held-out examples", *models),
        rows=tuple(map(tuple, card_rows(models))),
        licence=licence,
        teacher_licence=None if encoder is None else encoder.licence,
        aligned=any(loss.name in ALIGNED and loss.head == "none" for loss in config.losses),
    )


def _measured(
    path: pathlib.Path,
    student: Student,
    own: Subject,
    teacher: Subject | None,
    *,
    coherence: str | None,
) -> tuple[str, ...]:
    """Return lines on an exported file: its size, its speed and what eight bits cost.

    Args:
      path: the file.
      student: the exported student.
      own: the student that it was made of.
      teacher: None where it cannot be computed.
      coherence: the dissimilarity; None: of float32, with nothing lost.
    """
    size = f"The file has {path.stat().st_size:,} bytes."
    is_onnx, of_texts = path.suffix == ".onnx", student.tokenizer is not None
    if of_texts and not is_onnx:
        return (size,)
    if not measure.has_runtime():
        return (size, "Its speed was not measured: `pip install onnxruntime`.")
    lines = [size]
    runtime = measure.Runtime(path, student.inputs) if is_onnx else None
    times = {
        "": runtime.milliseconds(own.sample(measure.CALLS)) if runtime else None,
        "as an ONNX file ": None if runtime else own.milliseconds(),
        "the teacher as an ONNX file ": teacher.milliseconds()
        if teacher and not of_texts
        else None,
    }
    stated = [f"{title}{time:.2f} ms" for title, time in times.items() if time is not None]
    if stated:
        lines.append(
            f"Time of one {'text' if of_texts else 'example'}: {'; '.join(stated)} (one thread, "
            f"batch 1, median of {measure.CALLS} calls; {measure.described_machine()})."
        )
    if runtime and coherence is not None:
        lines.append(measure.coherence_of_int8(runtime, own, teacher, coherence))
    return tuple(lines)


def _teacher(run: Run, dataset: Dataset, encoder: Encoder | None) -> Subject | None:
    """Return the teacher, where its outputs can be computed."""
    section = run.config.teacher
    if encoder is not None:
        return Subject.of_encoder(encoder, dataset)
    if section.source is not None or section.features is not None:
        return None
    try:
        own = run if section.run is None else stored_run(pathlib.Path(section.run), run.display)
        return Subject.of_model(read_teacher(own, dataset), dataset)
    except (RequestError, OSError) as error:
        run.say(f"WARNING: the teacher cannot be read and is not measured: {error}")
        return None


def _size(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
