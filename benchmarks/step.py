"""Time a whole training step with the loss, and the same step with a mean squared error.

    python -m benchmarks.step [--batch 256 ...] [--seconds 120] [--out FOLDER]

ResNet-20 on 32 x 32 images, gradient descent with momentum, 64 features of the teacher. Prints the
medians, the ratios to the step with the mean squared error, and the sizes of temporaries; writes
step.json to the folder. A batch size that needs too much memory is reported and left out.
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
from benchmarks.contenders import compiled
from benchmarks.ranking import environment
from benchmarks.timing import Timed, interleaved, spread, timed
from pcjax import models

LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean squared error": lambda student, teacher: jnp.mean((student - teacher) ** 2),
    "pcjax laplace": lambda student, teacher: pcjax.losses.perception_coherence(
        student, teacher, temperature=0.1
    ),
}
REFERENCE = "mean squared error"


def prepare(name: str, batch: int) -> Timed:
    """Build a training step."""
    random = np.random.default_rng(0)
    images = random.normal(size=(batch, 32, 32, 3)).astype(np.float32)
    teacher = random.normal(size=(batch, 64)).astype(np.float32)
    student = models.build("resnet20", shape=(32, 32, 3), classes=None, rngs=nnx.Rngs(0))
    both, state = nnx.split(
        (student, nnx.Optimizer(student, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param))
    )

    def step(state: Any, images: jax.Array, teacher: jax.Array) -> Any:
        student, optimiser = nnx.merge(both, state)
        loss, gradients = nnx.value_and_grad(
            lambda student: LOSSES[name](student(images).features, teacher)
        )(student)
        optimiser.update(student, gradients)
        return loss, nnx.state((student, optimiser))

    built = compiled(step, state, images, teacher)
    return Timed(timed(built.step), built.temporary_bytes)


def measure(batch: int, seconds: float) -> dict[str, Any]:
    """Return times, ratios within a turn and sizes of temporaries of every loss's step."""
    ready = {name: prepare(name, batch) for name in LOSSES}
    times = interleaved({name: contender.call for name, contender in ready.items()}, seconds)
    turns = min(map(len, times.values()))
    return {
        name: {
            "milliseconds": spread(seconds_taken),
            "ratio": np.percentile(
                np.divide(seconds_taken[:turns], times[REFERENCE][:turns]), [50, 25, 75]
            ).tolist(),
            "temporary_bytes": ready[name].temporary_bytes,
        }
        for name, seconds_taken in times.items()
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[256])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmark-results"))
    arguments = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(), "batches": {}}
    ratio = "times the mean squared error's"
    print(f"| step with | batch | milliseconds, median (quartiles) | {ratio} | temporaries |")
    print("|---|---|---|---|---|")
    for batch in arguments.batch:
        try:
            steps = results["batches"][batch] = measure(
                batch, arguments.seconds / len(arguments.batch)
            )
        except Exception as error:  # backends raise anything where memory does not suffice
            print(f"batch {batch}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        for name, row in steps.items():
            (middle, low, high), (ratio, least, most) = row["milliseconds"], row["ratio"]
            size = row["temporary_bytes"]
            room = "" if size is None else f"{size / 1e6:.3g} MB"
            times = f"{middle:.4g} ({low:.4g}-{high:.4g}) | {ratio:.3f} ({least:.3f}-{most:.3f})"
            print(f"| {name} | {batch} | {times} | {room} |", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "step.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
