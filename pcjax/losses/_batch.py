"""The steps that all losses but the flagship share: check, gather from all devices, reduce.

batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
points = batch.points()                                       # the examples of all devices
values = points.mean(compare(batch.student, points.student))  # one for each example of this device
return batch.reduced(values)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.losses._inputs import (
    axis_size,
    require_pair,
    require_reduction,
    require_where,
    without_masked,
)


class Points(NamedTuple):
    """The examples of all devices, with which each device compares its own."""

    student: Float[Array, "m ds"]
    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"]

    def mean(self, x: Float[Array, "... m"]) -> Float[Array, "..."]:
        """Average the last axis over the valid points; 0 if there are none."""
        return jnp.sum(jnp.where(self.valid, x, 0), axis=-1) / jnp.maximum(jnp.sum(self.valid), 1)


@dataclasses.dataclass(frozen=True)
class Batch:
    """One device's examples: checked, at least float32, the teacher without gradient.

    Masked rows hold the mean of the others, so that their contents cannot matter or be NaN. They
    must still be left out wherever points are counted.
    """

    student: Float[Array, "n ds"]
    teacher: Float[Array, "n dt"]
    valid: Bool[Array, "n"]
    masked: bool  # False without `where`
    axis_name: Any
    reduce_fn: Callable[..., Array] | None

    @classmethod
    def of(
        cls,
        student: ArrayLike,
        teacher: ArrayLike,
        *,
        where: ArrayLike | None,
        axis_name: Any,
        reduce_fn: Callable[..., Array] | None,
        min_examples: int = 1,
        same_width: str | None = None,
        whole: str | None = None,
    ) -> "Batch":
        """Check a loss's inputs and build its batch.

        Args:
          student: (n, ds).
          teacher: (n, dt).
          where: (n,) booleans or None.
          axis_name: mapped axis over which the batch is split, or None.
          reduce_fn: as every loss takes it.
          min_examples: number of examples the loss needs, on all devices together.
          same_width: the remedy where ds = dt is needed and does not hold.
          whole: name of a loss that is no mean over examples; `reduce_fn` must then be jnp.mean.

        Returns:
          The batch.
        """
        require_pair(student, teacher, same_width)
        n = np.shape(student)[0]
        require_where(where, n)
        require_reduction(reduce_fn)
        if whole is not None and reduce_fn is not jnp.mean:
            name = getattr(reduce_fn, "__name__", reduce_fn)
            raise RequestError(
                f"got reduce_fn {name}, but {whole} has no value per example: leave reduce_fn out"
            )
        total = n * axis_size(axis_name)
        if total < min_examples:
            raise RequestError(
                f"got {total} example{'s' * (total != 1)}: expected at least {min_examples}, "
                "give a larger batch"
            )
        both = [_checks.at_least_float32(x) for x in (student, teacher)]
        student, teacher = (x.astype(jnp.result_type(*both)) for x in both)
        # Zeros of both models carry both models' device axes: under shard_map, all gathered
        # arrays must share them.
        zero = jnp.zeros_like(jnp.sum(student)) + jnp.zeros_like(jnp.sum(teacher))
        student, teacher = student + zero, lax.stop_gradient(teacher + zero)
        if where is None:
            return cls(student, teacher, jnp.ones(n, bool), False, axis_name, reduce_fn)
        valid = jnp.asarray(where, bool)
        student, teacher = (without_masked(x, valid, axis_name) for x in (student, teacher))
        return cls(student, teacher, valid, True, axis_name, reduce_fn)

    def gather(self, x: Array) -> Array:
        """Gather the rows of all devices; gradients flow back to each row's device."""
        return (
            x if self.axis_name is None else lax.all_gather(x, self.axis_name, axis=0, tiled=True)
        )

    def points(self) -> Points:
        """Gather the examples of all devices, this device's among them."""
        return Points(*(self.gather(x) for x in (self.student, self.teacher, self.valid)))

    @functools.cached_property
    def positions(self) -> Int[Array, "n"]:
        """Return the positions of this device's examples among the points."""
        n, axis = self.student.shape[0], self.axis_name
        return (0 if axis is None else lax.axis_index(axis) * n) + jnp.arange(n)

    def others(self, points: Points) -> Bool[Array, "n m"]:
        """Return the points that each example is compared with: the valid ones, except itself."""
        return points.valid & (jnp.arange(points.valid.shape[0]) != self.positions[:, None])

    def total(self, x: Array) -> Array:
        """Sum over the valid rows of all devices."""
        rows = self.valid.reshape(-1, *(1,) * (x.ndim - 1))
        total = jnp.sum(jnp.where(rows, x, 0), axis=0)
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    @functools.cached_property
    def count(self) -> Float[Array, ""]:
        """Count the valid examples of all devices; 1 if there are none, as it divides."""
        return jnp.maximum(self.total(self.valid.astype(self.student.dtype)), 1)

    @property
    def factor(self) -> Any:
        """Return the factor of the sum over valid examples, for means and sums; else None."""
        factors = {
            jnp.mean: axis_size(self.axis_name) / self.count,
            jnp.sum: axis_size(self.axis_name),
        }
        return factors.get(self.reduce_fn)

    def reduced(self, values: Float[Array, "n"]) -> Array:
        """Reduce per-example values, so that the mean over devices is that of the whole batch."""
        # A NaN teacher shows even where comparisons, which are False, would hide it.
        values = jnp.where(jnp.any(jnp.isnan(self.teacher), axis=1), jnp.nan, values)
        values = jnp.where(self.valid, values, 0).astype(self.student.dtype)
        if self.reduce_fn is None:
            return values
        if self.factor is not None:
            return jnp.sum(values) * self.factor
        return self.reduce_fn(values, where=self.valid) if self.masked else self.reduce_fn(values)

    def whole(self, value: Float[Array, ""]) -> Float[Array, ""]:
        """Return one value of the whole batch, which every device knows."""
        value = jnp.where(self.total(self.valid.astype(int)) > 0, value, 0).astype(
            self.student.dtype
        )
        # Make the value vary by device: gradients that are averaged later are only then right.
        return value + jnp.zeros_like(jnp.sum(self.student))


