"""metrics.jsonl, one JSON object a line, read whatever has become of it."""

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from pcjax import _checks

METRICS = "metrics.jsonl"
LONGEST = 2**24  # bytes of a line


class Records(NamedTuple):
    """What the lines say, and how many say nothing that can be trusted."""

    sound: list[dict[str, Any]]
    damaged: int


def read_records(folder: pathlib.Path) -> Records:
    """The metrics of a run; none where there is no file."""
    lines = [record for _, record in lines_of(folder / METRICS)]
    sound = [record for record in lines if record is not None]
    return Records(sound, len(lines) - len(sound))


def lines_of(path: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Every line with its end, and what it says: None of one that is cut short, too long, or not as it was written."""
    if not path.exists():
        return
    _checks.require(
        path.is_file(),
        f"{path} is no file: move it away, and the same command writes its metrics anew",
    )
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            if len(line) == LONGEST and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
                    pass
                yield rest[-1:], None
            else:
                yield line, _parsed(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(map(_is_value, record.values())):
        return None
    step = record.get("step")
    return record if type(step) is int and 0 < step < 2**31 else None


def _refuse(token: str) -> NoReturn:
    # Python reads NaN and Infinity, which JSON has not and no one wrote: what is not finite is null.
    raise ValueError(token)


def _is_value(value: Any) -> bool:
    if isinstance(value, list):  # examples of a step that was not taken
        return all(type(one) is int for one in value)
    return value is None or type(value) is int or (type(value) is float and math.isfinite(value))
