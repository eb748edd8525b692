"""A frozen model, and its outputs for a data set."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcjax import _io
from pcjax.data import Dataset, Examples, evaluation_batches
from pcjax.data.tokens import Tokens, length_batches
from pcjax.models import Output
from pcjax.models.functional import Arrays, Functional

TOKENS = 4  # a batch of so many texts, times this, is the tokens at a time; caches hold about 2,048


class FrozenModel(NamedTuple):
    """A model and its weights."""

    function: Functional
    parameters: Arrays
    statistics: Arrays

    def output(self, images: jax.Array) -> Output:
        """Compute the output for a batch, in evaluation mode."""
        return self.function.apply(self.parameters, self.statistics, images, train=False)[0]

    @property
    def digest(self) -> str:
        """Hash the weights."""
        return _io.digest_arrays((self.parameters, self.statistics))

    def parameter_count(self) -> int:
        """Count the trained numbers."""
        return sum(int(np.prod(x.shape)) for x in self.parameters.values())

    def size_bytes(self) -> int:
        """Return the size of parameters and statistics as they are stored."""
        return sum(int(x.nbytes) for x in (*self.parameters.values(), *self.statistics.values()))

    def flops(self, examples: Examples) -> int:
        """Count the floating-point operations for one example, as XLA does."""
        example = one_of(examples)
        lowered = jitted_outputs.lower(self.function, self.parameters, self.statistics, example)
        return int(dict(lowered.cost_analysis() or {}).get("flops", 0))


class Embeddings(NamedTuple):
    """A model's outputs for all examples of a part, in their order."""

    features: np.ndarray
    logits: np.ndarray | None


@functools.partial(jax.jit, static_argnums=0)
def jitted_outputs(
    function: Functional, parameters: Arrays, statistics: Arrays, images: jax.Array
) -> Output:
    """Compute features and class scores; equal models share one program."""
    return function.apply(parameters, statistics, images, train=False)[0]._replace(maps={})


def output_shapes(model: FrozenModel, dataset: Dataset) -> Output:
    """Return the shapes of a model's output for one example; nothing is computed."""
    return output_shape(model, one_of(dataset.train))


def output_shape(model: FrozenModel, example: jax.ShapeDtypeStruct) -> Output:
    """Return the shapes of a model's output for an example (1, ...); nothing is computed."""

    def output(parameters: Any, statistics: Any, images: Any) -> Output:
        return model.function.apply(parameters, statistics, images, train=False)[0]

    return jax.eval_shape(output, model.parameters, model.statistics, example)


def one_of(examples: Examples) -> jax.ShapeDtypeStruct:
    """Return the shape of a batch of one example, as a model gets it."""
    return jax.ShapeDtypeStruct((1, *examples.shape), examples.input_dtype)


def to_numpy(tree: Any) -> Any:
    """Copy the arrays of a tree to this machine's memory."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def embed(
    model: FrozenModel,
    examples: Examples,
    normalise: tuple[np.ndarray, np.ndarray],
    batch: int,
    heartbeat: Callable[[], None] = lambda: None,
) -> Embeddings:
    """Compute a model's outputs for all examples.

    Each process computes its part of every batch, on all its devices, and gets all outputs.

    Args:
      model: the model.
      examples: the examples.
      normalise: (mean, std) of each channel.
      batch: how many examples are computed at a time, rounded up to the number of devices.
      heartbeat: called after each batch; an exception it raises ends the computation.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    mesh = Mesh(np.array(devices), ("rows",))
    weights = jax.device_put((model.parameters, model.statistics), NamedSharding(mesh, P()))
    positions, features, logits = [], [], []
    count = len(devices) * processes
    for chosen, inputs in _batches(examples, normalise, batch, count):
        rows = jax.device_put(inputs, NamedSharding(mesh, P("rows")))
        output = jitted_outputs(model.function, *weights, rows)
        arrays = to_numpy((output.features, output.logits))
        if processes > 1:
            arrays = multihost_utils.process_allgather(arrays, tiled=True)
        positions.append(chosen)
        features.append(arrays[0][: len(chosen)])
        logits.append(None if arrays[1] is None else arrays[1][: len(chosen)])
        heartbeat()
    order = np.argsort(np.concatenate(positions))
    scores = None if logits[0] is None else np.concatenate(logits)[order]
    return Embeddings(np.concatenate(features)[order], scores)


def _batches(
    examples: Examples, normalise: Any, batch: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the positions of examples, and this process's part of them as the model gets them.

    Texts of similar length come together, so that little of a batch is padding.
    """
    index, processes = jax.process_index(), jax.process_count()
    if isinstance(examples.store, Tokens):
        for chosen, tokens in length_batches(examples.store, examples.rows, batch * TOKENS, count):
            share = len(tokens) // processes
            yield chosen, tokens[index * share :][:share]
        return
    n = len(examples)
    batch = -(-min(batch, n) // count) * count
    part = {"process_index": index, "process_count": processes}
    batches = evaluation_batches(examples, batch=batch, normalise=normalise, **part)
    for number, rows in enumerate(batches):
        yield np.arange(n)[number * batch :][:batch], rows["image"]


def features_of_all(model: FrozenModel, dataset: Dataset, batch: int) -> dict[str, np.ndarray]:
    """Compute a model's features for every part of a data set."""
    return {part: output.features for part, output in embed_all(model, dataset, batch).items()}


def embed_all(model: FrozenModel, dataset: Dataset, batch: int) -> dict[str, Embeddings]:
    """Compute a model's outputs for every part of a data set."""
    return {
        part: embed(model, examples, dataset.normalise, batch)
        for part, examples in dataset.parts.items()
    }
