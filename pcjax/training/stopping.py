"""How a training ends early: signals that all processes obey together, and a watchdog."""

import faulthandler
import itertools
import signal
import sys
import time
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WATCHDOG_SECONDS = 1800.0  # default where there are several devices
MAX_STEPS_BETWEEN_CHECKS, SECONDS_BETWEEN_CHECKS = 8, 0.5


class StoppedError(Exception):
    """The training was stopped by a signal, after saving its state."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, saved")
        self.number, self.step = number, step


class StopSignals:
    """Note SIGINT and SIGTERM inside the context; a second signal is obeyed at once."""

    def __init__(self):
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._restore()
        if self.number is not None and kind is None:  # it came after the last step
            signal.raise_signal(self.number)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


_sync_points = itertools.count(1)  # JAX's preemption notice names one that has not passed yet


class Agreement:
    """Find out whether any process was signalled; all then stop after the same step.

    Processes ask each other every eight steps, or every half a second where steps are slow, and
    wait for all devices then. They agree on the next time too.

    Args:
      step: the step before the first one.
      most: how many steps are taken at once; that many may lie between two checks.
    """

    def __init__(self, step: int, most: int = 1):
        self.next = step + 1  # the step of the next check
        self._most = max(most, MAX_STEPS_BETWEEN_CHECKS)
        self._last, self._time, self._seconds = step, time.monotonic(), SECONDS_BETWEEN_CHECKS
        self._taken = 1  # steps between the last two checks

    def check(self, number: int | None, step: int, last: bool) -> int | None:
        """Return the signal to obey after this step, if there is one."""
        alone = jax.process_count() == 1
        if not alone and multihost_utils.reached_preemption_sync_point(next(_sync_points)):
            number = signal.SIGTERM
        elif step < self.next and not last:
            return number if alone else None
        values = np.array([number or 0, self._seconds], np.float32)
        highest, slowest = (
            values if alone else np.max(multihost_utils.process_allgather(values), axis=0)
        )
        now = time.monotonic()
        # The devices take these steps while the next ones are prepared: what has ended since the
        # last check are the steps before it.
        self._seconds = (now - self._time) / self._taken
        self._taken, self._last, self._time = step - self._last, step, now
        most = min(self._most, 2 * self._taken)
        self.next = step + int(np.clip(SECONDS_BETWEEN_CHECKS / slowest, 1, most))
        return int(highest) or None


def agreed_signal(number: int | None) -> int | None:
    """Return the signal that any process was given; all processes must call this together."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number or 0)))) or None


class Watchdog:
    """End the process with the stacks of its threads when nothing moves for too long.

    The timer is C code and fires even while the interpreter is held. A process has only one.

    Args:
      seconds: the longest time between two beats; None is half an hour where there are several
        devices, one of which can make the others wait, and no limit where there is one.
    """

    def __init__(self, seconds: float | None = None):
        self._seconds = seconds
        if seconds is None and jax.device_count() > 1:
            self._seconds = WATCHDOG_SECONDS

    def __enter__(self) -> "Watchdog":
        self.beat()
        return self

    def __exit__(self, *_: object) -> None:
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Restart the timer."""
        if self._seconds is not None:
            file = sys.__stderr__ or 2
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=file)
