"""A model of others in the train step: it sees the very images that the student sees."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.models.functional import Functional
from pcjax.teachers.encoder import Encoder
from pcjax.training.embedding import FrozenModel

Numbers = tuple[float, ...]


class Live(NamedTuple):
    """A model behind the change from the student's images to its own; hashable, as models are.

    function: the model.
    shape: of its images.
    own: the mean and the standard deviation of its images, by channel.
    students: those of the student's images.
    """

    function: Functional
    shape: tuple[int, ...]
    own: tuple[Numbers, Numbers]
    students: tuple[Numbers, Numbers]

    def apply(self, parameters: Any, statistics: Any, x: Any, train: bool) -> Any:
        """Compute the model's output for images that are normalised for the student."""
        mean, std = (jnp.asarray(numbers, jnp.float32) for numbers in self.students)
        x = x * std + mean
        if x.shape[3] < self.shape[2]:
            x = jnp.repeat(x, self.shape[2], axis=3)
        if x.shape[1:3] != self.shape[:2]:
            x = jax.image.resize(x, (len(x), *self.shape), "linear")
        mean, std = (jnp.asarray(numbers, jnp.float32) for numbers in self.own)
        return self.function.apply(parameters, statistics, (x - mean) / std, train=train)


def live_model(encoder: Encoder, dataset: Dataset) -> FrozenModel:
    """Return a model of images as a function of the student's images.

    Args:
      encoder: the model.
      dataset: the images, as the student reads them.
    """
    model = encoder.model
    if model is None or len(dataset.train.shape) != 3:
        raise RequestError(
            f"teacher.live needs a model of images that JAX can compute, which {encoder.name} is "
            "not; give teacher.views in its place."
        )
    seen = encoder.view(dataset)
    own, students = _numbers(seen), _numbers(dataset)
    return model._replace(function=Live(model.function, seen.train.shape, own, students))


def _numbers(dataset: Dataset) -> tuple[Numbers, Numbers]:
    mean, std = (tuple(map(float, np.atleast_1d(numbers))) for numbers in dataset.normalise)
    return mean, std
