"""The loop of a training: take steps on batches, log metrics and save checkpoints."""

import contextlib
import math
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcjax._checks import FailedError, RequestError
from pcjax.data import Dataset
from pcjax.multihost import wait_for_all
from pcjax.run import CHECKPOINTS, Run
from pcjax.training.checkpoint import Checkpoints, UnsavedError
from pcjax.training.embedding import FrozenModel, to_numpy
from pcjax.training.feed import Feed
from pcjax.training.lesson import Lesson, steps_of
from pcjax.training.metrics_log import METRICS, VALIDATION, MetricsLog
from pcjax.training.prepare import batches_of, prepare
from pcjax.training.state import State
from pcjax.training.stopping import Agreement, StoppedError, StopSignals, Watchdog, agreed_signal

MAX_PENDING = 1000  # groups of steps whose outcomes are read from the device at once
SECONDS_BETWEEN_TRIES = (1.0, 4.0, 10.0)  # to save the last checkpoint


class BadStepsError(FailedError):
    """Too many steps were skipped for the result to be usable."""


def train(lesson: Lesson, dataset: Dataset, run: Run) -> FrozenModel:
    """Train to the end, from the last checkpoint of the run, and return the trained model."""
    with _Training(lesson, dataset, run) as training:
        training.restore()
        skipped = training.run_steps()
        if skipped > training.steps / 2:
            raise BadStepsError(
                f"{lesson.name}: {skipped} of {training.steps} steps were skipped because they "
                f"were not finite. Lower the learning rate, set {lesson.section}.clip, or check "
                f"the examples that {run.folder / METRICS} names."
            )
        if skipped:
            run.say(f"{lesson.name}: {skipped} of {training.steps} steps were skipped")
        model = training.checkpoints.restore_model(lesson.model, lesson.training.choose)
    if model is None:
        raise RequestError(f"There is no checkpoint in {run.folder}; repeat the command.")
    return model


