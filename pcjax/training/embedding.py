"""A frozen model, and what it says of a data set."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcjax.data import Dataset, Examples, evaluation_batches
from pcjax.models import Output
from pcjax.models.functional import Arrays, Functional
from pcjax.training.arrays import digest
from pcjax.training.stopping import Watchdog


class Frozen(NamedTuple):
    """A model that no longer changes."""

    function: Functional
    parameters: Arrays
    statistics: Arrays

    def output(self, images: jax.Array) -> Output:
        """What it says of a batch, in evaluation mode."""
        return self.function.apply(self.parameters, self.statistics, images, train=False)[0]

    @property
    def arrays(self) -> tuple[Arrays, Arrays]:
        """All that it has."""
        return self.parameters, self.statistics

    @property
    def digest(self) -> str:
        """By which it is known."""
        return digest_of(self.arrays)

    def parameter_count(self) -> int:
        """How many numbers were learnt."""
        return sum(int(np.prod(x.shape)) for x in self.parameters.values())

    def size(self) -> int:
        """How many bytes its parameters and statistics take as they are stored."""
        return sum(int(x.nbytes) for x in (*self.parameters.values(), *self.statistics.values()))

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations for one example, as XLA counts them."""
        one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        cost = outputs.lower(self.function, self.parameters, self.statistics, one).cost_analysis()
        return int(dict(cost or {}).get("flops", 0))


def digest_of(arrays: Any) -> str:
    """One digest of them all."""
    leaves = jax.tree.leaves(host(arrays))
    return hashlib.blake2b("".join(map(digest, leaves)).encode(), digest_size=16).hexdigest()


def host(tree: Any) -> Any:
    """The values on this machine."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


@functools.partial(jax.jit, static_argnums=0)
def outputs(
    function: Functional, parameters: Arrays, statistics: Arrays, images: jax.Array
) -> Output:
    """What a model says of a batch; compiled once for equal models."""
    return function.apply(parameters, statistics, images, train=False)[0]._replace(maps={})


class Said(NamedTuple):
    """What a model says of all examples of a split."""

    features: np.ndarray
    logits: np.ndarray | None


def represent(
    model: Frozen,
    examples: Examples,
    normalise: tuple[np.ndarray, np.ndarray],
    batch: int,
    between: Callable[[], None] = lambda: None,
) -> Said:
    """Features and class scores of all examples, in their order.

    In a job of several processes each of them looks at its part of every batch, and all get what all have found.
    What is called between batches may raise, to end it.
    """
    devices, processes = jax.local_devices(), jax.process_count()
    together = len(devices) * processes
    batch = -(-batch // together) * together
    mesh = Mesh(np.array(devices), ("rows",))
    parameters, statistics = jax.device_put(
        (model.parameters, model.statistics), NamedSharding(mesh, P())
    )
    features, logits = [], []
    part = {"process_index": jax.process_index(), "process_count": processes}
    with Watchdog("what a model says", each="batch") as watchdog:
        for given in evaluation_batches(examples, batch=batch, normalise=normalise, **part):
            images = jax.device_put(given["image"], NamedSharding(mesh, P("rows")))
            output = outputs(model.function, parameters, statistics, images)
            found = (
                np.asarray(output.features),
                None if output.logits is None else np.asarray(output.logits),
            )
            if processes > 1:
                found = multihost_utils.process_allgather(found, tiled=True)
            features.append(found[0])
            logits.append(found[1])
            watchdog.beat(len(features))
            between()
    n = len(examples)
    return Said(
        np.concatenate(features)[:n], None if logits[0] is None else np.concatenate(logits)[:n]
    )


def represent_all(
    model: Frozen, data: Dataset, normalise: tuple[np.ndarray, np.ndarray], batch: int
) -> Mapping[str, Said]:
    """The same for every part."""
    return {
        part: represent(model, examples, normalise, batch) for part, examples in data.parts.items()
    }
