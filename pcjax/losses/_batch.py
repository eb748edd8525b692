"""What every loss but the flagship does alike: look at its inputs, see the other devices' examples, reduce its values.

batch = Batch.of(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
points = batch.points()                                       # the examples of all devices
values = points.mean(compare(batch.student, points.student))  # one value for each of this device's examples
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
from pcjax.losses.perception import _axis_size, _without_masked


class Points(NamedTuple):
    """The examples of all devices, which each device compares its own with."""

    student: Float[Array, "m ds"]
    teacher: Float[Array, "m dt"]
    valid: Bool[Array, "m"]

    def mean(self, x: Float[Array, "... m"]) -> Float[Array, "..."]:
        """Mean of the last axis over the valid points; 0 if there are none."""
        return jnp.sum(jnp.where(self.valid, x, 0), axis=-1) / jnp.maximum(jnp.sum(self.valid), 1)


@dataclasses.dataclass(frozen=True)
class Batch:
    """One device's examples: checked, in one dtype of at least float32, the teacher without gradient.

    In place of what is masked stands the mean of the other rows, so that nothing it held can matter or be NaN; it still
    has to be left out wherever points are counted.
    """

    student: Float[Array, "n ds"]
    teacher: Float[Array, "n dt"]
    valid: Bool[Array, "n"]
    masked: bool  # whether there was a mask at all
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
        least: int = 1,
        same: str | None = None,
        whole: str | None = None,
    ) -> "Batch":
        """The batch of a loss.

        Args:
          student: (n, ds).
          teacher: (n, dt).
          where: (n,) booleans or None.
          axis_name: mapped axis over which the batch is split, or None.
          reduce_fn: as every loss takes it.
          least: how many examples the loss needs, on all devices together.
          same: if ds = dt is needed, what to do about it where it does not hold.
          whole: if the loss is no mean over examples, what it is; `reduce_fn` must then be jnp.mean.

        Returns:
          The batch; whatever cannot be served has been refused.
        """
        _checks.require_features("student", student)
        _checks.require_features("teacher", teacher)
        shapes = np.shape(student), np.shape(teacher)
        n, got = shapes[0][0], f"got student {shapes[0]} and teacher {shapes[1]}"
        _checks.require(n == shapes[1][0], f"{got}: both need one row per example")
        if same is not None:
            _checks.require(
                shapes[0][1] == shapes[1][1], f"{got}: expected as many columns in both, {same}"
            )
        if where is not None:
            _checks.require_mask(where)
            _checks.require(
                np.shape(where) == (n,), f"got where of shape {np.shape(where)}: expected ({n},)"
            )
        _checks.require(
            reduce_fn is None or callable(reduce_fn),
            f"got reduce_fn {reduce_fn!r}: expected a function",
        )
        if whole is not None:
            got = f"got reduce_fn {getattr(reduce_fn, '__name__', reduce_fn)}, but {whole} has no value per example"
            _checks.require(reduce_fn is jnp.mean, f"{got}: leave reduce_fn out")
        total = n * _axis_size(axis_name)
        got = f"got {total} example" + ("" if total == 1 else "s")
        _checks.require(total >= least, f"{got}: expected at least {least}, give a larger batch")
        both = [_checks.at_least_float32(x) for x in (student, teacher)]
        student, teacher = (x.astype(jnp.result_type(*both)) for x in both)
        # Zeros of the features carry their device axes, which under shard_map all that is gathered must share.
        zero = jnp.zeros_like(jnp.sum(student)) + jnp.zeros_like(jnp.sum(teacher))
        student, teacher = student + zero, lax.stop_gradient(teacher + zero)
        if where is None:
            return cls(student, teacher, jnp.ones(n, bool), False, axis_name, reduce_fn)
        valid = jnp.asarray(where, bool)
        student, teacher = (_without_masked(x, valid, axis_name) for x in (student, teacher))
        return cls(student, teacher, valid, True, axis_name, reduce_fn)

    def gather(self, x: Array) -> Array:
        """The rows of all devices; gradients flow back to the device that each row is of."""
        return (
            x if self.axis_name is None else lax.all_gather(x, self.axis_name, axis=0, tiled=True)
        )

    def points(self) -> Points:
        """The examples of all devices, this device's among them."""
        return Points(*(self.gather(x) for x in (self.student, self.teacher, self.valid)))

    @functools.cached_property
    def places(self) -> Int[Array, "n"]:
        """Where among the points this device's examples are."""
        first = (
            0 if self.axis_name is None else lax.axis_index(self.axis_name) * self.student.shape[0]
        )
        return first + jnp.arange(self.student.shape[0])

    def others(self, points: Points) -> Bool[Array, "n m"]:
        """Which points each example is compared with, itself left out."""
        return points.valid & (jnp.arange(points.valid.shape[0]) != self.places[:, None])

    def total(self, x: Array) -> Array:
        """Sum over the valid rows of all devices."""
        rows = self.valid.reshape(-1, *(1,) * (x.ndim - 1))
        total = jnp.sum(jnp.where(rows, x, 0), axis=0)
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    @functools.cached_property
    def count(self) -> Float[Array, ""]:
        """How many examples of all devices are valid; 1 if none is, to divide by."""
        return jnp.maximum(self.total(self.valid.astype(self.student.dtype)), 1)

    def reduced(self, values: Float[Array, "n"]) -> Array:
        """What the loss returns: the mean over devices of means or sums is that of the whole batch."""
        # What a teacher that is not a number was only compared with would not show it.
        values = jnp.where(jnp.any(jnp.isnan(self.teacher), axis=1), jnp.nan, values)
        values = jnp.where(self.valid, values, 0).astype(self.student.dtype)
        if self.reduce_fn is None:
            return values
        if self.reduce_fn is jnp.mean:
            return jnp.sum(values) * (_axis_size(self.axis_name) / self.count)
        if self.reduce_fn is jnp.sum:
            return jnp.sum(values) * _axis_size(self.axis_name)
        return self.reduce_fn(values, where=self.valid) if self.masked else self.reduce_fn(values)

    def whole(self, value: Float[Array, ""]) -> Float[Array, ""]:
        """What a loss returns that is one number of the whole batch, known to every device."""
        value = jnp.where(self.total(self.valid.astype(int)) > 0, value, 0).astype(
            self.student.dtype
        )
        # Every device returns a number of its own: only then do gradients that are averaged later come out right.
        return value + jnp.zeros_like(jnp.sum(self.student))


