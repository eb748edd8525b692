"""Requests that cannot be served are refused at trace time, with the value that was given and what was expected."""

import numbers
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class RequestError(ValueError):
    """What was asked for cannot be done as asked: the message says what was given, what was expected, what to do."""


def _dtype_of(x: Any) -> np.dtype:
    dtype = getattr(x, "dtype", None)
    return np.asarray(x).dtype if dtype is None else dtype


class OutputClosedError(BaseException):
    """Nobody reads the output any more. No Exception, so that no one who expects a failing file takes it for that."""


def require(condition: bool, message: str) -> None:
    """Raises RequestError with `message` unless `condition` holds."""
    if not condition:
        raise RequestError(message)


def require_name(what: str, given: Any, known: Collection[str], alternative: str = "") -> None:
    """Refuses a name that is not among the known ones."""
    listed = ", ".join(repr(name) for name in known)
    found = isinstance(given, str) and given in known
    require(found, f"unknown {what} {given!r}: expected one of {listed}{alternative}")


def require_features(what: str, x: Any) -> None:
    """Refuses anything but a (rows, features) array of real numbers."""
    shape = np.shape(x)
    require(
        len(shape) == 2,
        f"got {what} of shape {shape}: expected (rows, features), one row per example",
    )
    require(shape[1] > 0, f"got {what} of shape {shape}: expected at least one feature")
    require_real(what, x)


def require_real(what: str, x: Any) -> None:
    """Refuses complex numbers, strings and booleans."""
    dtype = _dtype_of(x)
    real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    require(real, f"got {what} of dtype {dtype}: expected real numbers")


def require_positive(what: str, value: Any, optional: bool = False) -> None:
    """Refuses zero, negative, infinite and NaN values wherever the value is known while tracing."""
    if optional and value is None:
        return
    expected = f"got {what} {value!r}: expected a positive, finite number" + (
        " or None" if optional else ""
    )
    require(not isinstance(value, (str, bytes, bool)) and value is not None, expected)
    dtype = _dtype_of(value)
    require(jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer), expected)
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    values = values.astype(np.float64)
    require(bool(np.all(np.isfinite(values) & (values > 0))), expected)


def require_share(what: str, value: Any) -> None:
    """Refuses anything but a number from 0 to 1 wherever the value is known while tracing."""
    expected = f"got {what} {value!r}: expected a number from 0 to 1"
    require(not isinstance(value, (str, bytes, bool)) and value is not None, expected)
    if isinstance(value, Tracer):
        return
    values = np.asarray(value)
    require(values.dtype.kind in "uif" and bool(np.all((values >= 0) & (values <= 1))), expected)


def require_whole(
    what: str, value: Any, least: int, most: int | None = None, context: str = ""
) -> None:
    """Refuses anything but an integer from `least` to `most`."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    fits = whole and least <= int(value) and (most is None or int(value) <= most)
    require(fits, f"got {what} {value!r}{context}: expected an integer {bounds}")


def require_mask(given: Any) -> None:
    """Refuses masks that are not of booleans: indices, above all."""
    dtype = _dtype_of(given)
    require(
        dtype.kind == "b", f"got where of dtype {dtype}: expected booleans, True for what counts"
    )


def at_least_float32(x: Any) -> jax.Array:
    """The array in float32, or in float64 if that is what it is: ranks of half-precision numbers are mostly ties."""
    x = jnp.asarray(x)
    return x.astype(
        jnp.promote_types(x.dtype, jnp.float32)
        if jnp.issubdtype(x.dtype, jnp.floating)
        else jnp.float32
    )


def printable(text: str) -> str:
    """Without what moves a terminal's cursor, but for ends of lines: what was given may hold anything."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def behind(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, each once: what is raised again from what it led to stands behind itself."""
    at: BaseException | None = error
    seen: list[BaseException] = []
    while at is not None and not any(at is one for one in seen):
        yield at
        seen.append(at)
        at = at.__cause__ or at.__context__


def interruption(error: BaseException) -> BaseException | None:
    """What is no Exception behind an error: a signal that comes while C code calls Python turns up as a SystemError."""
    return next((one for one in behind(error) if not isinstance(one, Exception)), None)
