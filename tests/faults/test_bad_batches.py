"""Batches that are no numbers, spikes, or all alike: the step is left out or finite, and the run goes on."""

import json
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from children import SMALL, pcjax
from flax import nnx

from pcjax import data, models
from pcjax.config import Loss, Training
from pcjax.models.functional import functional
from pcjax.training import parallel
from pcjax.training.objective import objective, with_memories
from pcjax.training.state import make_optimiser, start
from pcjax.training.step import AXIS, Fixed, make_step, metric_names

pytestmark = pytest.mark.slow

STEPS, BATCH = 100, 16
TRAINING = Training(learning_rate=0.01, batch=BATCH)
LOSSES = (
    Loss("perception_coherence", bank=8, arguments={"temperature": 0.1, "dissimilarity": "cosine"}),
    Loss("info_nce", head="linear", arguments={"temperature": 0.1}),
    Loss("cross_entropy", weight=0.1),
)


class Problem(NamedTuple):
    step: object
    state: object
    frozen: object


def problem_of(losses, spike, devices=1, parallel_by="pmap"):
    def build(seed, axis_name):
        given = {
            "shape": (8, 8, 1),
            "classes": 10,
            "features": 4,
            "widths": (6,),
            "axis_name": axis_name,
        }
        return lambda: models.build("mlp", rngs=nnx.Rngs(seed), **given)

    student, parameters, statistics = functional(build(0, AXIS))
    teacher, *frozen = functional(build(1, None))

    def looks(frozen, batch):
        return teacher.apply(*frozen, batch["image"], train=False)[0]

    shapes = jax.eval_shape(
        looks, frozen, {"image": jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)}
    )
    what, kept = objective(losses, shapes, shapes, 0, AXIS)
    kept = with_memories(kept, what, shapes, shapes, examples=0, labels=None)
    optimiser = make_optimiser(TRAINING, STEPS)
    state = start(parameters, statistics, kept, optimiser, metric_names(what))
    step = make_step(student, looks, what, optimiser, STEPS, 1.0, spike)
    mapped = parallel.Mapped(step, jax.devices()[:devices], parallel_by)
    return Problem(mapped, mapped.place(state), mapped.place(Fixed(tuple(frozen))))


@pytest.fixture(scope="module")
def problem():
    return problem_of(LOSSES, TRAINING.spike)


@pytest.fixture(scope="module")
def unbounded():
    """A loss that grows with what the teacher says."""
    return problem_of((Loss("hint", head="linear"),), TRAINING.spike)


def with_some(value, count):
    def change(image, rng):
        image.reshape(-1)[rng.choice(image.size, count, replace=False)] = value

    return change


def times(factor, rows=slice(None)):
    def change(image, rng):
        image[rows] *= factor

    return change


def with_last(value):
    def change(image, rng):
        image[-1] = value

    return change


def all_like(value):
    def change(image, rng):
        image[:] = image[:1] if value is None else value

    return change


def noise(scale):
    def change(image, rng):
        image[:] = scale * rng.normal(size=image.shape)

    return change


# How the images of a batch are changed, and whether the step must be left out.
BAD = {
    **{
        f"{n} times {value}": (with_some(value, n), True)
        for n in (1, 50, 1024)
        for value in (np.nan, np.inf, -np.inf)
    },
    **{
        f"{factor:g} times as large": (times(factor), True)
        for factor in (-100.0, 100.0, 1e4, 1e8, 1e18, 1e30, 1e38)
    },
    # Of 16 examples: one of 100 times adds to their root mean square as if all were 25 times as large.
    **{
        f"one example {n:g} times": (times(n, 0), n > 100)
        for n in (100.0, 1e4, 1e8, 1e18, 1e30, 1e38)
    },
    **{f"all {value}": (all_like(value), True) for value in (None, 0.0, 1.0, -1e4, 1e-30, 1e-42)},
    **{f"noise of {scale:g}": (noise(scale), scale > 1) for scale in (1e-38, 1e-8, 100.0, 1e20)},
}


