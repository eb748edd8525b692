"""A run's folder: what it was asked to do, and what came of it."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.config import Config, read_stored

LARGEST = 2**26  # bytes of what a job wrote
CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"


def check_folder(folder: pathlib.Path, config: Config, job: str) -> None:
    """Refuses a folder that is in use for something else."""
    _checks.require(not folder.exists() or folder.is_dir(), f"got --workdir {folder}, which is a file: choose a folder")
    stored = folder / CONFIG
    if stored.exists():
        begun_by, there = read_stored(stored)
        got = f"{folder} holds a run of `pcjax {begun_by}`, not of {job}: choose another --workdir"
        _checks.require(begun_by == job, got)
        difference = _difference(dataclasses.asdict(there), dataclasses.asdict(config))
        if difference is not None:
            name, before, now = difference
            raise RequestError(
                f"{folder} holds a run with {name} {before!r}, asked for now is {now!r}: choose another --workdir, "
                f"or go on with that run's own config by `pcjax {job} {stored} --workdir {folder}`"
            )
    else:
        foreign = folder.is_dir() and any(folder.iterdir())
        _checks.require(not foreign, f"{folder} is neither empty nor a run's folder: choose another --workdir")


def begin_folder(folder: pathlib.Path, config: Config, job: str) -> None:
    """Makes the folder of a run, if it is not there, and stores what the run was asked for."""
    stored = folder / CONFIG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not stored.exists():
            write_json(stored, {"job": job, "config": json.loads(config.to_json())})
    except OSError as error:
        raise RequestError(f"cannot write to --workdir {folder}: {error.strerror}") from error


def config_of(folder: pathlib.Path, job: str | None = None) -> tuple[str, Config]:
    """The job and the config of a run that was begun before."""
    stored = folder / CONFIG
    _checks.require(stored.is_file(), f"no run in {folder}: expected the --workdir of an earlier pcjax command")
    begun_by, config = read_stored(stored)
    if job is not None:
        _checks.require(begun_by == job, f"{folder} holds a run of `pcjax {begun_by}`: expected one of `pcjax {job}`")
    return begun_by, config


def _difference(before: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field that two configs differ in."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            found = _difference(before[key], now[key], f"{name}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    return None if before == now else (name, before, now)


def stored_object(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """The JSON object that a job wrote; anything else is refused."""
    try:
        _checks.require(path.stat().st_size <= LARGEST, "it is larger than any result")
        found = json.loads(path.read_text())
        _checks.require(isinstance(found, dict), f"expected an object, found {type(found).__name__}")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is damaged ({error}): {remedy}") from error


def result_of(folder: pathlib.Path) -> dict[str, Any]:
    """What came of a run that has ended: of every model it judged, and beside that of the run."""
    stored, remedy = folder / RESULT, "delete it, and give the run's command again"
    missing = f"no {RESULT} in {folder}: give its own command again, which goes on to the end"
    _checks.require(stored.is_file(), missing)
    found = stored_object(stored, remedy)
    for name in ("teacher", "untrained", "student", "versions"):
        whole = isinstance(found.get(name, {}), dict)
        _checks.require(whole, f"{stored} is damaged ({name} is no object): {remedy}")
    return found


def seconds_of(folder: pathlib.Path, seconds: float) -> float:
    """How long the run took: the first time that it came to its end, not when its table was only repeated."""
    try:
        return float(json.loads((folder / RESULT).read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return seconds


def write_json(path: pathlib.Path, value: Any) -> None:
    """The file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """The file appears whole or not at all; one of several processes writes it."""
    if jax.process_index() == 0:
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
