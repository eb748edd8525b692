"""Metrics as TensorBoard reads them; needs tensorboardX."""

import importlib
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any


class Board:
    """A file of TensorBoard's, in which what lies beyond the step that is gone on from does not count.

    It is written by whoever tells it something: tensorboardX's own writer has a thread that dies on a full disk, and is
    then waited for. What cannot be written is said, and the board given up: no training ends for it.
    """

    def __init__(self, folder: pathlib.Path, at: int, say: Callable[[str], Any]):
        self._events = importlib.import_module("tensorboardX.proto.event_pb2")
        self._scalar = importlib.import_module("tensorboardX.summary").scalar
        self._file: Any = None

        def begin() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = importlib.import_module("tensorboardX.event_file_writer").EventsWriter(
                str(folder / "events")
            )
            start = self._events.SessionLog(status=self._events.SessionLog.START)
            self._file.write_event(self._events.Event(step=at + 1, file_version="brain.Event:2"))
            self._file.write_event(self._events.Event(step=at + 1, session_log=start))
            self._file.flush()

        self._folder, self._say, self._given_up = folder, say, False
        self._attempt(begin)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured after that step."""

        def write() -> None:
            for name, value in values.items():
                summary = self._scalar(name, value)
                self._file.write_event(
                    self._events.Event(wall_time=time.time(), step=step, summary=summary)
                )
            self._file.flush()

        self._attempt(write)

    def close(self) -> None:
        """All is written by then."""
        self._attempt(lambda: self._file.close())

    def _attempt(self, write: Callable[[], Any]) -> None:
        if self._given_up:
            return
        try:
            write()
        except OSError as error:
            self._given_up = True
            self._say(
                f"{self._folder} cannot be written ({error.strerror}): TensorBoard is told nothing more"
            )
