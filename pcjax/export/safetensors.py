"""A model as one file: its arrays by readable names, and JSON of what it is and what it wants to be given.

The file is a safetensors one. Its only metadata, "pcjax", is JSON of the format's version, the architecture's name and
arguments, the examples' shape and how they are normalised, and a digest of all that and of the arrays: what is not as
it was written is refused, and so are arrays that the architecture does not have, or in other shapes. Nothing in the
file is ever run.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Shaped

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.models.parts import Output

FORMAT = 1
METADATA = "pcjax"
LARGEST_HEADER = 2**20  # bytes; that of the deepest network of ours has a tenth of it
WIDEST, DEEPEST = 2**20, 100
STORED = "F32"  # parameters and statistics are float32, whatever the model computes in
FIELDS = ("format", "version", "model", "input", "features", "config", "digest")
GREATEST = 3.4e38  # that float32 holds
INPUTS = ("uint8", "float16", "float32", "float64")
COMPUTED = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Architecture:
    """All that `build` needs beside the weights."""

    name: str
    classes: int | None
    dtype: str
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What examples are before they are normalised, and how they are: (example - subtract) * multiply, by channel."""

    shape: tuple[int, ...]
    dtype: str
    subtract: tuple[float, ...]
    multiply: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model from a file, in evaluation mode, and what it wants to be given.

    module: called as module(x) -> Output, of normalised examples.
    wanted: the examples' shape and dtype, and how they are normalised.
    about: what else the file says: "version" of pcjax, "features", and "config", the digest of its run's config.
    """

    module: nnx.Module
    wanted: Wanted
    about: dict[str, Any]

    def prepare(self, examples: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n ..."]:
        """Examples as they are stored (uint8 images from 0 to 255, or floats), normalised as in the training."""
        shape, given = self.wanted.shape, np.asarray(examples)
        got = f"got examples of shape {given.shape}: expected (n, {', '.join(map(str, shape))})"
        _checks.require(given.shape[1:] == shape and given.ndim == len(shape) + 1, got)
        kind = np.dtype(self.wanted.dtype).kind
        got = f"got examples of dtype {given.dtype}: expected {self.wanted.dtype}, as the model was trained on"
        _checks.require(given.dtype == np.uint8 if kind == "u" else given.dtype.kind == "f", got)
        subtract, multiply = (
            np.asarray(by, np.float32) for by in (self.wanted.subtract, self.wanted.multiply)
        )
        return (given.astype(np.float32) - subtract) * multiply

    def __call__(self, examples: Shaped[np.ndarray, "n ..."]) -> Output:
        """What the model says of examples as they are stored, compiled for their number."""
        return _apply(self.module, jnp.asarray(self.prepare(examples)))


@nnx.jit
def _apply(module: Any, x: Array) -> Output:
    return module(x)._replace(maps={})


def export(
    path: pathlib.Path,
    model: Architecture,
    wanted: Wanted,
    arrays: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> int:
    """Writes the file, whole or not at all, and says how many bytes it has.

    Args:
      path: where.
      model: what is built.
      wanted: what it is given.
      arrays: its parameters and statistics, float32, by path: "layers/0/kernel".
      about: "version", "features" and "config", as `Exported` has them.
    """
    safetensors = _safetensors()
    named = {
        name.replace("/", "."): np.ascontiguousarray(array)
        for name, array in sorted(arrays.items())
    }
    told = {
        "format": FORMAT,
        **about,
        "model": dataclasses.asdict(model),
        "input": dataclasses.asdict(wanted),
    }
    told = json.loads(json.dumps(told))
    # What would not be loaded is not written.
    _model_of(told["model"])
    _wanted_of(told["input"])
    told["digest"] = _digest(told, named)
    unfinished = path.with_name(path.name + ".unfinished")
    content = safetensors.numpy.save(named, {METADATA: json.dumps(told, sort_keys=True)})
    unfinished.write_bytes(content)
    unfinished.replace(path)
    return len(content)


def load(path: str | pathlib.Path) -> Exported:
    """The model of a file that `pcjax export` wrote; whatever else it is given is refused in one line.

    Args:
      path: of the file, RUN/student.safetensors.

    Returns:
      `Exported`: the module in evaluation mode, and how examples are normalised for it; called with examples as they
      are stored, it gives their `Output`.
    """
    path = pathlib.Path(path)
    _checks.require(
        path.is_file(), f"no file {path}: `pcjax export RUN` writes RUN/student.safetensors"
    )
    safetensors = _safetensors()
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            told = _told((file.metadata() or {}).get(METADATA))
            for name in file.keys():  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                _checks.require(dtype == STORED, f"{name} is of dtype {dtype}: expected {STORED}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _checks.require(told["digest"] == _digest(told, arrays), "it is not as it was written")
        model, wanted = _model_of(told["model"]), _wanted_of(told["input"])
        graph, leaves = _abstract(model, wanted)
        _check_shapes({name: leaf.shape for name, (_, leaf) in leaves.items()}, arrays)
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        why = " ".join(str(error).split())[:300]
        raise RequestError(
            f"{path} is no model that can be loaded ({why}): export it again"
        ) from error
    filled = [
        (place, leaf.replace(jnp.asarray(arrays[name]))) for name, (place, leaf) in leaves.items()
    ]
    module = nnx.merge(graph, nnx.from_flat_state(filled))
    module.eval()
    return Exported(
        module, wanted, {name: told[name] for name in ("version", "features", "config")}
    )


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise RequestError(
            'exported models are safetensors files: `pip install "pcjax[export]"`'
        ) from error
    return safetensors


def require_safetensors() -> None:
    """Refuses to begin without what the files are written by."""
    _safetensors()


def _check_header(path: pathlib.Path) -> None:
    """Looks at how long the header claims to be before anything reads it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    _checks.require(size > 8 and length <= size - 8, "it is cut short")
    _checks.require(
        length <= LARGEST_HEADER, f"its header of {length} bytes is larger than any of ours"
    )


