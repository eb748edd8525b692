"""How many steps are taken before a signal is looked for, against a clock of the test's own."""

import numpy as np
import pytest

from pcjax.training import stopping
from pcjax.training.stopping import Agreement


def checks(monkeypatch, seconds, steps, most, every=10**9):
    """Return when each check comes and when its steps end, on devices of so many seconds a step.

    A call returns when the steps of the call before have ended.
    """
    clock, ended, step, times = [0.0], 0.0, 0, []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    agreement = Agreement(0, most)
    while step < steps:
        count = min(most, agreement.next - step, every - step % every, steps - step)
        begun = max(clock[0] + 1e-4, ended)
        clock[0], ended, step = begun, begun + count * seconds, step + count
        if step == count:  # the first call waits for its own steps
            clock[0] = ended
        times.append((clock[0], ended, count))
        agreement.check(None, step, step == steps)
    return times


@pytest.mark.parametrize("seconds", [1e-5, 0.002, 0.05, 0.3, 3.0])
@pytest.mark.parametrize("every", [10**9, 25])
def test_a_signal_is_obeyed_soon_however_slow_steps_are(seconds, every, monkeypatch):
    times = checks(monkeypatch, seconds, 2000, 64, every)
    begun = np.array([0.0, *(time for time, _, _ in times[:-1])])
    ended = np.array([ended for _, ended, _ in times])
    assert (ended - begun).max() <= max(2.0, 3 * seconds)
    if seconds == 1e-5 and every > 64:
        assert np.median([count for _, _, count in times]) == 64
