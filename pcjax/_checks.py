"""Requests that cannot be served are refused at trace time, with cause and remedy."""

import difflib
import numbers
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

MAX_LISTED = 12  # names in an error


class RequestError(ValueError):
    """A request cannot be served: says what was given, what is expected, and what to do."""


class FailedError(Exception):
    """A job failed after it had begun: says why, and what to do."""


def _dtype_of(x: Any) -> np.dtype:
    dtype = getattr(x, "dtype", None)
    return np.asarray(x).dtype if dtype is None else dtype


def require_name(what: str, given: Any, known: Collection[str], alternative: str = "") -> None:
    """Refuse a name that is not known; suggest the nearest one."""
    if isinstance(given, str) and given in known:
        return
    names = [*known]
    nearest = difflib.get_close_matches(str(given), names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    listed = ", ".join(repr(name) for name in names[:MAX_LISTED])
    more = f", ... ({len(names)} in all)" if len(names) > MAX_LISTED else ""
    raise RequestError(
        f"unknown {what} {given!r}{hint}: expected one of {listed}{more}{alternative}"
    )


def require_features(what: str, x: Any) -> None:
    """Refuse anything but a (rows, features) array of real numbers."""
    shape = np.shape(x)
    if len(shape) != 2:
        raise RequestError(
            f"got {what} of shape {shape}: expected (rows, features), one row per example"
        )
    if shape[1] == 0:
        raise RequestError(f"got {what} of shape {shape}: expected at least one feature")
    require_real(what, x)


def require_real(what: str, x: Any) -> None:
    """Refuse complex numbers, strings and booleans."""
    dtype = _dtype_of(x)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise RequestError(f"got {what} of dtype {dtype}: expected real numbers")


def require_positive(what: str, value: Any, optional: bool = False) -> None:
    """Refuse zero, negative, infinite and NaN values wherever they are known while tracing."""
    if optional and value is None:
        return
    or_none = " or None" if optional else ""
    error = RequestError(f"got {what} {value!r}: expected a positive, finite number{or_none}")
    if value is None or isinstance(value, (str, bytes, bool)):
        raise error
    dtype = _dtype_of(value)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise error
    if isinstance(value, Tracer):
        return
    values = np.asarray(value).astype(np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise error


def require_share(what: str, value: Any) -> None:
    """Refuse anything but a number from 0 to 1 wherever it is known while tracing."""
    error = RequestError(f"got {what} {value!r}: expected a number from 0 to 1")
    if value is None or isinstance(value, (str, bytes, bool)):
        raise error
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    if values.dtype.kind not in "uif" or not np.all((values >= 0) & (values <= 1)):
        raise error


def require_whole(
    what: str, value: Any, least: int, most: int | None = None, context: str = ""
) -> None:
    """Refuse anything but an integer from `least` to `most`."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or int(value) < least or (most is not None and int(value) > most):
        raise RequestError(f"got {what} {value!r}{context}: expected an integer {bounds}")


def require_mask(mask: Any) -> None:
    """Refuse masks that are not booleans, such as indices."""
    dtype = _dtype_of(mask)
    if dtype.kind != "b":
        raise RequestError(f"got where of dtype {dtype}: expected booleans, True for what counts")


def at_least_float32(x: Any) -> jax.Array:
    """Convert to float32, or keep float64: ranks of half-precision numbers are mostly ties."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor, except ends of lines."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