def require_number(what: str, value: Any, zero: bool = False) -> Float[Array, ""]:
    """The value, which has to be one positive, finite number, or 0 if that is allowed."""
    _checks.require(
        np.shape(value) == (), f"got {what} of shape {np.shape(value)}: expected one number"
    )
    known_zero = (
        zero and not isinstance(value, (Tracer, str, bool)) and value is not None and value == 0
    )
    if not known_zero:
        _checks.require_positive(what, value)
    return jnp.asarray(value, float if isinstance(value, int) else None)


def norms(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Lengths along an axis, which is kept; the gradient at length 0 is 0, and no square overflows."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    scale = jnp.where(largest == 0, 1, largest)
    squares = jnp.sum((x / scale) ** 2, axis=axis, keepdims=True)
    # With one `where` alone the gradient would be 0 * inf.
    return scale * jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))


def unit(x: Float[Array, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Vectors of length 1 along an axis; those of length 0 stay as they are, without gradient."""
    length = norms(x, axis)
    return jnp.where(length == 0, 0, x / jnp.where(length == 0, 1, length))


def products(x: Float[Array, "... n d"], y: Float[Array, "... m d"]) -> Float[Array, "... n m"]:
    """Inner products of all rows, in full precision also where matrix units default to less."""
    return jnp.matmul(x, y.mT, precision=lax.Precision.HIGHEST)


def huber(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x^2 / 2 up to 1, |x| - 1/2 beyond."""
    size = jnp.abs(x)
    return jnp.where(size <= 1, x * x / 2, size - 0.5)


def divergence(log_p: Float[Array, "... c"], log_q: Float[Array, "... c"]) -> Float[Array, "..."]:
    """Kullback-Leibler divergence of q from p, along the last axis; what p excludes counts nothing."""
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), axis=-1)
