"""Laws that hold for every loss, run over the registry."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import jit, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from law_cases import CASES, WIDTH, case_of

from pcjax.losses._batch import Batch
from pcjax.losses.registry import LOSSES, RECIPES, loss

DEVICES, N = 8, 16
every_loss = pytest.mark.parametrize("name", CASES)


def problem(name, rng, n=N):
    """Draw a student that resembles the teacher, and the other arguments by example."""
    width = WIDTH if CASES[name].same_width else WIDTH - 1
    teacher = rng.normal(size=(n, WIDTH))
    student = teacher[:, :width] + 0.5 * rng.normal(size=(n, width))
    return student, teacher, {key: draw(rng, n) for key, draw in CASES[name].rows.items()}


def call(name, student, teacher, rows, **given):
    return CASES[name].function(student, teacher, **{**CASES[name].given, **rows, **given})


def hyper_parameters(name):
    """Return the loss's own values of the arguments that its best student comes with."""
    case, (student, teacher, rows) = CASES[name], problem(name, np.random.default_rng(0))
    if case.best is None:
        return {}
    own = {key: p.default for key, p in inspect.signature(case.documented).parameters.items()}
    own = {**own, **case.given}
    return {key: own[key] for key in case.best(student, teacher, rows)[2] if key not in rows}


@functools.cache
def compiled(name):
    """All there is to know of a loss, in one compilation for all the laws.

    It is traced with hyper-parameters that may vary: the best student needs no other compilation.
    """
    varied = hyper_parameters(name)

    @jit
    def everything(student, teacher, rows, where):
        loss = functools.partial(call, name, rows=rows, where=where)
        mean, gradients = jax.value_and_grad(loss, argnums=(0, 1))(student, teacher)
        result = {"mean": mean, "gradient": gradients[0], "teacher": gradients[1]}
        if CASES[name].per_example:
            result["values"] = loss(student, teacher, reduce_fn=None)
        return result

    def evaluate(student, teacher, rows, where=None):
        where = np.ones(len(student), bool) if where is None else where
        return jax.tree.map(np.asarray, everything(student, teacher, varied | rows, where))

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
    given = (student, teacher, rows) if best is None else best(student, teacher, rows)
    least = compiled(name)(*given)["mean"]
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
    assert_gradient_is_the_differences(name, student, teacher, rows, np.ones(N, bool), rng)


def assert_gradient_is_the_differences(name, student, teacher, rows, where, rng):
    result = compiled(name)(student, teacher, rows, where)

    def means(moved):
        return np.array([compiled(name)(one, teacher, rows, where)["mean"] for one in moved])

    directions = rng.normal(size=(4, *student.shape))
    numeric = (means(student + 1e-6 * directions) - means(student - 1e-6 * directions)) / 2e-6
    along = np.sum(result["gradient"][where] * directions[:, where], axis=(1, 2))
    oracles.assert_gradients_agree(along, numeric)
    assert np.abs(result["gradient"]).max() > 1e-6
    assert not np.any(result["gradient"][~where])
    assert not np.any(result["teacher"])


@every_loss
def test_mean_and_values_agree(name, rng, x64):
    if not CASES[name].per_example:
        pytest.skip("no mean over examples")
    where = np.arange(N) % 3 != 1
    result = compiled(name)(*problem(name, rng), where)
    assert np.ptp(result["values"][where]) > 1e-6
    assert not np.any(result["values"][~where])
    assert_close(result["mean"], result["values"].sum() / where.sum())


