"""Checks and small computations that several losses share."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError

FRAMES = ("own", "teacher")  # whose points the student's are compared with


def require_pair(student: Any, teacher: Any, same_width: str | None = None) -> None:
    """Refuse features that are not (n, ds) and (n, dt) numbers.

    Args:
      student: the student's features.
      teacher: the teacher's features.
      same_width: the remedy where ds = dt is needed and does not hold.
    """
    _checks.require_features("student", student)
    _checks.require_features("teacher", teacher)
    shapes = f"student {np.shape(student)} and teacher {np.shape(teacher)}"
    if np.shape(student)[0] != np.shape(teacher)[0]:
        raise RequestError(f"got {shapes}: both need one row per example")
    if same_width is not None and np.shape(student)[1] != np.shape(teacher)[1]:
        raise RequestError(f"got {shapes}: expected as many columns in both, {same_width}")


def require_where(where: Any, n: int) -> None:
    """Refuse a mask that is not (n,) booleans; None is no mask."""
    if where is None:
        return
    _checks.require_mask(where)
    if np.shape(where) != (n,):
        raise RequestError(
            f"got where of shape {np.shape(where)} for {n} examples: expected ({n},)"
        )


def require_reduction(reduce_fn: Any) -> None:
    """Refuse a reduction that is neither a function nor None."""
    if reduce_fn is not None and not callable(reduce_fn):
        raise RequestError(f"got reduce_fn {reduce_fn!r}: expected a function or None")


def axis_size(axis_name: Any) -> int:
    """Return the number of devices along a mapped axis, or several; 1 without a name."""
    if axis_name is None:
        return 1
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        raise RequestError(f"got axis_name {axis_name!r}: expected a name or a tuple of names")
    try:
        return lax.axis_size(axis_name)
    except (NameError, KeyError, TypeError) as error:
        raise RequestError(
            f"got axis_name {axis_name!r}, which is not bound here: call the loss under jax.pmap, "
            "jax.shard_map or jax.vmap with that axis, or leave axis_name out"
        ) from error


def without_masked(
    x: Float[Array, "n d"], mask: Bool[Array, "n"], axis_name: Any
) -> Float[Array, "n d"]:
    """Replace masked rows by the mean of all devices' valid rows, whatever they hold."""
    x = jnp.where(mask[:, None], x, 0)
    total, count = lax.stop_gradient(jnp.sum(x, axis=0)), jnp.sum(mask)
    if axis_name is not None:
        total, count = lax.psum((total, count), axis_name)
    return jnp.where(mask[:, None], x, total / jnp.maximum(count, 1))


def column_mean(x: Float[Array, "m r"], count: Int[Array, "..."]) -> Float[Array, "r"]:
    """Compute each column's mean over `count` entries; the others must be 0."""
    return jnp.sum(x, axis=0) / jnp.maximum(count, 1)


def deviation(
    d: Float[Array, "m r"], included: Bool[Array, "m r"], count: Int[Array, "..."]
) -> Float[Array, "r"]:
    """Compute each column's standard deviation over the included entries; the others must be 0.

    A column of equal entries gets their size: such entries share one rank at any width.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(d), axis=0))
    unit = jnp.where(largest == 0, 1, largest)  # so that no square overflows
    relative = d / unit
    centred = jnp.where(included, relative - column_mean(relative, count), 0)
    variance = column_mean(centred * centred, count)
    constant = variance <= jnp.finfo(d.dtype).eps ** 2
    # With one `where` alone the gradient would be 0 * inf.
    return unit * jnp.where(constant, 1, jnp.sqrt(jnp.where(constant, 1, variance)))
