"""A refused request is answered with the given value and the expected one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcjax

pytestmark = pytest.mark.bad_input

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(8, 6)).astype(np.float32)


def loss(student=X, teacher=Y, **given):
    return pcjax.losses.perception_coherence(student, teacher, **{"temperature": 0.1, **given})


def coherence(student=X, teacher=Y, **given):
    return pcjax.metrics.coherence(student, teacher, **{"k": 3, **given})


def soft(x=X, **given):
    return pcjax.ranking.soft_rank(x, **{"temperature": 0.1, **given})


def hard(x=X, **given):
    return pcjax.ranking.hard_rank(x, **given)


CASES = [
    # features
    (
        loss,
        {"student": X[:7]},
        "got student (7, 4) and teacher (8, 6): both need one row per example",
    ),
    (loss, {"student": X[0]}, "got student of shape (4,): expected (rows, features)"),
    (loss, {"teacher": Y[None]}, "got teacher of shape (1, 8, 6): expected (rows, features)"),
    (loss, {"student": X[:, :0]}, "got student of shape (8, 0): expected at least one feature"),
    (loss, {"student": X > 0}, "got student of dtype bool: expected real numbers"),
    (loss, {"teacher": Y * 1j}, "got teacher of dtype complex64: expected real numbers"),
    (loss, {"student": np.array([["a"] * 4] * 8)}, "expected real numbers"),
    (loss, {"student": X[:2], "teacher": Y[:2]}, "got 2 examples to rank: expected at least 3"),
    (loss, {"student": X[:0], "teacher": Y[:0]}, "got 0 examples to rank: expected at least 3"),
    (
        loss,
        {"frame": "teacher"},
        'frame="teacher" needs a linear head into the teacher\'s dimension',
    ),
    # numbers
    (loss, {"temperature": 0.0}, "got temperature 0.0: expected a positive, finite number"),
    (loss, {"temperature": -0.1}, "got temperature -0.1: expected a positive, finite number"),
    (
        loss,
        {"temperature": float("nan")},
        "got temperature nan: expected a positive, finite number",
    ),
    (
        loss,
        {"temperature": float("inf")},
        "got temperature inf: expected a positive, finite number",
    ),
    (loss, {"temperature": None}, "got temperature None: expected a positive, finite number"),
    (loss, {"temperature": "warm"}, "got temperature 'warm': expected a positive, finite number"),
    (loss, {"temperature": True}, "got temperature True: expected a positive, finite number"),
    (loss, {"temperature": np.ones(8)}, "got temperature of shape (8,): expected one number"),
    (
        loss,
        {"teacher_temperature": 0},
        "got teacher_temperature 0: expected a positive, finite number or None",
    ),
    (loss, {"power": 0.5}, "got power 0.5: expected a finite number, at least 1"),
    (loss, {"power": float("nan")}, "got power nan: expected a finite number, at least 1"),
    (loss, {"power": "2"}, "got power '2': expected a finite number, at least 1"),
    (loss, {"chunk_size": 0}, "got chunk_size 0: expected an integer of at least 1"),
    (loss, {"chunk_size": 2.5}, "got chunk_size 2.5: expected an integer of at least 1"),
    (loss, {"chunk_size": True}, "got chunk_size True: expected an integer of at least 1"),
    # names
    (
        loss,
        {"dissimilarity": "euclidian"},
        (
            "unknown dissimilarity 'euclidian' (did you mean 'euclidean'?): expected one of "
            "'euclidean'"
        ),
    ),
    (loss, {"teacher_dissimilarity": "l2"}, "unknown dissimilarity 'l2'"),
    (loss, {"dissimilarity": None}, "unknown dissimilarity None"),
    (loss, {"ranking": "softsort"}, "unknown ranking 'softsort': expected one of 'laplace'"),
    (loss, {"ranking": ["laplace"]}, "unknown ranking ['laplace']"),
    (loss, {"scale": "global"}, "unknown scale 'global': expected one of 'row', 'batch'"),
    (loss, {"frame": "student"}, "unknown frame 'student': expected one of 'own', 'teacher'"),
    (
        loss,
        {"weighting": "nearest"},
        "unknown weighting 'nearest': expected one of 'uniform', 'neighbours'",
    ),
    (loss, {"weighting": 2.0}, "unknown weighting 2.0"),
    (loss, {"reduce_fn": "mean"}, "got reduce_fn 'mean': expected a function or None"),
    # functions of the wrong shape
    (
        loss,
        {"dissimilarity": lambda x, y: x @ x.T[:, :3]},
        "the dissimilarity <lambda> gave shape (8, 3) for features",
    ),
    (
        loss,
        {"weighting": lambda ranks: ranks[0]},
        "the weighting gave shape (8,) for teacher's ranks of shape (8, 8)",
    ),
    # masks, references, axes
    (loss, {"where": np.ones(7, bool)}, "got where of shape (7,) for 8 examples: expected (8,)"),
    (loss, {"where": np.arange(8)}, "got where of dtype int64: expected booleans"),
    (
        loss,
        {"dissimilarity": lambda x, y: (x @ y.T) * 1j},
        "the dissimilarity <lambda>'s result of dtype complex64",
    ),
    (loss, {"axis_name": ()}, "got axis_name (): expected a name or a tuple of names"),
    (
        loss,
        {"axis_name": ["batch"]},
        "got axis_name ['batch']: expected a name or a tuple of names",
    ),
    (coherence, {"seed": "a"}, "got seed 'a': expected an integer of at least 0"),
    (
        loss,
        {"where": np.ones((8, 8), bool)},
        "got where of shape (8, 8) for 8 examples: expected (8,)",
    ),
    (loss, {"references": X}, "got references ndarray: expected (student points, teacher points)"),
    (loss, {"references": (X,)}, "expected (student points, teacher points)"),
    (
        loss,
        {"references": (Y, Y)},
        "got references (8, 6) for the student (8, 4): expected as many features",
    ),
    (
        loss,
        {"references": (X, X)},
        "got references (8, 4) for the teacher (8, 6): expected as many features",
    ),
    (
        loss,
        {"references": (X, Y[:5])},
        "got 8 references for the student and 5 for the teacher: expected the same",
    ),
    (
        loss,
        {"references": (X[0], Y[0])},
        "got the student's references of shape (4,): expected (rows, features)",
    ),
    (loss, {"axis_name": "batch"}, "got axis_name 'batch', which is not bound here"),
    (loss, {"axis_name": ("a", "b")}, "got axis_name ('a', 'b'), which is not bound here"),
    # dissimilarities on their own
    (
        pcjax.dissimilarity.cosine,
        {"x": X, "y": Y},
        "got x (8, 4) and y (8, 6): expected as many features in both",
    ),
    (
        pcjax.dissimilarity.manhattan,
        {"x": X[0], "y": X},
        "got x of shape (4,): expected (rows, features)",
    ),
    # ranks on their own
    (soft, {"method": "sort"}, "unknown ranking method 'sort': expected one of 'laplace'"),
    (soft, {"temperature": -1}, "got temperature -1: expected a positive, finite number"),
    (soft, {"temperature": np.array([1.0, 0.0])}, "expected a positive, finite number"),
    (
        soft,
        {"temperature": np.ones(3)},
        "got temperature of shape (3,) for x of shape (8, 4): expected one number, or one",
    ),
    (soft, {"axis": 2}, "got axis 2 for x of shape (8, 4): expected an integer from -2 to 1"),
    (
        soft,
        {"where": np.ones(3, bool)},
        "got where of shape (3,) for x of shape (8, 4): expected a shape that broadcasts",
    ),
    (hard, {"x": np.float32(1)}, "got x of shape (): expected at least one axis to rank along"),
    (hard, {"x": X[:, :0]}, "got x of shape (8, 0): expected at least one entry along axis -1"),
    (hard, {"axis": None}, "got axis None for x of shape (8, 4): expected an integer from -2 to 1"),
    (hard, {"axis": 1.5}, "got axis 1.5 for x of shape (8, 4): expected an integer from -2 to 1"),
    (hard, {"where": np.arange(4)}, "got where of dtype int64: expected booleans"),
    (soft, {"temperature": 1 + 1j}, "got temperature (1+1j): expected a positive, finite number"),
    (hard, {"axis": -3}, "got axis -3 for x of shape (8, 4): expected an integer from -2 to 1"),
    # the metric
    (
        coherence,
        {"student": X[:5]},
        "got student (5, 4) and teacher (8, 6): both need one row per example",
    ),
    (coherence, {"student": X[:3], "teacher": Y[:3]}, "expected at least 4 examples"),
    (coherence, {"k": 0}, "got k 0 for 8 examples: expected an integer from 1 to 6"),
    (coherence, {"k": 7}, "got k 7 for 8 examples: expected an integer from 1 to 6"),
    (coherence, {"k": 2.0}, "got k 2.0 for 8 examples: expected an integer from 1 to 6"),
    (coherence, {"anchors": 9}, "got anchors 9 for 8 examples: expected an integer from 2 to 8"),
    (coherence, {"dissimilarity": "dot"}, "unknown dissimilarity 'dot'"),
]


@pytest.mark.parametrize(
    ("function", "given", "message"), CASES, ids=[case[2][:60] for case in CASES]
)
def test_refused_with_the_value_and_the_expectation(function, given, message):
    # All but the metric, which looks at its numbers, are traced only: nothing is compiled.
    call = (
        function
        if function is coherence
        else lambda **given: jax.eval_shape(lambda: function(**given))
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_while_tracing():
    with pytest.raises(ValueError, match="both need one row per example"):
        jax.jit(loss).trace(jax.ShapeDtypeStruct((7, 4), jnp.float32), Y)
    with pytest.raises(ValueError, match="unknown scale"):
        jax.eval_shape(lambda x: loss(x, scale="none"), X)
    with pytest.raises(ValueError, match="not bound here"):
        jax.jit(lambda x: loss(x, axis_name="batch"))(X)


def test_a_traced_temperature_cannot_be_checked_and_is_not():
    assert jax.eval_shape(lambda t: loss(temperature=t), 0.1).shape == ()
