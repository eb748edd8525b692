"""A teacher's features on disk: computed once for every example, whatever set it is in.

CACHE/pcjax/teachers/KEY/manifest.json   what the features are of
CACHE/pcjax/teachers/KEY/*.npy           the keys and features of some examples

CACHE is XDG_CACHE_HOME or ~/.cache. KEY is a digest of the manifest without the teacher's name:
other weights, another tokenizer or another size of images have their own folder. An example's key
is a hash of its contents (`pcjax.data.examples.keys_of`): labels, order and split do not matter,
and where examples are added, only these are computed.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from pcjax import _io
from pcjax.data import Examples
from pcjax.data.examples import keys_of
from pcjax.display import Display
from pcjax.multihost import broadcast

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
      compute: returns the features of some examples; those of each depend on it alone.
      width: the number of features.
      examples: the examples, as the model reads them.
      manifest: everything but the examples that the features depend on.
      display: shows the progress.
    """
    decisive = {key: value for key, value in manifest.items() if key != "name"}
    stored = _Stored(_io.user_cache("teachers") / _io.digest(decisive), width)
    features = np.empty((len(examples), width), np.float32)
    with display.counting(f"{manifest['name']}: examples embedded", len(examples)) as count:
        for start in range(0, len(examples), BLOCK):
            rows = examples.rows[start : start + BLOCK]
            block = features[start : start + len(rows)]
            position = broadcast(stored.find(keys_of(examples.store, rows)))
            known = position >= 0
            if known.any():
                block[known] = broadcast(stored.features(position[known]))
            if not known.all():
                new = rows[~known]
                block[~known] = compute(dataclasses.replace(examples, rows=new))
                # Another image takes the place of one that turned out not to be readable.
                stored.add(keys_of(examples.store, new), block[~known], manifest)
            count(start + len(rows))
    return features


class _Stored:
    """The blocks of a folder; only the first process has any."""

    def __init__(self, folder: pathlib.Path, width: int):
        self.folder = folder
        self.dtype = np.dtype([("key", "S16"), ("features", np.float32, (width,))])
        self.blocks = self._read() if jax.process_index() == 0 else []
        keys = np.concatenate([np.zeros(0, "S16"), *(block["key"] for block in self.blocks)])
        self.order = np.argsort(keys)
        self.keys, self.ends = keys[self.order], np.cumsum([len(block) for block in self.blocks])

    def _read(self) -> list[np.ndarray]:
        blocks = []
        for path in sorted(self.folder.glob("*.npy")):
            try:
                block = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError):  # it is corrupt, or no array
                continue
            if block.dtype == self.dtype and block.ndim == 1:
                blocks.append(block)
        return blocks

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the position of every key among all that are stored, -1 where it is not."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, self.order[place], -1)

    def features(self, positions: np.ndarray) -> np.ndarray:
        """Read the features of these positions."""
        result = np.zeros((len(positions), *self.dtype["features"].shape), np.float32)
        number = np.searchsorted(self.ends, positions, "right")
        for each in np.unique(number) if len(self.blocks) else ():
            block, own = self.blocks[each], number == each
            result[own] = block["features"][positions[own] - (self.ends[each] - len(block))]
        return result

    def add(self, keys: np.ndarray, features: np.ndarray, manifest: Mapping[str, Any]) -> None:
        """Write a block; without room for it, the next command computes it again."""
        if jax.process_index() != 0:
            return
        block = np.zeros(len(keys), self.dtype)
        block["key"], block["features"] = keys, features
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / MANIFEST).exists():
                _io.write_json(self.folder / MANIFEST, dict(manifest))
            path = self.folder / f"{_io.array_digest(keys)}.npy"
            with _io.atomic_path(path) as unfinished, unfinished.open("wb") as file:
                np.save(file, block)
        except OSError:
            return
