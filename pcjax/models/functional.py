"""An NNX module as a pure function of named arrays, for train steps, checkpoints and exports."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

Arrays = dict[str, Array]  # by path, "blocks/0/conv/kernel"


class _Names(NamedTuple):
    """Paths of a tree's leaves, and the tree's structure."""

    paths: tuple[str, ...]
    tree: Any

    def gather(self, arrays: Mapping[str, Array]) -> Any:
        return jax.tree.unflatten(self.tree, [arrays[path] for path in self.paths])


class Functional(NamedTuple):
    """A module without its arrays; hashable, and equal for equal modules: static under jit."""

    graph: Any
    parameters: _Names
    statistics: _Names

    def module(self, parameters: Mapping[str, Array], statistics: Mapping[str, Array]) -> Any:
        """Return the module with these arrays."""
        return nnx.merge(
            self.graph, self.parameters.gather(parameters), self.statistics.gather(statistics)
        )

    def apply(
        self, parameters: Mapping[str, Array], statistics: Mapping[str, Array], x: Any, train: bool
    ) -> Any:
        """Compute the module's output and its statistics afterwards."""
        module = self.module(parameters, statistics)
        module.train() if train else module.eval()
        output = module(x)
        return output, _flat(nnx.split(module, nnx.Param, ...)[2])[1]


def functional(build: Callable[[Any], nnx.Module], seed: int) -> tuple[Functional, Arrays, Arrays]:
    """Return the function, the parameters and the statistics of the module `build(seed)`.

    The weights are computed in one compiled program, which other seeds share where `build` is the
    same object.
    """
    values = _initialiser(build)
    function = functional_shapes(build)[0]
    return function, *values(np.uint32(seed))


def functional_shapes(build: Callable[[Any], nnx.Module]) -> tuple[Functional, Any, Any]:
    """Return what `functional` returns, with shapes in place of arrays; compute nothing."""
    graph, *parts = nnx.split(nnx.eval_shape(lambda: build(0)), nnx.Param, ...)
    (parameters, parameter_shapes), (statistics, statistic_shapes) = map(_flat, parts)
    return Functional(graph, parameters, statistics), parameter_shapes, statistic_shapes


@functools.lru_cache(maxsize=64)
def _initialiser(build: Callable[[Any], nnx.Module]) -> Callable[[Any], tuple[Arrays, Arrays]]:
    @jax.jit
    def values(seed: Any) -> tuple[Arrays, Arrays]:
        _, parameters, statistics = nnx.split(build(seed), nnx.Param, ...)
        return _flat(parameters)[1], _flat(statistics)[1]

    return values


def _flat(state: Any) -> tuple[_Names, dict[str, Any]]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.as_pure(state))
    paths = tuple(
        "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        for path, _ in leaves
    )
    return _Names(paths, tree), dict(zip(paths, [leaf for _, leaf in leaves], strict=True))
