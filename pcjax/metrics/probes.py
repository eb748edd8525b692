"""Classify frozen features by a linear probe."""

from __future__ import annotations  # short signatures in help()

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.metrics._labelled import require_as_many_features, require_finite, require_labels
from pcjax.metrics.registry import Context, metric, sampled, widened

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
TOLERANCE = 1e-6
MOST_ITERATIONS = 1000


class Probe(NamedTuple):
    """A linear probe's accuracy on the test set, and how the fit went."""

    accuracy: float
    penalty: float
    validation_accuracy: float
    iterations: int
    converged: bool


def linear_probe(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    validation: float | tuple[ArrayLike, ArrayLike] = 0.2,
    penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Fit a multinomial logistic regression to frozen features and compute its accuracy.

    Features are standardised by the means and deviations of all examples that may be fitted. The
    prediction is argmax_c (W x + b)_c with

        W, b = argmin  mean_i -log softmax(W x_i + b)_{y_i} + penalty / 2 |W|^2.

    L-BFGS stops when no entry of the gradient exceeds 1e-6, or after 1,000 iterations. Each penalty
    is tried without the validation set. The one with the highest accuracy on it wins, of equals the
    strongest. Then W and b are fitted again to all examples. Strong penalties are solved first, and
    weaker ones start from their solutions. In scikit-learn, C = 1 / (n penalty).

    Args:
      train_features: (n, d) features.
      train_labels: (n,) their classes, integers from 0, of at least two kinds.
      test_features: (m, d) features.
      test_labels: (m,) their classes; one that is not in training counts as an error.
      validation: the share of the training set to hold out, about equal for each class, or
        (features, labels) of a validation set. The last fit uses these examples too.
      penalties: candidates; positive.
      seed: seed of the drawing of held-out examples.

    Returns:
      A Probe (accuracy, penalty, validation_accuracy; iterations and converged of the last fit).

    >>> import jax, pcjax
    >>> features = jax.random.normal(jax.random.key(0), (60, 3))
    >>> labels = (features[:, 0] > 0).astype(int)
    >>> probe = pcjax.metrics.linear_probe(features[:40], labels[:40], features[40:], labels[40:])
    >>> probe.accuracy > 0.9, probe.converged
    (True, True)
    """
    _require_known(train_features, train_labels, test_features, test_labels)
    _require_set("train", train_features, train_labels)
    _require_set("test", test_features, test_labels)
    require_as_many_features("train_features", train_features, "test_features", test_features)
    _checks.require_whole("seed", seed, 0)
    if not (isinstance(penalties, (tuple, list)) and len(penalties) > 0):
        raise RequestError(
            f"got penalties {penalties!r}: expected a tuple of them, such as {PENALTIES}"
        )
    for penalty in penalties:
        _checks.require_positive("penalty", penalty)
    features, labels, held_out = _with_validation(
        train_features, np.asarray(train_labels), validation, seed
    )
    kinds, classes = np.unique(labels, return_inverse=True)
    fitted_to = kinds[np.unique(classes[~held_out])]
    if len(fitted_to) <= 1:
        raise RequestError(
            f"got training examples of the one class {fitted_to[0]}, beside {held_out.sum()} held "
            "out for validation: expected at least two classes; add examples of others, or hold "
            "out less"
        )

    train, mean, deviation = _standardised(_checks.at_least_float32(features))
    test = _checks.at_least_float32(test_features).astype(train.dtype)
    classes = jnp.asarray(classes, jnp.int32)
    fitted_rows, all_rows = (jnp.asarray(w, train.dtype) for w in (~held_out, np.ones(len(labels))))
    start = jnp.zeros((train.shape[1] + 1, len(kinds)), train.dtype)

    candidates, fitted = sorted({float(penalty) for penalty in penalties}, reverse=True), []
    for penalty in candidates:
        start, *_ = _fit(train, classes, fitted_rows, jnp.asarray(penalty, train.dtype), start)
        right = np.asarray(_predict(start, train) == classes)[held_out]
        fitted.append((float(np.mean(right)), start))
    best = int(np.argmax([accuracy for accuracy, _ in fitted]))
    weights, iterations, error = _fit(
        train, classes, all_rows, jnp.asarray(candidates[best], train.dtype), fitted[best][1]
    )
    predicted = kinds[np.asarray(_predict(weights, (test - mean) / deviation))]
    return Probe(
        accuracy=float(np.mean(predicted == np.asarray(test_labels))),
        penalty=candidates[best],
        validation_accuracy=fitted[best][0],
        iterations=int(iterations),
        converged=bool(error <= TOLERANCE),
    )


def _require_known(*given: Any) -> None:
    if any(isinstance(x, Tracer) for x in given):
        raise RequestError(
            "got traced arrays: expected known ones; call linear_probe outside of jax.jit"
        )


def _require_set(what: str, features: Any, labels: Any) -> None:
    require_finite(f"{what}_features", features)
    rows = np.shape(features)[0]
    if rows <= 0:
        raise RequestError(f"got {what}_features {np.shape(features)}: expected at least one row")
    require_labels(f"{what}_labels", labels, rows)


def _with_validation(
    features: Any, labels: np.ndarray, validation: Any, seed: int
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return all examples that may be fitted, and which are held out for validation."""
    n = len(labels)
    if isinstance(validation, (tuple, list)):
        if len(validation) != 2:
            raise RequestError(
                f"got validation of {len(validation)} parts: expected a share of the training set "
                "or (features, labels)"
            )
        _require_known(*validation)
        _require_set("validation", *validation)
        require_as_many_features("train_features", features, "validation_features", validation[0])
        together = jnp.concatenate([_checks.at_least_float32(x) for x in (features, validation[0])])
        more = np.asarray(validation[1])
        return together, np.concatenate([labels, more]), np.arange(n + len(more)) >= n
    if not (isinstance(validation, float) and 0 < validation < 1):
        raise RequestError(
            f"got validation {validation!r}: expected a share of the training set between 0 and "
            "1, or (features, labels)"
        )
    # Take equal steps through the examples sorted by class: the same share of each, to within one.
    drawn = np.random.default_rng(seed).permutation(n)
    by_class = drawn[np.argsort(labels[drawn], kind="stable")]
    steps = np.floor(np.arange(n + 1) * validation)
    held_out = np.zeros(n, bool)
    held_out[by_class[steps[1:] > steps[:-1]]] = True
    if not held_out.any():
        raise RequestError(
            f"got validation {validation!r} of {n} training examples, which holds out none: "
            "expected at least one; hold out more"
        )
    return features, labels, held_out


@jax.jit
def _standardised(
    x: Float[Array, "n d"],
) -> tuple[Float[Array, "n d"], Float[Array, "d"], Float[Array, "d"]]:
    """Standardise the features; return them, the means and the deviations.

    Constant features become zero.
    """
    extent = jnp.max(jnp.abs(x), axis=0)
    unit = jnp.where(extent == 0, 1, extent)  # so that no square overflows
    mean, deviation = jnp.mean(x / unit, axis=0), jnp.std(x / unit, axis=0)
    constant = deviation <= 8 * jnp.finfo(x.dtype).eps
    # Dividing by infinity hides a constant feature, even if it differs in the test set.
    mean, deviation = mean * unit, jnp.where(constant, jnp.inf, deviation * unit)
    return (x - mean) / deviation, mean, deviation


def _logits(weights: Float[Array, "d1 c"], x: Float[Array, "n d"]) -> Float[Array, "n c"]:
    return jnp.matmul(x, weights[:-1], precision=lax.Precision.HIGHEST) + weights[-1]


@jax.jit
def _predict(weights: Float[Array, "d1 c"], x: Float[Array, "n d"]) -> Int[Array, "n"]:
    return jnp.argmax(_logits(weights, x), axis=1).astype(jnp.int32)


@jax.jit
def _fit(
    x: Float[Array, "n d"],
    classes: Int[Array, "n"],
    counts: Float[Array, "n"],
    penalty: Float[Array, ""],
    start: Float[Array, "d1 c"],
) -> tuple[Float[Array, "d1 c"], Int[Array, ""], Float[Array, ""]]:
    """Minimise the objective of `linear_probe`.

    Returns:
      The minimiser, with b as its last row; the number of iterations; the gradient's largest entry.
    """
    import optax

    true = classes[:, None] == jnp.arange(start.shape[1])
    counts = counts / jnp.sum(counts)

    def objective(weights: Float[Array, "d1 c"]) -> Float[Array, ""]:
        logits = _logits(weights, x)
        losses = jax.nn.logsumexp(logits, axis=1) - jnp.sum(jnp.where(true, logits, 0), axis=1)
        return jnp.vdot(counts, losses) + penalty / 2 * jnp.sum(weights[:-1] ** 2)

    solver = optax.lbfgs()

    def unfinished(state: Any) -> Bool[Array, ""]:
        *_, gradient, iteration = state
        return (jnp.max(jnp.abs(gradient)) > TOLERANCE) & (iteration < MOST_ITERATIONS)

    def step(state: Any) -> Any:
        weights, solved, value, gradient, iteration = state
        update, solved = solver.update(
            gradient, solved, weights, value=value, grad=gradient, value_fn=objective
        )
        # The line search has already evaluated the objective there.
        return (
            weights + update,
            solved,
            optax.tree.get(solved, "value"),
            optax.tree.get(solved, "grad"),
            iteration + 1,
        )

    value, gradient = jax.value_and_grad(objective)(start)
    state = (start, solver.init(start), value, gradient, jnp.zeros((), jnp.int32))
    weights, _, _, gradient, iterations = lax.while_loop(unfinished, step, state)
    return weights, iterations, jnp.max(jnp.abs(gradient))


MAX_PROBED = 50_000  # training examples
FEW = 5_000  # training examples that are fitted sooner than a program is compiled


@metric("linear_probe_accuracy", title="linear probe", unit="share", column="probe")
def _evaluate_probe(context: Context) -> float | None:
    if context.labels.keys() < {"train", "validation", "test"}:
        return None
    rows = sampled(len(context.features["train"]), MAX_PROBED)
    few = len(context.features["train"]) <= FEW
    width = context.teacher.shape[1] if few and context.teacher is not None else 0
    train, validation, test = (
        widened(x, width)
        for x in (context.features["train"][rows], context.features["validation"], context.test)
    )
    probe = linear_probe(
        train,
        context.labels["train"][rows],
        test,
        context.labels["test"],
        validation=(validation, context.labels["validation"]),
    )
    return float(probe.accuracy)
