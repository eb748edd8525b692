"""Laws that hold for every loss, run over the registry."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import jit, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pcjax import losses
from pcjax.losses._batch import Batch
from pcjax.losses.registry import LOSSES, RECIPES, loss

DEVICES, N, WIDTH = 8, 16, 4


@dataclasses.dataclass(frozen=True)
class Case:
    """How to call a loss, and what is stated of it."""

    function: Callable[..., Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Callable[[np.random.Generator, int], Any]] = dataclasses.field(
        default_factory=dict
    )
    same_width: bool = False  # whether student and teacher must have as many features
    best: Callable[..., Any] | None = None  # who pays the least; None: one equal to the teacher
    per_example: bool = True  # whether it is a mean over examples
    taught: bool = True  # whether it uses the teacher at all

    @property
    def documented(self):
        return inspect.unwrap(self.function)


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
    """Fix the normalisers: at the first batch they move with the student, without gradient."""
    memory = losses.crd_memory(jax.random.key(0), 40, WIDTH, labels=np.arange(40) % 7)
    return memory._replace(started=jnp.ones((), bool), log_normalisers=jnp.array([5.0, 6.0]))


def on_maps(loss):
    """Rows of four numbers as maps of two positions and two channels."""

    @functools.wraps(loss)
    def mapped(student, teacher, **given):
        return loss(*(x.reshape(-1, 1, 2, 2) for x in (student, teacher)), **given)

    return mapped


def untaught(loss):
    """Call a loss without a teacher as the others are."""
    return functools.wraps(loss)(lambda student, teacher, **given: loss(student, **given))


def equal_with(**arguments):
    """Return a student equal to the teacher, with other arguments."""
    return lambda student, teacher, rows: (student, teacher, rows | arguments)


def beyond_doubt(student, teacher, rows):
    return 1e3 * np.eye(WIDTH)[rows["labels"]], teacher, rows


def all_alike(student, teacher, rows):
    return student, student, dict.fromkeys(rows, student) | {"temperature": 1e-6}


def well_remembered(student, teacher, rows):
    """Remember the batch in one direction, and the other class in the opposite one."""
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


def case_of(name, **more):
    """Build the case of a registered loss from its law; what needs arrays is given here."""
    spec = LOSSES[name]
    law = spec.law
    function = on_maps(spec.function) if spec.kinds == ("maps",) else spec.function
    more["given"] = {**law.arguments, **more.get("given", {})}
    assert law.least_at_teacher == ("best" not in more), name
    return Case(
        **(
            {"function": function, "same_width": law.same_width, "per_example": law.per_example}
            | more
        )
    )


NEIGHBOURS = rows_of("student_neighbours", "teacher_neighbours", "student_mixtures")
PROTOTYPE_PAIR = {"student_prototypes": PROTOTYPES, "teacher_prototypes": PROTOTYPES}
CRD = {"memory": crd_memory(), "key": jax.random.key(1)}
# Facts that no `Law` holds: arrays, and the best student if it is not equal to the teacher.
SPECIAL = {
    "perception_coherence": {"given": {"temperature": 0.2, "teacher_temperature": 0.2}},
    "darkrank_hard": {"best": equal_with(alpha=1e6)},
    "rank_list": {"best": equal_with(exponent=1e6, temperature=1e-6)},
    "spearman": {"best": equal_with(temperature=1e-7)},
    "cross_entropy": {
        "function": untaught(losses.cross_entropy),
        "rows": LABELS,
        "best": beyond_doubt,
        "taught": False,
    },
    "dkd": {"rows": LABELS},
    "shared_classifier": {"given": {"kernel": KERNEL}},
    "info_nce": {"best": equal_with(temperature=1e-6)},
    "relational_representation": {
        "given": queue_of(WIDTH),
        "best": equal_with(temperature=1e-6, teacher_temperature=1e-6),
    },
    "similarity_kl": {"given": queue_of(WIDTH)},
    "bingo": {"given": queue_of(WIDTH), "rows": NEIGHBOURS, "best": all_alike},
    "crd": {"given": CRD, "rows": DRAWN, "best": well_remembered},
    "orthogonal_projection": {"best": standardised},
    "locality_preserving": {"best": collapsed},
    "proto2proto": {"given": PROTOTYPE_PAIR},
}
CASES = {name: case_of(name, **SPECIAL.get(name, {})) for name in LOSSES}
CASES["info_nce with a queue"] = case_of(
    "info_nce", given=queue_of(WIDTH), best=equal_with(temperature=1e-6)
)
CASES["rank_list in the teacher's frame"] = case_of(
    "rank_list",
    given={"frame": "teacher"},
    same_width=True,
    best=equal_with(exponent=1e6, temperature=1e-6),
)
every_loss = pytest.mark.parametrize("name", CASES)


def problem(name, rng, n=N):
    """Draw a student that resembles the teacher, and the other arguments by example."""
    width = WIDTH if CASES[name].same_width else WIDTH - 1
    teacher = rng.normal(size=(n, WIDTH))
    student = teacher[:, :width] + 0.5 * rng.normal(size=(n, width))
    return student, teacher, {key: draw(rng, n) for key, draw in CASES[name].rows.items()}


def call(name, student, teacher, rows, **given):
    return CASES[name].function(student, teacher, **{**CASES[name].given, **rows, **given})


@functools.cache
def compiled(name):
    """All there is to know of a loss, in one compilation for all the laws."""

    @jit
    def everything(student, teacher, rows, where):
        loss = functools.partial(call, name, rows=rows, where=where)
        mean, gradients = jax.value_and_grad(loss, argnums=(0, 1))(student, teacher)
        result = {"mean": mean, "gradient": gradients[0], "teacher": gradients[1]}
        if CASES[name].per_example:
            result["values"] = loss(student, teacher, reduce_fn=None)
            result["sum"] = loss(student, teacher, reduce_fn=jnp.sum)
        return result

    def evaluate(student, teacher, rows, where=None):
        where = np.ones(len(student), bool) if where is None else where
        return jax.tree.map(np.asarray, everything(student, teacher, rows, where))

    return evaluate


def assert_close(result, expected, tolerance=1e-9):
    assert np.abs(result - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-3)


def stated(name):
    """Match the sentence that states where a loss is least, and what does not matter to it."""
    text = " ".join(CASES[name].documented.__doc__.split())
    form = (
        r"Least (.+?), (for|in) (.+?)\. "
        r"The student's ([a-z, ]+?) (do not|does not|) ?matter( to cosines|\.)"
    )
    result = re.search(form, text)
    assert result, name
    return result


@every_loss
def test_no_student_pays_less_than_is_stated(name, rng, x64):
    best = CASES[name].best
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
    result = compiled(name)(student, teacher, rows)

    def means(moved):
        return np.array([compiled(name)(one, teacher, rows)["mean"] for one in moved])

    directions = rng.normal(size=(4, *student.shape))
    numeric = (means(student + 1e-6 * directions) - means(student - 1e-6 * directions)) / 2e-6
    oracles.assert_gradients_agree(np.sum(result["gradient"] * directions, axis=(1, 2)), numeric)
    assert np.abs(result["gradient"]).max() > 1e-6
    assert not np.any(result["teacher"])


@every_loss
def test_mean_sum_and_values_agree(name, rng, x64):
    if not CASES[name].per_example:
        pytest.skip("no mean over examples")
    where = np.arange(N) % 3 != 1
    result = compiled(name)(*problem(name, rng), where)
    assert np.ptp(result["values"][where]) > 1e-6
    assert not np.any(result["values"][~where])
    assert_close(result["mean"], result["values"].sum() / where.sum())
    assert_close(result["sum"], result["values"].sum())


@every_loss
def test_masked_equals_subset(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.ones(N, bool)
    where[[0, 5, 9]] = False
    student[~where], teacher[~where] = np.nan, np.inf
    result = compiled(name)(student, teacher, rows, where)
    rest = {key: value[where] for key, value in rows.items()}
    loss = jit(jax.value_and_grad(functools.partial(call, name)))
    mean, gradient = loss(student[where], teacher[where], rest)
    assert_close(result["mean"], mean)
    assert_close(result["gradient"][where], gradient)
    assert not np.any(result["gradient"][~where])


@every_loss
def test_all_masked_is_nothing(name, rng, x64):
    result = compiled(name)(*problem(name, rng), np.zeros(N, bool))
    assert result["mean"] == 0
    assert not np.any(result["gradient"])


@every_loss
def test_the_order_of_the_batch_does_not_matter(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.arange(N) % 5 != 3
    order = rng.permutation(N)
    result = compiled(name)(student, teacher, rows, where)
    shuffled = {key: value[order] for key, value in rows.items()}
    again = compiled(name)(student[order], teacher[order], shuffled, where[order])
    assert_close(again["mean"], result["mean"])
    assert_close(again["gradient"], result["gradient"][order])


@every_loss
def test_what_is_stated_not_to_matter_does_not_and_the_rest_does(name, rng, x64):
    of, verb = stated(name).group(4, 5)
    unseen = frozenset(re.split(", | and ", of)) if verb else frozenset()
    if CASES[name].given.get("frame") == "teacher":
        unseen -= {"rotation"}
    student, teacher, rows = problem(name, rng)
    assert unseen == unseen_by(
        lambda student: compiled(name)(student, teacher, rows)["mean"], student, rng
    )


def unseen_by(loss, student, rng):
    """Return the changes of the student that do not change the loss."""
    moved = {
        "scale": 3 * student,
        "rotation": student @ np.linalg.qr(rng.normal(size=(student.shape[1],) * 2))[0],
        "translation": student + rng.normal(size=student.shape[1]),
    }
    result = loss(student)
    changes = {what: abs(loss(features) - result) / abs(result) for what, features in moved.items()}
    assert all(change < 1e-9 or change > 1e-4 for change in changes.values()), changes
    return {what for what, change in changes.items() if change < 1e-9}


@pytest.mark.parametrize("name", ["perception_coherence", "spearman"])
def test_what_does_not_matter_follows_from_the_dissimilarity(name, rng, x64):
    text = " ".join(CASES[name].documented.__doc__.split())
    assert "its scale, rotation and translation not to Euclidean dissimilarities" in text
    student, teacher, rows = problem(name, rng)
    for dissimilarity, unseen in (
        ("euclidean", {"scale", "rotation", "translation"}),
        ("manhattan", {"scale", "translation"}),
    ):
        loss = jit(functools.partial(call, name, dissimilarity=dissimilarity))
        function = lambda student, loss=loss: float(loss(student, teacher, rows))
        assert unseen_by(function, student, rng) == unseen


@every_loss
def test_what_is_not_a_number_shows(name, rng, x64):
    for broken in (0, 1) if CASES[name].taught else (0,):
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
    # A device's rows collect the gradients of all devices' losses: DEVICES times the batch's.
    return np.mean(values), np.reshape(gradients, student.shape) / DEVICES


OTHER_WAYS = ("shard_map", "shard_map without checks", "shard_map of the mean")
FEW = ("pkt", "cka")  # test_devices.py has all ways for perception coherence


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, "pmap") for name in CASES]
    + [(name, way) for name in FEW for way in OTHER_WAYS]
    + [
        pytest.param(name, OTHER_WAYS[-1], marks=pytest.mark.nightly)
        for name in CASES
        if name not in FEW
    ],
)
def test_eight_devices_equal_one(name, way, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.arange(N) % 5 != 3
    where[:2] = False  # one device has nothing at all
    expected = compiled(name)(student, teacher, rows, where)
    mean, gradient = split_over_devices(name, way, student, teacher, rows, where)
    assert_close(mean, expected["mean"])
    assert_close(gradient, expected["gradient"])


def test_a_loss_registered_elsewhere_gets_the_laws(rng, x64, registry):
    spec = registry["toy"]
    assert spec.function.__module__ == __name__
    assert "toy" in RECIPES
    CASES["toy"] = case_of("toy")
    try:
        for law in (
            test_no_student_pays_less_than_is_stated,
            test_the_gradient_is_the_differences,
            test_mean_sum_and_values_agree,
            test_masked_equals_subset,
            test_what_is_stated_not_to_matter_does_not_and_the_rest_does,
        ):
            law("toy", rng, None)
    finally:
        del CASES["toy"]
        compiled.cache_clear()


@pytest.fixture
def registry(monkeypatch):
    """Install a package with a loss."""

    def toy(student, teacher, *, where=None, axis_name=None, reduce_fn=jnp.mean):
        """Compare the features.

        Least 0, for a student equal to the teacher. The student's rotation does not matter.
        """
        options = {"where": where, "axis_name": axis_name, "reduce_fn": reduce_fn}
        batch = Batch.of(student, teacher, **options)
        lengths = [jnp.sum(x**2, axis=1) for x in (batch.student, batch.teacher)]
        return batch.reduced((lengths[0] - lengths[1]) ** 2)

    class EntryPoint:
        def load(self):
            return loss()(toy)

    entry_points = {"pcjax.losses": [EntryPoint()]}
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: entry_points.get(group, [])
    )
    for names in (LOSSES, RECIPES):
        monkeypatch.setattr(names, "own", dict(names.own))
        monkeypatch.setattr(names, "_complete", False)
    return LOSSES


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
