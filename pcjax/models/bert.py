"""BERT: a transformer encoder of texts, with the pooling of sentence-transformers."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import Output
from pcjax.models.text import TextNetwork


def gelu(x: Array) -> Array:
    """Compute x/2 (1 + erf(x / sqrt(2))), in float32 at least.

    `jax.nn.gelu` computes the complement of erf, which takes twice as long on a CPU.
    """
    wide = _checks.at_least_float32(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
POOLINGS = ("mean", "cls")
MASKED = -1e30  # a score that softmax turns into 0


class Bert(TextNetwork):
    """Token, position and type embeddings, layers of attention, and a pooling.

    Args:
      shape: (tokens,), the length to which texts are padded.
      classes: number of classes; None builds no classifier.
      vocabulary: rows of the table of tokens.
      layers: number of layers.
      width: width of every layer.
      heads: number of attention heads; it divides the width.
      intermediate: width of the hidden part of a layer.
      positions: the largest number of tokens.
      types: rows of the table of token types, of which the first is used.
      epsilon: added to the variance in layer normalisation.
      activation: "gelu", "gelu_new" or "relu".
      pooling: "mean" over the tokens, or "cls", the first one.
      features: width of a last linear layer; None: there is none.
      normalise: whether features are scaled to length 1.
      dtype: dtype of the layers; normalisation and softmax compute in float32.
      axis_name: not used; there is no batch normalisation.
      rngs: for the initial weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int | None,
        *,
        vocabulary: int = 30_522,
        layers: int = 6,
        width: int = 384,
        heads: int = 12,
        intermediate: int = 1536,
        positions: int = 512,
        types: int = 2,
        epsilon: float = 1e-12,
        activation: str = "gelu",
        pooling: str = "mean",
        features: int | None = None,
        normalise: bool = True,
        dtype: DTypeLike = jnp.float32,
        axis_name: str | None = None,  # noqa: ARG002
        rngs: nnx.Rngs,
    ):
        sizes = {"vocabulary": vocabulary, "layers": layers, "width": width, "heads": heads}
        sizes |= {"intermediate": intermediate, "positions": positions, "types": types}
        for name, size in sizes.items():
            _checks.require_whole(name, size, 1)
        if width % heads:
            raise RequestError(f"got width {width} and {heads} heads: expected a multiple")
        _checks.require_name("activation", activation, ACTIVATIONS)
        _checks.require_name("pooling", pooling, POOLINGS)
        self._start_tokens(shape)
        self.positions_count, self.pooling, self.normalise = positions, pooling, normalise
        self.dtype = dtype
        self.words = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Embed(positions, width, rngs=rngs)
        self.types = nnx.Embed(types, width, rngs=rngs)
        self.norm = _norm(width, epsilon, rngs)
        options = (width, heads, intermediate, epsilon, activation, dtype)
        self.layers = nnx.List([Layer(*options, rngs=rngs) for _ in range(layers)])
        self._end_tokens(width, features, classes, rngs)

    def __call__(self, x: Int[Array, "n t"]) -> Output:
        """Compute features and logits of a batch of token ids, padded with -1."""
        present = self._check_tokens(x) >= 0
        if x.shape[1] > self.positions_count:
            raise RequestError(
                f"got texts of {x.shape[1]} tokens: this model reads {self.positions_count}; cut "
                "them"
            )
        places = self.positions.embedding[: x.shape[1]] + self.types.embedding[0]
        states = self.norm(self.words(jnp.maximum(x, 0)) + places)
        bias = jnp.where(present, 0, MASKED).astype(jnp.float32)[:, None, None, :]
        for layer in self.layers:
            states = layer(states, bias)
        states = _checks.at_least_float32(states)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            total = jnp.einsum("ntd,nt->nd", states, present.astype(states.dtype))
            pooled = total / jnp.maximum(present.sum(axis=1, keepdims=True), 1)
        return self._output_tokens(pooled, self.normalise)


class Layer(nnx.Module):
    """Attention and a hidden layer, each added to its input and then normalised."""

    def __init__(
        self,
        width: int,
        heads: int,
        intermediate: int,
        epsilon: float,
        activation: str,
        dtype: DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads, self.activation, self.dtype = heads, activation, dtype
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.mixed = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.mixed_norm = _norm(width, epsilon, rngs)
        self.inner = nnx.Linear(width, intermediate, dtype=dtype, rngs=rngs)
        self.outer = nnx.Linear(intermediate, width, dtype=dtype, rngs=rngs)
        self.outer_norm = _norm(width, epsilon, rngs)

    def __call__(
        self, x: Float[Array, "n t d"], bias: Float[Array, "n 1 1 t"]
    ) -> Float[Array, "n t d"]:
        """Compute the states of the next layer; `bias` is added to every score of a token."""
        n, t, d = x.shape
        x = x.astype(self.dtype)

        def split(linear: nnx.Linear) -> Array:
            # Heads first: two small transposes are faster than strided products.
            return linear(x).reshape(n, t, self.heads, d // self.heads).swapaxes(1, 2)

        query, key, value = split(self.query), split(self.key), split(self.value)
        scores = jnp.einsum("nhqd,nhkd->nhqk", query, key).astype(jnp.float32)
        shares = jax.nn.softmax(scores / math.sqrt(d // self.heads) + bias, axis=-1)
        mixed = jnp.einsum("nhqk,nhkd->nhqd", shares.astype(self.dtype), value)
        x = self.mixed_norm(x + self.mixed(mixed.swapaxes(1, 2).reshape(n, t, d)))
        inner = ACTIVATIONS[self.activation](self.inner(x))
        return self.outer_norm(x + self.outer(inner))


def _norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


# Our paths and Hugging Face's names, of a layer and of the rest.
LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "mixed": "attention.output.dense",
    "mixed_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "outer_norm": "output.LayerNorm",
}
REST = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
}
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
UNUSED = ("pooler.", "cls.", "embeddings.position_ids")


def huggingface_name(path: str) -> str | None:
    """Return Hugging Face's name of a parameter; None for a layer after the pooling.

    >>> huggingface_name("layers/3/query/kernel")
    'encoder.layer.3.attention.self.query.weight'
    """
    *place, leaf = path.split("/")
    if place[0] == "layers":
        return f"encoder.layer.{place[1]}.{LAYER[place[2]]}.{LEAVES[leaf]}"
    return f"{REST[place[0]]}.{LEAVES[leaf]}" if place[0] in REST else None


def to_huggingface(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Name parameters as Hugging Face does; layers after the pooling are left out."""
    named = {}
    for path, array in arrays.items():
        name = huggingface_name(path)
        if name is not None:
            array = np.asarray(array)
            named[name] = np.ascontiguousarray(array.T if path.endswith("kernel") else array)
    return named


def from_huggingface(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Find the arrays of parameters among Hugging Face's tensors.

    Args:
      tensors: by Hugging Face's names, perhaps behind "bert.".
      shapes: the shapes of the parameters by path.
    """
    given = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.startswith(UNUSED):
            given[name] = tensor
    arrays = {}
    for path, shape in shapes.items():
        name = huggingface_name(path)
        if name is None:
            continue
        if name not in given:
            raise RequestError(f"it has no tensor {name}; download or export it again")
        tensor = given.pop(name)
        array = np.asarray(tensor.T if path.endswith("kernel") else tensor, np.float32)
        if array.shape != tuple(shape):
            raise RequestError(
                f"its tensor {name} has shape {tensor.shape}, not that of the config"
            )
        arrays[path] = np.ascontiguousarray(array)
    if given:
        raise RequestError(f"its tensor {next(iter(given))} belongs to no BERT")
    return arrays
