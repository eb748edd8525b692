"""How a training ends before its end: signals that all processes agree on, and a watchdog for steps that never end."""

import faulthandler
import itertools
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

from pcjax.training.guard import BadStepsError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HANGS_AFTER = 1800.0  # seconds without a step, where there are several devices
ASKED_EVERY, OR_SECONDS = (
    8,
    2.0,
)  # steps, and what they may take: asking all processes waits for their devices


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
        # One that came after the last look: whoever is outside obeys it, a comparison that would go on too.
        if self.number is not None and kind in (None, BadStepsError):
            signal.raise_signal(self.number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


_all_steps = itertools.count(
    1
)  # of all trainings: a notice waits for a number that must not have passed


class Agreement:
    """The signal that any process was given: all must stop after the same step, or they would wait for each other.

    They are asked every eight steps; where those before took long, as often as some two seconds have gone by, for a
    machine that is taken away leaves half a minute. When to ask next they agree on too.
    """

    def __init__(self, step: int):
        self._asked, self._next = step, step + 1
        self._since, self._each = time.monotonic(), OR_SECONDS  # that each of the last steps took

    def at(self, number: int | None, step: int, last: bool) -> int | None:
        """What is agreed on after this step; None too where nobody was asked."""
        if jax.process_count() == 1:
            return number
        if multihost_utils.reached_preemption_sync_point(next(_all_steps)):
            number = signal.SIGTERM
        elif step < self._next and not last:
            return None
        given = multihost_utils.process_allgather(np.array([number or 0, self._each], np.float32))
        highest, slowest = np.max(given, axis=0)
        now = time.monotonic()  # only now have the steps been done
        self._each, self._since = (now - self._since) / (step - self._asked), now
        self._asked, self._next = step, step + int(np.clip(OR_SECONDS / slowest, 1, ASKED_EVERY))
        return int(highest) or None


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
      seconds: how long a step may take, with its metrics and the start of its save, or a batch of its validation; None
        is half an hour where there are several devices, of this or of other processes, one of which can leave the
        others waiting, and no limit where there is only one.
      each: what a step is called; None where all is one.
      setting: the field of the config that says how long.
    """

    def __init__(
        self, what: str, seconds: float | None = None, each: str | None = None, setting: str = ""
    ):
        alone = jax.device_count() == 1
        self._what, self._seconds = what, HANGS_AFTER if seconds is None and not alone else seconds
        self._each, self._setting = each, f" ({setting})" if setting else ""
        self._step, self._beats = 0, 0
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.beat(self._step)
        if self._seconds is not None:
            threading.Thread(
                target=self._watch, args=(self._seconds,), name="watchdog", daemon=True
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """There is no step to wait for any more."""
        self._ended.set()

    def beat(self, step: int) -> None:
        """A step has ended."""
        self._step, self._beats = step, self._beats + 1

    def _watch(self, seconds: float) -> None:
        # Its own waits are counted: the clock goes on while a process is suspended.
        wait, waits, beats = min(seconds / 4, 5.0), 0, self._beats
        while not self._ended.wait(wait):
            before, beats = beats, self._beats
            waits = waits + 1 if beats == before else 0
            if waits * wait > seconds:
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                place = "" if self._each is None else f": {self._each} {self._step + 1}"
                line = (
                    f"pcjax: {self._what}{place} has not ended for {seconds:g} s{self._setting}: where every thread "
                    "stood is above; give the same command again, which goes on from what was saved\n"
                )
                os.write(2, line.encode())
                os._exit(1)
