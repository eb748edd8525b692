"""A student as one safetensors file: its weights, and JSON that says how to build and feed it.

The file's metadata "pcjax" is JSON: the format's version, the architecture and its options, the
examples' shape and normalisation, and a digest of it all and of the arrays. Beside the weights
stands the tokenizer of a model of texts, as bytes of JSON. A file that differs
from its digest is refused, and so are arrays that the architecture does not have. Nothing in the
file is ever run.
"""

import dataclasses
import hashlib
import json
import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jaxtyping import Array, Float

from pcjax import _checks, _fields, _io
from pcjax._checks import RequestError
from pcjax.config import Model
from pcjax.data import Examples
from pcjax.data import tokens as data_tokens
from pcjax.data.normalise import Normaliser
from pcjax.data.tokens import Vocabulary, length_batches, tokens_of
from pcjax.models import Output, build
from pcjax.models.static import Static

FORMAT, EXPORTED = 2, "student.safetensors"
METADATA = "pcjax"
MAX_HEADER_BYTES = 2**20
MAX_SIZE, MAX_DIMENSIONS = 2**20, 8
STORED = "F32"  # weights are float32, whatever the model computes in
TOKENIZER, BYTES = "tokenizer", "U8"
TOKENS_AT_A_TIME, ROWS_AT_A_TIME = 2048, 32_768  # a table of rows costs little a token
ABOUT = ("version", "features", "config")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to build the model."""

    name: str
    classes: int | None
    dtype: str
    options: dict[str, bool | int | float | str | tuple[int, ...]]

    def __post_init__(self):
        _fields.check_fields(self, "model")
        Model(self.name, self.options)
        _checks.require_name("model.dtype", self.dtype, ("float32", "bfloat16"))
        if self.classes is not None:
            _checks.require_whole("model.classes", self.classes, 1, MAX_SIZE)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The examples that the model takes: (example - subtract) * multiply, by channel.

    A model of texts takes int32 tokens as they are; `limit` is the number to which texts are cut.
    """

    shape: tuple[int, ...]
    dtype: str
    subtract: tuple[float, ...] = ()
    multiply: tuple[float, ...] = ()
    limit: int | None = None

    def __post_init__(self):
        _fields.check_fields(self, "input")
        if not 1 <= len(self.shape) <= MAX_DIMENSIONS:
            raise RequestError(f"input.shape={self.shape} is not the shape of an example")
        for size in self.shape:
            _checks.require_whole("input.shape", size, 1, MAX_SIZE)
        dtypes = ("uint8", "float16", "float32", "float64", "int32")
        _checks.require_name("input.dtype", self.dtype, dtypes)
        if self.limit is not None:
            _checks.require_whole("input.limit", self.limit, 1, MAX_SIZE)
        if self.dtype != "int32" and not len(self.subtract) == len(self.multiply) == self.shape[-1]:
            raise RequestError(f"input has no number for each of {self.shape[-1]} channels")

    @property
    def full_scale(self) -> float:
        """The stored number that stands for 1.0."""
        return 255.0 if self.dtype == "uint8" else 1.0


