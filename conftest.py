"""Fixtures and settings of all tests and doctests."""

import collections
import gc
import os
import pathlib
import sys

import compiling
import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes many objects and little garbage: Python's default collects twenty times as often.
gc.set_threshold(20_000, 20, 50)


def pytest_configure(config):
    """Compile without the compiler's optimisations, unless PCJAX_TESTS_OPTIMISED is set.

    Most tests compile much and compute little.
    """
    if "PCJAX_TESTS_OPTIMISED" not in os.environ:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {compiling.WITHOUT_OPTIMISATIONS}"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(FailuresAtOnce(config))
    jax.config.update("jax_compilation_cache_dir", str(compiling.CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class FailuresAtOnce:
    """Print a failure when it happens: the whole run may be ended from outside."""

    def __init__(self, config):
        self._config = config

    def pytest_runtest_logreport(self, report):
        """Print the place and the reason of a failure."""
        if report.failed:
            reason = getattr(report.longrepr, "reprcrash", None) or str(report.longrepr)[-500:]
            self._config.pluginmanager.get_plugin("terminalreporter").write_line(
                f"\n{report.nodeid}: {reason}"
            )


@pytest.fixture
def rng():
    """Return a generator of random numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    """Compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def run_command():
    """Run the command in this process, with the tests' own compilation cache."""
    # Imported here: what is imported before the tests are collected escapes the shape checks.
    from pcjax import cli

    def run(*words):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(cli, "use_compilation_cache", lambda: None)
            return cli.main(list(map(str, words)))

    return run


@pytest.fixture
def command(run_command, capsys):
    """Run the command; return its exit status, its output and its complaint."""

    def run(*words):
        status = run_command(*words)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def annotations(request):
    """Do without the check of annotations in doctests, and where pcjax's refusals are tested.

    Doctests give lists, which NumPy takes for arrays.
    """
    refusals = request.node.get_closest_marker("bad_input") is not None
    doctest = not isinstance(request.node, pytest.Function)
    jaxtyping.config.update("jaxtyping_disable", refusals or doctest)


@pytest.fixture(autouse=True)
def bounded_memory_maps():
    """Drop compiled code before it is too much: a process may have some 65,000 memory maps."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_child_outlives_its_test():
    """End the child processes that a test has left."""
    yield
    if "children" in sys.modules:
        sys.modules["children"].end_all()


def pytest_terminal_summary(terminalreporter):
    """Print how often each fault was tried, over all workers."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    counts = collections.Counter()
    for report in reports:
        if getattr(report, "when", None) == "call":
            for name, value in report.user_properties:
                if name == "tried":
                    fault, outcome, number = value
                    counts[fault, outcome] += number
    if counts:
        terminalreporter.section("faults")
    for (fault, outcome), number in sorted(counts.items()):
        terminalreporter.write_line(f"{fault}: {number} {outcome}")
