"""The straight line through a training: batches in, steps taken, metrics written, checkpoints saved."""

import importlib
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcjax._checks import RequestError
from pcjax.config import Training
from pcjax.data import TrainingBatches
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.display import Display
from pcjax.training.parallel import Mapped
from pcjax.training.state import State

METRICS = "metrics.jsonl"


class StoppedError(Exception):
    """A signal asked the training to stop, and it did, with everything saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, and saved")
        self.number, self.step = number, step


class StopSignals:
    """While inside, SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed."""

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


class Plan(NamedTuple):
    """One training, ready to begin or to go on."""

    name: str
    folder: pathlib.Path
    training: Training
    steps: int
    mapped: Mapped
    frozen: Any  # what the step needs beside state and batch
    state: State  # before the first step
    batches: TrainingBatches
    checkpoints: Checkpoints
    judge: Callable[[State], Mapping[str, float]]  # validation metrics, "score" among them: the higher the better


def train(plan: Plan, display: Display) -> None:
    """Trains to the end, from wherever the last checkpoint left it."""
    state, at = plan.state, 0
    restored = plan.checkpoints.restore(state)
    if restored is not None:
        state, place, at = restored
        plan.batches.set_state(place)
        if 0 < at < plan.steps:
            display.say(f"{plan.name}: going on after step {at} of {plan.steps}")
    metrics = _Metrics(plan.folder / METRICS, at, plan.training.tensorboard)
    state = plan.mapped.place(state)
    zeros = jax.device_get(plan.state.sums)
    with StopSignals() as stop, display.progress(plan.name, plan.steps, at) as progress:
        for step in range(at + 1, plan.steps + 1):
            state, _ = plan.mapped(plan.frozen, state, plan.mapped.split(next(plan.batches)))
            last = step == plan.steps
            if step % plan.training.log_every == 0 or last:
                means = _means(state)
                metrics.write(step, means)
                progress.show(step, means)
                state = state._replace(sums=plan.mapped.place(zeros))
            if step % plan.training.save_every == 0 or last:
                judged = dict(plan.judge(state))
                metrics.write(step, {f"validation_{name}": value for name, value in judged.items()})
                progress.show(step, judged)
                plan.checkpoints.save(step, state, plan.batches.get_state(), judged["score"])
            number = _agreed(stop.number)
            if number is not None:
                plan.checkpoints.save(step, state, plan.batches.get_state())
                plan.checkpoints.wait()
                raise StoppedError(number, step)
    plan.batches.close()
    plan.checkpoints.wait()


def _agreed(number: int | None) -> int | None:
    """The signal that any process was given: all must stop after the same step, or they would wait for each other."""
    if jax.process_count() == 1:
        return number
    given = multihost_utils.process_allgather(np.int32(number or 0))
    return int(np.max(given)) or None


def _means(state: State) -> dict[str, float]:
    """What was summed since the last time, by the number of steps that were taken."""
    sums, skipped = jax.device_get((state.sums, state.skipped))
    count = float(sums["count"])
    means = {name: float(total) / count if count else math.nan for name, total in sums.items() if name != "count"}
    return means | ({"skipped": int(skipped)} if skipped else {})


class _Metrics:
    """The file of metrics, one JSON object a line; what lies beyond the step that is gone on from is cut off."""

    def __init__(self, path: pathlib.Path, at: int, tensorboard: bool = False):
        self._board = _board(path.with_name("tensorboard"), at) if tensorboard and jax.process_index() == 0 else None
        self._path = path if jax.process_index() == 0 else None
        self._last, self._seconds = at, time.perf_counter()
        if self._path is not None:
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if (found := _step_of(line)) is not None and found <= at]
            unfinished = path.with_name(path.name + ".unfinished")
            unfinished.write_text("".join(f"{line}\n" for line in kept))
            unfinished.replace(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self._path is None:
            return
        record = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        if step > self._last:
            record["steps_per_second"] = round((step - self._last) / (now - self._seconds), 3)
            self._last, self._seconds = step, now
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in record.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()


def _board(folder: pathlib.Path, at: int) -> Any:
    """A writer of TensorBoard's files, in which what lies beyond the step that is gone on from does not count."""
    try:
        writer = importlib.import_module("tensorboardX").SummaryWriter
    except ImportError as error:
        raise RequestError(
            'training.tensorboard needs tensorboardX: `pip install "pcjax[tensorboard]"`, or leave it out'
        ) from error
    return writer(str(folder), purge_step=at + 1)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None  # a line that a crash cut short