@every_loss
def test_masked_equals_subset(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    where = np.ones(N, bool)
    where[[0, 5, 9]] = False
    student[~where], teacher[~where] = np.nan, np.inf
    # Where the means are equal for all students, so are their gradients.
    assert_gradient_is_the_differences(name, student, teacher, rows, where, rng)
    reduce_fn = jnp.sum if CASES[name].per_example else jnp.mean
    rest = {key: value[where] for key, value in rows.items()}
    loss = jit(functools.partial(call, name, reduce_fn=reduce_fn))
    everything = np.ones(where.sum(), bool)
    subset = loss(student[where], teacher[where], rest, where=everything)
    count = where.sum() if CASES[name].per_example else 1
    assert_close(compiled(name)(student, teacher, rows, where)["mean"], subset / count)
    if CASES[name].per_example:
        fewer = np.arange(N) % 3 != 1
        values = compiled(name)(student, teacher, rows, where & fewer)["values"]
        total = loss(student[where], teacher[where], rest, where=fewer[where])
        assert_close(total, values.sum())


@pytest.mark.parametrize("name", ["pkt", "cka"])
def test_without_a_mask_all_examples_count(name, rng, x64):
    student, teacher, rows = problem(name, rng)
    mean, gradient = jit(jax.value_and_grad(functools.partial(call, name)))(student, teacher, rows)
    result = compiled(name)(student, teacher, rows)
    assert_close(result["mean"], mean)
    assert_close(result["gradient"], gradient)


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


def test_what_does_not_matter_follows_from_the_dissimilarity(rng, x64):
    for name in ("perception_coherence", "spearman"):  # test_perception.py computes the flagship's
        text = " ".join(CASES[name].documented.__doc__.split())
        assert "its scale, rotation and translation not to Euclidean dissimilarities" in text
    student, teacher, rows = problem("spearman", rng)
    for dissimilarity, unseen in (
        ("euclidean", {"scale", "rotation", "translation"}),
        ("manhattan", {"scale", "translation"}),
    ):
        loss = jit(functools.partial(call, "spearman", dissimilarity=dissimilarity))
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
    "duplicates": lambda x: x[[0, 0, 2, 2, 2, *range(5, N)]],
    "zero rows": lambda x: x * (np.arange(N) >= 5)[:, None],
    "constant rows": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "all equal": np.ones_like,
    "all zero": np.zeros_like,
    "large": lambda x: 1e4 * x,
}


@every_loss
def test_half_precision_and_degenerate_features(name, rng):
    student, teacher, rows = problem(name, rng)
    student, teacher = (x.astype(jnp.bfloat16) for x in (student, teacher))
    gradient_of = jit(jax.value_and_grad(functools.partial(call, name)))

    def evaluate(*features):
        return gradient_of(*(x.astype(jnp.bfloat16) for x in features), rows)

    for what, change in DEGENERATE.items():
        for both in (False, True):
            value, gradient = evaluate(change(student), change(teacher) if both else teacher)
            assert value.dtype == jnp.float32
            assert gradient.dtype == jnp.bfloat16
            assert np.isfinite(value), what
            assert np.isfinite(np.asarray(gradient, np.float32)).all(), what
    with jax.enable_x64(True):
        exact = compiled(name)(*(np.asarray(x, np.float64) for x in (student, teacher)), rows)[
            "mean"
        ]
    value, _ = evaluate(student, teacher)
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
# One that is a mean over examples, in all ways, and one that is not. test_devices.py has all ways
# for perception coherence.
QUICK = {*(("pkt", way) for way in OTHER_WAYS), ("cka", OTHER_WAYS[-1])}
# These compare an example with nothing but its teacher: devices have only their mean in common.
ALONE = ("variational_information", "embed_distill", "orthogonal_projection", "dkd")
ALONE += ("shared_classifier", "simkd", "neuron_selectivity")
QUICK |= {(name, "pmap") for name in CASES if name not in ("perception_coherence", *ALONE)}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(*case, marks=[pytest.mark.nightly] * (case not in QUICK))
        for case in [(name, "pmap") for name in CASES]
        + [(name, way) for name in ("pkt", "cka") for way in OTHER_WAYS[:-1]]
        + [(name, OTHER_WAYS[-1]) for name in CASES]
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


@pytest.mark.parametrize("name", ALONE)
def test_devices_sum_the_examples_of_all(name, rng):
    """A mean of the devices' means would weigh the examples of a device with few of them more."""

    def traced(axis_name):
        def loss(*given):
            *features, where = given
            return call(name, *features, where=where, axis_name=axis_name)

        split = jax.tree.map(
            lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), (*problem(name, rng), np.ones(N, bool))
        )
        return str(jax.make_jaxpr(jax.pmap(loss, axis_name="batch"))(*split))

    assert "psum" in traced("batch")
    assert "psum" not in traced(None)


def test_a_loss_registered_elsewhere_gets_the_laws(rng, x64, registry):
    spec = registry["toy"]
    assert spec.function.__module__ == __name__
    assert "toy" in RECIPES
    CASES["toy"] = case_of("toy")
    try:
        for law in (
            test_no_student_pays_less_than_is_stated,
            test_the_gradient_is_the_differences,
            test_mean_and_values_agree,
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
