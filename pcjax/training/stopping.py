"""How a training ends before its end: signals that all processes agree on, and a watchdog for steps that never end."""

import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGS_AFTER = 1800.0  # seconds without a step, in a job of several processes
ASKED_EVERY = 8  # steps: asking all processes waits for their devices


class StoppedError(Exception):
    """A signal asked the training to stop, and it did, with everything saved."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, and saved")
        self.number, self.step = number, step


class StopSignals:
    """While inside, SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed."""

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._restore()
        if kind is None and self.number is not None:  # came after the last look: whoever is outside obeys it
            signal.raise_signal(self.number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def agreed(number: int | None, step: int, last: bool) -> int | None:
    """The signal that any process was given: all must stop after the same step, or they would wait for each other."""
    if jax.process_count() == 1:
        return number
    if multihost_utils.reached_preemption_sync_point(step):
        number = signal.SIGTERM
    elif step % ASKED_EVERY and not last:
        return None
    return agreed_now(number)


def agreed_now(number: int | None) -> int | None:
    """The same at once, where all processes ask at the same place."""
    if jax.process_count() == 1:
        return number
    given = multihost_utils.process_allgather(np.int32(number or 0))
    return int(np.max(given)) or None


class Watchdog:
    """Ends the process, with the stacks of all its threads, when no step has ended for so many seconds.

    Args:
      what: the training's name, or what else is done.
      seconds: how long a step may take, with its metrics, its validation and the start of its save; None is half an
        hour in a job of several processes, where one that has died can leave the others waiting, and no limit in one.
      each: what a step is called; None where all is one.
      setting: the field of the config that says how long.
    """

    def __init__(self, what: str, seconds: float | None = None, each: str | None = None, setting: str = ""):
        alone = jax.process_count() == 1
        self._what, self._seconds = what, HANGS_AFTER if seconds is None and not alone else seconds
        self._each, self._setting = each, f" ({setting})" if setting else ""
        self._step, self._since = 0, time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat(self._step)
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """There is no step to wait for any more."""
        self._ended.set()

    def beat(self, step: int) -> None:
        """A step has ended."""
        self._step, self._since = step, time.monotonic()

    def _watch(self, seconds: float) -> None:
        while not self._ended.wait(min(seconds / 4, 5.0)):
            if time.monotonic() - self._since > seconds:
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                place = "" if self._each is None else f": {self._each} {self._step + 1}"
                line = (
                    f"pcjax: {self._what}{place} has not ended for {seconds:g} s{self._setting}: where every thread "
                    "stood is above; give the same command again, which goes on from what was saved\n"
                )
                os.write(2, line.encode())
                os._exit(1)
