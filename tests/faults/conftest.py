"""How often each fault was tried is counted, and printed at the end of the tests."""

import pytest

collect_ignore = ["injection.py"]


@pytest.fixture
def tried(request):
    """Count tries by the fault and its outcome."""

    def count(fault, outcome, number=1):
        request.node.user_properties.append(("tried", (fault, outcome, number)))

    return count


@pytest.fixture(scope="session")
def unstopped(tmp_path_factory):
    """Return the folder of a SMALL run that was never stopped."""
    # Imported here: what is imported before the tests are collected escapes the shape checks.
    from children import pcjax
    from small import SMALL

    folder = tmp_path_factory.mktemp("unstopped") / "run"
    pcjax("distill", *SMALL, "--workdir", folder)
    return folder
