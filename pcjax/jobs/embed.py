"""`pcjax embed`: write the features of a run's model as a file, or fill the cache of a teacher."""

import pathlib
from typing import Any

import jax
import numpy as np

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.config import Config
from pcjax.display import Display
from pcjax.jobs.common import describe_data, load_data, quoted
from pcjax.jobs.evaluate import read_student, single_run
from pcjax.run import CONFIG, Run, read_result
from pcjax.teachers import load_teacher, read_teacher
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
    stored, plain = run.config.teacher, Config().teacher
    other = [
        word
        for name in ("run", "source", "side", "views", "live")
        if getattr(stored, name) != getattr(plain, name)
        for word in (f"--teacher.{name}", getattr(plain, name))
    ]
    words = (*other, "--teacher.features", path, "--workdir", f"{folder}-student")
    display.say(f"next: {quoted('pcjax', 'distill', folder / CONFIG, *words)}")


def embed_teacher(config: Config, display: Display) -> None:
    """Compute the features of a config's teacher of others; later commands take them.

    A stopped command resumes; on several devices and processes each computes its part.
    """
    if config.teacher.source is None:
        raise RequestError(
            "The config has no model of others (teacher.source), whose features are computed "
            "once; give one, or the folder of a run."
        )
    dataset = load_data(config)
    display.say(describe_data(dataset))
    run = Run(pathlib.Path(), config, "distill", display)
    teacher = load_teacher(config.teacher, config.data, dataset, run, config.evaluation.batch)
    shapes = ", ".join(f"{part} {rows.shape}" for part, rows in teacher.features.items())
    views = f", and {len(teacher.views)} views of train" if teacher.views else ""
    folder = _io.user_cache("teachers")
    display.say(f"{config.teacher.source}: {shapes}{views}; on another machine, copy {folder}")
