"""Losses on feature maps (n, height, width, channels): active positions and active channels.

Where the maps' sizes differ, the larger map is averaged to the smaller size. For several layers,
add up their losses.
"""

from __future__ import annotations  # short signatures in help()

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._batch import Batch, norms, unit
from pcjax.losses.registry import Law, loss

FORMS = ("squared", "distance")


@loss(weight=1000.0, kinds=("maps",), law=Law(same_width=True))
def attention_transfer(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    form: str = "squared",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare where student and teacher are active (attention transfer).

    Let q be the map of the channels' mean squares, divided by its length. The loss is mean_i mean_p
    (q^student_ip - q^teacher_ip)^2 over positions p. The paper's form is the distance, mean_i
    |q^student_i - q^teacher_i|.

    Zagoruyko and Komodakis, "Paying More Attention to Attention" (arXiv:1612.03928). "squared" is
    the public code's form, with weight 1000. A weight of the other form differs by about the number
    of positions. Between different kinds of architecture this loss has been found to harm.

    Least 0, for a student equal to the teacher. The student's scale does not matter.

    Args:
      student: (n, hs, ws, cs) maps.
      teacher: (n, ht, wt, ct) maps of the same examples.
      form: "squared" or "distance".
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> left = jnp.zeros((1, 1, 2, 3)).at[:, :, 0].set(5.0)
    >>> right = jnp.zeros((1, 1, 2, 8)).at[:, :, 1].set(2.0)
    >>> print(pcjax.losses.attention_transfer(left, right))
    1.0
    >>> print(pcjax.losses.attention_transfer(left, 0 - left))
    0.0
    """
    _checks.require_name("form", form, FORMS)
    batch, student, teacher = _positions(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )

    def attention(maps: Array) -> Array:
        # In units of the largest entry, so that no square over- or underflows.
        largest = lax.stop_gradient(jnp.max(jnp.abs(maps), axis=(1, 2), keepdims=True))
        return unit(jnp.mean((maps / jnp.where(largest == 0, 1, largest)) ** 2, axis=2))

    difference = attention(student) - attention(teacher)
    return batch.reduced(
        jnp.mean(difference**2, axis=1) if form == "squared" else norms(difference)[:, 0]
    )


@loss(weight=50.0, kinds=("maps",), law=Law(same_width=True))
def neuron_selectivity(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    """Compare the sets of channels, as patterns of positions (neuron selectivity transfer).

    With f_c the map of channel c, divided by its length, and k(a, b) = (a.b)^2, the loss is the
    squared maximum mean discrepancy of the two sets of channels,

        mean_i [ mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(s_c, t_c') ].

    Channels in another order or of opposite sign have loss 0 too. Huang and Wang, "Like What You
    Like: Knowledge Distill via Neuron Selectivity Transfer" (arXiv:1707.01219), with the polynomial
    kernel; weight 50 in later comparisons.

    Least 0, for a student equal to the teacher. The student's scale does not matter.

    Args:
      student: (n, hs, ws, cs) maps.
      teacher: (n, ht, wt, ct) maps of the same examples.
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> maps = jnp.arange(12.0).reshape(1, 2, 2, 3)
    >>> print(abs(pcjax.losses.neuron_selectivity(maps, -7 * maps[..., ::-1]).round(4)))
    0.0
    """
    batch, student, teacher = _positions(
        student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn
    )
    s, t = unit(student, axis=1), unit(teacher, axis=1)

    def kernel(a: Array, b: Array) -> Array:
        return jnp.mean(
            jnp.einsum("npc,npd->ncd", a, b, precision=lax.Precision.HIGHEST) ** 2, axis=(1, 2)
        )

    return batch.reduced(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))


def _positions(
    student: ArrayLike, teacher: ArrayLike, **options: Any
) -> tuple[Batch, Array, Array]:
    """Build the batch, and both models' maps at one size as (n, positions, channels)."""
    shapes = np.shape(student), np.shape(teacher)
    for name, shape in zip(("student", "teacher"), shapes, strict=True):
        if len(shape) != 4:
            raise RequestError(
                f"got {name} {shape}: expected maps (examples, height, width, channels)"
            )
        if min(shape[1:]) <= 0:
            raise RequestError(
                f"got {name} {shape}: expected at least one position and one channel"
            )
    if shapes[0][0] != shapes[1][0]:
        raise RequestError(
            f"got student {shapes[0]} and teacher {shapes[1]}: both need one map per example"
        )
    _checks.require_real("student", student)
    _checks.require_real("teacher", teacher)
    size = min(shapes[0][1], shapes[1][1]), min(shapes[0][2], shapes[1][2])
    maps = [_averaged(_checks.at_least_float32(x), size) for x in (student, teacher)]
    batch = Batch.of(*(x.reshape(x.shape[0], -1) for x in maps), **options)
    both = zip((batch.student, batch.teacher), maps, strict=True)
    student, teacher = (rows.reshape(rows.shape[0], -1, x.shape[3]) for rows, x in both)
    return batch, student, teacher


def _averaged(maps: Float[Array, "n h w c"], size: tuple[int, int]) -> Float[Array, "n a b c"]:
    """Average maps over a coarser grid, whose cells overlap where the sizes do not divide."""
    for axis, (old, new) in enumerate(zip(maps.shape[1:3], size, strict=True), start=1):
        if old == new:
            continue
        cells, position = np.arange(new)[:, None], np.arange(old)
        first, end = cells * old // new, -(-(cells + 1) * old // new)
        inside = (position >= first) & (position < end)
        means = jnp.asarray(inside / inside.sum(axis=1, keepdims=True), maps.dtype)
        maps = jnp.moveaxis(
            jnp.tensordot(means, maps, axes=(1, axis), precision=lax.Precision.HIGHEST), 0, axis
        )
    return maps
