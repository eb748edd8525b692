"""`pcjax export RUN`: write the student without what only its training needs."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from pcjax import __version__
from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.data.normalise import Normaliser
from pcjax.display import Display
from pcjax.evaluation.tables import MODELS, card_rows
from pcjax.export import safetensors
from pcjax.export.card import CardFacts
from pcjax.export.formats import Student, find_format
from pcjax.jobs.common import load_data
from pcjax.jobs.evaluate import read_student, single_run
from pcjax.run import Run, read_result
from pcjax.teachers import find_encoder
from pcjax.training.build import options_for
from pcjax.training.embedding import FrozenModel, output_shapes

ALIGNED = ("hint", "embed_distill")  # without a head they copy the teacher's features


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command line."""

    format: str = "safetensors"


def export(folder: pathlib.Path, display: Display, options: Options | None = None) -> None:
    """Write the trained student into its run's folder."""
    format_name = (options or Options()).format
    chosen = find_format(format_name)
    run = single_run(folder, display)
    if run.job != "distill":
        raise RequestError(
            f"{folder} holds a run of `pcjax {run.job}`, which has no student; give a run of "
            "`pcjax distill`."
        )
    result = read_result(folder)
    dataset = load_data(run.config)
    model = read_student(run, dataset)
    student = exportable(run, dataset, model, result)
    if jax.process_index() == 0:
        path = chosen.write(folder, student)
        size = _size(path)
        display.say(
            f"{path}: {size:,} bytes, {student.architecture.name} with "
            f"{model.parameter_count():,} parameters and {student.about['features']} features"
        )
        display.say(f"next: {chosen.use.format(path=str(path))}")


def exportable(run: Run, dataset: Dataset, model: FrozenModel, result: dict[str, Any]) -> Student:
    """Return a trained student with all facts that an export states."""
    config, examples, vocabulary = run.config, dataset.train, dataset.vocabulary
    features = int(output_shapes(model, dataset).features.shape[1])
    arrays = {n: np.asarray(x) for n, x in {**model.parameters, **model.statistics}.items()}
    about = {"version": __version__, "features": features, "config": config.digest()}
    classes = dataset.class_count if "classify/kernel" in arrays else None
    options = options_for(config.student, dataset)
    architecture = safetensors.Architecture(
        config.student.name, classes, config.training.compute, options
    )
    if vocabulary is not None:
        inputs = safetensors.Inputs(examples.shape, "int32", limit=vocabulary.limit)
        card = _card_facts(run, dataset, model, result)
        return Student(architecture, inputs, arrays, about, vocabulary.tokenizer, card)
    normaliser = Normaliser(examples, dataset.normalise)
    # Every position of a channel is normalised alike.
    subtract, multiply = (
        tuple(map(float, by.reshape(-1, by.shape[-1])[0]))
        for by in (normaliser.shift, normaliser.factor)
    )
    inputs = safetensors.Inputs(examples.shape, str(examples.dtype), subtract, multiply)
    return Student(architecture, inputs, arrays, about)


def _card_facts(
    run: Run, dataset: Dataset, model: FrozenModel, result: dict[str, Any]
) -> CardFacts:
    config = run.config
    encoder = find_encoder(config.teacher.source)
    models = {name: result[name] for name in MODELS if name in result}
    return CardFacts(
        name=run.folder.resolve().name,
        architecture=config.student.name,
        features=int(output_shapes(model, dataset).features.shape[1]),
        parameters=model.parameter_count(),
        size=model.size_bytes(),
        max_tokens=dataset.vocabulary.limit,
        formats=(),
        teacher=config.teacher.source or "its own teacher" if encoder is None else encoder.name,
        losses=tuple(loss.name for loss in config.losses),
        texts=len(dataset.train),
        fingerprint=dataset.fingerprint,
        columns=("on held-out texts", *(MODELS[name] for name in models)),
        rows=tuple(map(tuple, card_rows(models))),
        licence=None if encoder is None else encoder.licence,
        teacher_licence=None if encoder is None else encoder.licence,
        aligned=any(loss.name in ALIGNED and loss.head == "none" for loss in config.losses),
    )


def _size(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
