"""A whole training step with the loss, beside the same step with a mean squared error in its place.

    python -m benchmarks.step [--batch 256] [--seconds 120] [--out FOLDER]

ResNet-20 on 32 x 32 images, stochastic gradient descent with momentum, the teacher's 64 features given. Prints a table
of medians and the ratio to the mean squared error's step, and writes step.json to the folder.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import pcjax
from benchmarks.ranking import environment
from benchmarks.timing import interleaved, spread, timed
from pcjax import models

LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean squared error": lambda student, teacher: jnp.mean((student - teacher) ** 2),
    "pcjax laplace": lambda student, teacher: pcjax.losses.perception_coherence(student, teacher, temperature=0.1),
}


def prepare(name: str, batch: int) -> Callable[[], float]:
    """A training step, ready to be timed."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(batch, 32, 32, 3)), jnp.float32)
    teacher = jnp.asarray(random.normal(size=(batch, 64)), jnp.float32)
    student = models.build("resnet20", shape=(32, 32, 3), classes=None, rngs=nnx.Rngs(0))
    optimiser = nnx.Optimizer(student, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(student: Any, optimiser: nnx.Optimizer, images: jax.Array, teacher: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda student: LOSSES[name](student(images).features, teacher))(student)
        optimiser.update(student, gradients)
        return loss

    return timed(lambda: jax.block_until_ready((step(student, optimiser, images, teacher), nnx.state(student))))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmark-results"))
    arguments = parser.parse_args()
    times = interleaved({name: prepare(name, arguments.batch) for name in LOSSES}, arguments.seconds)
    results: dict[str, Any] = {"environment": environment(), "batch": arguments.batch, "milliseconds": {}}
    reference = spread(times["mean squared error"])[0]
    print("| step with | milliseconds, median (quartiles) | times the mean squared error's |\n|---|---|---|")
    for name, taken in times.items():
        middle, low, high = results["milliseconds"][name] = spread(taken)
        print(f"| {name} | {middle:.4g} ({low:.4g}-{high:.4g}) | {middle / reference:.3f} |")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "step.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