def embeddings(
    student: ArrayLike, teacher: ArrayLike, teacher_gradient: bool, **options: Any
) -> Batch:
    """Return the batch of a loss that compares two embeddings with one another."""
    batch = Batch.of(student, teacher, same_width="give one of them a linear head", **options)
    if not teacher_gradient:
        return batch
    return dataclasses.replace(batch, teacher=Batch.of(teacher, student, **options).student)


def require_number(what: str, value: Any, zero: bool = False) -> Float[Array, ""]:
    """Refuse anything but one positive, finite number (or 0 if allowed); return it as an array."""
    if np.shape(value) != ():
        raise RequestError(f"got {what} of shape {np.shape(value)}: expected one number")
    known_zero = (
        zero and not isinstance(value, (Tracer, str, bool)) and value is not None and value == 0
    )
    if not known_zero:
        _checks.require_positive(what, value)
    return jnp.asarray(value, float if isinstance(value, int) else None)


def norms(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Compute lengths along an axis, which is kept; gradient 0 at length 0, no overflow."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    scale = jnp.where(largest == 0, 1, largest)
    squares = jnp.sum((x / scale) ** 2, axis=axis, keepdims=True)
    # With one `where` alone the gradient would be 0 * inf.
    return scale * jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Divide vectors along an axis by their lengths; length 0 stays as it is, without gradient."""
    length = norms(x, axis)
    return jnp.where(length == 0, 0, x / jnp.where(length == 0, 1, length))


def products(x: Float[Array, "... n d"], y: Float[Array, "... m d"]) -> Float[Array, "... n m"]:
    """Compute inner products of all rows in full precision, on matrix units too."""
    return jnp.matmul(x, y.mT, precision=lax.Precision.HIGHEST)


def huber(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute x^2 / 2 up to |x| = 1, |x| - 1/2 beyond."""
    size = jnp.abs(x)
    return jnp.where(size <= 1, x * x / 2, size - 0.5)


def divergence(log_p: Float[Array, "... c"], log_q: Float[Array, "... c"]) -> Float[Array, "..."]:
    """Compute KL(p || q) along the last axis; entries with p = 0 count nothing."""
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), axis=-1)
