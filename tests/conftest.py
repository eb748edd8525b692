import os
import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    """The quick tests compile much and compute little: they do without the compiler's optimisations.

    The slow tests have them, and so has everything where PCJAX_TESTS_OPTIMISED is set. What is compiled is kept, also
    for the next run (`--cache-clear` forgets it), by each worker for itself: JAX does not write such files atomically.
    """
    quick = config.option.markexpr.startswith("not slow")
    if quick and "PCJAX_TESTS_OPTIMISED" not in os.environ:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    if hasattr(config, "cache"):
        kept = config.cache.mkdir(f"compiled-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")
        jax.config.update("jax_compilation_cache_dir", str(kept))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


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
