"""Models of other kinds, a Linen module or a plain function, as teachers and students like any of ours."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import meta, unfreeze
from jaxtyping import Array, PyTree

from pcjax import _checks
from pcjax.models.parts import Output

# (params, batch statistics, x, whether training) -> (what the model returns, batch statistics)
Apply = Callable[[Any, Any, Array, bool], tuple[Any, Any]]


class Foreign(nnx.Module):
    """A model kept as a function of its variables: parameters as `nnx.Param`, batch statistics as `nnx.BatchStat`.

    `train()` and `eval()` choose the mode; it starts in training's, as all NNX modules do. Made by `from_linen` and
    `from_function`.
    """

    def __init__(self, apply: Apply, params: PyTree, statistics: PyTree):
        for path, leaf in jax.tree.leaves_with_path(params):
            name, dtype = jax.tree_util.keystr(path), jnp.result_type(leaf)
            message = f"got parameter {name} of dtype {dtype}: expected floating-point numbers, which can be trained; "
            _checks.require(
                jnp.issubdtype(dtype, jnp.floating),
                message + "let the function hold others by itself",
            )
        self.apply = apply
        self.params = nnx.data(jax.tree.map(lambda leaf: nnx.Param(jnp.asarray(leaf)), params))
        self.statistics = nnx.data(
            jax.tree.map(lambda leaf: nnx.BatchStat(jnp.asarray(leaf)), statistics)
        )
        # The names that nnx's own train() and eval() look for.
        self.use_running_average = False

    def __call__(self, x: Array) -> Output:
        """What the model says of a batch; in training its batch statistics move."""
        params, statistics = _values(self.params), _values(self.statistics)
        result, statistics = self.apply(params, statistics, x, not self.use_running_average)
        if not self.use_running_average:
            jax.tree.map(
                lambda kept, new: kept.set_value(new),
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
    """A Linen module and its variables as an NNX module called like ours.

    In training the module is applied with its batch statistics mutable, and they are kept. A module that asks for
    random numbers while training (dropout) is not served: train it in Linen, and bring it here to be a teacher.

    Args:
      module: called as module(x) -> features (n, d), or `Output`.
      variables: {"params": ...} and, if it has any, {"batch_stats": ...}.
      training: keyword arguments that tell the module that it trains, such as {"train": True}.
      evaluation: those that tell it that it does not, such as {"train": False}.
      method: what to call instead of the module, by name or as a function of (module, x): the one that returns
        features, or that makes an `Output` of what the module's parts return.

    Returns:
      An NNX module x -> Output with `nnx.Param` and `nnx.BatchStat` variables.

    >>> linen = nn.Dense(4)
    >>> model = from_linen(linen, linen.init(jax.random.key(0), jnp.ones((1, 3))))
    >>> model(jnp.ones((2, 3))).features.shape
    (2, 4)
    """
    collections = {name: unfreeze(value) for name, value in meta.unbox(variables).items()}
    unknown = sorted(set(collections) - {"params", "batch_stats"})
    message = f"got variables with the collections {', '.join(map(repr, sorted(collections)))}: expected 'params' and "
    advice = "perhaps 'batch_stats'; give a model with others to from_function, as a function that holds them"
    _checks.require("params" in collections and not unknown, message + advice)
    training, evaluation = dict(training or {}), dict(evaluation or {})

    def apply(params: PyTree, statistics: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        given = {"params": params, "batch_stats": statistics} if statistics else {"params": params}
        if not (train and statistics):
            return module.apply(
                given, x, method=method, **(training if train else evaluation)
            ), statistics
        result, changed = module.apply(given, x, method=method, mutable=["batch_stats"], **training)
        return result, unfreeze(changed)["batch_stats"]

    return Foreign(apply, collections["params"], collections.get("batch_stats", {}))


def from_function(function: Callable[[Any, Array], Array | Output], params: PyTree) -> Foreign:
    """A function of parameters and a batch as an NNX module called like ours, the same in training and evaluation.

    Args:
      function: (params, x) -> features (n, d), or `Output`.
      params: any tree of floating-point arrays; an empty one, {}, for a function without parameters.

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
    kind = f"got {type(output.features).__name__} from the model"
    _checks.require(
        isinstance(output.features, jax.Array),
        f"{kind}: expected features (n, d) or pcjax.models.Output",
    )
    _checks.require_features("features", output.features)
    logits = None if output.logits is None else _checks.at_least_float32(output.logits)
    return Output(_checks.at_least_float32(output.features), logits, output.maps)
