"""A training is the same over however many devices, and wherever it was stopped and gone on with."""

import dataclasses
import json
import signal
from typing import NamedTuple

import jax
import numpy as np
import pytest
from children import change_manifest
from flax import nnx

from pcjax import data, models
from pcjax.config import Loss, Ramp, Training
from pcjax.models.functional import functional
from pcjax.training import loop, parallel
from pcjax.training.arrays import named
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.display import Display
from pcjax.training.guard import BadStepsError
from pcjax.training.objective import objective, with_memories
from pcjax.training.state import make_optimiser, start
from pcjax.training.step import AXIS, Fixed, make_step, metric_names
from pcjax.training.stopping import StopSignals

STEPS, BATCH, BANK = 20, 32, 12
TRAINING = Training(
    optimiser="sgd",
    learning_rate=0.05,
    clip=1.0,
    batch=BATCH,
    log_every=3,
    save_every=7,
    warmup=0.1,
)
LOSSES = (
    Loss(
        "perception_coherence",
        weight=Ramp(1.0, 2.0),
        head="linear",
        bank=BANK,
        arguments={
            "temperature": Ramp(0.5, 0.1, until=0.5, shape="geometric"),
            "dissimilarity": "cosine",
        },
    ),
    Loss("cross_entropy", weight=0.1),
)


class Problem(NamedTuple):
    """A convolutional student with batch normalisation, a head and a bank, and a teacher's features."""

    step: object
    state: object
    frozen: object


@pytest.fixture(scope="module")
def examples():
    return data.load("digits").train


@pytest.fixture(scope="module")
def problem():
    def build(seed, widths, axis_name):
        given = {
            "shape": (8, 8, 1),
            "classes": 10,
            "features": 6,
            "widths": widths,
            "axis_name": axis_name,
        }
        return lambda: models.build("cnn", rngs=nnx.Rngs(seed), **given)

    student, parameters, statistics = functional(build(0, (4, 6), AXIS))
    teacher, *frozen = functional(build(1, (5,), None))

    def looks(frozen, batch):
        return teacher.apply(*frozen, batch["image"], train=False)[0]

    shapes = jax.eval_shape(
        looks, frozen, {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)}
    )
    what, kept = objective(LOSSES, shapes, shapes, 0, AXIS)
    kept = with_memories(kept, what, shapes, shapes, examples=0, labels=None)
    optimiser = make_optimiser(TRAINING, STEPS)
    state = start(parameters, statistics, kept, optimiser, metric_names(what))
    return Problem(
        make_step(student, looks, what, optimiser, STEPS, size=1.0), state, Fixed(tuple(frozen))
    )


def batches_of(examples):
    return data.training_batches(
        examples, batch=BATCH, seed=0, crop=1, normalise=data.statistics(examples)
    )


@pytest.fixture(scope="module")
def one_device(problem):
    return parallel.Mapped(problem.step, jax.devices()[:1], "pmap")


def run(mapped, problem, examples, steps=STEPS):
    state, frozen = mapped.place(problem.state), mapped.place(problem.frozen)
    batches, losses = batches_of(examples), []
    for _ in range(steps):
        state, metrics = mapped(frozen, state, mapped.split(next(batches)))
        losses.append(metrics["loss"])
    batches.close()
    return jax.device_get((state, losses))


@pytest.fixture(scope="module")
def whole(one_device, problem, examples):
    return run(one_device, problem, examples)


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_eight_devices_train_as_one(how, whole, problem, examples):
    mapped = parallel.Mapped(problem.step, jax.devices(), how)
    state, losses = run(mapped, problem, examples)
    assert np.allclose(losses, whole[1], rtol=1e-5, atol=0)
    for name, expected in named(whole[0]).items():
        found = named(state)[name]
        assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1), name


def test_the_training_trains(whole, problem):
    state, _ = whole
    assert int(state.step) == STEPS
    assert int(state.skipped) == 0
    for name, before in named(problem.state).items():
        if name.startswith(("student/", "statistics/", "heads/", "memories/")):
            assert not np.array_equal(before, named(state)[name]), name


def test_a_step_that_is_not_finite_is_not_taken(one_device, problem, examples):
    batch = next(batches_of(examples))
    batch["image"][3, 0, 0, 0] = np.nan
    state = one_device.place(problem.state)
    after, metrics = one_device(one_device.place(problem.frozen), state, one_device.split(batch))
    assert np.isnan(metrics["loss"])
    assert (int(after.step), int(after.skipped)) == (1, 1)
    for part in ("student", "statistics", "heads", "memories", "optimiser", "sums"):
        for one, other in zip(
            jax.tree.leaves(getattr(after, part)),
            jax.tree.leaves(getattr(problem.state, part)),
            strict=True,
        ):
            assert np.array_equal(one, other)


