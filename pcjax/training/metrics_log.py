"""metrics.jsonl: one JSON object a line, appended during training."""

import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from pcjax.training.tensorboard import TensorBoardWriter

METRICS = "metrics.jsonl"
VALIDATION = "validation_"  # prefix of metrics of the validation examples


class MetricsLog:
    """Append metrics to a run's file, on the first process only.

    A line that cannot be written is lost; it is reported once.
    """

    def __init__(
        self, folder: pathlib.Path, step: int, say: Callable[[str], Any], tensorboard: bool = False
    ):
        self._writes = jax.process_index() == 0
        self._path, self._say, self._failed = folder / METRICS, say, False
        self._step, self._time = step, time.perf_counter()
        self._board = None
        if tensorboard and self._writes:
            self._board = TensorBoardWriter(folder / "tensorboard", step)
        if self._writes and (step or self._path.exists()):
            self._append({"resumed_at": step})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of a step."""
        if not self._writes:
            return
        now = time.perf_counter()
        record: dict[str, Any] = {"step": step}
        record |= {name: x if math.isfinite(x) else None for name, x in values.items()}
        if step > self._step:
            record["steps_per_second"] = round((step - self._step) / (now - self._time), 3)
            self._step, self._time = step, now
        self._append(record)
        if self._board is not None:
            finite = {n: x for n, x in record.items() if n != "step" and x is not None}
            self._board.write(step, finite)

    def write_skipped(self, step: int, examples: list[int]) -> None:
        """Append the examples of a skipped step."""
        if self._writes:
            self._append({"step": step, "skipped_examples": examples})

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a+b") as file:
                # A line that a kill cut short must not swallow the next one.
                if file.tell():
                    file.seek(-1, 2)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write((json.dumps(record) + "\n").encode())
        except OSError as error:
            if not self._failed:
                self._say(f"{self._path} cannot be written ({error.strerror}); metrics are lost")
            self._failed = True


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Read a run's metrics, in the order of its steps.

    Lines that a later resume repeats are dropped, and so is a line that a kill cut short.
    """
    path = folder / METRICS
    records: list[dict[str, Any]] = []
    if not path.is_file():
        return records
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(record, dict):
                continue
            resumed = record.get("resumed_at")
            if isinstance(resumed, int):
                records = [r for r in records if r["step"] <= resumed]
            elif isinstance(record.get("step"), int):
                records.append(record)
    return records
