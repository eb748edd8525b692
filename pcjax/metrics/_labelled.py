"""Checks of features and labels, before a metric is computed; traced values are not checked."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool

from pcjax import _checks
from pcjax._checks import RequestError


def require_finite(what: str, x: Any) -> None:
    """Refuse anything but a (rows, features) array of finite numbers."""
    _checks.require_features(what, x)
    if isinstance(x, Tracer):
        return
    finite = np.asarray(_finite_rows(jnp.asarray(x)))
    if not finite.all():
        rows, first = int(np.sum(~finite)), int(np.argmin(finite))
        raise RequestError(
            f"got {what} with {rows} of {len(finite)} rows that hold NaN or infinity, row {first} "
            "the first: expected finite numbers; leave these rows out, or check whether the model "
            "diverged"
        )


@jax.jit
def _finite_rows(x: Array) -> Bool[Array, "n"]:
    return jnp.all(jnp.isfinite(x), axis=1)


def require_labels(what: str, labels: Any, rows: int) -> None:
    """Refuse labels that are not `rows` classes 0, 1, ..."""
    shape = np.shape(labels)
    if shape != (rows,):
        one_hot = "; of one-hot rows take labels.argmax(axis=1)" if len(shape) == 2 else ""
        raise RequestError(
            f"got {what} of shape {shape}: expected ({rows},), one class per row of "
            f"features{one_hot}"
        )
    dtype = labels.dtype if hasattr(labels, "dtype") else np.asarray(labels).dtype
    number_them = "number the classes by np.unique(labels, return_inverse=True)[1]"
    if not jnp.issubdtype(dtype, jnp.integer):
        raise RequestError(f"got {what} of dtype {dtype}: expected integers; {number_them}")
    if isinstance(labels, Tracer) or rows == 0:
        return
    least, most = int(np.min(np.asarray(labels))), int(np.max(np.asarray(labels)))
    if least < 0:
        raise RequestError(
            f"got {what} with {least} among them: expected classes 0, 1, ...; leave out the rows "
            "without a label"
        )
    # JAX would cut larger ones to 32 bits, and might merge two classes.
    if most >= 2**31:
        raise RequestError(f"got {what} up to {most}: expected less than 2^31; {number_them}")


def require_classes(what: str, labels: Any) -> None:
    """Refuse labels of one class only: every prediction would be right."""
    if isinstance(labels, Tracer) or np.size(labels) == 0:
        return
    least, most = int(np.min(np.asarray(labels))), int(np.max(np.asarray(labels)))
    if least >= most:
        raise RequestError(
            f"got {what} of the one class {least}: expected at least two; add examples of others"
        )


def require_as_many_features(what: str, x: Any, other: str, y: Any) -> None:
    """Refuse features of two different models."""
    if np.shape(x)[1] != np.shape(y)[1]:
        raise RequestError(
            f"got {what} {np.shape(x)} and {other} {np.shape(y)}: expected as many features in "
            "both; embed both with the same model"
        )