class Recorded:
    """Batches that remember what they gave, and raise a signal while a step is under way."""

    def __init__(self, batches, stop_in):
        self.batches, self.stop_in, self.seen = batches, stop_in, []

    def __next__(self):
        batch = next(self.batches)
        self.seen.append(batch["index"].tolist())
        if len(self.seen) == self.stop_in:
            signal.raise_signal(signal.SIGTERM)
        return batch

    def __getattr__(self, name):
        return getattr(self.batches, name)


def train(folder, mapped, problem, examples, stop_in=None, judging=None):
    """Trains until it is stopped, in a step or while one is judged, or done; what was seen, and what was saved last."""
    folder.mkdir(exist_ok=True)
    checkpoints = Checkpoints(folder / "checkpoints", {"role": "student"}, say=pytest.fail)
    batches, stop = Recorded(batches_of(examples), stop_in), judging or stop_in

    def judge(state, between):
        if judging == int(state.step):
            signal.raise_signal(signal.SIGTERM)
            between()
            pytest.fail("it was judged to the end")
        return {
            "score": -float(state.step),
            "coherence": float(jax.device_get(state.student["classify/bias"][0])),
        }

    frozen = mapped.place(problem.frozen)
    plan = loop.Plan(
        "student",
        folder,
        TRAINING,
        STEPS,
        mapped,
        frozen,
        problem.state,
        batches,
        checkpoints,
        judge,
    )
    if stop is None:
        loop.train(plan, Display(quiet=True))
        assert (
            checkpoints.best == TRAINING.save_every
        )  # the first that is judged, stopped there or not
    else:
        with pytest.raises(loop.StoppedError, match=f"SIGTERM after step {stop}"):
            loop.train(plan, Display(quiet=True))
    batches.close()
    found = checkpoints.restore(problem.state)
    checkpoints.close()
    return batches.seen, found


class BadFrom(Recorded):
    """Batches of which those of the last steps have a NaN."""

    def __next__(self):
        batch = super().__next__()
        if self.batches.get_state()["step"] > STEPS - 4:
            batch["image"] = batch["image"].copy()
            batch["image"][3, 0, 0, 0] = np.nan
        return batch


def test_a_training_that_ended_in_bad_steps_stays_so(tmp_path, one_device, problem, examples):
    training = dataclasses.replace(TRAINING, bad_steps=3)
    for _ in range(3):
        checkpoints = Checkpoints(tmp_path / "checkpoints", {"role": "student"}, say=pytest.fail)
        batches = BadFrom(batches_of(examples), None)
        plan = loop.Plan(
            *(
                "student",
                tmp_path,
                training,
                STEPS,
                one_device,
                one_device.place(problem.frozen),
                problem.state,
            ),
            *(batches, checkpoints, lambda state, between: {"score": 0.0}),
        )
        with pytest.raises(BadStepsError, match=r"3 steps in a row .* were not taken, and step"):
            loop.train(plan, Display(quiet=True))
        batches.close()
        assert int(checkpoints.restore(problem.state)[0].skipped) in (3, 4)
        checkpoints.close()


def metrics_of(folder):
    lines = [json.loads(line) for line in (folder / loop.METRICS).read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "steps_per_second"}
        for line in lines
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, one_device, problem, examples):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, *train(folder, one_device, problem, examples)


def test_the_training_ends_within_an_epoch(examples):
    """So that all stops of the next test are in mid-epoch."""
    short = data.training_batches(examples, batch=BATCH, seed=0)
    assert short.steps_per_epoch > STEPS
    short.close()


@pytest.mark.parametrize("stop_in", range(1, STEPS))
def test_stopped_after_any_step_and_gone_on_with_is_never_stopped(
    stop_in, tmp_path, uninterrupted, one_device, problem, examples
):
    folder, order, (state, place, step) = uninterrupted
    first, stopped = train(tmp_path, one_device, problem, examples, stop_in)
    assert stopped[2] == stop_in
    second, (found, found_place, found_step) = train(tmp_path, one_device, problem, examples)
    assert first + second == order
    assert (found_place, found_step) == (place, step) == ({**place, "step": STEPS}, STEPS)
    for name, expected in named(state).items():
        assert np.array_equal(named(found)[name], expected), name
    assert metrics_of(tmp_path) == metrics_of(folder)


