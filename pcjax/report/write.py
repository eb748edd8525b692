"""`pcjax report RUN`: one file, RUN/report.html."""

import pathlib

from pcjax._checks import RequestError
from pcjax.jobs.folder import write_text
from pcjax.report.comparison import COMPARISON, comparison_page
from pcjax.report.figures import require_matplotlib
from pcjax.report.run import run_page
from pcjax.training.display import Display

REPORT = "report.html"


def report(folder: pathlib.Path, display: Display) -> None:
    """Writes the report of a run, or of a comparison, into its folder, where it changes nothing else."""
    require_matplotlib()
    made = comparison_page(folder) if (folder / COMPARISON).is_file() else run_page(folder)
    path = folder / REPORT
    try:
        write_text(path, made)
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}") from error
    display.say(f"{path}: {len(made.encode()) / 1e6:.1f} MB, one file to open in a browser or to send")
