"""The losses that a config can name, and what each is given."""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from pcjax import losses

_GIVEN = ("logits", "student", "teacher", "labels", "where", "axis_name", "reduce_fn", "references")


class Term(NamedTuple):
    """A loss, and what of the student's and the teacher's output it compares."""

    function: Callable[..., Array]
    inputs: Literal["features", "logits", "labels"]
    arguments: tuple[str, ...]  # that a config may set
    required: tuple[str, ...] = ()  # those among them that have no default
    labelled: bool = False
    banked: bool = False


def _term(function: Callable[..., Array], inputs: Literal["features", "logits", "labels"]) -> Term:
    takes: Any = inspect.signature(function).parameters
    arguments = tuple(name for name in takes if name not in _GIVEN)
    required = tuple(name for name in arguments if takes[name].default is inspect.Parameter.empty)
    return Term(function, inputs, arguments, required, "labels" in takes, "references" in takes)


def cross_entropy(
    logits: Float[Array, "n classes"],
    *,
    labels: Int[Array, "n"],
    where: Array,
    axis_name: str | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The classes' negative log-likelihood; examples whose label is negative do not count."""
    where = where & (labels >= 0)
    targets = optax.smooth_labels(jnp.eye(logits.shape[1])[jnp.maximum(labels, 0)], label_smoothing)
    values = jnp.where(where, optax.softmax_cross_entropy(logits, targets), 0)
    count = jnp.sum(where).astype(values.dtype)
    # The mean over the devices of these is the mean over the whole batch.
    count = count if axis_name is None else lax.pmean(count, axis_name)
    return jnp.sum(values) / jnp.maximum(count, 1e-6)


_FEATURES = (
    losses.perception_coherence,
    losses.spearman,
    losses.rkd_distance,
    losses.rkd_angle,
    losses.similarity_preserving,
    losses.pkt,
    losses.correlation_congruence,
    losses.darkrank_hard,
    losses.darkrank_soft,
    losses.pairwise_ranking,
    losses.cka,
    losses.info_nce,
    losses.hint,
    losses.embed_distill,
    losses.procrustes,
    losses.locality_preserving,
)
_LOGITS = (losses.kd, losses.dkd, losses.dist)

TERMS: dict[str, Term] = {
    **{function.__name__: _term(function, "features") for function in _FEATURES},
    **{function.__name__: _term(function, "logits") for function in _LOGITS},
    "cross_entropy": _term(cross_entropy, "labels"),
}
