"""Every loss that a config can name trains on any number of devices and resumes exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax import data, models
from pcjax.config import Loss, Training
from pcjax.losses.registry import LOSSES
from pcjax.models.functional import functional
from pcjax.teachers.teacher import classifier_of
from pcjax.training.checkpoint import Checkpoints, named_leaves
from pcjax.training.embedding import FrozenModel
from pcjax.training.neighbour_views import nearest_neighbours
from pcjax.training.objective import (
    HEADS,
    LossContext,
    TeacherTargets,
    build_objective,
    with_memories,
)
from pcjax.training.parallel import ParallelStep
from pcjax.training.state import initial_state, make_optimiser
from pcjax.training.step import AXIS, FrozenInputs, make_step, metric_names

STEPS, BATCH, BANK = 3, 16, 20
TRAINING = Training(optimiser="sgd", learning_rate=0.05, clip=1.0, batch=BATCH, warmup=0.0)
STAGES = ("stage1", "stage1")
# Arguments of the losses that need some; the student has fewer features than the teacher.
ASKED = {
    "perception_coherence": Loss(arguments={"temperature": 0.2}),
    "perception_coherence with a bank": Loss(bank=BANK, arguments={"temperature": 0.2}),
    "spearman": Loss("spearman", arguments={"temperature": 0.2}),
    "info_nce": Loss("info_nce", head="linear"),
    "info_nce with a queue": Loss("info_nce", head="mlp", bank=BANK),
    "relational_representation": Loss("relational_representation", head="linear", bank=BANK),
    "similarity_kl": Loss("similarity_kl", bank=BANK),
    "similarity_kl of the teacher's": Loss(
        "similarity_kl", head="mlp", bank=BANK, arguments={"pairs": False}
    ),
    "crd": Loss("crd", head="linear", arguments={"negatives": 6}),
    "crd of other classes": Loss(
        "crd", head="linear", arguments={"negatives": 6, "class_aware": True, "momentum": 0.2}
    ),
    "bingo": Loss("bingo", head="mlp", bank=BANK),
    "hint": Loss("hint", head="linear"),
    "hint of maps": Loss("hint", head="conv", maps=STAGES),
    "variational_information": Loss("variational_information", head="variational"),
    "variational_information of maps": Loss(
        "variational_information", head="variational", maps=STAGES
    ),
    "embed_distill": Loss("embed_distill", head="linear"),
    "orthogonal_projection": Loss("orthogonal_projection", head="orthogonal"),
    "shared_classifier": Loss("shared_classifier", head="linear"),
    "simkd": Loss("simkd", head="mlp"),
    "simkd of maps": Loss("simkd", head="conv", maps=STAGES),
}
CASES = {name: Loss(name) for name in LOSSES if name not in ASKED} | ASKED
# Trained together, since compiling takes the time; each loss is checked by itself. Other settings
# of a loss come last, but for those that take a path of their own.
ALONE = ("info_nce with a queue", "variational_information of maps", "simkd of maps")
OTHERS = [name for name in CASES if name not in (*LOSSES, *ALONE)]
FIRST = [name for name in CASES if name not in OTHERS]
GROUPS = [FIRST[::2], FIRST[1::2], OTHERS]


def test_there_is_a_case_for_every_loss():
    assert {loss.name for loss in CASES.values()} == set(LOSSES)


def test_every_head_is_among_the_cases():
    assert {loss.head for loss in CASES.values()} == {"none", *HEADS}


@functools.cache
def examples():
    return data.load("digits").train


@functools.cache
def batches():
    near = nearest_neighbours(
        examples().take(np.arange(len(examples()))).reshape(len(examples()), -1)
    )
    sampling = data.Sampling(BATCH, neighbours=near)
    made = data.training_batches(examples(), sampling, normalise=data.statistics(examples()))
    result = [next(made) for _ in range(STEPS)]
    made.close()
    return result


@functools.cache
def model(seed, width, features, prototypes, axis_name=None):
    given = {
        "shape": (8, 8, 1),
        "classes": 10,
        "features": features,
        "widths": (width,),
        "axis_name": axis_name,
    }
    given |= {"prototypes": 4, "patch_features": 3} if prototypes else {}

    def build(seed):
        name = "protopnet" if prototypes else "cnn"
        return models.build(name, rngs=nnx.Rngs(jax.random.key(seed)), **given)

    return FrozenModel(*functional(build, seed))


def shapes(frozen):
    one = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    return jax.eval_shape(lambda x: frozen.output(x), one)


@functools.cache
def problem(group):
    """Return a step, the initial state, the frozen inputs and the losses' names in the metrics."""
    losses = tuple(CASES[name] for name in GROUPS[group])
    prototypes = any(LOSSES[loss.name].prototypes for loss in losses)
    student, teacher = model(0, 3, 5, prototypes, AXIS), model(1, 4, 6, prototypes)
    seen = shapes(model(0, 3, 5, prototypes)), shapes(teacher)
    what, kept = build_objective(losses, *seen, seed=0, axis_name=AXIS)
    kept = with_memories(kept, what, seen, 0, (len(examples()), examples().labels))
    optimiser = make_optimiser(TRAINING, STEPS)
    state = initial_state(
        student.parameters, student.statistics, kept, optimiser.init, metric_names(what)
    )
    targets = TeacherTargets(function=teacher.function, shapes=seen[1])
    arrays = (teacher.parameters, teacher.statistics)
    frozen = FrozenInputs(arrays, classifier_of(teacher), np.int32(0))
    return make_step(student.function, targets, what, optimiser, STEPS), state, frozen, what.names()


