"""`pcjax export RUN`: write the student as one file, without what only its training needs."""

import pathlib

import jax
import numpy as np

from pcjax import __version__
from pcjax._checks import RequestError
from pcjax.data.normalise import Normaliser
from pcjax.display import Display
from pcjax.export import safetensors
from pcjax.jobs.common import load_data
from pcjax.jobs.evaluate import read_student, single_run
from pcjax.run import read_result
from pcjax.training.embedding import output_shapes


def export(folder: pathlib.Path, display: Display) -> None:
    """Write the trained student to RUN/student.safetensors, which `pcjax.load` reads."""
    run = single_run(folder, display)
    if run.job != "distill":
        raise RequestError(
            f"{folder} holds a run of `pcjax {run.job}`, which has no student; give a run of "
            "`pcjax distill`."
        )
    read_result(folder)
    dataset, config = load_data(run.config.data), run.config
    student, examples = read_student(run, dataset), dataset.train
    classes = dataset.class_count if "classify/kernel" in student.parameters else None
    architecture = safetensors.Architecture(
        config.student.name, classes, config.training.compute, config.student.options
    )
    normaliser = Normaliser(examples, dataset.normalise)
    # Every position of a channel is normalised alike.
    subtract, multiply = (
        by.reshape(-1, by.shape[-1])[0] for by in (normaliser.shift, normaliser.factor)
    )
    inputs = safetensors.Inputs(
        examples.shape,
        str(examples.dtype),
        tuple(map(float, subtract)),
        tuple(map(float, multiply)),
    )
    features = int(output_shapes(student, dataset).features.shape[1])
    arrays = {**student.parameters, **student.statistics}
    about = {"version": __version__, "features": features, "config": config.digest()}
    path = folder / safetensors.EXPORTED
    if jax.process_index() == 0:
        host = {name: np.asarray(array) for name, array in arrays.items()}
        size = safetensors.export(path, architecture, inputs, host, about)
        display.say(
            f"{path}: {size:,} bytes, {architecture.name} with {student.parameter_count():,} "
            f"parameters and {features} features"
        )
        display.say(f"next: pcjax.load({str(path)!r}) in your own code")
