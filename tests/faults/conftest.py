"""What is tried is counted, and the counts are printed at the end of the run (tests/conftest.py)."""

import time

import pytest

collect_ignore = ["killed", "restored.py"]  # for child processes


@pytest.fixture
def tried(request):
    """Counts tries by the fault and what came of it."""

    def count(fault, outcome, number=1):
        request.node.user_properties.append(("tried", (fault, outcome, number)))

    return count


@pytest.fixture(scope="session")
def unstopped(tmp_path_factory):
    """A SMALL run that was never stopped, and the seconds it took."""
    # Imported here: what is imported before the tests are collected cannot be checked for its annotations.
    from children import SMALL, pcjax

    folder, began = tmp_path_factory.mktemp("unstopped") / "run", time.monotonic()
    pcjax("distill", *SMALL, "--workdir", folder)
    return folder, time.monotonic() - began
