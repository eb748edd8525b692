"""Time the first call of the loss with its gradient, each in a fresh process.

    python -m benchmarks.compiling [--sizes 256 1024 4096 16384] [--repeat 3]

Nothing is read from JAX's compilation cache. Prints the least seconds of every case, from wall
clock and processor: tracing and lowering, compiling, and the first call of `metrics.coherence`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import pcjax

LOSSES = {
    "perception_coherence": pcjax.losses.perception_coherence,
    "rkd_distance": pcjax.losses.rkd_distance,
}
SIZES = (256, 1024, 4096, 16384)
METRIC = "metrics.coherence"


def seconds_of(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, by the wall clock and by the processor."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - start_cpu


def first_call(name: str, n: int) -> dict[str, tuple[float, float]]:
    """Return the seconds of the parts of a first call."""
    random = np.random.default_rng(0)
    features = [random.normal(size=(n, d)).astype(np.float32) for d in (128, 512)]
    if name == METRIC:
        return {"call": seconds_of(lambda: pcjax.metrics.coherence(*features))}
    on_device = [jax.block_until_ready(jnp.asarray(x)) for x in features]
    step, parts = jax.jit(jax.value_and_grad(LOSSES[name])), {}
    parts["lower"] = seconds_of(lambda: step.lower(*on_device))
    # The trace is cached: the rest is XLA's.
    lowered = step.lower(*on_device)
    parts["compile"] = seconds_of(lowered.compile)
    return parts


def in_fresh_process(name: str, n: int) -> dict[str, tuple[float, float]]:
    """Return `first_call` of another process."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.compiling", "--one", name, str(n)],
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Print the least of some first calls, case by case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(first_call(arguments.one[0], int(arguments.one[1]))))
        return
    smallest = min(arguments.sizes)
    cases = [("perception_coherence", n) for n in arguments.sizes]
    for name, n in [*cases, ("rkd_distance", smallest), (METRIC, smallest)]:
        runs = [in_fresh_process(name, n) for _ in range(arguments.repeat)]
        parts = {p: [min(run[p][k] for run in runs) for k in (0, 1)] for p in runs[0]}
        wall, cpu = (sum(pair[k] for pair in parts.values()) for k in (0, 1))
        details = ", ".join(f"{part} {pair[0]:.2f}" for part, pair in parts.items())
        print(f"{name}, n = {n}: {wall:.2f} s ({details}); processor {cpu:.2f} s", flush=True)


if __name__ == "__main__":
    main()
