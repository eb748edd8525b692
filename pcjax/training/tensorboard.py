"""Metrics for TensorBoard, by tensorboardX."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any


class TensorBoardWriter:
    """Write scalars; a resumed run hides the scalars after the step it resumes from."""

    def __init__(self, folder: pathlib.Path, step: int):
        writer: Any = importlib.import_module("tensorboardX").SummaryWriter
        self._writer = writer(str(folder), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()
