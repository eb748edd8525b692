"""Measure the parts of the loss: the sort, and the cost by the dimensions of the features.

    python -m benchmarks.parts [--seconds 30]

All parts alternate in one run, at 1,024 examples. The sort's network is compared with one of its
stages in NumPy, which a core's cache bounds.
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved, spread, timed
from pcjax._sorting import _network, cache_rows
from pcjax.losses import perception_coherence

EXAMPLES = 1024
DIMENSIONS = ((128, 128), (128, 512), (128, 2048), (512, 512))  # the student's, the teacher's


def contenders() -> dict[str, Any]:
    """Return functions that compute each part once."""
    random = np.random.default_rng(0)
    columns = min(cache_rows(EXAMPLES) or EXAMPLES, EXAMPLES)
    keys = random.integers(0, 2**31 - 1, size=(EXAMPLES, columns)).astype(np.int32)
    low, high, least, most = *np.split(keys.copy(), 2), *np.split(keys.copy(), 2)
    network, on_device = jax.jit(_network), jnp.asarray(keys)

    def by_numpy() -> None:
        np.minimum(low, high, out=least)
        np.maximum(low, high, out=most)

    parts: dict[str, Any] = {
        f"network of {columns} columns": lambda: jax.block_until_ready(network(on_device)),
        "one stage by NumPy, on one core": by_numpy,
    }
    loss = jax.jit(jax.value_and_grad(functools.partial(perception_coherence, temperature=0.1)))
    for student, teacher in DIMENSIONS:
        features = [
            jnp.asarray(random.normal(size=(EXAMPLES, d)), jnp.float32) for d in (student, teacher)
        ]
        parts[f"loss and gradient, {student} and {teacher} dimensions"] = functools.partial(
            lambda features: jax.block_until_ready(loss(*features)), features
        )
    return parts


def main() -> None:
    """Print medians and quartiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30)
    seconds = parser.parse_args().seconds
    times = interleaved(
        {name: timed(part) for name, part in contenders().items()}, seconds, most=2000
    )
    stages = EXAMPLES.bit_length() * (EXAMPLES.bit_length() - 1) // 2
    for name, seconds_taken in times.items():
        middle, first, third = spread(seconds_taken)
        more = (
            f"; {stages} stages, {1e3 * middle / stages:.3g} microseconds each"
            if "network" in name
            else ""
        )
        print(f"{name}: {middle:.3g} ms ({first:.3g}-{third:.3g}){more}")


if __name__ == "__main__":
    main()
