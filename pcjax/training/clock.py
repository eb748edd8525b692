"""How long a run took, all the times together that its command was given."""

import time


class Clock:
    """Seconds since it was made, and those that a checkpoint tells of, which are gone on from."""

    def __init__(self):
        self._began, self._earlier = time.perf_counter(), 0.0

    def __call__(self) -> float:
        """How many there were until now."""
        return self._earlier + time.perf_counter() - self._began

    def go_on(self, seconds: float) -> None:
        """Counts what was before; what a later checkpoint of the same run tells of has that of an earlier one in it."""
        self._earlier = max(self._earlier, seconds)
