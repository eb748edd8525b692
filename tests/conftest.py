import collections
import os
import pathlib
import sys

import compiling
import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """Most tests compile much and compute little: they do without the compiler's optimisations.

    Where PCJAX_TESTS_OPTIMISED is set they have them. What is compiled is kept, also for the next run (`--cache-clear`
    forgets it), by each worker for itself: JAX does not write such files atomically.
    """
    if "PCJAX_TESTS_OPTIMISED" not in os.environ:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} {compiling.WITHOUT_OPTIMISATIONS}"
        )
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(ToldAtOnce(config))
    if hasattr(config, "cache"):
        kept = config.cache.mkdir(f"compiled-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")
        jax.config.update("jax_compilation_cache_dir", str(kept))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class ToldAtOnce:
    """What fails is told when it does: a run may be ended from outside before it tells everything."""

    def __init__(self, config):
        self._config = config

    def pytest_runtest_logreport(self, report):
        if report.failed:
            why = getattr(report.longrepr, "reprcrash", None) or str(report.longrepr)[-500:]
            self._config.pluginmanager.get_plugin("terminalreporter").write_line(
                f"\n{report.nodeid}: {why}"
            )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def command(capsys):
    """The command in this process: its exit status, and what it said and complained of."""
    # Imported here: what is imported before the tests are collected cannot be checked for its annotations.
    from pcjax import cli

    def run(*arguments):
        try:
            cli.main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as exit_:
            status = exit_.code or 0
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(autouse=True)
def compiled_code_stays_within_bounds():
    """Every compiled kernel maps memory, of which a process may have some 65,000 pieces; past that, LLVM crashes."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def no_child_process_outlives_its_test():
    yield
    if "children" in sys.modules:
        sys.modules["children"].end_all()


def pytest_terminal_summary(terminalreporter):
    """The counts of what was tried of faults, from whichever worker."""
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
