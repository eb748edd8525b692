"""A whole training step with the loss, beside the same step with a mean squared error in its place.

    python -m benchmarks.step [--batch 256] [--seconds 120] [--out FOLDER]

ResNet-20 on 32 x 32 images, stochastic gradient descent with momentum, the teacher's 64 features given. Prints a table
of medians and the ratio to the mean squared error's step, and writes step.json to the folder.
"""

import argparse
import itertools
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


class Block(nnx.Module):
    """Two 3 x 3 convolutions and a shortcut, which a 1 x 1 convolution adapts where the shape changes."""

    def __init__(self, inputs: int, outputs: int, strides: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(inputs, outputs, (3, 3), strides=strides, use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(outputs, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.second_norm = nnx.BatchNorm(outputs, rngs=rngs)
        self.shortcut = None
        if strides > 1:
            self.shortcut = nnx.Conv(inputs, outputs, (1, 1), strides=strides, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (n, h, w, c) to images."""
        y = nnx.relu(self.first_norm(self.first(x)))
        return nnx.relu(self.second_norm(self.second(y)) + (x if self.shortcut is None else self.shortcut(x)))


class ResNet20(nnx.Module):
    """The CIFAR network of He et al. (2016), up to its 64 pooled features."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        self.blocks = nnx.List(
            Block(inputs, outputs, 1 if inputs == outputs else 2, rngs)
            for inputs, outputs in itertools.pairwise(widths)
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (n, 32, 32, 3) to features (n, 64)."""
        x = nnx.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return jnp.mean(x, axis=(1, 2))


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean squared error": lambda student, teacher: jnp.mean((student - teacher) ** 2),
    "pcjax laplace": lambda student, teacher: pcjax.losses.perception_coherence(student, teacher, temperature=0.1),
}


def prepare(name: str, batch: int) -> Callable[[], float]:
    """A training step, ready to be timed."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(batch, 32, 32, 3)), jnp.float32)
    teacher = jnp.asarray(random.normal(size=(batch, 64)), jnp.float32)
    student = ResNet20(nnx.Rngs(0))
    optimiser = nnx.Optimizer(student, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(student: ResNet20, optimiser: nnx.Optimizer, images: jax.Array, teacher: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda student: LOSSES[name](student(images), teacher))(student)
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
