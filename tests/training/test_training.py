"""A training is the same over any number of devices, and wherever it is stopped and resumed."""

import dataclasses
import itertools
import json
import signal

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from pcjax import data, models
from pcjax.config import Config, Loss, Ramp, Training
from pcjax.display import Display
from pcjax.models.functional import functional
from pcjax.run import Run
from pcjax.training import loop, resident, stopping
from pcjax.training import prepare as prepare_module
from pcjax.training.checkpoint import Checkpoints, named_leaves
from pcjax.training.embedding import FrozenModel, output_shapes
from pcjax.training.lesson import Lesson
from pcjax.training.loop import BadStepsError
from pcjax.training.metrics_log import MetricsLog, read_metrics
from pcjax.training.objective import TeacherTargets
from pcjax.training.parallel import choose_devices
from pcjax.training.prepare import _shared_step, prepare
from pcjax.training.step import AXIS
from pcjax.training.stopping import StoppedError, StopSignals

STEPS, BATCH, BANK = 20, 32, 12
TRAINING = Training(
    steps=STEPS,
    optimiser="sgd",
    learning_rate=0.05,
    clip=1.0,
    batch=BATCH,
    log_every=3,
    save_every=7,
    warmup=0.1,
    devices=1,
)
LOSSES = (
    Loss(
        "similarity_kl",  # quick to compile, of those with a memory
        weight=Ramp(1.0, 2.0),
        head="linear",
        bank=BANK,
        arguments={
            "pairs": False,
            "temperature": Ramp(0.5, 0.1, until=0.5, shape="geometric"),
        },
    ),
    Loss("cross_entropy", weight=0.1),
)


@pytest.fixture(scope="module")
def dataset():
    return data.load("digits")


def build_student(seed):
    rngs = nnx.Rngs(jax.random.key(seed))
    given = {"shape": (8, 8, 1), "classes": 10, "features": 6, "axis_name": AXIS}
    return models.build("cnn", rngs=rngs, widths=(4, 6), **given)


def build_teacher(seed):
    rngs = nnx.Rngs(jax.random.key(seed))
    return models.build("cnn", rngs=rngs, shape=(8, 8, 1), classes=10, features=6, widths=(5,))


@pytest.fixture(scope="module")
def lesson(dataset):
    """Return a student with batch normalisation, a head and a bank, and its live teacher."""
    teacher = FrozenModel(*functional(build_teacher, 1))
    targets = TeacherTargets(
        digest="teacher",
        arrays=(teacher.parameters, teacher.statistics),
        function=teacher.function,
        shapes=output_shapes(teacher, dataset),
    )

    def evaluate(model, heartbeat):
        heartbeat()
        bias = float(model.parameters["classify/bias"][0])
        return {"score": -abs(bias), "coherence": bias}

    student = FrozenModel(*functional(build_student, 0))
    return Lesson(
        "student",
        "training",
        student,
        LOSSES,
        targets,
        TRAINING,
        data.Augmentation(crop=1),
        evaluate,
    )


def changed(lesson, **fields):
    return dataclasses.replace(lesson, training=dataclasses.replace(lesson.training, **fields))


class Recorded(data.TrainingBatches):
    """Batches that record their examples, and raise a signal while a step is under way."""

    def __init__(self, batches, stop_in, bad_from):
        super().__init__(batches._make)
        self.stop_in, self.bad_from = stop_in, bad_from
        self.seen = []

    def __next__(self):
        batch = super().__next__()
        self.record(batch["index"])
        if self.bad_from is not None and self.get_state()["step"] >= self.bad_from:
            batch["image"] = batch["image"].copy()
            batch["image"][3, 0, 0, 0] = np.nan
        return batch

    def draw(self):
        draw = super().draw()
        self.record(draw["index"])
        return draw

    def record(self, index):
        self.seen.append(index.tolist())
        if len(self.seen) == self.stop_in:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def train(dataset):
    """Train until the end or a stop; the order of the data, and what was saved last."""

    def run_training(folder, lesson, stop_in=None, bad_from=None, on_device=True):
        folder.mkdir(exist_ok=True)
        made = []
        training_batches = data.training_batches

        def recorded(*args, **given):
            made.append(Recorded(training_batches(*args, **given), stop_in, bad_from))
            return made[-1]

        run = Run(folder, Config(), "distill", Display(quiet=True))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(prepare_module, "training_batches", recorded)
            if bad_from is not None or not on_device:  # images change in batches, not on devices
                patched.setattr(resident, "CPU_BYTES", 0)
            try:
                loop.train(lesson, dataset, run)
            except StoppedError:
                assert stop_in is not None
        stored = resident.resident_examples(dataset.train, dataset.normalise, {})
        _, state, _ = prepare(lesson, dataset, stored)
        checkpoints = Checkpoints(folder / "checkpoints", {"role": "student"}, say=pytest.fail)
        restored = checkpoints.restore(state)
        checkpoints.close()
        return made[0].seen, restored

    return run_training