class _Training:
    """The parts of one training, and its loop."""

    def __init__(self, lesson: Lesson, dataset: Dataset, run: Run):
        training = lesson.training
        self.lesson, self.run, self.options = lesson, run, training
        self.steps = steps_of(training, len(dataset.train), lesson.section)
        self.batches, resident = batches_of(lesson, dataset)
        self.parallel, self.state, self.frozen = prepare(lesson, dataset, resident)
        self.feed = Feed(self.batches, self.parallel, drawn=resident is not None)
        self.checkpoints = Checkpoints(
            run.folder / CHECKPOINTS,
            {
                "role": lesson.name,
                "data": dataset.fingerprint,
                "batch": training.batch,
                "seed": training.seed,
                "steps": self.steps,
                "config": run.config.digest(),
                "teacher": lesson.targets.digest,
            },
            keep=training.keep,
            say=run.say,
            clock=run.clock,
        )
        self.step = 0
        # For each group of steps taken together: its last step, its examples and its outcomes.
        self.pending: list[tuple[int, np.ndarray, Any]] = []

    def __enter__(self) -> "_Training":
        return self

    def __exit__(self, *_: object) -> None:
        self.batches.close()
        self.checkpoints.close()

    def restore(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        with Watchdog(self.options.watchdog_seconds):
            restored = self.checkpoints.restore(
                self.state, self.steps, other_versions=self.run.config.other_versions
            )
        if restored is not None:
            self.state, position, self.step = restored
            self.batches.set_state(position)
            if 0 < self.step < self.steps:
                name = self.lesson.name
                self.run.say(f"{name}: resuming after step {self.step} of {self.steps}")
        self.state = self.parallel.place(self.state)

    def run_steps(self) -> int:
        """Take the remaining steps; return how many of all steps were skipped."""
        wait_for_all(f"{self.lesson.name} begins")
        name, options, start = self.lesson.name, self.options, self.step
        zeros = self.parallel.zeros
        with (
            StopSignals() as signals,
            Watchdog(options.watchdog_seconds) as watchdog,
            contextlib.closing(
                MetricsLog(self.run.folder, start, self.run.say, options.tensorboard)
            ) as log,
            self.run.display.progress(name, self.steps, start) as progress,
        ):
            self.watchdog, self.signals, self.log, self.progress = watchdog, signals, log, progress
            agreement = Agreement(start, self.parallel.most)
            if start > 0 and self._saves_after(start) and not self.checkpoints.is_scored(start):
                self._evaluate()  # the training was stopped before this evaluation
            ended = self._saves_after(start) and self._is_out_of_patience()
            while self.step < self.steps and not ended:
                count = min(agreement.next, self._next_event()) - self.step
                self.state, index, outcomes = self.feed.take(self.frozen, self.state, count)
                before, self.step = self.step, self.step + len(index)
                self.pending.append((self.step, index, outcomes))
                if before == start:
                    jax.block_until_ready(self.state)
                    progress.compiled(self.step)
                progress.show(self.step)
                last = self.step == self.steps
                number = agreement.check(signals.number, self.step, last)
                logs = last or self.step % options.log_every == 0
                saves = self._saves_after(self.step)
                many_bad = False
                if logs or saves or number or len(self.pending) >= MAX_PENDING:
                    many_bad = self._read_outcomes()
                if logs:
                    means = _means(self.state)
                    log.write(self.step, means)
                    progress.show(self.step, means)
                    self.state = self.state._replace(sums=zeros(self.state.sums))
                if number is not None:
                    self._save_last()
                    raise StoppedError(number, self.step)
                if many_bad:
                    self._save_last()
                    raise self._bad_steps_error()
                if saves:
                    self._evaluate_or_stop()
                    self._save()
                    ended = self._is_out_of_patience()
                watchdog.beat()
            if int(self.state.consecutive_skips) >= options.bad_steps:
                raise self._bad_steps_error()
            if start < self.steps:
                self._save_last()
                progress.finish()
        return int(self.state.skipped)

    def _next_event(self) -> int:
        """Return the next step after which something is logged or saved."""
        intervals = (self.options.log_every, self.options.save_every)
        return min(self.steps, *(self.step - self.step % n + n for n in intervals))

    def _saves_after(self, step: int) -> bool:
        return step == self.steps or step % self.options.save_every == 0

    def _is_out_of_patience(self) -> bool:
        """Return whether the score has not risen for training.patience checkpoints."""
        patience = self.options.patience
        if patience is None or self.checkpoints.since_best() < patience:
            return False
        self.run.say(
            f"{self.lesson.name}: ended after step {self.step} of {self.steps}, as the last "
            f"{patience} checkpoints scored no higher"
        )
        return True

    def _evaluate_or_stop(self) -> None:
        """Evaluate; where a signal stops it, save without a score and stop."""
        try:
            self._evaluate()
        except StoppedError:
            self._save_last()
            raise

    def _evaluate(self) -> None:
        """Compute, log and store the validation metrics of this step."""

        def heartbeat() -> None:
            self.watchdog.beat()
            number = agreed_signal(self.signals.number)
            if number is not None:
                raise StoppedError(number, self.step)

        weights = to_numpy((self.state.student, self.state.statistics))
        model = FrozenModel(self.lesson.model.function, *weights)
        metrics = dict(self.lesson.evaluate(model, heartbeat))
        self.log.write(self.step, {f"{VALIDATION}{name}": x for name, x in metrics.items()})
        self.progress.show(self.step, metrics)
        self.checkpoints.set_score(self.step, metrics["score"])

    def _save(self) -> None:
        """Save in the background; a failure is reported, and the training continues."""
        try:
            self.checkpoints.try_save(self.step, self.state, self.batches.get_state())
        except UnsavedError as error:
            self.run.say(f"{error}; earlier ones are kept, the next save is tried")

    def _save_last(self) -> None:
        """Save and wait, with some more tries: nothing comes after this save."""
        for seconds in (*SECONDS_BETWEEN_TRIES, None):
            self.watchdog.beat()
            try:
                self.checkpoints.try_save(self.step, self.state, self.batches.get_state())
                self.checkpoints.wait()
                return
            except UnsavedError as error:
                if seconds is None:
                    raise
                self.run.say(f"{error}; trying again in {seconds:.0f} s")
                time.sleep(seconds)

    def _read_outcomes(self) -> bool:
        """Report the skipped steps since the last call; return whether too many are in a row."""
        too_many = False
        for last, index, outcomes in jax.device_get(self.pending):
            first = last + 1 - len(index)
            for step, examples in enumerate(index, first):
                outcome = {name: np.ravel(x)[step - first] for name, x in outcomes.items()}
                too_many |= int(outcome["consecutive_skips"]) >= self.options.bad_steps
                if not outcome["finite"]:
                    self._report_skipped(step, examples)
        self.pending.clear()
        return too_many

    def _report_skipped(self, step: int, index: np.ndarray) -> None:
        if jax.process_count() > 1:  # all skip the same steps, so all call this together
            index = multihost_utils.process_allgather(index)
        self.log.write_skipped(step, np.ravel(index).tolist())
        self.run.say(
            f"{self.lesson.name}: step {step} was not finite and is skipped; its examples "
            f"are in {METRICS}"
        )

    def _bad_steps_error(self) -> BadStepsError:
        section, name = self.lesson.section, self.lesson.name
        return BadStepsError(
            f"{name}: {self.options.bad_steps} consecutive steps ({section}.bad_steps) were not "
            f"finite and were skipped. Step {self.step} is saved with the last good parameters. "
            f"Check the examples that {self.run.folder / METRICS} names, or lower the learning "
            "rate in another --workdir."
        )


def _means(state: State) -> dict[str, float]:
    """Return the means of the metrics over the steps since they were last logged."""
    sums, skipped = jax.device_get((state.sums, state.skipped))
    count = float(sums["count"])
    means = {
        name: float(total) / count if count else math.nan
        for name, total in sums.items()
        if name != "count"
    }
    return means | ({"skipped": float(skipped)} if skipped else {})
