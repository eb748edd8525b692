"""A student as StableHLO, by `jax.export`: one file that JAX runs without pcjax.

JAX reads such a file for six months after it was written. It is for serving soon, with a similar
version of JAX. The archive is student.safetensors.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pcjax import _io

EXPORTED = "student.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
# JAX has to know that no text is longer than the table of positions.
TEXTS = "batch, tokens"


def write_stablehlo(
    path: pathlib.Path,
    function: Callable[[Any], Mapping[str, Any]],
    dtype: str,
    shape: tuple[int, ...],
    about: Mapping[str, Any],
) -> None:
    """Write a function of a batch of examples of any size; beside it, PATH.json describes it.

    Args:
      path: the file.
      function: from the examples (n, ...) to arrays by name.
      dtype: of the examples.
      shape: of one example. Texts are (tokens,), the largest number of tokens; shorter ones are
        accepted.
      about: more facts for the description.
    """
    if dtype == "int32":
        sizes = jax.export.symbolic_shape(TEXTS, constraints=[f"tokens <= {shape[0]}"])
    else:
        sizes = (*jax.export.symbolic_shape("batch"), *shape)
    example = jax.ShapeDtypeStruct(sizes, np.dtype(dtype))
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(example)
    names = sorted(jax.tree.unflatten(exported.out_tree, exported.out_avals))
    description = {
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "input": {"dtype": dtype, "shape": [str(size) for size in sizes]},
        "outputs": names,
        "use": f"jax.export.deserialize(open({path.name!r}, 'rb').read()).call(examples)",
        **about,
    }
    content = exported.serialize()
    with _io.atomic_path(path) as unfinished:
        unfinished.write_bytes(content)
    _io.write_json(path.with_name(path.name + ".json"), description)
