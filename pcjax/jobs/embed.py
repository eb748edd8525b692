"""`pcjax embed RUN`: write the features of a run's model as a file."""

import pathlib
from typing import Any

import jax
import numpy as np

from pcjax import _io
from pcjax.display import Display
from pcjax.jobs.common import load_data, quoted
from pcjax.jobs.evaluate import read_student, single_run
from pcjax.run import CONFIG, read_result
from pcjax.teachers import read_teacher
from pcjax.teachers.features import FINGERPRINT
from pcjax.training.embedding import embed_all

FEATURES = "features.npz"


def embed(folder: pathlib.Path, display: Display) -> None:
    """Write the features of every example; `--teacher.features` reads them."""
    run = single_run(folder, display)
    read_result(folder)
    dataset = load_data(run.config)
    model = (read_teacher if run.job == "teach" else read_student)(run, dataset)
    outputs = embed_all(model, dataset, run.config.evaluation.batch)
    arrays: dict[str, Any] = {part: output.features for part, output in outputs.items()}
    arrays[FINGERPRINT] = np.array(dataset.fingerprint)
    path = folder / FEATURES
    if jax.process_index() == 0:
        with _io.atomic_path(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, **arrays)
    shapes = ", ".join(f"{part} {output.features.shape}" for part, output in outputs.items())
    display.say(f"{path}: {shapes}")
    no_run = () if run.config.teacher.run is None else ("--teacher.run", "None")
    words = (*no_run, "--teacher.features", path, "--workdir", f"{folder}-student")
    display.say(f"next: {quoted('pcjax', 'distill', folder / CONFIG, *words)}")
