"""A teacher's features on disk: computed once for every example, whatever set it is in.

CACHE/pcjax/teachers/KEY/manifest.json   the model and its settings
CACHE/pcjax/teachers/KEY/*.npz           the keys and features of some examples

CACHE is XDG_CACHE_HOME or ~/.cache. KEY is a digest of the manifest without the teacher's name:
other weights, another tokenizer or another size of images have their own folder. An example's key
is a hash of its contents (`pcjax.data.examples.keys_of`): labels, order and split do not matter,
and where examples are added, only these are computed.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pcjax import _io
from pcjax.data import Examples
from pcjax.data.examples import keys_of
from pcjax.display import Display
from pcjax.multihost import broadcast

BLOCK = 1024  # examples; a stopped command loses at most one block
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
      compute: returns the features of some examples; an example's features depend on it alone.
      width: the number of features.
      examples: the examples, as the model reads them.
      manifest: everything that the features depend on, except the examples.
      display: shows the progress.
    """
    decisive = {key: value for key, value in manifest.items() if key != "name"}
    folder = _io.user_cache("teachers") / _io.digest(decisive)
    features = np.zeros((len(examples), width), np.float32)
    known = np.zeros(len(examples), bool)
    if jax.process_index() == 0:
        known = _fill(features, _keys(examples), folder)
    known = broadcast(known)
    for rows in _blocks(np.flatnonzero(known)):
        features[rows] = broadcast(features[rows])
    with display.counting(f"{manifest['name']}: examples embedded", len(examples)) as count:
        done = int(known.sum())
        count(done)
        for rows in _blocks(np.flatnonzero(~known)):
            part = dataclasses.replace(examples, rows=examples.rows[rows])
            keys = _keys(part)
            features[rows] = compute(part)
            # Reading may change a key: a file has changed, or a broken image has got a stand-in.
            # Only the process that read it knows. Features under changed keys are not stored.
            kept = _on_all(keys == _keys(part))
            if jax.process_index() == 0 and kept.any():
                _store(folder, keys[kept], features[rows[kept]], manifest)
            done += len(rows)
            count(done)
    return features


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _keys(examples: Examples) -> np.ndarray:
    parts = [keys_of(examples.store, rows) for rows in _blocks(examples.rows)]
    return np.concatenate([np.zeros(0, "S16"), *parts])


def _on_all(flags: np.ndarray) -> np.ndarray:
    """Return which flags are set on all processes."""
    if jax.process_count() == 1:
        return flags
    return np.all(multihost_utils.process_allgather(flags), axis=0)


def _fill(features: np.ndarray, keys: np.ndarray, folder: pathlib.Path) -> np.ndarray:
    """Copy a folder's features to the rows of their keys; return which rows are filled."""
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    known = np.zeros(len(distinct), bool)
    for path in sorted(folder.glob("*.npz")) if len(keys) else ():
        try:
            with np.load(path, allow_pickle=False) as block:
                position = np.minimum(np.searchsorted(distinct, block["keys"]), len(distinct) - 1)
                wanted = (distinct[position] == block["keys"]) & ~known[position]
                if wanted.any():
                    stored = block["features"]
                    if stored.shape != (len(wanted), features.shape[1]):
                        continue
                    features[first[position[wanted]]] = stored[wanted]
                    known[position[wanted]] = True
        # A corrupt file is skipped; NumPy reports it by many kinds of errors.
        except Exception:  # noqa: S112
            continue
    # Equal examples share a key: the first one's features serve them all.
    rows = np.flatnonzero(known[inverse])
    features[rows] = features[first[inverse[rows]]]
    return known[inverse]


def _store(
    folder: pathlib.Path, keys: np.ndarray, features: np.ndarray, manifest: Mapping[str, Any]
) -> None:
    """Write a block; without room for it, the next command computes it again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            _io.write_json(folder / MANIFEST, dict(manifest))
        path = folder / f"{_io.array_digest(keys)}.npz"
        with _io.atomic_path(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, keys=keys, features=features)
    except OSError:
        return
