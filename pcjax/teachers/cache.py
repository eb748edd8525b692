"""A teacher's features on disk: computed once, in blocks, and resumed where a command stopped.

CACHE/pcjax/teachers/KEY/manifest.json   what the features are of
CACHE/pcjax/teachers/KEY/00000.npy       the features of a block of examples, and so on

CACHE is XDG_CACHE_HOME or ~/.cache. KEY is a digest of the manifest without the teacher's name:
other weights, another tokenizer, another limit of tokens or other texts have their own folder.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pcjax import _io
from pcjax.data import Examples
from pcjax.display import Display
from pcjax.multihost import broadcast, broadcast_int

BLOCK = 1024  # examples; a stopped command loses one at most
MANIFEST = "manifest.json"


def cached_features(
    compute: Callable[[Examples], np.ndarray],
    width: int,
    examples: Examples,
    manifest: Mapping[str, Any],
    display: Display,
) -> np.ndarray:
    """Return a model's features of all examples; compute only what the cache does not have.

    Args:
      compute: returns the features of some examples.
      width: the number of features.
      examples: the examples, as the model reads them.
      manifest: everything that the features depend on.
      display: shows the progress.
    """
    decisive = {key: value for key, value in manifest.items() if key != "name"}
    folder = _io.user_cache("teachers") / _io.digest(decisive)
    blocks = []
    starts = range(0, len(examples), BLOCK)
    with display.counting(f"{manifest['name']}: examples embedded", len(examples)) as count:
        for number, start in enumerate(starts):
            rows = examples.rows[start : start + BLOCK]
            path = folder / f"{number:05}.npy"
            block = _stored(path, (len(rows), width))
            if block is None:
                part = dataclasses.replace(examples, rows=rows)
                block = np.asarray(compute(part), np.float32)
                _store(path, block, manifest)
            blocks.append(block)
            count(start + len(rows))
    return np.concatenate(blocks) if blocks else np.zeros((0, width), np.float32)


def _stored(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Return a block of the first process's cache on all processes; None where it has none."""
    block = None
    if jax.process_index() == 0:
        try:
            block = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            block = None
        if block is not None and (block.shape != shape or block.dtype != np.float32):
            block = None
    if not broadcast_int(block is not None):
        return None
    return broadcast(np.zeros(shape, np.float32) if block is None else block)


def _store(path: pathlib.Path, block: np.ndarray, manifest: Mapping[str, Any]) -> None:
    """Write a block; without room for it, the next command computes it again."""
    if jax.process_index() != 0:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (path.parent / MANIFEST).exists():
            _io.write_json(path.parent / MANIFEST, dict(manifest))
        with _io.atomic_path(path) as unfinished, unfinished.open("wb") as file:
            np.save(file, block)
    except OSError:
        return
