"""Learnable heads of single losses: on feature maps, with a variance, orthogonal, prototypes.

They are trained with the student and not needed afterwards. All compute in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import batch_norm


class ConvRegressor(nnx.Module):
    """Convolution, batch normalisation and ReLU, from the student's maps to the teacher's shape.

    The head of FitNets (`pcjax.losses.hint`). Where the student's maps are twice as large as the
    teacher's, the convolution is 3 x 3 of stride 2. Where they are half as large, it is a
    transposed one, 4 x 4 of stride 2. Otherwise it has no padding, and the size that the shapes
    need. Its running statistics belong in the checkpoint.

    Args:
      student: (height, width, channels) of the student's maps.
      teacher: (height, width, channels) of the teacher's maps.
      axis_name: mapped axis over which the batch statistics are shared.
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
            if len(shape) != 3:
                raise RequestError(f"got maps of shape {shape}: expected (height, width, channels)")
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
            if h < th or w < tw:
                raise RequestError(
                    f"got maps {student} of the student and {teacher} of the teacher: expected the "
                    "student's to be half as large, or no smaller; choose others"
                )
            self.conv = nnx.Conv(
                inputs, outputs, (1 + h - th, 1 + w - tw), padding="VALID", **weights
            )
        self.norm = batch_norm(outputs, dtype=jnp.float32, axis_name=axis_name, rngs=rngs)
        self.shape = tuple(student)

    def __call__(self, maps: Float[Array, "n h w c"]) -> Float[Array, "n a b k"]:
        """Bring the maps into the teacher's shape."""
        return nnx.relu(self.norm(self.conv(_enter(maps, self.shape))))


class VariationalRegressor(nnx.Module):
    """Mean and variance of the teacher's maps, predicted from the student's.

    The head of variational information distillation (`pcjax.losses.variational_information`). The
    mean comes from three 1 x 1 convolutions with ReLUs between them. Each of the teacher's channels
    has one variance, softplus(a) + 1e-5; `a` is a parameter, and the initial variance is 5.
    Features without positions, (n, c), are accepted as well.

    Args:
      inputs: the student's channels.
      outputs: the teacher's channels.
      hidden: channels between the convolutions; None: the teacher's.
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
        """Compute the mean at every position, and the variance."""
        maps = _enter(maps, (*maps.shape[1:-1], self.first.in_features))
        mean = self.third(nnx.relu(self.second(nnx.relu(self.first(maps)))))
        return mean, jax.nn.softplus(self.raw_variance[...]) + 1e-5


class OrthogonalProjection(nnx.Module):
    """A linear map without bias that is orthogonal for all parameters: x Q^T.

    The head of `pcjax.losses.orthogonal_projection`. Q, with orthonormal columns, is the first
    factor of the parameters' QR decomposition whose second factor has a positive diagonal. The map
    keeps all lengths and angles. Into fewer dimensions it is x Q, which cannot keep them.

    Args:
      inputs: dimension of the incoming features.
      outputs: dimension of the outgoing features.
      rngs: for the initial weights.

    >>> head = OrthogonalProjection(2, 5, rngs=nnx.Rngs(0))
    >>> x = jnp.array([[3.0, 4.0]])
    >>> round(jnp.linalg.norm(head(x)).item(), 4)
    5.0
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        _checks.require_whole("dimension", inputs, 1, context=" of the incoming features")
        _checks.require_whole("dimension", outputs, 1, context=" of the outgoing features")
        shape = max(inputs, outputs), min(inputs, outputs)
        self.parameters = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.inputs, self.outputs = inputs, outputs

    def __call__(self, features: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
        """Bring the features into their new dimension."""
        features = _enter(features, (self.inputs,))
        q, r = jnp.linalg.qr(self.parameters[...])
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)
        return jnp.matmul(
            features, q if self.inputs > self.outputs else q.T, precision=lax.Precision.HIGHEST
        )


class Prototypes(nnx.Module):
    """Points in the space of patches, initially uniform in the unit cube.

    The head of networks of prototypes. `pcjax.losses.proto2proto` takes `head.points[...]`; called
    with maps, the head computes the squared distance of every patch to every point.

    Args:
      count: number of prototypes.
      features: dimension of a patch.
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
        """Compute the squared distance of every patch to every prototype."""
        points = self.points[...]
        maps = _enter(maps, (*maps.shape[1:-1], points.shape[1]))
        # Distances do not change, but shorter vectors cancel less where a patch is near a point.
        centre = lax.stop_gradient(jnp.mean(points, axis=0))
        maps, points = maps - centre, points - centre
        product = jnp.matmul(maps, points.T, precision=lax.Precision.HIGHEST)
        lengths = jnp.sum(maps**2, axis=-1, keepdims=True) + jnp.sum(points**2, axis=-1)
        return jnp.maximum(lengths - 2 * product, 0)


def _enter(x: Array, shape: tuple[int, ...]) -> Array:
    if not (len(x.shape) == 1 + len(shape) >= 2 and x.shape[1:] == shape):
        raise RequestError(
            f"got a batch of shape {x.shape}: this head was built for examples of shape {shape}"
        )
    return _checks.at_least_float32(x)
