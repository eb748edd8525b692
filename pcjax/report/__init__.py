"""What came of a run or a comparison, as one HTML file that needs nothing else."""

from pcjax.report.write import report

__all__ = ["report"]
