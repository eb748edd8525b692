"""The counts of what was tried, printed at the end of the run."""

import collections

import pytest

from pcjax import cli

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


@pytest.fixture
def command(capsys):
    """The command in this process: its exit status, and what it said and complained of."""

    def run(*arguments):
        try:
            cli.main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as exit_:
            status = exit_.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
