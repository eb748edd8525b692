"""Compare pcjax's training with a bare loop of the same model, loss and optimiser.

    python -m benchmarks.bare_loop [--model mlp] [--rounds 5] [--steps 500]

The bare loop is what a researcher would write: a jitted step that takes rows of an array on the
device. Rounds of the two alternate. For the models of configs/digits.py: 8 x 8 images.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pcjax import models
from pcjax.config import Config, Data, Model, Training
from pcjax.data.examples import Arrays, Dataset, whole
from pcjax.display import Display
from pcjax.jobs.common import build_student, student_lesson
from pcjax.losses import perception_coherence
from pcjax.models.functional import functional
from pcjax.run import Run
from pcjax.teachers import Teacher
from pcjax.training.loop import train
from pcjax.training.metrics_log import read_metrics

TEACHER_FEATURES = 64


def rates(
    model: str,
    shape: tuple[int, ...],
    batch: int,
    steps: int,
    folder: pathlib.Path,
    rounds: int = 3,
) -> dict[str, Any]:
    """Return the images a second of pcjax's training and of the bare loop, and their ratio."""
    random = np.random.default_rng(0)
    count = max(4 * batch, 2**22 // int(np.prod(shape)))
    images = random.integers(0, 256, (count, *shape), np.uint8)
    store = whole(Arrays(images, None), None)
    few = dataclasses.replace(store, rows=np.arange(2 * batch))
    dataset = Dataset("random", store, few, few)
    features = random.normal(size=(count, TEACHER_FEATURES)).astype(np.float32)
    teacher = Teacher.from_features(
        {"train": features, "validation": features[: 2 * batch], "test": features[: 2 * batch]}
    )
    compute = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    log_every = max(1, steps // 3)
    config = Config(
        data=Data(flip=shape[0] > 8, crop=4 if shape[0] > 8 else 0),
        student=Model(model),
        training=Training(
            steps=steps, batch=batch, log_every=log_every, save_every=steps, compute=compute
        ),
    )
    initial = build_student(config, dataset, Display(quiet=True))
    lesson = student_lesson(config, dataset, initial, teacher.targets(dataset))
    lesson = dataclasses.replace(lesson, evaluate=lambda *_: {"score": 0.0, "coherence": 0.0})
    bare = _bare(config, images, features)
    ours, theirs = [], []
    for number in range(rounds):
        run = Run(folder / f"{model}_{number}", config, "distill", Display(quiet=True))
        run.folder.mkdir(parents=True)
        train(lesson, dataset, run)
        logged = [r["steps_per_second"] for r in read_metrics(run.folder) if "loss" in r]
        ours.append(batch * float(np.median(logged[1:] or logged)))
        theirs.append(batch * bare(steps))
    ratio = np.array(ours[1:]) / np.array(theirs[1:])  # the first round compiles
    return {
        "images/s": float(np.median(ours[1:])),
        "bare images/s": float(np.median(theirs[1:])),
        "ratio": float(np.median(ratio)),
        "batch": batch,
        "compute": compute,
    }


def _bare(config: Config, images: np.ndarray, features: np.ndarray) -> Callable[[int], float]:
    """Return a function that takes steps and returns their number a second."""
    dtype = jnp.dtype(config.training.compute)
    function, *start = functional(
        lambda seed: models.build(
            config.student.name,
            shape=images.shape[1:],
            classes=None,
            dtype=dtype,
            rngs=nnx.Rngs(jax.random.key(seed)),
        ),
        0,
    )
    on_device = jax.device_put((images, features))
    optimiser = optax.adamw(config.training.learning_rate)
    padding = config.data.crop

    def augmented(key: jax.Array, x: jax.Array) -> jax.Array:
        if not padding:
            return x
        keys = jax.random.split(key)
        border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        offsets = jax.random.randint(keys[0], (len(x), 2), 0, 2 * padding + 1)
        x = jax.vmap(
            lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])
        )(jnp.pad(x, border), offsets)
        mirrored = jax.random.bernoulli(keys[1], shape=(len(x), 1, 1, 1))
        return jnp.where(mirrored, x[:, :, ::-1], x)

    def step(state: Any, number: jax.Array, images: jax.Array, features: jax.Array) -> Any:
        parameters, statistics, moments = state
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        index = jax.random.randint(keys[0], (config.training.batch,), 0, len(images))
        x = (augmented(keys[1], images[index]).astype(jnp.float32) - 127.0) / 74.0

        def loss(parameters: Any) -> Any:
            output, after = function.apply(parameters, statistics, x, train=True)
            return perception_coherence(output.features, features[index]), after

        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, moments = optimiser.update(gradients, moments, parameters)
        return (optax.apply_updates(parameters, updates), statistics, moments), value

    jitted = jax.jit(step, donate_argnums=0)
    state = [(*start, optimiser.init(start[0]))]

    def steps_per_second(steps: int) -> float:
        begin = time.perf_counter()
        value = None
        for number in range(steps):
            state[0], value = jitted(state[0], np.int32(number), *on_device)
        jax.block_until_ready(value)
        return steps / (time.perf_counter() - begin)

    return steps_per_second


def main() -> None:
    """Print the two rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=Config().student.name)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        batch = Config().training.batch
        given = (arguments.steps, pathlib.Path(folder), arguments.rounds + 1)
        result = rates(arguments.model, (8, 8, 1), batch, *given)
    for name, value in result.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
