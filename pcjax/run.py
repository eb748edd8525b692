"""A run's folder: the config it was started with, a lock, a clock, and its results.

DIR/config.json    the job and its config
DIR/checkpoints/   see pcjax.training.checkpoint
DIR/metrics.jsonl  see pcjax.training.metrics_log
DIR/result.json    the metrics of a finished run
DIR/report.html    the results as one page
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import jax

from pcjax import _fields, _io
from pcjax._checks import RequestError
from pcjax.config import Config, read_stored
from pcjax.display import Display
from pcjax.multihost import wait_for_all

CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"
TENSORSTORE_SPECIAL = "[]*?\\"  # TensorStore reads these characters in a path as patterns


class Clock:
    """Count the seconds of a run, over all commands that worked on it."""

    def __init__(self):
        self._start, self._earlier = time.perf_counter(), 0.0

    def __call__(self) -> float:
        """Return the seconds until now."""
        return self._earlier + time.perf_counter() - self._start

    def resume(self, seconds: float) -> None:
        """Add the seconds that a checkpoint recorded; of several checkpoints the latest counts."""
        self._earlier = max(self._earlier, seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A folder, and everything that a job needs to work in it."""

    folder: pathlib.Path
    config: Config
    job: str
    display: Display
    clock: Clock = dataclasses.field(default_factory=Clock)

    def say(self, text: str) -> None:
        """Print one line, on the first process only."""
        self.display.say(text)

    def part(self, *names: str) -> pathlib.Path:
        """Return a path inside the folder; refuse names and links that lead out of it."""
        return path_inside(self.folder, *names)

    def subrun(
        self, *names: str, config: Config | None = None, clock: Clock | None = None
    ) -> "Run":
        """Return a run in a folder inside this one."""
        config, clock = config or self.config, clock or Clock()
        return Run(self.part(*names), config, self.job, self.display, clock)

    def start(self) -> None:
        """Create the folder, lock it for this process and store the config.

        Every process must have checked the folder first: a late one would find a started run.
        """
        wait_for_all(f"checked {self.folder}")
        if jax.process_index() == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileNotFoundError, NotADirectoryError) as error:  # below /proc or a file
                raise RequestError(
                    f"--workdir {self.folder} cannot be created; choose another folder."
                ) from error
            lock_folder(self.folder)
            if not (self.folder / CONFIG).exists():
                self.store_config()
        wait_for_all(f"started {self.folder}")

    def store_config(self, name: str = CONFIG) -> None:
        """Write the config; the permission to resume other versions holds for one command only."""
        if jax.process_index() == 0:
            config = dataclasses.replace(self.config, other_versions=False)
            stored = {"job": self.job, "config": json.loads(config.to_json())}
            _io.write_json(self.folder / name, stored)

    @property
    def finished(self) -> bool:
        """Return whether the run has its results."""
        return (self.folder / RESULT).is_file()

    def finish(self, results: Mapping[str, Any]) -> float:
        """Write result.json; return the seconds that the run took.

        A finished run that is evaluated again keeps the seconds of its training.
        """
        seconds = round(self.clock(), 1)
        if self.finished:
            seconds = read_result(self.folder).get("seconds", seconds)
        if jax.process_index() == 0:
            _io.write_signed(self.folder / RESULT, {**results, "seconds": seconds})
        return seconds


def open_run(folder: pathlib.Path, config: Config, job: str, display: Display) -> Run:
    """Return the run of a folder, new or to be resumed; refuse a folder with other contents.

    Nothing is written before `Run.start`.
    """
    _check_name(folder)
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--workdir {folder} is a file; choose a folder.")
    stored = folder / CONFIG
    if stored.exists():
        stored_job, stored_config = read_stored(stored)
        if stored_job != job:
            raise RequestError(
                f"{folder} holds a run of `pcjax {stored_job}`; choose another --workdir."
            )
        difference = _fields.first_difference(
            stored_config.resume_identity(), config.resume_identity()
        )
        if difference is not None:
            name, before, now = difference
            raise RequestError(
                f"{folder} holds a run with {name}={before!r}, but {now!r} is requested: choose "
                f"another --workdir, or resume with `pcjax {job} {stored} --workdir {folder}`."
            )
    elif folder.is_dir() and any(path.name != CONFIG + _io.UNFINISHED for path in folder.iterdir()):
        raise RequestError(f"{folder} is neither empty nor a run; choose another --workdir.")
    return Run(folder, config, job, display)


def _check_name(folder: pathlib.Path) -> None:
    absolute = os.path.realpath(folder)
    if re.match("[a-z][a-z0-9+.-]+:/", str(folder)):
        raise RequestError(f"--workdir {folder} is not on this machine's disks; choose a folder.")
    special = sorted(set(absolute) & set(TENSORSTORE_SPECIAL))
    if special or absolute != absolute.encode(errors="replace").decode():
        characters = " ".join(special) or "bytes that are not UTF-8"
        raise RequestError(f"--workdir {folder} contains {characters}; choose another name.")


def stored_run(folder: pathlib.Path, display: Display, *, field: str = "") -> Run:
    """Return the run that an earlier command stored in a folder.

    Args:
      folder: the run's folder.
      display: where to print.
      field: the config field that names the folder, for error messages.
    """
    named = f" ({field})" if field else ""
    if not (folder / CONFIG).is_file():
        raise RequestError(
            f"There is no run in {folder}{named}; give the --workdir of an earlier command."
        )
    job, config = read_stored(folder / CONFIG)
    return Run(folder, config, job, display)


def read_result(folder: pathlib.Path) -> dict[str, Any]:
    """Read the metrics of a finished run."""
    path = folder / RESULT
    if not path.is_file():
        raise RequestError(
            f"{folder} has no {RESULT}: repeat the run's own command, which resumes it."
        )
    return _io.read_signed(path, "delete it and repeat the run's own command")


def path_inside(folder: pathlib.Path, *names: str) -> pathlib.Path:
    """Return a path inside a folder; refuse names and links that lead out of it."""
    path = folder.joinpath(*names)
    plain = all(name == pathlib.PurePath(name).name and name != ".." for name in names)
    links = any(folder.joinpath(*names[:n]).is_symlink() for n in range(1, len(names) + 1))
    if not plain or links:
        raise RequestError(f"{path} leads out of {folder}; remove the link or the name.")
    return path


_locks: dict[str, int] = {}  # locked folders and their open file descriptors


def lock_folder(folder: pathlib.Path) -> None:
    """Lock a folder for this process; the lock ends with the process.

    Some network disks have no locks; there nothing is locked.
    """
    name = os.path.realpath(folder)
    if name in _locks:
        return
    descriptor = os.open(name, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise RequestError(
                f"Another command works in {folder}: wait for it, or choose another --workdir."
            ) from error
    else:
        _locks[name] = descriptor


def unlock_folder(folder: pathlib.Path | None = None) -> None:
    """Unlock a folder, or all folders."""
    for name in [*_locks] if folder is None else [os.path.realpath(folder)]:
        if name in _locks:
            os.close(_locks.pop(name))
