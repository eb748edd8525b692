"""A run's folder: what it was asked to do, and what came of it."""

import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

import jax

from pcjax import _checks, _fields
from pcjax._checks import RequestError
from pcjax.config import Config, read_stored
from pcjax.training import disk
from pcjax.training.clock import Clock
from pcjax.training.disk import UNFINISHED
from pcjax.training.parallel import wait_for_all

NO_PLACE = "[]*?\\"  # what means something else to the libraries that write arrays
LARGEST = 2**26  # bytes of what a job wrote
CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"


def check_folder(folder: pathlib.Path, config: Config, job: str) -> None:
    """Refuses a folder that is in use for something else."""
    _require_place(folder)
    _checks.require(
        not folder.exists() or folder.is_dir(),
        f"got --workdir {folder}, which is a file: choose a folder",
    )
    stored = folder / CONFIG
    if stored.exists():
        begun_by, there = read_stored(stored)
        got = f"{folder} holds a run of `pcjax {begun_by}`, not of {job}: choose another --workdir"
        _checks.require(begun_by == job, got)
        difference = _difference(
            dataclasses.asdict(there.essence()), dataclasses.asdict(config.essence())
        )
        if difference is not None:
            name, before, now = difference
            raise RequestError(
                f"{folder} holds a run with {name} {before!r}, asked for now is {now!r}: choose another --workdir, "
                f"or go on with that run's own config by `pcjax {job} {stored} --workdir {folder}`"
            )
    else:
        # A config of which a kill or a full disk has left a part was never a run.
        foreign = folder.is_dir() and any(
            path.name != CONFIG + UNFINISHED for path in folder.iterdir()
        )
        _checks.require(
            not foreign, f"{folder} is neither empty nor a run's folder: choose another --workdir"
        )


def _require_place(folder: pathlib.Path) -> None:
    """Refuses names at which no checkpoint could be written."""
    got = f"got --workdir {str(folder)!r}: expected a folder of this machine's disks"
    _checks.require(re.match("[a-z][a-z0-9+.-]+:/", str(folder)) is None, got)
    whole = os.path.realpath(folder)
    strange = sorted(set(whole) & set(NO_PLACE))
    _checks.require(not strange, f"{got}, and no {' '.join(strange)} in its whole name")
    _checks.require(
        whole == whole.encode(errors="replace").decode(), f"{got}, and its whole name in UTF-8"
    )


def begin_folder(folder: pathlib.Path, config: Config, job: str) -> None:
    """Makes the folder of a run, if it is not there, holds it, and stores what the run was asked for.

    Not before every process has looked at it: a late one would find what another one has begun to write.
    """
    wait_for_all("the folder of a run is looked at")
    stored = folder / CONFIG
    if jax.process_index() == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # as below /proc
            raise RequestError(
                f"cannot make --workdir {folder}: expected a place where folders can be made"
            ) from error
        disk.hold(folder)
        if not stored.exists():
            write_config(stored, config, job)
    wait_for_all("the folder of a run is begun")
    _checks.require(
        disk.seen_soon(stored.is_file),
        f"process {jax.process_index()} does not see {stored}, which the first one has written: expected one --workdir "
        "on a disk that all processes see",
    )


def config_of(folder: pathlib.Path, job: str | None = None, field: str = "") -> tuple[str, Config]:
    """The job and the config of a run that was begun before, which a field of a config may have named."""
    stored, named = folder / CONFIG, f" ({field})" if field else ""
    _checks.require(
        stored.is_file(),
        f"no run in {folder}{named}: expected the --workdir of an earlier pcjax command",
    )
    begun_by, config = read_stored(stored)
    if job is not None:
        _checks.require(
            begun_by == job,
            f"{folder}{named} holds a run of `pcjax {begun_by}`: expected one of `pcjax {job}`",
        )
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
    """The JSON object that a job wrote; anything else is refused, and what does not match the digest that it has."""
    try:
        _checks.require(path.is_file(), "it is no file")
        _checks.require(path.stat().st_size <= LARGEST, "it is larger than any result")
        found = json.loads(path.read_text(encoding="utf-8"))
        _checks.require(
            isinstance(found, dict), f"expected an object, found {type(found).__name__}"
        )
        there = found.pop("digest", None)
        _checks.require(there in (None, _fields.digest(found)), "it is not what was written")
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{path} is damaged ({error}): {remedy}") from error


def write_proven(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """An object with its own digest."""
    write_json(path, _fields.proven(value))


def write_config(path: pathlib.Path, config: Config, job: str) -> None:
    """What a job was asked for; to go on with other versions holds for one command."""
    kept = dataclasses.replace(config, other_versions=False)
    write_json(path, {"job": job, "config": json.loads(kept.to_json())})


def is_number(value: Any, finite: bool = True) -> TypeGuard[float]:
    """Whether it is one that can be reckoned with, and no truth value."""
    if isinstance(value, float) and not finite:
        return True
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    )


def are_numbers(value: Any, finite: bool = True) -> TypeGuard[dict[str, float]]:
    """Whether it is an object of names and numbers."""
    return isinstance(value, dict) and all(is_number(one, finite) for one in value.values())


def own_place(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """A place in a folder; one that a link or a name leads away from there is refused."""
    place = folder.joinpath(*names)
    there, expected = os.path.realpath(place), os.path.join(os.path.realpath(folder), *names)  # noqa: PTH118
    links = any(folder.joinpath(*names[:n]).is_symlink() for n in range(1, len(names) + 1))
    plain = all(name == pathlib.PurePath(name).name for name in names)  # no root, no slash
    _checks.require(
        plain and there == expected and not links,
        f"{place} leads to {there}: expected a folder of its own and no link; move back what belongs there",
    )
    return place


def seconds_of(folder: pathlib.Path, clock: Clock) -> float:
    """How long the run took: until it came to its end for the first time, not when its table was only repeated."""
    try:
        before = stored_object(folder / RESULT, "it is written anew").get("seconds")
    except RequestError:
        before = None
    return before if is_number(before) and before >= 0 else round(clock(), 1)


def write_json(path: pathlib.Path, value: Any) -> None:
    """The file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """The file appears whole or not at all; one of several processes writes it."""
    if jax.process_index() == 0:
        disk.replace(path, text)


def from_the_root(config: Config) -> Config:
    """The same, with what it names as files named from the root: it means the same wherever it is read."""

    def of(path: str | None) -> str | None:
        if path is None or "://" in path:
            return path
        # pathlib would look at the disk, and refuse here what is refused with a better word later.
        return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111

    def of_source(source: str | None) -> Any:
        kind, colon, path = (source or "").partition(":")
        return f"arrays:{of(path)}" if kind == "arrays" and colon and path else source

    asked, replace = config.evaluation, dataclasses.replace
    data = replace(
        config.data, source=of_source(config.data.source), data_dir=of(config.data.data_dir)
    )
    teacher = replace(
        config.teacher, run=of(config.teacher.run), features=of(config.teacher.features)
    )
    evaluation = replace(asked, other=of_source(asked.other), other_dir=of(asked.other_dir))
    return replace(config, data=data, teacher=teacher, evaluation=evaluation)