def batches_of_digits(**given):
    examples = data.load("digits").train
    return data.training_batches(
        examples, batch=BATCH, seed=1, normalise=data.statistics(examples), **given
    )


@pytest.mark.parametrize("name", BAD)
def test_the_step_is_left_out_or_finite_and_the_run_goes_on(name, problem, tried):
    batches = batches_of_digits()
    change, left_out = BAD[name]
    state, rng = problem.state, np.random.default_rng(3)
    # A good step, the bad one, and good ones again.
    skipped, losses = [], []
    for step in range(6):
        batch = next(batches)
        if step == 1:
            batch["image"] = batch["image"].copy()
            change(batch["image"], rng)
        before = jax.device_get((state.student, state.optimiser))
        state, metrics = problem.step(problem.frozen, state, problem.step.split(batch))
        skipped.append(int(state.skipped))
        losses.append(float(metrics["loss"]))
        after = jax.device_get((state.student, state.optimiser))
        same = all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
        )
        if skipped[-1] != (skipped[-2] if step else 0):
            assert step == 1, f"step {step} was left out: {losses}"
            assert same
        else:
            assert not same
            assert np.isfinite(losses[-1])
    batches.close()
    assert int(state.step) == 6
    for part in (
        state.student,
        state.statistics,
        state.heads,
        state.memories,
        state.optimiser,
        state.sums,
    ):
        for leaf in jax.tree.leaves(jax.device_get(part)):
            assert np.all(np.isfinite(leaf)), name
    assert skipped[-1] == int(left_out)
    tried(
        "a bad batch", "left out, the run went on" if left_out else "a finite step, the run went on"
    )


@pytest.mark.parametrize(
    ("of", "factor"),
    [*(("examples", by) for by in (-1e3, 1e2, 1e4, 1e9)), ("teacher", 10.0), ("teacher", 1e3)],
)
@pytest.mark.parametrize("at", [1, 12])
def test_a_spike_is_left_out_of_the_gradients_once_they_are_known(of, factor, at, unbounded, tried):
    batches = batches_of_digits()
    state, taken, norms = unbounded.state, [], []
    beyond = jax.tree.map(lambda weights: weights * np.float32(factor), unbounded.frozen)
    for step in range(16):
        batch, frozen = next(batches), unbounded.frozen
        if step == at and of == "examples":
            batch["image"] = batch["image"] * np.float32(factor)
        elif step == at:
            frozen = beyond
        before = jax.device_get((state.student, state.optimiser, state.usual))
        state, metrics = unbounded.step(frozen, state, unbounded.step.split(batch))
        taken.append(bool(metrics["taken"]))
        norms.append(float(metrics["gradient_norm"]))
        assert metrics["finite"]
        assert not metrics["alike"]
        assert metrics["large"] == (step == at and of == "examples")
        after = jax.device_get((state.student, state.optimiser, state.usual))
        same = all(
            np.array_equal(a, b)
            for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)
        )
        assert same == (not taken[-1])
    batches.close()
    left_out = of == "examples" or at == 12
    assert norms[at] > 30 * np.exp(np.mean(np.log(norms[:at])))
    assert [step for step, good in enumerate(taken) if not good] == ([at] if left_out else [])
    assert int(state.skipped) == left_out
    tried(
        f"a spike of the {of}",
        "left out, the run went on" if left_out else "a finite step, too early",
    )