def take_steps(lesson, dataset, steps=STEPS):
    parallel, state, frozen = prepare(lesson, dataset)
    batches = data.training_batches(
        dataset.train,
        data.Sampling(BATCH),
        augmentation=data.Augmentation(crop=1),
        normalise=dataset.normalise,
    )
    state, losses = parallel.place(state), []
    for _ in range(steps):
        state, metrics = parallel(frozen, state, parallel.split(next(batches)))
        losses.append(metrics["loss"])
    batches.close()
    return jax.device_get((state, losses))


@pytest.fixture(scope="module")
def whole(lesson, dataset):
    return take_steps(lesson, dataset)


def test_the_training_trains(whole, lesson, dataset):
    state, _ = whole
    assert int(state.step) == STEPS
    assert int(state.skipped) == 0
    for name, before in named_leaves(prepare(lesson, dataset)[1]).items():
        if name.startswith(("student/", "statistics/", "heads/", "memories/")):
            assert not np.array_equal(before, named_leaves(state)[name]), name


def test_a_step_that_is_not_finite_is_skipped(lesson, dataset):
    parallel, before, frozen = prepare(lesson, dataset)
    batches = data.training_batches(dataset.train, data.Sampling(BATCH))
    batch = next(batches)
    batches.close()
    batch["image"][3, 0, 0, 0] = np.nan
    after, metrics = parallel(frozen, parallel.place(before), parallel.split(batch))
    assert np.isnan(metrics["loss"])
    assert (int(after.step), int(after.skipped), int(after.consecutive_skips)) == (1, 1, 1)
    for part in ("student", "statistics", "heads", "memories", "optimiser", "sums"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(before, part))


def test_a_training_that_ended_in_bad_steps_stays_so(tmp_path, lesson, train):
    bad = changed(lesson, bad_steps=3)
    for _ in range(2):
        with pytest.raises(BadStepsError, match=r"3 consecutive steps \(training\.bad_steps\)"):
            train(tmp_path, bad, bad_from=STEPS - 4)
    skipped = [r["skipped_examples"] for r in read_metrics(tmp_path) if "skipped_examples" in r]
    assert all(len(examples) == BATCH for examples in skipped)
    assert len(skipped) >= 3


def test_a_training_with_few_useful_steps_is_an_error(tmp_path, lesson, train):
    with pytest.raises(BadStepsError, match="of 20 steps were skipped"):
        train(tmp_path, changed(lesson, bad_steps=STEPS), bad_from=4)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, lesson, train):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, *train(folder, lesson)


def metrics_of(folder):
    return [
        {name: value for name, value in record.items() if name != "steps_per_second"}
        for record in read_metrics(folder)
    ]


@pytest.mark.parametrize(
    "stops",
    [  # before the first checkpoint, at one, when metrics are logged, and in the last step
        pytest.param((1, 7, 12, 19), id="some"),
        pytest.param(range(1, STEPS), id="all", marks=pytest.mark.nightly),
    ],
)
def test_resumed_after_any_step_it_is_bit_identical(stops, tmp_path, uninterrupted, lesson, train):
    folder, order, (state, position, step) = uninterrupted
    assert step == STEPS
    assert position["step"] == STEPS
    for stop_in in stops:
        own = tmp_path / f"{stop_in}"
        first, stopped = train(own, lesson, stop_in)
        assert stopped[2] == stop_in
        second, (restored, own_position, own_step) = train(own, lesson)
        assert first + second == order
        assert (own_position, own_step) == (position, step)
        for name, expected in named_leaves(state).items():
            assert np.array_equal(named_leaves(restored)[name], expected), (stop_in, name)
        assert metrics_of(own) == metrics_of(folder)


