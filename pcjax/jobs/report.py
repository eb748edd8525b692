"""`pcjax report RUN`: draw a run or a comparison again, as one HTML page."""

import pathlib

import jax

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.display import Display
from pcjax.jobs.common import REPORT, STUDENT, TEACHER, UNTRAINED, load_data, write_report
from pcjax.jobs.compare import Rivals, page_of, shared_config
from pcjax.jobs.evaluate import load_models
from pcjax.run import read_result, stored_run
from pcjax.teachers import load_teacher
from pcjax.training.embedding import features_of_all


def report(folder: pathlib.Path, display: Display) -> None:
    """Write RUN/report.html; nothing else in the folder changes."""
    run = stored_run(folder, display)
    if run.job == "tune":
        raise RequestError(f"{folder} holds a run of `pcjax tune`, which has no report.")
    dataset = load_data(run.config)
    if run.job == "compare":
        shared = shared_config(run)
        batch = shared.evaluation.batch
        teacher = load_teacher(shared.teacher, shared.data, dataset, run, batch, train=False)
        if jax.process_index() == 0:
            page = page_of(run, Rivals(shared, dataset, teacher, None))
            _io.write_text(folder / REPORT, page)
    else:
        results = read_result(folder)
        teacher, models = load_models(run, dataset)
        batch = run.config.evaluation.batch
        embeddings = {TEACHER: teacher.features}
        for name in (UNTRAINED, STUDENT) if models else ():
            embeddings[name] = features_of_all(models[name], dataset, batch)
        write_report(run, results, dataset, embeddings)
    size = (folder / REPORT).stat().st_size / 1e6
    display.say(f"{folder / REPORT}: {size:.1f} MB, one file to open in a browser or to send")
