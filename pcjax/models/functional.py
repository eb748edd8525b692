"""An NNX module as a pure function of named arrays: what a train step, a checkpoint and an export want."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

Arrays = dict[str, Array]  # by path, "blocks/0/conv/kernel"


class _Names(NamedTuple):
    """The paths of a tree's leaves, and the tree to put them back into."""

    paths: tuple[str, ...]
    tree: Any

    def gather(self, arrays: Mapping[str, Array]) -> Any:
        return jax.tree.unflatten(self.tree, [arrays[path] for path in self.paths])


class Functional(NamedTuple):
    """`apply` computes what the module does; the same for equal modules, so that it may be static under jit."""

    graph: Any
    parameters: _Names
    statistics: _Names

    def apply(
        self, parameters: Mapping[str, Array], statistics: Mapping[str, Array], x: Any, train: bool
    ) -> Any:
        """The module's output, and its statistics afterwards."""
        module = nnx.merge(
            self.graph, self.parameters.gather(parameters), self.statistics.gather(statistics)
        )
        module.train() if train else module.eval()
        output = module(x)
        return output, _flat(nnx.split(module, nnx.Param, ...)[2])[1]


def functional(build: Callable[[], nnx.Module]) -> tuple[Functional, Arrays, Arrays]:
    """The function, the parameters and the statistics of the module that `build` builds; compiled as a whole."""

    @jax.jit
    def values() -> tuple[Arrays, Arrays]:
        _, parameters, statistics = nnx.split(build(), nnx.Param, ...)
        return _flat(parameters)[1], _flat(statistics)[1]

    return functional_shapes(build)[0], *values()


def functional_shapes(build: Callable[[], nnx.Module]) -> tuple[Functional, Arrays, Arrays]:
    """The same with only the shapes of the arrays, which costs nothing."""
    graph, *parts = nnx.split(nnx.eval_shape(build), nnx.Param, ...)
    (parameters, parameter_shapes), (statistics, statistic_shapes) = map(_flat, parts)
    return Functional(graph, parameters, statistics), parameter_shapes, statistic_shapes


def _flat(state: Any) -> tuple[_Names, dict[str, Any]]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(nnx.as_pure(state))
    paths = tuple(
        "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        for path, _ in leaves
    )
    return _Names(paths, tree), dict(zip(paths, [leaf for _, leaf in leaves], strict=True))
