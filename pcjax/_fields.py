"""Dataclasses with checked field types, whether built in Python or decoded from JSON."""

import dataclasses
import functools
import re
import types
import typing
from typing import Any, Literal

from pcjax import _checks
from pcjax._checks import RequestError

# Beyond these, float32 rounds to 0 or infinity.
MIN_FLOAT32, MAX_FLOAT32 = 1.2e-38, 3.4e38

hints = functools.cache(typing.get_type_hints)


def check_fields(section: Any, name: str = "") -> None:
    """Refuse a dataclass with a field that is not of its declared type.

    Args:
      section: the dataclass; calls this in its `__post_init__`.
      name: the section's name in error messages.
    """
    for field, hint in hints(type(section)).items():
        where = f"{name}.{field}" if name else field
        object.__setattr__(section, field, _checked(hint, getattr(section, field), where))


def decode(hint: Any, value: Any, where: str = "") -> Any:
    """Build a value of the hinted type from parsed JSON.

    Args:
      hint: a dataclass, or the type of one of its fields.
      value: the JSON value.
      where: the path to the value in error messages, "training.batch".
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            nested = dataclasses.is_dataclass(option) and isinstance(value, dict)
            try:
                return decode(option, value, where)
            except RequestError:
                if nested:  # its own error says more than the union's
                    raise
        raise _type_error(hint, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(decode(arguments[0], v, f"{where}.{i}") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {k: decode(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _checked(hint, value, where)


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise _type_error(cls, value, where)
    prefix = f"{where}." if where else ""
    for name in value:
        _checks.require_name(
            "field", f"{prefix}{name}", [f"{prefix}{field}" for field in hints(cls)]
        )
    fields = {k: decode(hints(cls)[k], v, f"{prefix}{k}") for k, v in value.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in fields
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RequestError(f"{prefix}{missing[0]} is missing.")
    try:
        return cls(**fields)
    except RequestError as error:
        if not where or where in str(error):
            raise
        raise RequestError(f"{where}: {error}") from error


def _checked(hint: Any, value: Any, where: str) -> Any:
    """Return the value, a list as a tuple and an integer as a float where the hint says so."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return _checked(option, value, where)
            except RequestError:
                continue
    elif origin is Literal:
        _checks.require_name(where, value, arguments)
        return value
    elif origin is tuple and isinstance(value, (tuple, list)):
        return tuple(_checked(arguments[0], v, f"{where}.{i}") for i, v in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {k: _checked(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == 0 or MIN_FLOAT32 <= abs(value) <= MAX_FLOAT32:
            return float(value)
        raise RequestError(f"{where}={value!r} is not a number that float32 holds.")
    elif isinstance(value, bool) and hint is not bool:
        pass
    elif isinstance(hint, type) and isinstance(value, hint):
        if isinstance(value, str) and "\0" in value:
            raise RequestError(f"{where} holds a null character; remove it.")
        return value
    raise _type_error(hint, value, where)


def _type_error(hint: Any, value: Any, where: str) -> RequestError:
    expected = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    expected = re.sub(r"typing\.|pcjax\.config(_losses)?\.", "", expected)
    text = repr(value)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    remedy = f"; give --{where}.name" if "name" in getattr(hint, "__annotations__", ()) else ""
    return RequestError(f"{where}={text} is not of type {expected}{remedy}.")


def non_default_fields(value: Any) -> Any:
    """Return what differs from the classes' defaults, as JSON can hold it."""
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {f.name: non_default_fields(v) for f, v in fields if not _is_default(f, v)}
    if isinstance(value, dict):
        return {name: non_default_fields(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [non_default_fields(item) for item in value]
    return value


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return field.default is not dataclasses.MISSING and value == field.default


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Find the first field in which two dataclasses, or parts of them, differ."""
    if dataclasses.is_dataclass(before) and type(before) is type(now):
        before, now = ({f: getattr(x, f) for f in hints(type(x))} for x in (before, now))
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        pairs = ((f"{name}.{key}".lstrip("."), before[key], now[key]) for key in before)
        differences = (first_difference(a, b, where) for where, a, b in pairs)
        return next((difference for difference in differences if difference is not None), None)
    return None if before == now else (name, before, now)