def test_what_is_hard_is_no_spike(tmp_path):
    """Where all else is learnt, the gradients of small batches differ a thousandfold."""
    run = tmp_path / "run"
    pcjax(
        "teach", "--teacher.training.steps", 1500, "--teacher.training.batch", 16, "--workdir", run
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    norms = [line["gradient_norm"] for line in metrics if "gradient_norm" in line]
    assert norms[0] > 30 * norms[-1]
    assert not any("skipped_examples" in line for line in metrics)


# Three batches of otherwise sound data, under the command.
ODD = """
import numpy as np
from pcjax.cli import command
from pcjax.data import batches

make = batches._Training.__call__

def odd(self, step):
    batch = make(self, step)
    if step == 5:
        batch["image"][3] = np.nan
    elif step == 9:
        batch["image"] *= 100
    elif step == 30:
        batch["image"][:] = batch["image"][:1]
    if step in (5, 9, 30):
        print(f"{step + 1} {batch['index'].tolist()}\\n", end="", flush=True)
    return batch

batches._Training.__call__ = odd
command()
"""


def test_the_command_leaves_them_out_and_names_their_examples(tmp_path, tried):
    run = tmp_path / "run"
    said = pcjax("distill", *SMALL, "--workdir", run, program=(sys.executable, "-c", ODD))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["skipped_examples"] for line in lines if "skipped_examples" in line}
    assert [*found] == [6, 10, 31]
    for step, examples in found.items():
        assert f"{step} {examples}" in said
    for step, why in (
        (6, "was not finite"),
        (10, "had examples far larger"),
        (31, "had examples that are all alike"),
    ):
        assert f"step {step} {why}" in said
    assert "student: 3 of 60 steps were not taken" in said
    assert np.isfinite(json.loads((run / "result.json").read_text())["student"]["knn_accuracy"])
    tried(
        "an odd batch of three kinds under the command",
        "left out, its examples named, the run went on",
        3,
    )


def test_images_with_edges_far_beyond_them_are_sound(tmp_path):
    """Beside images of 300 a zero that comes in at an edge is a hundred deviations away."""
    images = np.random.default_rng(0).normal(300, 3, (400, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "warm.npz", images=images, labels=np.arange(400) % 3)
    asked = [
        "--data.source",
        f"arrays:{tmp_path / 'warm.npz'}",
        "--data.crop",
        "3",
        "--workdir",
        tmp_path / "run",
    ]
    assert "not taken" not in pcjax("distill", *SMALL, *asked)


def test_neighbours_far_beyond_the_others_are_left_out(tried):
    problem = problem_of((Loss("bingo", head="mlp", bank=8),), TRAINING.spike)
    near = np.roll(np.arange(len(data.load("digits").train)), 1)[:, None]
    batches, state, large = batches_of_digits(neighbours=near), problem.state, []
    for step in range(4):
        batch = next(batches)
        batch["neighbour_image"] = batch["neighbour_image"] * np.float32(100 if step == 2 else 1)
        state, metrics = problem.step(problem.frozen, state, problem.step.split(batch))
        assert metrics["large"] != metrics["taken"]
        large.append(bool(metrics["large"]))
    batches.close()
    assert large == [False, False, True, False]
    tried("neighbours 100 times as large", "left out, the run went on")


def alike_by_device(image, rng):
    for part in np.split(image, 4):
        part[:] = part[:1]


# What happens to a batch that four devices share, and whether the step is taken.
SHARED = {
    "nothing": (lambda image, rng: None, True),
    "NaN on the last device": (with_last(np.nan), False),
    "far beyond on the last device": (with_last(1e4), False),
    "all alike": (all_like(None), False),
    "alike on every device": (alike_by_device, True),
    "alike but on the first device": (
        lambda image, rng: all_like(None)(image[BATCH // 4 :], rng),
        True,
    ),
}


@pytest.mark.parametrize("parallel_by", ["pmap", "shard_map"])
def test_over_several_devices_as_over_one(parallel_by, tried):
    problem = problem_of(LOSSES, TRAINING.spike, 4, parallel_by)
    batches = batches_of_digits()
    state = problem.state
    for name, (change, taken) in SHARED.items():
        batch = next(batches)
        batch["image"] = batch["image"].copy()
        change(batch["image"], None)
        before = int(state.skipped)
        state, metrics = problem.step(problem.frozen, state, problem.step.split(batch))
        assert bool(metrics["taken"]) == taken, name
        assert int(state.skipped) == before + (not taken)
        tried(
            f"a batch over four devices by {parallel_by}: {name}", "taken" if taken else "left out"
        )
    batches.close()
    for leaf in jax.tree.leaves(
        jax.device_get((state.student, state.statistics, state.optimiser, state.sums))
    ):
        assert np.all(np.isfinite(leaf))
