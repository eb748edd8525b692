"""Adapt Linen modules and plain functions to teachers and students like pcjax's own."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import meta, unfreeze
from jaxtyping import Array, PyTree

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import Output

# (params, batch statistics, x, train) -> (the model's output, batch statistics)
Apply = Callable[[Any, Any, Array, bool], tuple[Any, Any]]


class Foreign(nnx.Module):
    """A model as a function of `nnx.Param` parameters and `nnx.BatchStat` batch statistics.

    `from_linen` and `from_function` make it. `train()` and `eval()` choose the mode; like every NNX
    module it starts in training mode.
    """

    def __init__(self, apply: Apply, params: PyTree, statistics: PyTree):
        for path, leaf in jax.tree.leaves_with_path(params):
            name, dtype = jax.tree_util.keystr(path), jnp.result_type(leaf)
            if not jnp.issubdtype(dtype, jnp.floating):
                raise RequestError(
                    f"got parameter {name} of dtype {dtype}: expected floating-point numbers, "
                    "which can be trained; keep others inside the function"
                )
        self.apply = apply
        self.params = nnx.data(jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf)), params))
        self.statistics = nnx.data(
            jax.tree.map(lambda leaf: nnx.BatchStat(jnp.asarray(leaf)), statistics)
        )
        # nnx's train() and eval() set this attribute.
        self.use_running_average = False

    def __call__(self, x: Array) -> Output:
        """Compute the model's output; in training mode also update its batch statistics."""
        params, statistics = _values(self.params), _values(self.statistics)
        result, statistics = self.apply(params, statistics, x, not self.use_running_average)
        if not self.use_running_average:
            jax.tree.map(
                lambda variable, new: variable.set_value(new),
                self.statistics,
                statistics,
                is_leaf=_is_variable,
            )
        return _as_output(result)


def from_linen(
    module: nn.Module,
    variables: Mapping[str, Any],
    *,
    training: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    method: Callable[..., Any] | str | None = None,
) -> Foreign:
    """Turn a Linen module and its variables into an NNX module called like pcjax's own.

    In training mode the module's batch statistics are mutable, and the new ones are kept. Modules
    that need random numbers while training (dropout) are not supported: train such a module in
    Linen, and use it here as a teacher.

    Args:
      module: called as module(x) -> features (n, d), or `Output`.
      variables: {"params": ...} and, where the module has batch statistics, {"batch_stats": ...}.
      training: keyword arguments of a call in training mode, such as {"train": True}.
      evaluation: keyword arguments of a call in evaluation mode, such as {"train": False}.
      method: what to call in place of the module, by name or as a function of (module, x). It
        returns features or an `Output`.

    Returns:
      An NNX module x -> Output with `nnx.Param` and `nnx.BatchStat` variables.

    >>> linen = nn.Dense(4)
    >>> model = from_linen(linen, linen.init(jax.random.key(0), jnp.ones((1, 3))))
    >>> model(jnp.ones((2, 3))).features.shape
    (2, 4)
    """
    collections = {name: unfreeze(value) for name, value in meta.unbox(variables).items()}
    if not {"params"} <= collections.keys() <= {"params", "batch_stats"}:
        raise RequestError(
            "got variables with the collections "
            f"{', '.join(map(repr, sorted(collections)))}: expected 'params' and perhaps "
            "'batch_stats'; with others, use from_function and a function that holds them"
        )
    training, evaluation = dict(training or {}), dict(evaluation or {})

    def apply(params: PyTree, statistics: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        variables = {"params": params} | ({"batch_stats": statistics} if statistics else {})
        if not (train and statistics):
            options = training if train else evaluation
            return module.apply(variables, x, method=method, **options), statistics
        result, changed = module.apply(
            variables, x, method=method, mutable=["batch_stats"], **training
        )
        return result, unfreeze(changed)["batch_stats"]

    return Foreign(apply, collections["params"], collections.get("batch_stats", {}))


def from_function(function: Callable[[Any, Array], Array | Output], params: PyTree) -> Foreign:
    """Turn a function of parameters and a batch into an NNX module called like pcjax's own.

    It computes the same in training and evaluation mode.

    Args:
      function: (params, x) -> features (n, d), or `Output`.
      params: any tree of floating-point arrays; {} for a function without parameters.

    Returns:
      An NNX module x -> Output whose parameters are `nnx.Param`.

    >>> model = from_function(lambda params, x: x @ params["w"], {"w": jnp.ones((3, 4))})
    >>> model(jnp.ones((2, 3))).features.shape
    (2, 4)
    """

    def apply(params: PyTree, statistics: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        return function(params, x), statistics

    return Foreign(apply, params, {})


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _values(variables: PyTree) -> PyTree:
    return jax.tree.map(lambda variable: variable.get_value(), variables, is_leaf=_is_variable)


def _as_output(result: Any) -> Output:
    output = result if isinstance(result, Output) else Output(result, None, {})
    if not isinstance(output.features, jax.Array):
        raise RequestError(
            f"got {type(output.features).__name__} from the model: expected features (n, d) or "
            "pcjax.models.Output"
        )
    _checks.require_features("features", output.features)
    logits = None if output.logits is None else _checks.at_least_float32(output.logits)
    return Output(_checks.at_least_float32(output.features), logits, output.maps)