def _told(text: str | None) -> dict[str, Any]:
    """What the metadata say, with all its parts there."""
    _checks.require(text is not None, "it is not of `pcjax export`")
    told = json.loads(str(text))
    _checks.require(isinstance(told, dict), "its metadata are no object")
    version = told.get("format")
    _checks.require(version == FORMAT, f"it is of format {version!r}, this pcjax reads {FORMAT}")
    _checks.require(told.keys() == set(FIELDS), f"its metadata are not {', '.join(FIELDS)}")
    return told


def _model_of(told: Any) -> Architecture:
    whole = isinstance(told, dict) and told.keys() == {"name", "classes", "dtype", "options"}
    _checks.require(whole, "its model is not described")
    if told["classes"] is not None:
        _checks.require_whole("classes", told["classes"], 1, WIDEST)
    _checks.require_name("dtype", told["dtype"], COMPUTED)
    options = told["options"]
    _checks.require(
        isinstance(options, dict) and options.keys() <= {"widths", "features", "width"},
        "unknown options",
    )
    found = dict(options)
    if "features" in options:
        _checks.require_whole("features", options["features"], 1, WIDEST)
    if "width" in options:
        fits = isinstance(options["width"], (int, float)) and 0 < options["width"] <= WIDEST
        _checks.require(fits, "its width is no number in range")
    if "widths" in options:
        fits = isinstance(options["widths"], list) and len(options["widths"]) <= DEEPEST
        _checks.require(
            fits, f"got no widths of at most {DEEPEST} layers, which is what is exported"
        )
        for width in options["widths"]:
            _checks.require_whole("width", width, 1, WIDEST)
        found["widths"] = tuple(options["widths"])
    return Architecture(told["name"], told["classes"], told["dtype"], found)


def _wanted_of(told: Any) -> Wanted:
    names = {field.name for field in dataclasses.fields(Wanted)}
    _checks.require(isinstance(told, dict) and told.keys() == names, "its input is not described")
    shape = told["shape"]
    _checks.require(
        isinstance(shape, list) and 1 <= len(shape) <= 8, f"its examples have the shape {shape!r}"
    )
    for side in shape:
        _checks.require_whole("size", side, 1, WIDEST, f" in shape {shape}")
    _checks.require_name("dtype", told["dtype"], INPUTS)
    for part in ("subtract", "multiply"):
        numbers = told[part]
        fits = isinstance(numbers, list) and len(numbers) == shape[-1]
        fits = fits and all(isinstance(one, float) and abs(one) < GREATEST for one in numbers)
        _checks.require(fits, f"its {part} is no number for each of {shape[-1]} channels")
    return Wanted(tuple(shape), told["dtype"], tuple(told["subtract"]), tuple(told["multiply"]))


def _abstract(model: Architecture, wanted: Wanted) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """The architecture without weights: its graph, and by name the places and shapes of its arrays."""
    from pcjax.models import build  # which has `load` among its names

    def new() -> nnx.Module:
        given = {
            "shape": wanted.shape,
            "classes": model.classes,
            "dtype": jnp.dtype(model.dtype),
            **model.options,
        }
        return build(model.name, rngs=nnx.Rngs(0), **given)

    try:
        abstract = nnx.eval_shape(new)
    except RequestError:
        raise
    except (
        Exception
    ) as error:  # whatever sizes that nothing can be built of make Flax and JAX raise
        raise RequestError(f"its model cannot be built: {error}") from error
    graph, state = nnx.split(abstract)
    return graph, {
        ".".join(map(str, place)): (place, leaf) for place, leaf in nnx.to_flat_state(state)
    }


def _check_shapes(
    expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> None:
    for name in sorted(expected.keys() | arrays.keys()):
        ours, theirs = (
            expected.get(name, "nothing"),
            arrays[name].shape if name in arrays else "nothing",
        )
        _checks.require(ours == theirs, f"it has {theirs} for {name}, expected {ours}")


def _digest(told: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Of all that is told but the digest itself, and of every array's name, shape and numbers."""
    rest = {name: value for name, value in told.items() if name != "digest"}
    found = hashlib.blake2b(json.dumps(rest, sort_keys=True).encode(), digest_size=16)
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
