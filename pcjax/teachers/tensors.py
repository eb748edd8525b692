"""Read the weights that others wrote: safetensors files, and the JSON beside them.

Nothing in them is ever run, and the sizes that they claim are bounded.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors

from pcjax import _io
from pcjax._checks import RequestError

MAX_HEADER_BYTES = 2**25
MAX_REASON = 4000  # characters
MAX_FRONT_MATTER = 2**20  # characters
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download or export it again"
DTYPES = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")  # that NumPy has

Select = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def load_folder(folder: pathlib.Path, select: Select, convert: str) -> dict[str, np.ndarray]:
    """Read a folder's tensors, in one file or in several, and choose among them.

    Args:
      folder: holds model.safetensors, or several files and their index.
      select: returns arrays by path; refuses what does not fit.
      convert: how to write these files from a pytorch_model.bin.
    """
    return load_files(weight_files(folder, convert), select)


def load_files(paths: list[pathlib.Path], select: Select) -> dict[str, np.ndarray]:
    """Read the tensors of files and choose among them; refuse any that are not finite."""
    path = paths[0]
    try:
        tensors: dict[str, np.ndarray] = {}
        for path in paths:
            tensors |= read_tensors(path)
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise RequestError(f"its tensor {name} has NaN or infinite numbers; {AGAIN}")
        return select(tensors)
    except (OSError, ValueError, TypeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."
        raise RequestError(f"{path} cannot be read: {reason}.") from error


def weight_files(folder: pathlib.Path, convert: str) -> list[pathlib.Path]:
    """Return the files that hold a folder's weights; see `load_folder`."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        remedy = "give the folder of an encoder"
        if (folder / "pytorch_model.bin").exists():
            remedy = f"convert pytorch_model.bin with {convert}"
        raise RequestError(f"{folder} has no {WEIGHTS}; {remedy}.")
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise RequestError(f"{index} has no weight_map, which names the files.")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if pathlib.PurePath(name).name != name:
            raise RequestError(f"{index}: the file {name!r} lies outside of the folder.")
    return [folder / name for name in names]


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read a safetensors file; half precision becomes float32."""
    length = _io.safetensors_header_bytes(path, MAX_HEADER_BYTES)
    tensors, brain = {}, []
    with safetensors.safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            dtype = file.get_slice(name).get_dtype()
            if dtype == "BF16":
                brain.append(name)
                continue
            if dtype not in DTYPES:
                raise RequestError(f"its tensor {name} has dtype {dtype}, which is not supported")
            tensor = file.get_tensor(name)
            tensors[name] = tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor
    raw = np.memmap(path, np.uint8, "r")
    header = json.loads(raw[8 : 8 + length].tobytes())
    for name in brain:  # NumPy has no bfloat16: the upper half of a float32
        start, end = header[name]["data_offsets"]
        halves = raw[8 + length + start : 8 + length + end].view("<u2").astype(np.uint32) << 16
        tensors[name] = halves.view(np.float32).reshape(header[name]["shape"])
    return tensors


def read_object(path: pathlib.Path, missing: Any = None) -> dict[str, Any]:
    """Read a JSON file that holds one object; return `missing`, unless None, without the file."""
    if missing is not None and not path.is_file():
        return missing
    value = _io.read_json(path)
    if not isinstance(value, dict):
        raise RequestError(f"{path} does not hold an object.")
    return value


def read_licence(folder: pathlib.Path) -> str | None:
    """Return the licence that a folder's README.md names in its first lines."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_FRONT_MATTER)
    except OSError:
        return None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    named = front and re.search(r"^license:\s*[\"']?([A-Za-z0-9._-]+)", front[1], re.MULTILINE)
    return named and named[1]
