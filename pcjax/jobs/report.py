"""`pcjax report RUN`: one file, RUN/report.html."""

import pathlib

from pcjax import _checks
from pcjax.report.comparison_page import COMPARISON, comparison_page
from pcjax.report.figures import require_matplotlib
from pcjax.report.run_page import run_page
from pcjax.run import CONFIG, config_of, write_text
from pcjax.training.display import Display

REPORT = "report.html"


def report(folder: pathlib.Path, display: Display) -> None:
    """Writes the report of a run, or of a comparison, into its folder, where it changes nothing else."""
    require_matplotlib()
    if (folder / COMPARISON).is_file():
        made = comparison_page(folder)
    else:
        stopped = (folder / CONFIG).is_file() and config_of(folder)[0] == "compare"
        missing = (
            f"no {COMPARISON} in {folder}: give its own command again, which goes on to the end"
        )
        _checks.require(not stopped, missing)
        made = run_page(folder)
    path = folder / REPORT
    write_text(path, made)
    display.say(
        f"{path}: {len(made.encode()) / 1e6:.1f} MB, one file to open in a browser or to send"
    )
