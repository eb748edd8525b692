"""The straight line through a training: batches in, steps taken, metrics written, checkpoints saved."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from pcjax.config import Training
from pcjax.data import TrainingBatches
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.disk import UNFINISHED
from pcjax.training.display import Display, ShownProgress
from pcjax.training.guard import BadStepsError, Guard, Skipped
from pcjax.training.metrics_log import METRICS, lines_of
from pcjax.training.parallel import Mapped, wait_for_all
from pcjax.training.state import State
from pcjax.training.stopping import Agreement, StoppedError, StopSignals, Watchdog, agreed_now
from pcjax.training.tensorboard import Board

VALIDATION = "validation_"  # before the names of what the validation examples say
TRIED_AGAIN_AFTER = (1.0, 4.0, 10.0)  # seconds, before the last save is given up


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
    # Validation metrics, "score" among them, the higher the better; what it is given with the state it calls meanwhile.
    judge: Callable[[State, Callable[[], None]], Mapping[str, float]]


def train(plan: Plan, display: Display) -> int:
    """Trains to the end, from wherever the last checkpoint left it; how many steps were not taken."""
    state, at = plan.state, 0
    with Watchdog(f"{plan.name}: restoring a checkpoint"):
        restored = plan.checkpoints.restore(state, plan.steps)
    if restored is not None:
        state, place, at = restored
        plan.batches.set_state(place)
        if 0 < at < plan.steps:
            display.say(f"{plan.name}: going on after step {at} of {plan.steps}")
    unjudged = at > 0 and plan.checkpoints.is_unjudged(at)
    state = plan.mapped.place(state)
    zeros = jax.device_get(plan.state.sums)
    score = None
    guard = Guard(plan.training.bad_steps)
    watchdog = Watchdog(
        plan.name, plan.training.watchdog_seconds, "step", "training.watchdog_seconds"
    )
    with (
        StopSignals() as stop,
        watchdog,
        contextlib.closing(_begun(plan, at, unjudged, display)) as metrics,
        display.progress(plan.name, plan.steps, at) as progress,
    ):
        if unjudged:
            score = _judged(plan, stop, watchdog, at, state, metrics, progress)
            plan.checkpoints.save(at, state, plan.batches.get_state(), score)
            watchdog.beat(at)
        agreement = Agreement(at)
        for step in range(at + 1, plan.steps + 1):
            batch = next(plan.batches)
            state, said = plan.mapped(plan.frozen, state, plan.mapped.split(batch))
            progress.show(step)
            last = step == plan.steps
            number = agreement.at(stop.number, step, last)
            logged, saved = (
                last or step % every == 0
                for every in (plan.training.log_every, plan.training.save_every)
            )
            if guard.note(step, said, batch["index"]) or logged or saved or number is not None:
                for skipped in guard.look():
                    metrics.skipped(skipped)
                    display.say(f"{plan.name}: {_of_skipped(skipped)}")
            if logged:
                means = _means(state)
                metrics.write(step, means)
                progress.show(step, means)
                state = state._replace(sums=plan.mapped.place(zeros))
                plan.checkpoints.check()
            if saved and number is None:
                try:
                    score = _judged(plan, stop, watchdog, step, state, metrics, progress)
                    plan.checkpoints.save(step, state, plan.batches.get_state(), score)
                except StoppedError as stopped:
                    number = stopped.number
            if number is not None or guard.given_up:
                judged = saved and number is None
                _save_for_good(
                    plan,
                    watchdog,
                    step,
                    state,
                    score if judged else None,
                    judged=judged or not saved,
                )
                if number is not None:
                    raise StoppedError(number, step)
                raise _too_many(plan, step)
            watchdog.beat(step)
        # A run that has ended so does not begin to be a success when its command is given again.
        if int(jax.device_get(state.row)) >= plan.training.bad_steps:
            raise _too_many(plan, plan.steps)
        if at < plan.steps or unjudged:
            _save_for_good(plan, watchdog, plan.steps, state, score)
    plan.batches.close()
    return int(jax.device_get(state.skipped))


def _too_many(plan: Plan, step: int) -> BadStepsError:
    return BadStepsError(
        f"{plan.name}: {plan.training.bad_steps} steps in a row (training.bad_steps) were not taken, and step {step} "
        "is saved with the last good parameters: their loss or gradient was not finite, or their gradient far beyond "
        "those before, or their examples far larger than the others, or all alike; look at the examples that "
        f"{plan.folder / METRICS} names, or in another --workdir lower the learning rate, or raise training.spike"
    )


def _begun(plan: Plan, at: int, unjudged: bool, display: Display) -> "_Metrics":
    """The file of metrics; a new run has it once any process may be told to stop, and all will save the same step."""
    wait_for_all(f"{plan.name} begins")
    return _Metrics(plan.folder / METRICS, at, plan.training.tensorboard, display.say, unjudged)


def _judged(
    plan: Plan,
    stop: StopSignals,
    watchdog: Watchdog,
    step: int,
    state: State,
    metrics: "_Metrics",
    progress: ShownProgress,
) -> float:
    """The score, written down with all else that the validation examples say; a signal ends it."""

    def look() -> None:
        watchdog.beat(step - 1)  # each look is waited for anew; the step goes on
        number = agreed_now(stop.number)
        if number is not None:
            raise StoppedError(number, step)

    judged = dict(plan.judge(state, look))
    metrics.write(step, {f"{VALIDATION}{name}": value for name, value in judged.items()})
    progress.show(step, judged)
    return judged["score"]


def _save_for_good(
    plan: Plan,
    watchdog: Watchdog,
    step: int,
    state: State,
    score: float | None = None,
    *,
    judged: bool = True,
) -> None:
    """Saves what must not be lost: tried again some times before giving up, as nothing will come after."""
    watchdog.rest()  # no step may take as long as that
    limit = plan.training.watchdog_seconds
    limit = None if limit is None else limit + max(TRIED_AGAIN_AFTER)
    with Watchdog(
        f"{plan.name}: the last save", limit, "try", "training.watchdog_seconds"
    ) as patience:
        for tries, seconds in enumerate((*TRIED_AGAIN_AFTER, None), 1):
            plan.checkpoints.save(step, state, plan.batches.get_state(), score, judged=judged)
            unsaved = plan.checkpoints.settled()
            if unsaved is None:
                return
            if seconds is None:
                raise unsaved
            patience.beat(tries)
            time.sleep(seconds)


def _of_skipped(skipped: Skipped) -> str:
    few = ", ".join(map(str, skipped.examples[:8])) + (", ..." if len(skipped.examples) > 8 else "")
    return f"step {skipped.step} {skipped.why} and was not taken; its examples ({few}) are in {METRICS}"


def _means(state: State) -> dict[str, float]:
    """What was summed since the last time, by the number of steps that were taken."""
    sums, skipped = jax.device_get((state.sums, state.skipped))
    count = float(sums["count"])
    means = {
        name: float(total) / count if count else math.nan
        for name, total in sums.items()
        if name != "count"
    }
    return means | ({"skipped": int(skipped)} if skipped else {})


class _Metrics:
    """The file of metrics, one JSON object a line; what lies beyond the step that is gone on from is cut off.

    Lines that cannot be written, because the disk is full, wait in memory and are written with the next ones.
    """

    def __init__(
        self,
        path: pathlib.Path,
        at: int,
        tensorboard: bool = False,
        say: Callable[[str], Any] = print,
        unjudged: bool = False,
    ):
        first = jax.process_index() == 0
        self._board = (
            Board(path.with_name("tensorboard"), at, say) if tensorboard and first else None
        )
        self._path = path if first else None
        self._last, self._seconds = at, time.perf_counter()
        self._waiting, self._say, self._failing = "", say, False
        if self._path is not None:
            self._size = _cut(path, at, say, unjudged)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self._path is None:
            return
        record = {"step": step, **{name: _finite(value) for name, value in values.items()}}
        if step > self._last:
            record["steps_per_second"] = round((step - self._last) / (now - self._seconds), 3)
            self._last, self._seconds = step, now
        self._append(record)
        if self._board is not None:
            self._board.write(
                step, {name: x for name, x in record.items() if name != "step" and x is not None}
            )

    def close(self) -> None:
        """Tries once more to write what could not be written."""
        if self._path is not None and self._waiting:
            self._write(self._path)
        if self._waiting:
            self._say(
                f"{self._waiting.count(chr(10))} lines could not be written to {self._path}, and are lost"
            )
        if self._board is not None:
            self._board.close()

    def skipped(self, skipped: Skipped) -> None:
        self._append({"step": skipped.step, "skipped_examples": skipped.examples})

    def _append(self, record: Mapping[str, Any]) -> None:
        if self._path is not None:
            self._waiting += json.dumps(record) + "\n"
            self._write(self._path)

    def _write(self, path: pathlib.Path) -> None:
        try:
            if self._size and not path.exists():
                self._say(f"{path} is gone: it begins anew")
                self._size = 0
            with path.open("r+b" if self._size else "wb") as file:
                file.truncate(self._size)  # of a line of which only a part could be written
                file.seek(self._size)
                file.write(self._waiting.encode())
            self._size += len(self._waiting.encode())
            self._waiting, self._failing = "", False
        except OSError as error:
            if not self._failing:
                self._say(
                    f"{path} cannot be written ({error.strerror}): its lines are kept and tried again"
                )
            self._failing = True


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _cut(path: pathlib.Path, at: int, say: Callable[[str], Any], unjudged: bool) -> int:
    """Leaves those lines that are of no later step, nor what will be judged again; how many bytes they are."""

    def stays(record: Mapping[str, Any]) -> bool:
        again = (
            unjudged
            and record["step"] == at
            and any(name.startswith(VALIDATION) for name in record)
        )
        return record["step"] <= at and not again

    unfinished, damaged = path.with_name(path.name + UNFINISHED), 0
    with unfinished.open("wb") as file:
        for line, record in lines_of(path):
            if record is not None and stays(record):
                file.write(line.rstrip(b"\r\n") + b"\n")
            # The last line is without its end where a crash cut it short: that is no damage.
            damaged += record is None and line.endswith(b"\n")
    unfinished.replace(path)
    if damaged:
        say(f"{path} had {damaged} lines that are not as they were written: they are left out")
    return path.stat().st_size
