"""Networks that explain an image by prototypes, parts of images that they look for (ProtoPNet).

Chen et al., "This looks like that: deep learning for interpretable image recognition"
(arXiv:1806.10574).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import Network, Output
from pcjax.models.regressors import Prototypes

EPSILON = 1e-4  # the paper's; the largest activation is log(1 / EPSILON)


class PrototypePooling(nnx.Module):
    """The activation of every prototype by an image, from maps.

    Two 1x1 convolutions turn maps into patches: a ReLU follows the first, a sigmoid the second. Let
    d_p be the squared distance of the patch at position p to a prototype. Its activation is

        max_p log((d_p + 1) / (d_p + 1e-4)),

    which is the activation at the nearest patch.

    Args:
      channels: of the maps.
      count: number of prototypes.
      features: dimension of a patch and of a prototype.
      dtype: dtype of the convolutions; distances are computed in float32.
      rngs: for the initial weights.
    """

    def __init__(
        self, channels: int, count: int, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.first = nnx.Conv(channels, features, (1, 1), dtype=dtype, rngs=rngs)
        self.second = nnx.Conv(features, features, (1, 1), dtype=dtype, rngs=rngs)
        self.prototypes = Prototypes(count, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n h w c"]
    ) -> tuple[Float[Array, "n k"], dict[str, Float[Array, "..."]]]:
        """Compute the activations, and the patches and prototypes as maps."""
        patches = nnx.sigmoid(self.second(nnx.relu(self.first(x))))
        distances = self.prototypes(patches)
        # The activation falls with the distance: its maximum is that of the nearest patch.
        activations = jnp.max(jnp.log((distances + 1) / (distances + EPSILON)), axis=(1, 2))
        # Of no example: a leading axis of 1, and no copies.
        points = self.prototypes.points[...][None]
        return activations, {"patches": patches, "prototypes": points}


class ProtoPNet(Network):
    """A convolutional network whose pooled features are activations of prototypes.

    Its maps are the backbone's, and "patches" (n, h, w, patch_features) and "prototypes"
    (1, prototypes, patch_features). Prototypes belong to no class, and the classifier is an
    ordinary one; the paper fixes both, and adds costs that pcjax does not have.

    Args:
      shape: (height, width, channels) of one image.
      classes: number of classes; None builds no classifier.
      backbones: the convolutional architectures, by name.
      backbone: name of one of them.
      widths: channels of the stages of "cnn"; (): its default.
      prototypes: number of prototypes.
      patch_features: dimension of a patch and of a prototype.
      features: width of a last linear layer; None: the features are the activations.
      dtype: dtype up to the patches; later layers compute in float32.
      axis_name: mapped axis over which the batch statistics are shared.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        backbones: Mapping[str, Callable[..., Any]],
        backbone: str = "cnn",
        widths: Sequence[int] = (),
        prototypes: int = 20,
        patch_features: int = 64,
        features: int | None = None,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        self._start_images(shape, dtype)
        _checks.require_name("backbone", backbone, backbones)
        _checks.require_whole("prototypes", prototypes, 1)
        _checks.require_whole("patch_features", patch_features, 1)
        if widths and backbone != "cnn":
            raise RequestError(
                f"got widths {tuple(widths)} and backbone {backbone!r}: only 'cnn' takes widths; "
                "remove them"
            )
        options: dict[str, Any] = {"widths": widths} if widths else {}
        options |= {"features": None, "dtype": dtype, "axis_name": axis_name, "rngs": rngs}
        self.backbone = backbones[backbone](shape, None, **options)
        self.backbone.pool = PrototypePooling(
            self.backbone.pooled, prototypes, patch_features, dtype=dtype, rngs=rngs
        )
        self._end(prototypes, features, classes, rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Output:
        """Compute features, logits and maps of a batch of images."""
        output = self.backbone(self._enter(x))
        return self._output(output.features, output.maps)
