"""What holds for every loss of the package, run over all of them at once."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pcjax import losses
from pcjax.losses._batch import Batch

DEVICES, N, WIDTH = 8, 16, 4
# Everything here is small and run a few times: compiling takes longer than running.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Loss:
    """How to call a loss, and what is stated of it."""

    function: Callable[..., Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Callable[[np.random.Generator, int], Any]] = dataclasses.field(
        default_factory=dict
    )
    same_width: bool = False  # whether student and teacher must have as many features
    best: Callable[..., Any] | None = (
        None  # what pays the least, 0; None: a student equal to the teacher
    )
    per_example: bool = True  # whether it is a mean over examples
    taught: bool = True  # whether it looks at the teacher at all


KERNEL = np.random.default_rng(7).normal(size=(WIDTH, 5)).astype(np.float32)
PROTOTYPES = np.random.default_rng(8).normal(size=(3, 2))
LABELS = {"labels": lambda rng, n: rng.integers(0, WIDTH, n)}
DRAWN = {"indices": lambda rng, n: rng.permutation(40)[:n]}


def rows_of(*names):
    return {name: lambda rng, n: rng.normal(size=(n, WIDTH)) for name in names}


def queue_of(*widths):
    """Nine points in a queue of twelve."""
    points = tuple(
        np.random.default_rng(9).normal(size=(9, width)).astype(np.float32) for width in widths
    )
    empty = losses.empty_queue(12, widths)
    queue = losses.enqueue(empty, points)
    return {"queue": queue if len(widths) > 1 else queue._replace(points=queue.points[0])}


def crd_memory():
    """With its normalisers fixed: at the first batch they move with the student, but get no gradient."""
    memory = losses.crd_memory(jax.random.key(0), 40, WIDTH, labels=np.arange(40) % 7)
    return memory._replace(started=jnp.ones((), bool), log_normalisers=jnp.array([5.0, 6.0]))


def on_maps(loss):
    """Rows of four numbers as maps of two positions and two channels."""

    def mapped(student, teacher, **given):
        return loss(*(x.reshape(-1, 1, 2, 2) for x in (student, teacher)), **given)

    return mapped


def untaught(loss):
    """A loss without a teacher, called as the others are."""
    return lambda student, teacher, **given: loss(student, **given)


def equal_with(**arguments):
    """A student equal to the teacher, with other arguments."""
    return lambda student, teacher, rows: (student, teacher, rows | arguments)


def beyond_doubt(student, teacher, rows):
    return 1e3 * np.eye(WIDTH)[rows["labels"]], teacher, rows


def all_alike(student, teacher, rows):
    return student, student, dict.fromkeys(rows, student) | {"temperature": 1e-6}


def well_remembered(student, teacher, rows):
    """All examples of the batch have one direction in the memory, all of the other class the opposite one."""
    one = np.ones((len(student), WIDTH))
    memory = losses.crd_memory(jax.random.key(0), 40, WIDTH, labels=np.arange(40) // 20)
    points = jnp.where(np.arange(40)[:, None] < 20, 0.5, -0.5) * jnp.ones((40, WIDTH))
    memory = memory._replace(
        student=points, teacher=points, started=jnp.ones((), bool), log_normalisers=jnp.zeros(2)
    )
    return one, one, {"indices": np.arange(len(student)), "memory": memory, "temperature": 0.03}


def standardised(student, teacher, rows):
    centred = teacher - teacher.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5), teacher, rows


def collapsed(student, teacher, rows):
    return np.ones_like(student), teacher, rows


LOSSES = {
    "perception_coherence": Loss(
        losses.perception_coherence, {"temperature": 0.2, "teacher_temperature": 0.2}
    ),
    "rkd_distance": Loss(losses.rkd_distance),
    "rkd_angle": Loss(losses.rkd_angle),
    "similarity_preserving": Loss(losses.similarity_preserving),
    "pkt": Loss(losses.pkt),
    "correlation_congruence": Loss(losses.correlation_congruence),
    "cka": Loss(losses.cka, per_example=False),
    "darkrank_hard": Loss(losses.darkrank_hard, best=equal_with(alpha=1e6)),
    "darkrank_soft": Loss(losses.darkrank_soft, {"list_length": 3}),
    "pairwise_ranking": Loss(
        losses.pairwise_ranking, {"penalty": "exponential", "margin": "difference"}
    ),
    "spearman": Loss(losses.spearman, {"temperature": 0.2}, best=equal_with(temperature=1e-7)),
    "kd": Loss(losses.kd, same_width=True),
    "cross_entropy": Loss(
        untaught(losses.cross_entropy),
        rows=LABELS,
        same_width=True,
        best=beyond_doubt,
        taught=False,
    ),
    "dkd": Loss(losses.dkd, rows=LABELS, same_width=True),
    "dist": Loss(losses.dist, same_width=True, per_example=False),
    "shared_classifier": Loss(losses.shared_classifier, {"kernel": KERNEL}, same_width=True),
    "simkd": Loss(losses.simkd, same_width=True),
    "info_nce": Loss(
        losses.info_nce, {"temperature": 0.3}, same_width=True, best=equal_with(temperature=1e-6)
    ),
    "info_nce with a queue": Loss(
        losses.info_nce,
        {"temperature": 0.3, **queue_of(WIDTH)},
        same_width=True,
        best=equal_with(temperature=1e-6),
    ),
    "relational_representation": Loss(
        losses.relational_representation,
        queue_of(WIDTH),
        same_width=True,
        best=equal_with(temperature=1e-6, teacher_temperature=1e-6),
    ),
    "similarity_kl": Loss(
        losses.similarity_kl, {"temperature": 0.3, **queue_of(WIDTH)}, same_width=True
    ),
    "bingo": Loss(
        losses.bingo,
        {"share": 0.3, **queue_of(WIDTH)},
        rows_of("student_neighbours", "teacher_neighbours", "student_mixtures"),
        same_width=True,
        best=all_alike,
    ),
    "crd": Loss(
        losses.crd,
        {"memory": crd_memory(), "key": jax.random.key(1), "negatives": 6, "temperature": 0.3},
        DRAWN,
        same_width=True,
        best=well_remembered,
    ),
    "hint": Loss(losses.hint, same_width=True),
    "variational_information": Loss(
        losses.variational_information, {"variance": 1.0}, same_width=True
    ),
    "embed_distill": Loss(losses.embed_distill, same_width=True),
    "orthogonal_projection": Loss(losses.orthogonal_projection, same_width=True, best=standardised),
    "procrustes": Loss(losses.procrustes),
    "locality_preserving": Loss(losses.locality_preserving, {"neighbours": 3}, best=collapsed),
    "attention_transfer": Loss(on_maps(losses.attention_transfer), same_width=True),
    "neuron_selectivity": Loss(on_maps(losses.neuron_selectivity), same_width=True),
    "proto2proto": Loss(
        on_maps(losses.proto2proto),
        {"student_prototypes": PROTOTYPES, "teacher_prototypes": PROTOTYPES},
        same_width=True,
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def problem(name, rng, n=N):
    """A student that knows something of the teacher, and what else the loss wants of each example."""
    width = WIDTH if LOSSES[name].same_width else WIDTH - 1
    teacher = rng.normal(size=(n, WIDTH))
    student = teacher[:, :width] + 0.5 * rng.normal(size=(n, width))
    return student, teacher, {key: draw(rng, n) for key, draw in LOSSES[name].rows.items()}


def call(name, student, teacher, rows, **given):
    return LOSSES[name].function(student, teacher, **{**LOSSES[name].given, **rows, **given})


@functools.cache
def compiled(name):
    """All there is to know of a loss, in one compilation for all the laws."""

    @jit
    def everything(student, teacher, rows, where):
        loss = functools.partial(call, name, rows=rows, where=where)
        mean, gradients = jax.value_and_grad(loss, argnums=(0, 1))(student, teacher)
        found = {"mean": mean, "gradient": gradients[0], "teacher": gradients[1]}
        if LOSSES[name].per_example:
            found["values"] = loss(student, teacher, reduce_fn=None)
            found["sum"] = loss(student, teacher, reduce_fn=jnp.sum)
        return found

    def evaluate(student, teacher, rows, where=None):
        where = np.ones(len(student), bool) if where is None else where
        return jax.tree.map(np.asarray, everything(student, teacher, rows, where))

    return evaluate


def assert_close(found, expected, tolerance=1e-9):
    assert np.abs(found - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


def stated(name):
    """The sentence of a docstring that says when a loss is least, and what of the student it does not see."""
    text = " ".join(getattr(losses, name.split()[0]).__doc__.split())
    form = r"Least (.+?), (for|in) (.+?)\. The student's ([a-z, ]+?) (do not|does not|) ?matter( to Euclidean|\.)"
    found = re.search(form, text)
    assert found, name
    return found


@every_loss
def test_no_student_pays_less_than_is_stated(name, rng, x64):
    best = LOSSES[name].best
    student, other, rows = problem(name, rng)
    teacher = np.pad(student, ((0, 0), (0, WIDTH - student.shape[1])))  # the same geometry
    assert (best is None) == stated(name)[3].startswith("a student equal to the teacher")
    if best is None:
        least = compiled(name)(student, teacher, rows)["mean"]
    else:
        *features, rest = best(student, teacher, rows)
        least = jit(functools.partial(call, name))(*features, rest)
    assert abs(least) < 1e-6
    for size in (0.01, 0.1):
        moved = student + size * rng.normal(size=student.shape)
        assert compiled(name)(moved, teacher, rows)["mean"] > (least if best is None else 0) - 1e-9
    for others in (rng.normal(size=student.shape), 0 * student, -student, 100 * student):
        assert compiled(name)(others, teacher, rows)["mean"] > -1e-9
        assert compiled(name)(others, other, rows)["mean"] > -1e-9


@every_loss
def test_the_gradient_is_the_differences(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    found = compiled(name)(student, teacher, rows)

    def means(moved):
        return np.array([compiled(name)(one, teacher, rows)["mean"] for one in moved])

    directions = rng.normal(size=(4, *student.shape))
    numeric = (means(student + 1e-6 * directions) - means(student - 1e-6 * directions)) / 2e-6
    oracles.assert_gradients_agree(np.sum(found["gradient"] * directions, axis=(1, 2)), numeric)
    assert np.abs(found["gradient"]).max() > 1e-6
    assert not np.any(found["teacher"])


@every_loss
def test_mean_sum_and_values_agree(name, rng, x64):
    if not LOSSES[name].per_example:
        pytest.skip("no mean over examples")
    where = np.arange(N) % 3 != 1
    found = compiled(name)(*problem(name, rng), where)
    assert np.ptp(found["values"][where]) > 1e-6
    assert not np.any(found["values"][~where])
    assert_close(found["mean"], found["values"].sum() / where.sum())
    assert_close(found["sum"], found["values"].sum())


@every_loss
def test_masked_equals_subset(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.ones(N, bool)
    where[[0, 5, 9]] = False
    student[~where], teacher[~where] = np.nan, np.inf
    found = compiled(name)(student, teacher, rows, where)
    rest = {key: value[where] for key, value in rows.items()}
    loss = jit(jax.value_and_grad(functools.partial(call, name)))
    mean, gradient = loss(student[where], teacher[where], rest)
    assert_close(found["mean"], mean)
    assert_close(found["gradient"][where], gradient)
    assert not np.any(found["gradient"][~where])


@every_loss
def test_all_masked_is_nothing(name, rng, x64):
    found = compiled(name)(*problem(name, rng), np.zeros(N, bool))
    assert found["mean"] == 0
    assert not np.any(found["gradient"])


@every_loss
def test_the_order_of_the_batch_does_not_matter(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.arange(N) % 5 != 3
    order = rng.permutation(N)
    found = compiled(name)(student, teacher, rows, where)
    shuffled = {key: value[order] for key, value in rows.items()}
    again = compiled(name)(student[order], teacher[order], shuffled, where[order])
    assert_close(again["mean"], found["mean"])
    assert_close(again["gradient"], found["gradient"][order])


@every_loss
def test_what_is_stated_not_to_matter_does_not_and_the_rest_does(name, rng, x64):
    of, verb = stated(name).group(4, 5)
    unseen = frozenset(re.split(", | and ", of)) if verb else frozenset()
    student, teacher, rows = problem(name, rng)
    assert unseen == unseen_by(
        lambda student: compiled(name)(student, teacher, rows)["mean"], student, rng
    )


def unseen_by(loss, student, rng):
    """What of the student may change without the loss."""
    moved = {
        "scale": 3 * student,
        "rotation": student @ np.linalg.qr(rng.normal(size=(student.shape[1],) * 2))[0],
        "translation": student + rng.normal(size=student.shape[1]),
    }
    found = loss(student)
    changes = {what: abs(loss(features) - found) / abs(found) for what, features in moved.items()}
    assert all(change < 1e-9 or change > 1e-4 for change in changes.values()), changes
    return {what for what, change in changes.items() if change < 1e-9}


@pytest.mark.parametrize("name", ["perception_coherence", "spearman"])
def test_what_does_not_matter_follows_from_the_dissimilarity(name, rng, x64):
    assert "not to cosines" in " ".join(getattr(losses, name).__doc__.split())
    student, teacher, rows = problem(name, rng)
    for dissimilarity, unseen in (
        ("cosine", {"scale", "rotation"}),
        ("manhattan", {"scale", "translation"}),
    ):
        loss = jit(functools.partial(call, name, dissimilarity=dissimilarity))
        assert (
            unseen_by(lambda student, loss=loss: float(loss(student, teacher, rows)), student, rng)
            == unseen
        )


@every_loss
def test_what_is_not_a_number_shows(name, rng, x64):
    for broken in (0, 1) if LOSSES[name].taught else (0,):
        *features, rows = problem(name, rng)
        features[broken][2, 1] = np.nan
        assert np.isnan(compiled(name)(*features, rows)["mean"])


DEGENERATE = {
    "as it is": lambda x: x,
    "duplicates": lambda x: x.at[1].set(x[0]).at[3].set(x[2]).at[4].set(x[2]),
    "zero rows": lambda x: x.at[:5].set(0),
    "constant rows": lambda x: jnp.broadcast_to(x[:, :1], x.shape),
    "all equal": lambda x: jnp.ones_like(x),
    "all zero": jnp.zeros_like,
    "large": lambda x: 1e4 * x,
}


@every_loss
def test_half_precision_and_degenerate_features(name, rng):
    student, teacher, rows = problem(name, rng)
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, teacher))
    evaluate = jit(jax.value_and_grad(functools.partial(call, name)))
    for what, change in DEGENERATE.items():
        for both in (False, True):
            value, gradient = evaluate(change(student), change(teacher) if both else teacher, rows)
            assert value.dtype == jnp.float32
            assert gradient.dtype == jnp.bfloat16
            assert np.isfinite(value), what
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), what
    with jax.enable_x64(True):
        exact = compiled(name)(*(np.asarray(x, np.float64) for x in (student, teacher)), rows)[
            "mean"
        ]
    value, _ = evaluate(student, teacher, rows)
    assert_close(value, exact, 1e-5)


def split_over_devices(name, way, student, teacher, rows, where):
    loss = functools.partial(call, name, axis_name="batch")
    given = (student, teacher, rows, where)

    def step(student, teacher, rows, where):
        return jax.value_and_grad(loss)(student, teacher, rows, where=where)

    def block(*given):
        value, gradient = step(*given)
        return value[None], gradient

    def block_of_the_mean(student, teacher, rows, where):
        def mean(student):
            return lax.pmean(loss(student, teacher, rows, where=where), "batch")

        value, gradient = jax.value_and_grad(mean)(student)
        return value[None], DEVICES * gradient

    if way == "pmap":
        split = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), given)
        values, gradients = jax.pmap(step, axis_name="batch")(*split)
    else:
        mesh, split = Mesh(np.array(jax.devices()), ("batch",)), P("batch")
        function, check = (block_of_the_mean if "mean" in way else block), "without" not in way
        mapped = jax.shard_map(
            function, mesh=mesh, in_specs=split, out_specs=split, check_vma=check
        )
        values, gradients = jit(mapped)(*given)
    # A device's rows collect what every device's loss asks of them, which is the whole batch's as many times over.
    return np.mean(values), np.reshape(gradients, student.shape) / DEVICES


OTHER_WAYS = ("shard_map", "shard_map without checks", "shard_map of the mean")


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "pmap") for name in LOSSES]
    + [pytest.param(name, way, marks=pytest.mark.slow) for name in LOSSES for way in OTHER_WAYS],
)
def test_eight_devices_equal_one(name, way, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.arange(N) % 5 != 3
    where[:2] = False  # one device has nothing at all
    expected = compiled(name)(student, teacher, rows, where)
    mean, gradient = split_over_devices(name, way, student, teacher, rows, where)
    assert_close(mean, expected["mean"])
    assert_close(gradient, expected["gradient"])


def test_a_stopped_gradient_on_the_gathered_features_is_caught(rng, x64, monkeypatch):
    student, teacher, rows = problem("pkt", rng)
    where = np.ones(N, bool)
    expected = compiled("pkt")(student, teacher, rows, where)
    gather = Batch.gather
    monkeypatch.setattr(Batch, "gather", lambda batch, x: lax.stop_gradient(gather(batch, x)))
    mean, gradient = split_over_devices("pkt", "pmap", student, teacher, rows, where)
    assert_close(mean, expected["mean"])
    with pytest.raises(AssertionError):
        assert_close(gradient, expected["gradient"])
