"""The arrays of a pytree by name: what they are called, what proves that they are the same, which are on the disk."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
import tensorstore as ts


def named(state: Any) -> dict[str, Any]:
    """The leaves of a pytree by their path, "student/embed/kernel"."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {
        "|".join(_key(key) for key in path).replace("/", ".").replace("|", "/"): leaf
        for path, leaf in leaves
    }
    if len(named) != len(leaves):
        raise TypeError(f"two of {[*named]} share a name")
    return named


def _key(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


def digest(array: np.ndarray) -> str:
    """A hash of an array's dtype, shape and numbers."""
    found = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def names_in(folder: pathlib.Path) -> set[str]:
    """What Orbax has saved there.

    Orbax's own description of it takes TensorStore's, of which a part stays in memory for ever.
    """
    files = {"driver": "file", "path": f"{folder}/"}
    keys = ts.KvStore.open({"driver": "ocdbt", "base": files}).result().list().result()
    return {key.decode().rpartition("/")[0] for key in keys}
