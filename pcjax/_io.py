"""Files that are whole or absent, and digests that show whether something changed."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from pcjax._checks import RequestError

UNFINISHED = ".unfinished"  # suffix of a file while it is written
MAX_JSON_BYTES = 2**26


def user_cache(name: str) -> pathlib.Path:
    """Return a folder of this user's for what can be computed again; it may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "pcjax", name)


def digest(value: Any) -> str:
    """Hash a value that JSON can hold; the order of an object's keys does not matter."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Hash an array's dtype, shape and numbers."""
    result = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    result.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def digest_arrays(tree: Any) -> str:
    """Hash all arrays of a pytree, in the order of its leaves."""
    leaves = [array_digest(np.asarray(leaf)) for leaf in jax.tree.leaves(jax.device_get(tree))]
    return digest(leaves)


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path that replaces `path` on success and is deleted on error."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_signed(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write an object together with its own digest."""
    content = json.loads(json.dumps({k: v for k, v in value.items() if k != "digest"}))
    write_json(path, content | {"digest": digest(content)})


def read_json(path: pathlib.Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of at most `limit` bytes in which no object repeats a key."""
    if not path.is_file():
        raise RequestError(f"{path} is not a file.")
    if path.stat().st_size > limit:
        raise RequestError(f"{path} is larger than {limit:,} bytes.")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not valid JSON ({error}).") from error


def safetensors_header_bytes(path: pathlib.Path, limit: int) -> int:
    """Return the length that the header of a safetensors file claims; refuse an impossible one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if size <= 8 or length > size - 8:
        raise RequestError("it is cut short")
    if length > limit:
        raise RequestError(f"its header has {length} bytes, more than {limit}")
    return length


def read_signed(path: pathlib.Path, remedy: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read an object that `write_signed` wrote; refuse it if a digit of it changed since.

    Args:
      path: the file.
      remedy: advice for a corrupt file; the last part of the error.
      limit: the largest size in bytes.
    """
    try:
        content = read_json(path, limit)
    except RequestError as error:
        raise RequestError(f"{str(error).removesuffix('.')}: {remedy}") from error
    if not isinstance(content, dict) or content.pop("digest", None) != digest(content):
        raise RequestError(f"{path} is corrupt, it changed since it was written: {remedy}")
    return content


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dictionary from key-value pairs; refuse a key that appears twice."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise RequestError("a key appears twice in one object; remove one of them")
    return result
