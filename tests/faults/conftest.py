"""The counts of what was tried, printed at the end of the run."""

import collections

import pytest

collect_ignore = ["killed", "restored.py"]  # for child processes
TRIED = collections.Counter()


@pytest.fixture
def tried():
    """Counts tries by the fault and what came of it."""

    def count(fault, outcome, number=1):
        TRIED[fault, outcome] += number

    return count


def pytest_terminal_summary(terminalreporter):
    if TRIED:
        terminalreporter.section("faults")
    for (fault, outcome), number in sorted(TRIED.items()):
        terminalreporter.write_line(f"{fault}: {number} {outcome}")
