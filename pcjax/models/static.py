"""A table of token vectors: a text's features are the mean of its tokens' rows."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Int

from pcjax import _checks
from pcjax.models.parts import Output
from pcjax.models.text import TextNetwork


class Static(TextNetwork):
    """One vector a token; the mean over a text's tokens, of length 1.

    Args:
      shape: (tokens,), the length to which texts are padded.
      classes: number of classes; None builds no classifier.
      vocabulary: rows of the table, one a token of the tokenizer.
      features: width of the table.
      unknown: the token that stands for unknown words and does not count; -1: there is none.
      normalise: whether features are scaled to length 1.
      dtype: not used; a mean is computed in float32.
      axis_name: not used; there is no batch normalisation.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        vocabulary: int = 30_000,
        features: int = 256,
        unknown: int = -1,
        normalise: bool = True,
        dtype: DTypeLike = jnp.float32,  # noqa: ARG002
        axis_name: str | None = None,  # noqa: ARG002
        rngs: nnx.Rngs,
    ):
        _checks.require_whole("vocabulary", vocabulary, 1)
        _checks.require_whole("features", features, 1)
        self._start_tokens(shape)
        self.unknown, self.normalise = unknown, normalise
        self.table = nnx.Embed(vocabulary, features, rngs=rngs)
        self._end_tokens(features, None, classes, rngs)

    def __call__(self, x: Int[Array, "n t"]) -> Output:
        """Compute features and logits of a batch of token ids, padded with -1."""
        known = (self._check_tokens(x) >= 0) & (x != self.unknown)
        rows = self.table(jnp.maximum(x, 0)) * known[..., None]
        # Where no token is known, the features are 0.
        mean = rows.sum(axis=1) / jnp.maximum(known.sum(axis=1, keepdims=True), 1)
        return self._output_tokens(mean, self.normalise)
