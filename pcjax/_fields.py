"""Dataclasses whose fields are of the types that they are declared with, as they are built and as JSON."""

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pcjax import _checks
from pcjax._checks import RequestError

# What is not 0 must not become 0 or infinity in float32.
TINIEST, GREATEST = 1.2e-38, 3.4e38


def require_types(section: Any, name: str = "") -> None:
    """Refuses a dataclass, called that in messages, of which a field is not of the type that it is declared with."""
    for field, hint in _hints(type(section)).items():
        _require_type(hint, getattr(section, field), f"{name}.{field}" if name else field)


_hints = functools.cache(typing.get_type_hints)


def _require_type(hint: Any, value: Any, where: str) -> None:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    if typing.get_origin(hint) is Literal:
        return  # by `require_name`, which lists what is possible
    if not any(_is(option, value) for option in options):
        _refuse(hint, value, where)
    for option in options:
        kind, inner = typing.get_origin(option), typing.get_args(option)
        if kind is tuple and isinstance(value, (tuple, list)):
            for place, item in enumerate(value):
                _require_type(inner[0], item, f"{where}.{place}")
        elif kind is dict and isinstance(value, dict):
            for key, item in value.items():
                _require_type(inner[1], item, f"{where}.{key}")


def _is(hint: Any, value: Any) -> bool:
    """Whether a value is of a type that is no union; what is in it is not looked at."""
    kind = typing.get_origin(hint) or hint
    kinds = {float: (float, int), tuple: (tuple, list)}.get(kind, kind)
    return isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))


def digest(value: Any) -> str:
    """A hash of what can be JSON."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def proven(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object as it will be read, with its own digest, so that whatever becomes of it is noticed then."""
    there = json.loads(json.dumps({name: one for name, one in value.items() if name != "digest"}))
    return there | {"digest": digest(there)}


def told(value: Any) -> Any:
    """What is not as the classes have it by default, as JSON: enough to build an equal one."""
    if dataclasses.is_dataclass(value):
        fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: told(given) for field, given in fields if not _is_default(field, given)}
    if isinstance(value, dict):
        return {name: told(item) for name, item in value.items()}
    return [told(item) for item in value] if isinstance(value, (tuple, list)) else value


def _is_default(field: dataclasses.Field, given: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return given == field.default_factory()
    return field.default is not dataclasses.MISSING and given == field.default


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice."""
    found = dict(pairs)
    _checks.require(
        len(found) == len(pairs), "a name stands twice in one object: leave one of them"
    )
    return found


def choices(cls: type) -> dict[str, tuple[str, ...]]:
    """The fields of which only some names are possible."""
    return {
        name: typing.get_args(hint)
        for name, hint in _hints(cls).items()
        if typing.get_origin(hint) is Literal
    }


def decode(hint: Any, value: Any, where: str) -> Any:
    """A value of the type that the hint names, from parsed JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                return decode(option, value, where)
            except RequestError:
                if dataclasses.is_dataclass(option) and isinstance(value, dict):
                    raise
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = _hints(hint)
        for name in value:
            _checks.require_name("field", f"{where}{name}", [f"{where}{known}" for known in hints])
        fields = {
            name: decode(hints[name], item, f"{where}{name}.") for name, item in value.items()
        }
        place = where.rstrip(".")
        try:
            return hint(**fields)  # pyright: ignore[reportCallIssue]
        except TypeError as error:
            raise RequestError(
                f"{place}: {str(error).partition('__init__() ')[2] or error}"
            ) from error
        except RequestError as error:
            if place in str(error):
                raise
            raise RequestError(f"{place}: {error}") from error
    elif origin is Literal and value in arguments:
        return value
    elif origin is tuple and isinstance(value, list):
        return tuple(
            decode(arguments[0], item, f"{where}{place}.") for place, item in enumerate(value)
        )
    elif origin is dict and isinstance(value, dict):
        return {name: decode(arguments[1], item, f"{where}{name}.") for name, item in value.items()}
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if _fits(value) else _refuse(hint, value, where)
    elif isinstance(value, str) and "\0" in value:
        _refuse(hint, value, where)
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is bool or not isinstance(value, bool))
    ):
        return value
    return _refuse(hint, value, where)


def _fits(number: float) -> bool:
    return number == 0 or TINIEST <= abs(number) <= GREATEST


def _refuse(hint: Any, value: Any, where: str) -> typing.NoReturn:
    expected = getattr(hint, "__name__", str(hint)) if not typing.get_origin(hint) else str(hint)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not _fits(value):
        expected = "a number that float32 holds"
    given = repr(value)
    given = given if len(given) <= 200 else f"{given[:200]}..."
    raise RequestError(f"got {where.rstrip('.')} {given}: expected {expected}")
