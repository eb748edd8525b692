"""Batches that are not finite: the step is skipped, its examples are named, the run continues."""

import json

import numpy as np
import pytest
from small import QUICK

from pcjax.data import TrainingBatches
from pcjax.training import prepare, resident
from pcjax.training.metrics_log import read_metrics

pytestmark = pytest.mark.gate

STEPS = 40


def put(value, count):
    def change(images, rng):
        images.reshape(-1)[rng.choice(images.size, count, replace=False)] = value

    return change


def times(factor, rows=slice(None)):
    def change(images, rng):
        images[rows] *= np.float32(factor)

    return change


NOT_FINITE = [put(value, n) for value in (np.nan, np.inf, -np.inf) for n in (1, 50, 1024)]
# A step with these is skipped or finite.
LARGE = [times(factor) for factor in (-100.0, 1e4, 1e18, 1e30, 1e38)]
LARGE += [times(factor, 0) for factor in (1e8, 1e38)]
SMALL = [times(0.0), times(1e-38)]


class Changed(TrainingBatches):
    """Batches of which every other one is changed."""

    def __init__(self, batches, changes):
        super().__init__(batches._make)
        self._changes = changes
        self._rng = np.random.default_rng(0)
        self.examples = {}

    def __next__(self):
        batch = super().__next__()
        step = self.get_state()["step"]
        if step % 2 == 0 and step // 2 <= len(self._changes):
            batch["image"] = batch["image"].copy()
            self._changes[step // 2 - 1](batch["image"], self._rng)
            self.examples[step] = batch["index"].tolist()
        return batch


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_what_is_not_finite_is_skipped_and_named(how, command, tmp_path, monkeypatch, tried):
    """Over four devices, of which one meets the value first."""
    changes, made = [*NOT_FINITE, *LARGE, *SMALL], []
    training_batches = prepare.training_batches

    def changed(*args, **given):
        batches = training_batches(*args, **given)
        if given["columns"]:  # the student's
            made.append(batches := Changed(batches, changes))
        return batches

    monkeypatch.setattr(prepare, "training_batches", changed)
    monkeypatch.setattr(resident, "CPU_BYTES", 0)  # images change in batches, not on devices
    words = ["--training.steps", STEPS, "--training.devices", 4, "--training.parallel", how]
    status, output, complaint = command("distill", *QUICK, *words, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    lines = [r for r in read_metrics(tmp_path / "run") if "skipped_examples" in r]
    skipped = {line["step"]: line["skipped_examples"] for line in lines}
    assert {2 * n + 2 for n in range(len(NOT_FINITE))} <= skipped.keys()
    assert all(step % 2 == 0 for step in skipped)
    assert all(examples == made[0].examples[step] for step, examples in skipped.items())
    for step in skipped:
        assert f"student: step {step} was not finite and is skipped" in output
    assert f"student: {len(skipped)} of {STEPS} steps were skipped" in output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(result["student"]["knn_accuracy"])
    tried("a batch that is not finite", "skipped, the run continues", len(NOT_FINITE))
    tried("a batch far from the others", "skipped or finite", len(LARGE) + len(SMALL))


def test_steps_that_are_never_finite_end_the_run(command, tmp_path, tried):
    wild = ["--training.optimiser", "sgd", "--training.learning-rate", "1e37"]
    wild += ["--training.schedule", "constant", "--training.warmup", 0, "--training.bad-steps", 5]
    run = tmp_path / "run"
    words = ["distill", *QUICK, "--training.steps", STEPS, *wild, "--workdir", run]
    for _ in range(2):
        status, _, complaint = command(*words)
        assert (status, complaint.count("\n")) == (1, 1)
        assert "5 consecutive steps (training.bad_steps) were not finite" in complaint
        assert not (run / "result.json").exists()
    tried("steps that are never finite", "stopped, saved, status 1; again the same", 2)
