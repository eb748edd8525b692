"""The library is light: importing it loads nothing that only the application needs."""

import json
import subprocess
import sys

HEAVY = {
    *("chex", "flax", "grain", "matplotlib", "optax", "orbax", "scipy", "sklearn"),
    *("tensorflow", "tensorflow_datasets", "tensorstore"),
}
CODE = """
import json, sys
import jax, jax.numpy
before = {name.split(".")[0] for name in sys.modules}
import pcjax, pcjax.losses, pcjax.metrics, pcjax.ranking, pcjax.dissimilarity
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - before)))
"""


def test_importing_the_library_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", CODE], check=True, capture_output=True, text=True, timeout=300
    )
    loaded = json.loads(done.stdout)
    assert "pcjax" in loaded
    assert not HEAVY & set(loaded)