@pytest.mark.parametrize("judging", [7, 14, STEPS])
def test_stopped_while_it_is_judged_it_saves_at_once_and_judges_later(
    judging, tmp_path, uninterrupted, one_device, problem, examples
):
    folder, order, (state, *place) = uninterrupted
    first, stopped = train(tmp_path, one_device, problem, examples, judging=judging)
    assert stopped[2] == judging
    again, stopped = train(tmp_path, one_device, problem, examples, judging=judging)
    assert (again, stopped[2]) == ([], judging)
    second, (found, *found_place) = train(tmp_path, one_device, problem, examples)
    assert first + second == order
    assert found_place == place
    for name, expected in named(state).items():
        assert np.array_equal(named(found)[name], expected), name
    assert metrics_of(tmp_path) == metrics_of(folder)
    # As if it had been killed between the line and the score: it is judged again, and has the line once.
    if judging == STEPS:
        change_manifest(tmp_path, STEPS, score=None, judged=False)
        assert train(tmp_path, one_device, problem, examples)[0] == []
        assert metrics_of(tmp_path) == metrics_of(folder)


@pytest.mark.parametrize(("how", "count"), [("shard_map", 1), ("pmap", 8), ("shard_map", 8)])
def test_the_same_holds_however_the_step_is_mapped(how, count, tmp_path, problem, examples):
    mapped = parallel.Mapped(problem.step, jax.devices()[:count], how)
    order, (state, *place) = train(tmp_path / "whole", mapped, problem, examples)
    # Before the first checkpoint but that of the stop, between two, and after one.
    for stop_in in (2, 11, 14):
        folder = tmp_path / f"{stop_in}"
        first, _ = train(folder, mapped, problem, examples, stop_in)
        second, (found, *found_place) = train(folder, mapped, problem, examples)
        assert first + second == order
        assert found_place == place
        for name, expected in named(state).items():
            assert np.array_equal(named(found)[name], expected), name
        assert metrics_of(folder) == metrics_of(tmp_path / "whole")


def test_nothing_is_compiled_after_the_first_step(
    one_device, whole, problem, examples, tmp_path, caplog
):
    with jax.log_compiles():
        train(tmp_path, one_device, problem, examples)
    assert [
        record.getMessage() for record in caplog.records if "compilation" in record.getMessage()
    ] == []


def test_metrics_beyond_the_checkpoint_and_broken_lines_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3}\n{"step": 2, "lo'
    )
    loop._Metrics(path, at=2).write(3, {"loss": float("nan")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line.get("loss")) for line in lines] == [(1, 1.0), (2, 0.5), (3, None)]


def test_metrics_that_someone_removes_begin_anew(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    metrics = loop._Metrics(path, at=0, say=said.append)
    metrics.write(1, {"loss": 1.0})
    path.unlink()
    metrics.write(2, {"loss": 0.5})
    metrics.write(3, {"loss": 0.25})
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 3]
    assert said == [f"{path} is gone: it begins anew"]


def test_tensorboard_is_told_the_same(tmp_path):
    """Each record of an event file: its length, 8 bytes; 4 of a checksum; itself; 4 of another."""
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    metrics = loop._Metrics(tmp_path / "metrics.jsonl", at=0, tensorboard=True)
    metrics.write(1, {"loss": 0.5})
    metrics.write(2, {"loss": 0.25, "validation_score": float("nan")})
    metrics.close()
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        rest = path.read_bytes()
        while rest:
            length = int.from_bytes(rest[:8], "little")
            event = events.Event.FromString(rest[12 : 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            rest = rest[16 + length :]
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {key: value for key, value in found.items() if key[0] == "loss"} == {
        ("loss", 1): 0.5,
        ("loss", 2): 0.25,
    }
    assert "validation_score" not in {name for name, _ in found}
    assert written[1]["validation_score"] is None


@pytest.mark.parametrize(
    ("count", "batch", "message"),
    [
        (9, 18, "got training.devices 9: expected at most 8"),
        (8, 30, "got training.batch 30 for 8 devices: expected a multiple, as 24"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(count, batch, message):
    with pytest.raises(ValueError, match=message):
        parallel.choose_devices(count, batch)


@pytest.mark.parametrize(
    ("error", "obeyed"), [(None, True), (BadStepsError, True), (OSError, False)]
)
def test_a_signal_after_the_last_look_is_obeyed_unless_there_is_more_to_say(error, obeyed):
    def ends():
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.number == signal.SIGINT
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt if obeyed else error):
        ends()
