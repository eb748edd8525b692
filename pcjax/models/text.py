"""The parts that all models of texts share: token ids in, features of length 1 out."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import Output

PADDING = -1  # no token has this id, so that models find the padding themselves
TEXT_MODELS = ("static", "bert")
SMALLEST_NORM = 1e-12  # PyTorch's; shorter features stay shorter than 1


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
    """A model of texts with everything that it takes to rebuild it elsewhere.

    name: its architecture, one of `TEXT_MODELS`.
    options: all options of the architecture.
    arrays: its weights by path, float32: {"table/embedding": ...}.
    tokenizer: the JSON of its tokenizer, as the package `tokenizers` writes it.
    max_tokens: longer texts are cut to so many tokens, special ones included; None: never.
    """

    name: str
    options: dict[str, Any]
    arrays: dict[str, np.ndarray]
    tokenizer: str
    max_tokens: int | None


class TextNetwork(nnx.Module):
    """The start and the end that all models of texts share."""

    embed: nnx.Linear | None
    classify: nnx.Linear | None

    def _start_tokens(self, shape: tuple[int, ...]) -> None:
        """Refuse examples that are no lists of tokens; texts of every length are accepted."""
        if len(shape) != 1:
            raise RequestError(
                f"got shape {shape}: expected texts as lists of tokens, (tokens,); choose texts "
                "as data.source, or another model"
            )

    def _end_tokens(
        self, inputs: int, features: int | None, classes: int | None, rngs: nnx.Rngs
    ) -> None:
        """Build the layers after the pooling; None leaves one out."""
        if features is not None:
            _checks.require_whole("features", features, 1)
        size = inputs if features is None else features
        self.embed = None if features is None else nnx.Linear(inputs, size, rngs=rngs)
        self.classify = None if classes is None else nnx.Linear(size, classes, rngs=rngs)

    def _check_tokens(self, x: Array) -> Int[Array, "n t"]:
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise RequestError(
                f"got a batch of shape {x.shape} and dtype {x.dtype}: expected token ids (n, "
                "tokens); this model reads texts"
            )
        return x

    def _output_tokens(self, pooled: Float[Array, "n d"], normalise: bool) -> Output:
        """Compute features and logits from what was pooled over the tokens."""
        features = _checks.at_least_float32(pooled)
        features = features if self.embed is None else self.embed(features)
        if normalise:
            # The square root of 0 has no gradient.
            squares = jnp.sum(features**2, axis=1, keepdims=True)
            features = features / jnp.sqrt(jnp.maximum(squares, SMALLEST_NORM**2))
        return Output(features, None if self.classify is None else self.classify(features), {})