def test_several_steps_at_once_are_the_same_training(
    tmp_path, uninterrupted, lesson, train, monkeypatch
):
    """Logs and checkpoints come after the same steps, and so does the end after any stop."""
    folder, order, _ = uninterrupted
    monkeypatch.setattr(prepare_module, "steps_at_once", lambda _: 4)
    monkeypatch.setattr(stopping, "SECONDS_BETWEEN_CHECKS", 1e9)  # as if steps took no time
    lesson = changed(lesson, momentum=0.8)  # in a program of its own
    whole, (state, *_) = train(tmp_path / "whole", lesson)
    assert whole == order
    counts = []
    for stop_in in (2, 5):
        first, (_, _, step) = train(tmp_path / f"{stop_in}", lesson, stop_in)
        second, (restored, *_) = train(tmp_path / f"{stop_in}", lesson)
        assert first + second == order
        counts.append(step - stop_in)
        chex.assert_trees_all_equal(restored, state)
        assert metrics_of(tmp_path / f"{stop_in}") == metrics_of(tmp_path / "whole")
    assert any(counts)  # the signal came while some steps were drawn together
    steps = [[r["step"] for r in read_metrics(at)] for at in (folder, tmp_path / "whole")]
    assert steps[0] == steps[1]


def test_a_stop_while_it_is_evaluated_saves_at_once(tmp_path, uninterrupted, lesson, train):
    folder, order, (state, *_) = uninterrupted
    stops = iter([True, False])

    def evaluate(model, heartbeat):
        if next(stops, False):
            signal.raise_signal(signal.SIGTERM)
        return lesson.evaluate(model, heartbeat)

    first, stopped = train(tmp_path, dataclasses.replace(lesson, evaluate=evaluate), stop_in=99)
    assert stopped[2] == TRAINING.save_every
    second, (restored, *_) = train(tmp_path, lesson)
    assert first + second == order
    for name, expected in named_leaves(state).items():
        assert np.array_equal(named_leaves(restored)[name], expected), name
    assert metrics_of(tmp_path) == metrics_of(folder)


def test_without_patience_for_more_it_ends_and_stays_so(tmp_path, lesson, train):
    """The score rises once, so that the second checkpoint after it is the last."""
    impatient = changed(lesson, patience=2, save_every=3)
    scores = iter([0.5, 0.7, 0.1, 0.7 - 1e-6, 9.0])

    def evaluate(model, heartbeat):
        return {"score": next(scores)}

    impatient = dataclasses.replace(impatient, evaluate=evaluate)
    order, (_, _, step) = train(tmp_path, impatient)
    assert (len(order), step) == (12, 12)
    assert train(tmp_path, impatient)[0] == []
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"role": "student"}, read_only=True)
    assert checkpoints.best_of(checkpoints.steps()) == 6
    checkpoints.close()


