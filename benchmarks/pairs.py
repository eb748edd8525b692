"""Time one image in the teacher and in the student of each config, on one thread of onnxruntime.

    python -m benchmarks.pairs

Weights and images are random. The times are medians of the calls that a model card has too.
"""

import pathlib
from typing import Any

import numpy as np
from flax import nnx

from pcjax import models
from pcjax.config import Model, read_config
from pcjax.data.examples import Arrays, whole
from pcjax.display import Display
from pcjax.export.measure import CALLS, described_machine, time_of_module
from pcjax.export.safetensors import inputs_of

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SHAPES = {
    "digits": (8, 8, 1),
    "tfds:fashion_mnist": (28, 28, 1),
    "tfds:cifar100": (32, 32, 3),
    "tfds:imagenet2012": (224, 224, 3),
    "images:pictures": (224, 224, 3),
}
TEACHERS = {"dinov2:dinov2-small": Model("vit_small", {"patch": 14, "layer_scale": True})}


def milliseconds(model: Model, shape: tuple[int, ...]) -> float:
    """Return the time of one image."""
    options: Any = dict(model.options)
    module = models.build(model.name, shape=shape, classes=None, rngs=nnx.Rngs(0), **options)
    images = np.random.default_rng(0).integers(0, 256, (CALLS, *shape), np.uint8)
    normalise = np.full(shape[-1], 0.5), np.full(shape[-1], 0.25)
    time = time_of_module(module, inputs_of(whole(Arrays(images, None), None), normalise), images)
    assert time is not None
    return time


def main() -> None:
    """Print the table."""
    rows = []
    for path in sorted(CONFIGS.glob("*.py")):
        config = read_config(path)
        if config.data.source.startswith("text:"):
            continue  # benchmarks.text measures these
        shape = SHAPES[config.data.source]
        teacher = TEACHERS.get(config.teacher.source or "", config.teacher.model)
        times = [milliseconds(model, shape) for model in (teacher, config.student)]
        names = f"{teacher.name} -> {config.student.name}"
        rows.append([path.name, names, *(f"{time:.2f}" for time in times)])
        rows[-1].append(f"{times[0] / times[1]:.1f}")
    columns = ["config", "pair", "teacher, ms", "student, ms", "ratio"]
    Display().table(f"one image, one thread; {described_machine()}", columns, rows)


if __name__ == "__main__":
    main()