def inputs_of(examples: Examples, normalise: tuple[np.ndarray, np.ndarray]) -> Inputs:
    """Return how a model takes examples that `normalise` brings to mean 0 and deviation 1."""
    if examples.dtype.kind == "i":
        return Inputs(examples.shape, "int32")
    normaliser = Normaliser(examples, normalise)
    # Every position of a channel is normalised alike.
    subtract, multiply = (
        tuple(map(float, by.reshape(-1, by.shape[-1])[0]))
        for by in (normaliser.shift, normaliser.factor)
    )
    return Inputs(examples.shape, str(examples.dtype), subtract, multiply)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A loaded student, in evaluation mode.

    module: computes an `Output` from normalised examples.
    inputs: the examples' shape and dtype, and how they are normalised.
    about: "version" of pcjax, the number of "features", and "config", the digest of its run's.
    vocabulary: how a model of texts reads them; None for other models.
    """

    module: nnx.Module
    inputs: Inputs
    about: dict[str, Any]
    vocabulary: Vocabulary | None = None

    def prepare(self, examples: Any) -> Float[Array, "n ..."]:
        """Normalise stored examples (uint8 images or floats) as in training; works under jit."""
        shape = self.inputs.shape
        if np.shape(examples)[1:] != shape:
            raise RequestError(
                f"got examples of shape {np.shape(examples)}: expected (n, *{shape})"
            )
        dtype = examples.dtype if hasattr(examples, "dtype") else np.asarray(examples).dtype
        kind = np.dtype(self.inputs.dtype).kind
        if dtype != np.uint8 if kind == "u" else dtype.kind != "f":
            raise RequestError(f"got examples of dtype {dtype}: expected {self.inputs.dtype}")
        subtract = np.asarray(self.inputs.subtract, np.float32)
        multiply = np.asarray(self.inputs.multiply, np.float32)
        return (jnp.asarray(examples, jnp.float32) - subtract) * multiply

    def __call__(self, examples: Any) -> Output:
        """Compute features and class scores of stored examples."""
        return _apply(self.module, self.prepare(examples))

    def features(self, examples: Any) -> Float[Any, "n d"]:
        """Compute the features of stored examples, or of a list of texts."""
        return self(examples).features if self.vocabulary is None else self._of_texts(examples)

    def _of_texts(self, texts: Any) -> Float[np.ndarray, "n d"]:
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise RequestError(f"got {type(texts).__name__}: expected a list of texts")
        texts = list(texts)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise RequestError(f"got texts[{number}] {text!r:.80}: expected a text")
        tokens = tokens_of(texts, cast(Vocabulary, self.vocabulary))
        result = np.zeros((len(tokens), self.about["features"]), np.float32)
        rows = np.arange(len(tokens))
        most = ROWS_AT_A_TIME if isinstance(self.module, Static) else TOKENS_AT_A_TIME
        for chosen, inputs in length_batches(tokens, rows, most):
            output = _apply(self.module, jnp.asarray(inputs))
            result[chosen] = np.asarray(output.features)[: len(chosen)]
        return result


@nnx.jit
def _apply(module: Any, x: Array) -> Output:
    return module(x)._replace(maps={})


def export(
    path: pathlib.Path,
    model: Architecture,
    inputs: Inputs,
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
    tokenizer: str | None = None,
) -> int:
    """Write the file whole or not at all; return its size in bytes.

    Args:
      path: the file.
      model: the architecture.
      inputs: the examples.
      arrays: parameters and statistics, float32, by path: "layers/0/kernel".
      about: "version", "features" and "config", see `Exported`.
      tokenizer: the JSON of a tokenizer, of a model of texts.
    """
    named = {n.replace("/", "."): np.ascontiguousarray(x) for n, x in sorted(arrays.items())}
    if tokenizer is not None:
        named[TOKENIZER] = np.frombuffer(tokenizer.encode(), np.uint8)
    metadata = {
        "format": FORMAT,
        **{name: about[name] for name in ABOUT},
        "model": dataclasses.asdict(model),
        "input": dataclasses.asdict(inputs),
    }
    metadata = json.loads(json.dumps(metadata))
    metadata["digest"] = _digest(metadata, named)
    text = json.dumps(metadata, sort_keys=True)
    content = safetensors.numpy.save(named, {METADATA: text})
    with _io.atomic_path(path) as unfinished:
        unfinished.write_bytes(content)
    return len(content)


def load(path: str | pathlib.Path) -> Exported:
    """Load a student that `pcjax export` wrote; refuse anything else in one line.

    Args:
      path: RUN/student.safetensors, or RUN; or a folder that sentence-transformers or model2vec
        loads.

    Returns:
      The student: `.features(examples)` of stored examples, `.module` and `.prepare` for more.
    """
    path = pathlib.Path(path)
    if (path / "config.json").is_file() and (path / "tokenizer.json").is_file():
        return _load_encoder(path)
    if path.suffix == ".onnx" or (path / "model.onnx").is_file():
        folder = path.parent if path.suffix == ".onnx" else path
        run = folder.parent if folder.name.startswith("onnx") else "RUN"
        raise RequestError(f"{path} is ONNX: load it with onnxruntime; pcjax loads {run}.")
    if path.is_dir():
        path = path / EXPORTED
    if not path.is_file():
        raise RequestError(f"There is no file {path}; `pcjax export RUN` writes it.")
    try:
        _io.safetensors_header_bytes(path, MAX_HEADER_BYTES)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = _parse_metadata((file.metadata() or {}).get(METADATA))
            names = [*file.keys()]
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                expected = BYTES if name == TOKENIZER else STORED
                if dtype != expected:
                    raise RequestError(f"{name} is of dtype {dtype}, expected {expected}")
            arrays = {name: file.get_tensor(name) for name in names}
        if metadata["digest"] != _digest(metadata, arrays):
            raise RequestError("it changed since it was written")
        model = _fields.decode(Architecture, metadata["model"], "model")
        inputs = _fields.decode(Inputs, metadata["input"], "input")
        vocabulary = _vocabulary(inputs, arrays.pop(TOKENIZER, None))
        module = built(model, inputs, arrays)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"{path} cannot be loaded ({reason}): export it again.") from error
    return Exported(module, inputs, {name: metadata[name] for name in ABOUT}, vocabulary)


def built(model: Architecture, inputs: Inputs, arrays: Mapping[str, np.ndarray]) -> nnx.Module:
    """Build a model in evaluation mode from its arrays by name, "layers.0.kernel"."""
    graph, leaves = _abstract(model, inputs)
    _check_shapes({name: leaf.shape for name, (_, leaf) in leaves.items()}, arrays)
    filled = [(p, leaf.replace(jnp.asarray(arrays[name]))) for name, (p, leaf) in leaves.items()]
    module = nnx.merge(graph, nnx.from_flat_state(filled))
    module.eval()
    return module


def _vocabulary(inputs: Inputs, tokenizer: np.ndarray | None) -> Vocabulary | None:
    if (inputs.dtype == "int32") != (tokenizer is not None):
        raise RequestError("it has a tokenizer without a model of texts, or none for one")
    if tokenizer is None:
        return None
    text, width = tokenizer.tobytes().decode(), inputs.shape[0]
    return data_tokens.vocabulary(text, limit=inputs.limit, width=width, where="its tokenizer")


def _load_encoder(folder: pathlib.Path) -> Exported:
    from pcjax.teachers.sentence_transformers import read_encoder  # loads much more

    encoder = read_encoder(folder)
    vocabulary, model = encoder.vocabulary(), encoder.model
    module = model.function.module(model.parameters, model.statistics)
    module.eval()
    tokens = np.zeros((1, 1), np.int32)
    width = int(np.shape(_apply(module, jnp.asarray(tokens)).features)[1])
    inputs = Inputs((vocabulary.width,), "int32", limit=vocabulary.limit)
    return Exported(module, inputs, {"features": width}, vocabulary)


def _parse_metadata(text: str | None) -> dict[str, Any]:
    if text is None:
        raise RequestError("`pcjax export` did not write it")
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise RequestError(f"it is not of format {FORMAT}")
    if metadata.keys() != {"format", "model", "input", "digest", *ABOUT}:
        raise RequestError("its metadata are incomplete")
    return metadata


def _abstract(model: Architecture, inputs: Inputs) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Return the architecture's graph, and the positions and shapes of its arrays by name."""

    def new() -> nnx.Module:
        return build(
            model.name,
            shape=inputs.shape,
            classes=model.classes,
            rngs=nnx.Rngs(0),
            dtype=jnp.dtype(model.dtype),
            **typing.cast(dict[str, Any], model.options),
        )

    try:
        abstract = nnx.eval_shape(new)
    except RequestError:
        raise
    except Exception as error:  # impossible sizes make Flax and JAX raise anything
        raise RequestError(f"its model cannot be built: {error}") from error
    graph, state = nnx.split(abstract)
    flat = nnx.to_flat_state(state)
    return graph, {".".join(map(str, place)): (place, leaf) for place, leaf in flat}


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    for name in sorted(expected.keys() | arrays.keys()):
        stored = arrays[name].shape if name in arrays else "nothing"
        if expected.get(name, "nothing") != stored:
            raise RequestError(f"it has {stored} for {name}, expected {expected.get(name)}")


def _digest(metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Hash all metadata but the digest itself, and every array's name, shape and numbers."""
    rest = {name: value for name, value in metadata.items() if name != "digest"}
    result = hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        result.update(f"{name} {_io.array_digest(array)}".encode())
    return result.hexdigest()