def run(mapped, state, fixed, given):
    """Return the state and the metrics after each step."""
    state, fixed, states, values = mapped.place(state), mapped.place(fixed), [], []
    for batch in given:
        state, metrics = mapped(fixed, state, mapped.split(batch))
        states.append(jax.device_get(state))
        values.append({name: float(value) for name, value in metrics.items()})
    return states, values


@functools.cache
def on_one_device(group):
    step, state, fixed, _ = problem(group)
    mapped = ParallelStep(step, jax.devices()[:1], "pmap")
    return mapped, *run(mapped, state, fixed, batches())


every_group = pytest.mark.parametrize(
    "group",
    [0, pytest.param(1, marks=pytest.mark.gate), pytest.param(2, marks=pytest.mark.nightly)],
)


@every_group
def test_they_train(group):
    _, states, values = on_one_device(group)
    _, state, _, names = problem(group)
    assert int(states[-1].skipped) == 0
    for case, name in zip(GROUPS[group], names, strict=True):
        # An empty queue has nothing to compare with: from the second step on there is a loss.
        assert all(np.isfinite(step[name]) for step in values), case
        assert all(step[name] != 0 for step in values[1:]), case
    before, after = named_leaves(state), named_leaves(states[-1])
    # A memory's class tables stay fixed; so does a classifier that no loss uses.
    fixed = ["classes/order", "classes/first", "classes/size"]
    if not any(CASES[case].kind in ("logits", "labels") for case in GROUPS[group]):
        fixed += ["classify.kernel", "classify.bias"]
    for key, array in before.items():
        if key.startswith(("student/", "statistics/", "heads/", "head_statistics/", "memories/")):
            assert key.endswith(tuple(fixed)) or not np.array_equal(array, after[key]), key


@pytest.mark.nightly
@every_group
def test_eight_devices_train_as_one(group):
    step, state, fixed, names = problem(group)
    _, expected_states, expected = on_one_device(group)
    states, values = run(ParallelStep(step, jax.devices(), "pmap"), state, fixed, batches())
    for one, other in zip(values, expected, strict=True):
        for name in ("loss", *names):
            assert np.isclose(one[name], other[name], rtol=1e-5, atol=1e-6), name
    for key, array in named_leaves(expected_states[-1]).items():
        result = named_leaves(states[-1])[key].astype(float)
        # Rounding of a nearly cancelled gradient changes its norm more than the parameters.
        tolerance = 1e-4 if key == "sums/gradient_norm" else 1e-5
        assert np.abs(result - array).max() <= tolerance * max(np.abs(array).max(), 1), key


@every_group
def test_gone_on_with_from_a_checkpoint_they_were_never_stopped(group, tmp_path):
    mapped, states, values = on_one_device(group)
    _, state, fixed, _ = problem(group)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {}, say=pytest.fail)
    checkpoints.save(2, states[1], {})
    restored, _, _ = checkpoints.restore(state)
    checkpoints.close()
    again, value = run(mapped, restored, fixed, batches()[2:])
    assert value == values[2:]
    for key, array in named_leaves(states[2]).items():
        assert np.array_equal(named_leaves(again[0])[key], array), key


def test_prototypes_get_the_gradient_of_their_distance():
    student, teacher = model(0, 3, 5, True), model(1, 4, 6, True)
    what, kept = build_objective((Loss("proto2proto"),), shapes(student), shapes(teacher))
    batch = {name: jnp.asarray(column) for name, column in batches()[0].items()}
    seen = teacher.output(batch["image"])

    @jax.jit
    @jax.grad
    def gradient(parameters):
        output = FrozenModel(student.function, parameters, student.statistics).output(
            batch["image"]
        )
        return what(LossContext(output, seen, {}, batch, jnp.int32(0), jnp.float32(0)), kept)[0]

    found = gradient(student.parameters)
    name = "backbone/pool/prototypes/points"
    difference = student.parameters[name] - teacher.parameters[name]
    length = np.linalg.norm(difference, axis=1, keepdims=True)
    assert np.allclose(found[name], 10 * difference / length / 4, rtol=1e-5)  # of 4 prototypes
    for path, array in found.items():
        behind = path.startswith(("embed", "classify"))  # they come after the patches
        assert np.any(array) != behind, path
