"""`pcjax export RUN`: the student as one file, without anything that only its training needs."""

import pathlib

import jax
import numpy as np

from pcjax import __version__, _checks
from pcjax.data.normalise import Normaliser
from pcjax.evaluation.results import result_of
from pcjax.export import safetensors as exported
from pcjax.jobs.evaluate import model_of, run_of
from pcjax.jobs.prepare import classes_of, load, output_shapes
from pcjax.training.display import Display

EXPORTED = "student.safetensors"


def export(folder: pathlib.Path, display: Display) -> None:
    """Writes the parameters and statistics of the checkpoint that counts; `pcjax.load` reads them."""
    exported.require_safetensors()
    job, config = run_of(folder)
    got = f"{folder} is of `pcjax {job}`, which has no student: expected a run of `pcjax distill`"
    _checks.require(job == "distill", got)
    result_of(folder)
    loaded = load(config)
    student = model_of(job, config, folder, loaded)
    examples = loaded.examples.train
    model = exported.Architecture(
        config.student.name, classes_of(examples), config.training.compute, config.student.options()
    )
    normaliser = Normaliser(examples, loaded.normalise)
    # They are the same for all of a channel.
    subtract, multiply = (
        by.reshape(-1, by.shape[-1])[0] for by in (normaliser.shift, normaliser.factor)
    )
    wanted = exported.Wanted(
        examples.shape,
        str(examples.dtype),
        tuple(map(float, subtract)),
        tuple(map(float, multiply)),
    )
    features = int(output_shapes(student, loaded).features.shape[1])
    arrays = {
        name: np.asarray(array) for name, array in (student.parameters | student.statistics).items()
    }
    about = {"version": __version__, "features": features, "config": config.digest()}
    path = folder / EXPORTED
    if jax.process_index() == 0:
        size = exported.export(path, model, wanted, arrays, about)
        numbers = f"{student.parameter_count():,} parameters, {features} features"
        display.say(f"{path}: {size:,} bytes, {model.name} with {numbers}")
        display.say(f"next: pcjax.load({str(path)!r}) in your own code")
