"""Requests that cannot be served are refused at trace time, with the value that was given and what was expected."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def require_name(what: str, given: Any, known: Collection[str], alternative: str = "") -> None:
    """Refuses a name that is not among the known ones."""
    listed = ", ".join(repr(name) for name in known)
    found = isinstance(given, str) and given in known
    require(found, f"unknown {what} {given!r}: expected one of {listed}{alternative}")


def require_features(what: str, x: Any) -> None:
    """Refuses anything but a (rows, features) array of real numbers."""
    shape = np.shape(x)
    require(len(shape) == 2, f"got {what} of shape {shape}: expected (rows, features), one row per example")
    require(shape[1] > 0, f"got {what} of shape {shape}: expected at least one feature")
    require_real(what, x)


def require_real(what: str, x: Any) -> None:
    """Refuses complex numbers, strings and booleans."""
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    require(real, f"got {what} of dtype {dtype}: expected real numbers")


def require_positive(what: str, value: Any, optional: bool = False) -> None:
    """Refuses zero, negative, infinite and NaN values wherever the value is known while tracing."""
    if optional and value is None:
        return
    expected = f"got {what} {value!r}: expected a positive, finite number" + (" or None" if optional else "")
    require(not isinstance(value, (str, bytes, bool)) and value is not None, expected)
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    require(np.issubdtype(values.dtype, np.number) or values.dtype == jnp.bfloat16, expected)
    values = values.astype(np.float64)
    require(bool(np.all(np.isfinite(values) & (values > 0))), expected)


def at_least_float32(x: Any) -> jax.Array:
    """The array in float32, or in float64 if that is what it is: ranks of half-precision numbers are mostly ties."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)
