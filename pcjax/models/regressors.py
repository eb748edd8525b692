"""Learnable heads that single losses ask for: on feature maps, with a variance, orthogonal, prototypes.

They are trained with the student and not needed afterwards. All of them compute in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from pcjax import _checks
from pcjax.models.parts import batch_norm


class ConvRegressor(nnx.Module):
    """From the student's maps to maps of the teacher's shape: a convolution, batch normalisation and a ReLU.

    The head of FitNets (`pcjax.losses.hint`). The convolution is 3 x 3 of stride 2 where the student's maps are twice
    as large as the teacher's, a transposed one, 4 x 4 of stride 2, where they are half as large, and else one without
    padding that is as large as it takes. Its running statistics belong in the checkpoint.

    Args:
      student: (height, width, channels) of the student's maps.
      teacher: (height, width, channels) of the teacher's.
      axis_name: mapped axis over which batch normalisation sees the whole batch.
      rngs: for the initial weights.

    >>> head = ConvRegressor((8, 8, 3), (4, 4, 16), rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 8, 8, 3))).shape
    (2, 4, 4, 16)
    """

    def __init__(
        self,
        student: tuple[int, int, int],
        teacher: tuple[int, int, int],
        *,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        for shape in (student, teacher):
            _checks.require(
                len(shape) == 3, f"got maps of shape {shape}: expected (height, width, channels)"
            )
            for size in shape:
                _checks.require_whole("size", size, 1, context=f" in maps of shape {shape}")
        inputs, outputs, (h, w), (th, tw) = student[2], teacher[2], student[:2], teacher[:2]
        weights = {"use_bias": False, "rngs": rngs}
        if (h, w) == (2 * th, 2 * tw):
            self.conv = nnx.Conv(inputs, outputs, (3, 3), strides=2, padding=1, **weights)
        elif (2 * h, 2 * w) == (th, tw):
            self.conv = nnx.ConvTranspose(
                inputs, outputs, (4, 4), strides=2, padding="SAME", **weights
            )
        else:
            got = f"got maps {student} of the student and {teacher} of the teacher"
            fits = h >= th and w >= tw
            _checks.require(
                fits,
                f"{got}: expected the student's to be half as large, or no smaller; choose others",
            )
            self.conv = nnx.Conv(
                inputs, outputs, (1 + h - th, 1 + w - tw), padding="VALID", **weights
            )
        self.norm = batch_norm(outputs, dtype=jnp.float32, axis_name=axis_name, rngs=rngs)
        self.shape = tuple(student)

    def __call__(self, maps: Float[Array, "n h w c"]) -> Float[Array, "n a b k"]:
        """The maps in the teacher's shape."""
        return nnx.relu(self.norm(self.conv(_enter(maps, self.shape))))


class VariationalRegressor(nnx.Module):
    """The mean and the variance of the teacher's maps, predicted from the student's.

    The head of variational information distillation (`pcjax.losses.variational_information`): three 1 x 1 convolutions
    with ReLUs between them for the mean, and one variance for each of the teacher's channels, softplus(a) + 1e-5, which
    is a parameter and begins at 5. Features without positions, (n, c), are taken as well.

    Args:
      inputs: the student's channels.
      outputs: the teacher's.
      hidden: channels between the convolutions; the teacher's unless given.
      rngs: for the initial weights.

    >>> mean, variance = VariationalRegressor(3, 16, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 4, 3)))
    >>> mean.shape, variance.shape, round(variance[0].item(), 4)
    ((2, 4, 4, 16), (16,), 5.0)
    """

    def __init__(self, inputs: int, outputs: int, *, hidden: int | None = None, rngs: nnx.Rngs):
        hidden = outputs if hidden is None else hidden
        for channels in (inputs, outputs, hidden):
            _checks.require_whole("channels", channels, 1)
        self.first = nnx.Linear(inputs, hidden, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)
        self.third = nnx.Linear(hidden, outputs, use_bias=False, rngs=rngs)
        self.raw_variance = nnx.Param(jnp.full(outputs, math.log(math.expm1(5.0 - 1e-5))))

    def __call__(
        self, maps: Float[Array, "n *hw c"]
    ) -> tuple[Float[Array, "n *hw k"], Float[Array, "k"]]:
        """The mean, at every position, and the variance."""
        maps = _enter(maps, (*maps.shape[1:-1], self.first.in_features))
        mean = self.third(nnx.relu(self.second(nnx.relu(self.first(maps)))))
        return mean, jax.nn.softplus(self.raw_variance[...]) + 1e-5


class OrthogonalProjection(nnx.Module):
    """A linear map without bias that is orthogonal whatever its parameters are: x Q^T, or x Q into fewer dimensions.

    The head of `pcjax.losses.orthogonal_projection`. Q, with orthonormal columns, is the first factor of the QR
    decomposition of the parameters, with a positive diagonal in the second. Into more dimensions it keeps all lengths
    and angles.

    Args:
      inputs: dimension of the features that come in.
      outputs: dimension of those that go out.
      rngs: for the initial weights.

    >>> head = OrthogonalProjection(2, 5, rngs=nnx.Rngs(0))
    >>> x = jnp.array([[3.0, 4.0]])
    >>> round(jnp.linalg.norm(head(x)).item(), 4)
    5.0
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        _checks.require_whole("dimension", inputs, 1, context=" of what comes in")
        _checks.require_whole("dimension", outputs, 1, context=" of what goes out")
        shape = max(inputs, outputs), min(inputs, outputs)
        self.parameters = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.inputs, self.outputs = inputs, outputs

    def __call__(self, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """The features in their new dimension."""
        features = _enter(features, (self.inputs,))
        q, r = jnp.linalg.qr(self.parameters[...])
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
        return jnp.matmul(
            features, q if self.inputs > self.outputs else q.T, precision=lax.Precision.HIGHEST
        )


class Prototypes(nnx.Module):
    """Points in the space of patches; called with maps, the squared distance of every patch to each of them.

    As in networks of prototypes (`pcjax.losses.proto2proto`, to which `head.points[...]` goes), initially uniform in
    the unit cube.

    Args:
      count: how many prototypes.
      features: of a patch.
      rngs: for the initial points.

    >>> head = Prototypes(10, 3, rngs=nnx.Rngs(0))
    >>> head(jnp.ones((2, 4, 4, 3))).shape
    (2, 4, 4, 10)
    """

    def __init__(self, count: int, features: int, *, rngs: nnx.Rngs):
        _checks.require_whole("count", count, 1)
        _checks.require_whole("features", features, 1)
        self.points = nnx.Param(jax.random.uniform(rngs.params(), (count, features)))

    def __call__(self, maps: Float[Array, "n h w d"]) -> Float[Array, "n h w k"]:
        """The squared distance of every patch to every prototype."""
        points = self.points[...]
        maps = _enter(maps, (*maps.shape[1:-1], points.shape[1]))
        product = jnp.matmul(maps, points.T, precision=lax.Precision.HIGHEST)
        lengths = jnp.sum(maps**2, axis=-1, keepdims=True) + jnp.sum(points**2, axis=-1)
        return jnp.maximum(lengths - 2 * product, 0)


def _enter(x: Array, shape: tuple[int, ...]) -> Array:
    fits = len(x.shape) == 1 + len(shape) >= 2 and x.shape[1:] == shape
    _checks.require(
        fits, f"got a batch of shape {x.shape}: this head was built for examples of shape {shape}"
    )
    return _checks.at_least_float32(x)
