"""The straight line through a training: batches in, steps taken, metrics and checkpoints out."""

import contextlib
import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcjax import _fields
from pcjax._checks import FailedError, RequestError
from pcjax.config import Training
from pcjax.data import Dataset, Sampling, TrainingBatches, training_batches
from pcjax.losses.registry import LOSSES
from pcjax.models.functional import Functional
from pcjax.multihost import wait_for_all
from pcjax.run import CHECKPOINTS, Run
from pcjax.training.checkpoint import Checkpoints, UnsavedError
from pcjax.training.embedding import FrozenModel, output_shapes, to_numpy
from pcjax.training.lesson import Lesson, steps_of
from pcjax.training.metrics_log import METRICS, VALIDATION, MetricsLog
from pcjax.training.neighbour_views import nearest_neighbours
from pcjax.training.objective import (
    build_objective,
    with_memories,
)
from pcjax.training.parallel import ParallelStep, choose_devices
from pcjax.training.state import State, initial_state, make_optimiser
from pcjax.training.step import AXIS, FrozenInputs, make_step, metric_names
from pcjax.training.stopping import Agreement, StoppedError, StopSignals, Watchdog, agreed_signal

MAX_PENDING = 1000  # steps whose outcomes are read from the device at once
SECONDS_BETWEEN_TRIES = (1.0, 4.0, 10.0)  # of the last save


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
        training, examples = lesson.training, dataset.train
        self.lesson, self.run, self.options = lesson, run, training
        self.steps = steps_of(training, len(examples), lesson.section)
        self.parallel, self.state, self.frozen = prepare(lesson, dataset)
        uses_neighbours = any(LOSSES[loss.name].neighbours for loss in lesson.losses)
        features = lesson.targets.features
        sampling = Sampling(
            batch=training.batch,
            seed=training.seed,
            neighbours=nearest_neighbours(features)
            if uses_neighbours and features is not None
            else None,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.batches: TrainingBatches = training_batches(
            examples,
            sampling,
            augmentation=lesson.augmentation,
            normalise=dataset.normalise,
            columns=lesson.targets.columns,
        )
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
        self.pending: list[tuple[int, Any, np.ndarray]] = []  # steps, their outcomes and examples

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
            agreement = Agreement(start)
            if self._is_saved(start) and start and not self.checkpoints.is_scored(start):
                self._evaluate()  # it was stopped before it was evaluated
            ended = self._is_saved(start) and self._is_out_of_patience()
            while self.step < self.steps and not ended:
                batch = next(self.batches)
                split = self.parallel.split(batch)
                self.state, outcome = self.parallel(self.frozen, self.state, split)
                self.step += 1
                self.pending.append((self.step, outcome, batch["index"]))
                if self.step == start + 1:
                    jax.block_until_ready(self.state)
                    progress.compiled(self.step)
                progress.show(self.step)
                last = self.step == self.steps
                number = agreement.check(signals.number, self.step, last)
                logs = last or self.step % options.log_every == 0
                saves = self._is_saved(self.step)
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

    def _is_saved(self, step: int) -> bool:
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
        outcomes = jax.device_get([outcome for _, outcome, _ in self.pending])
        too_many = False
        for (step, _, index), outcome in zip(self.pending, outcomes, strict=True):
            too_many |= int(outcome["consecutive_skips"]) >= self.options.bad_steps
            if not outcome["finite"]:
                if jax.process_count() > 1:  # every process sees the same steps
                    index = multihost_utils.process_allgather(index)
                examples = np.ravel(index).tolist()
                self.log.write_skipped(step, examples)
                self.run.say(
                    f"{self.lesson.name}: step {step} was not finite and is skipped; its examples "
                    f"are in {METRICS}"
                )
        self.pending.clear()
        return too_many

    def _bad_steps_error(self) -> BadStepsError:
        section, name = self.lesson.section, self.lesson.name
        return BadStepsError(
            f"{name}: {self.options.bad_steps} consecutive steps ({section}.bad_steps) were not "
            f"finite and were skipped. Step {self.step} is saved with the last good parameters. "
            f"Check the examples that {self.run.folder / METRICS} names, or lower the learning "
            "rate in another --workdir."
        )


def prepare(lesson: Lesson, dataset: Dataset) -> tuple[ParallelStep, State, FrozenInputs]:
    """Return the step of a lesson over all devices, the initial state and the frozen inputs.

    Lessons that differ only in their seeds and weights share one compiled step.
    """
    training, targets, model = lesson.training, lesson.targets, lesson.model
    outputs = (output_shapes(model, dataset), targets.shapes)
    objective, losses = build_objective(lesson.losses, *outputs, seed=training.seed, axis_name=AXIS)
    counts = (len(dataset.train), dataset.train.labels)
    losses = with_memories(losses, objective, outputs, training.seed, counts)
    steps = steps_of(training, len(dataset.train), lesson.section)
    devices = choose_devices(training.devices, training.batch, lesson.section)
    key = _StepKey(
        student=model.function,
        teacher=targets.function,
        shapes=str(targets.shapes),
        losses=json.dumps(_fields.non_default_fields(list(lesson.losses))),
        heads=tuple(sorted(objective.heads.items())),
        maps=tuple(sorted(objective.maps.items())),
        training=dataclasses.replace(training, seed=0),
        steps=steps,
        devices=tuple(devices),
        objective=_Unhashed(objective),
        targets=_Unhashed(targets._replace(features=None, columns={}, arrays=(), classifier={})),
    )
    uses_classifier = any(LOSSES[loss.name].classifier for loss in lesson.losses)
    frozen = FrozenInputs(
        targets.arrays, dict(targets.classifier) if uses_classifier else {}, np.int32(training.seed)
    )
    parallel, init_optimiser = _shared_step(key)
    names = metric_names(objective)
    state = initial_state(model.parameters, model.statistics, losses, init_optimiser, names)
    return parallel, state, parallel.place(frozen)


class _Unhashed:
    """A value that does not count when keys are compared."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed)

    def __hash__(self) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class _StepKey:
    """Everything that a compiled step depends on."""

    student: Functional
    teacher: Any
    shapes: str
    losses: str
    heads: tuple[tuple[str, Functional], ...]
    maps: tuple[tuple[str, tuple[str, str]], ...]
    training: Training
    steps: int
    devices: tuple[Any, ...]
    objective: _Unhashed
    targets: _Unhashed


@functools.lru_cache(maxsize=8)
def _shared_step(key: _StepKey) -> tuple[ParallelStep, Callable[[Any], Any]]:
    """Build a step over all devices, and the function that initialises its optimiser."""
    optimiser = make_optimiser(key.training, key.steps)
    step = make_step(key.student, key.targets.value, key.objective.value, optimiser, key.steps)
    parallel = ParallelStep(step, list(key.devices), key.training.parallel)
    return parallel, jax.jit(optimiser.init)


def temporary_bytes(lesson: Lesson, dataset: Dataset) -> int | None:
    """Return the memory that a step of the lesson needs besides its inputs and outputs."""
    parallel, state, frozen = prepare(lesson, dataset)
    sampling = Sampling(
        batch=lesson.training.batch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = training_batches(
        dataset.train, sampling, normalise=dataset.normalise, columns=lesson.targets.columns
    )
    with contextlib.closing(batches):
        batch = parallel.split(next(batches))
    return parallel.temporary_bytes(frozen, parallel.place(state), batch)


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
