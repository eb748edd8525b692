"""The library part is light."""

import json
import subprocess
import sys

HEAVY = (
    "flax",
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "sklearn",
    "matplotlib",
    "orbax",
    "chex",
    "optax",
    "scipy",
    "tensorstore",
)


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_importing_the_library_loads_nothing_heavy():
    before, after = json.loads(
        run(
            "import json, sys, jax, jax.numpy\n"
            "before = sorted({name.split('.')[0] for name in sys.modules})\n"
            "import pcjax, pcjax.losses, pcjax.metrics\n"
            "print(json.dumps([before, sorted({name.split('.')[0] for name in sys.modules})]))"
        )
    )
    assert "pcjax" in after
    assert not set(HEAVY) & (set(after) - set(before))


def test_importing_the_library_costs_little_more_than_jax():
    code = (
        "import time, jax, jax.numpy\n"
        "start = time.perf_counter()\n"
        "import pcjax, pcjax.losses\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) <= 0.3