def losses_of(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def assert_near(state, other):
    """Require the states of two trainings that differ by rounding."""
    for name, expected in named_leaves(other).items():
        error = np.abs(named_leaves(state)[name] - expected).max()
        tolerance = 1e-4 if name.startswith("optimiser") else 1e-5  # momenta add up gradients
        assert error <= tolerance * max(np.abs(expected).max(), 1), name


@pytest.mark.parametrize(
    ("how", "count", "on_device", "stops"),
    [("pmap", 8, False, [14]), ("shard_map", 8, True, [2])]
    + [
        pytest.param(*case, [2, 14], marks=pytest.mark.nightly)
        for case in itertools.product(("pmap", "shard_map"), (1, 8), (False, True))
    ],
)
def test_the_same_holds_however_the_step_is_mapped(
    how, count, on_device, stops, tmp_path, uninterrupted, lesson, train
):
    """Eight devices train as one, on batches of the host and on batches that they make."""
    lesson = changed(lesson, parallel=how, devices=count)
    order, (state, *position) = train(tmp_path / "whole", lesson, on_device=on_device)
    assert order == uninterrupted[1]
    assert_near(state, uninterrupted[2][0])
    losses, on_one = (losses_of(path) for path in (tmp_path / "whole", uninterrupted[0]))
    assert np.allclose(losses, on_one, rtol=1e-5, atol=0)
    for stop_in in stops:  # before the first checkpoint, and at one
        folder = tmp_path / f"{stop_in}"
        first, _ = train(folder, lesson, stop_in, on_device=on_device)
        second, (restored, *own_position) = train(folder, lesson, on_device=on_device)
        assert first + second == order
        assert own_position == position
        for name, expected in named_leaves(state).items():
            assert np.array_equal(named_leaves(restored)[name], expected), name
        assert metrics_of(folder) == metrics_of(tmp_path / "whole")


def compilations(caplog):
    return [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]


@pytest.mark.parametrize("how", ["pmap", pytest.param("shard_map", marks=pytest.mark.nightly)])
def test_the_step_is_compiled_once_for_all_seeds_and_resumes(how, tmp_path, lesson, train, caplog):
    _shared_step.cache_clear()
    lesson = changed(lesson, parallel=how, log_every=2)
    with jax.log_compiles():
        train(tmp_path / "one", lesson, 1)
        train(tmp_path / "one", lesson, 2)  # the first reset of the sums
        names = [text.split()[4] for text in compilations(caplog)]
        own = [name for name in names if name != "jit(convert_element_type)"]
        assert len(set(own)) == len(own) > 2  # no program twice, whatever the step is called
        caplog.clear()
        train(tmp_path / "one", lesson)
        train(tmp_path / "other", changed(lesson, seed=1))
    assert compilations(caplog) == []
    assert _shared_step.cache_info().misses == 1


def test_seeds_change_the_training(lesson, dataset, whole):
    other = take_steps(changed(lesson, seed=1), dataset, steps=3)
    assert not np.allclose(other[1], whole[1][:3])


def test_metrics_that_a_resume_repeats_are_dropped(tmp_path):
    say = pytest.fail
    MetricsLog(tmp_path, 0, say).write(5, {"loss": 9.0})  # killed before its first checkpoint
    log = MetricsLog(tmp_path, 0, say)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill cut it short
    MetricsLog(tmp_path, 2, say).write(3, {"loss": float("nan")})
    records = [(record["step"], record["loss"]) for record in read_metrics(tmp_path)]
    assert records == [(1, 1.0), (2, 2.0), (3, None)]


def test_tensorboard_gets_the_same_metrics(tmp_path):
    """An event file has records: 8 bytes of length, 4 of a checksum, the event, 4 of another."""
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    log = MetricsLog(tmp_path, 0, pytest.fail, tensorboard=True)
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25, "validation_score": float("nan")})
    log.close()
    values = {}
    for path in (tmp_path / "tensorboard").iterdir():
        rest = path.read_bytes()
        while rest:
            length = int.from_bytes(rest[:8], "little")
            event = events.Event.FromString(rest[12 : 12 + length])
            values |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            rest = rest[16 + length :]
    losses = {key: value for key, value in values.items() if key[0] == "loss"}
    assert losses == {("loss", 1): 0.5, ("loss", 2): 0.25}
    assert "validation_score" not in {name for name, _ in values}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["validation_score"] is None


@pytest.mark.parametrize(
    ("count", "batch", "message"),
    [
        (9, 18, "training.devices=9, but only 8 devices are available"),
        (8, 30, "training.batch=30 cannot be split evenly over 8 devices; use 24"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(count, batch, message):
    with pytest.raises(ValueError, match=message):
        choose_devices(count, batch)


@pytest.mark.parametrize(("error", "obeyed"), [(None, True), (OSError, False)])
def test_a_signal_after_the_last_step_is_obeyed_unless_there_is_an_error(error, obeyed):
    def end():
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.number == signal.SIGINT
            if error is not None:
                raise error

    # Processes in the background of a shell ignore it.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt if obeyed else error):
            end()
    finally:
        signal.signal(signal.SIGINT, previous)
