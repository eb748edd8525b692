"""Batches of examples, prepared ahead of time by Grain."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data.augment import horizontal_flip, random_crop
from pcjax.data.examples import Examples
from pcjax.data.normalise import Normaliser

Batch = dict[str, np.ndarray]
Normalise = tuple[np.ndarray, np.ndarray] | None

RESERVED = ("image", "label", "index", "mask")
NEIGHBOUR = "neighbour_"  # prefix of the columns of an example's neighbour
# One thread makes a batch while the step runs; a second helps where NumPy releases the lock.
AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
ORDER, CHANGE = 0, 1  # streams of random numbers


def training_batches(
    examples: Examples,
    *,
    batch: int,
    seed: int,
    crop: int = 0,
    flip: bool = False,
    normalise: Normalise = None,
    process_index: int = 0,
    process_count: int = 1,
    columns: Mapping[str, np.ndarray] | None = None,
    neighbours: np.ndarray | None = None,
) -> "TrainingBatches":
    """Make endless training batches, with a new order in every epoch.

    Epoch e visits the examples in a permutation drawn from (seed, e), in floor(n / batch) batches;
    the remaining examples are left out of this epoch. The random changes of step s are drawn from
    (seed, s). A batch depends neither on threads nor on the number of processes.

    Args:
      examples: the training examples.
      batch: number of examples a step, over all processes.
      seed: seed of the order and of the changes, at least 0.
      crop: images are shifted by up to so many pixels each way, with zeros (before normalisation)
        at the border.
      flip: exchange left and right in half of the images, at random.
      normalise: (mean, std) of each channel, as `statistics` returns; None only divides uint8 by
        255.
      process_index: index of this process.
      process_count: number of processes; each gets an equal part of every batch, in order.
      columns: arrays with one row per example, by name, such as a teacher's features; in memory or
        mapped from a file.
      neighbours: (n, k) positions of every example's neighbours. One of them, drawn anew in every
        step, comes with the example as "neighbour_image" and so on.

    Returns:
      An iterator of dictionaries, with b = batch / process_count: "image" float32 (b, ...); "label"
      int32 (b,), -1 for none; "index" int32 (b,), positions in `examples`; "mask" bool (b,), all
      True; and the columns. Its `get_state()` is JSON, for `set_state` of an equal iterator.

    >>> import pcjax.data
    >>> digits = pcjax.data.load("digits").train
    >>> batches = pcjax.data.training_batches(digits, batch=32, seed=0, crop=1)
    >>> {name: (rows.dtype.name, rows.shape) for name, rows in next(batches).items()}
    {'image': ('float32', (32, 8, 8, 1)), 'label': ('int32', (32,)),
     'index': ('int32', (32,)), 'mask': ('bool', (32,))}
    >>> batches.get_state()["step"]
    1
    """
    share = _share(batch, process_index, process_count)
    n = len(examples)
    if batch > n:
        raise RequestError(
            f"got a batch of {batch} and {n} examples: expected a batch of at most {n}"
        )
    _checks.require_whole("seed", seed, 0)
    _checks.require_whole("crop", crop, 0)
    if not isinstance(flip, (bool, np.bool_)):
        raise RequestError(f"got flip {flip!r}: expected True or False")
    if len(examples.shape) != 3 and (crop or flip):
        raise RequestError(
            f"got crop={crop} and flip={flip} for examples of shape {examples.shape}: only images "
            "(height, width, channels) have them, leave them out"
        )
    columns = dict(columns or {})
    for name, rows in columns.items():
        if name in RESERVED:
            raise RequestError(f"got a column named {name!r}, which every batch has: rename it")
        if np.ndim(rows) == 0 or len(rows) != n:
            raise RequestError(
                f"got column {name!r} of shape {np.shape(rows)} for {n} examples: expected one row "
                "per example"
            )
    if neighbours is not None:
        _check_neighbours(neighbours, n)
    part = slice(process_index * share, (process_index + 1) * share)
    return TrainingBatches(
        _Training(
            examples,
            batch=int(batch),
            seed=int(seed),
            crop=int(crop),
            flip=bool(flip),
            normaliser=Normaliser(examples, normalise),
            part=part,
            columns=columns,
            neighbours=neighbours,
        )
    )


def _check_neighbours(neighbours: np.ndarray, n: int) -> None:
    shape, dtype = neighbours.shape, neighbours.dtype
    if len(shape) != 2 or shape[0] != n or shape[1] == 0 or dtype.kind not in "iu":
        raise RequestError(
            f"got neighbours of shape {shape} and dtype {dtype} for {n} examples: expected "
            f"({n}, k) integers"
        )
    low, high = int(neighbours.min()), int(neighbours.max())
    if low < 0 or high >= n:
        raise RequestError(f"got neighbours from {low} to {high}: expected 0 to {n - 1}")


def evaluation_batches(
    examples: Examples,
    *,
    batch: int,
    normalise: Normalise = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """Make batches of all examples once, in order; pad the last one with its last example.

    Args:
      examples: the examples.
      batch: number of examples a batch, over all processes.
      normalise: (mean, std) of each channel, as `statistics` returns; None only divides uint8 by
        255.
      process_index: index of this process.
      process_count: number of processes; each gets an equal part of every batch, in order.

    Returns:
      An iterable, which may be iterated again, of dictionaries as in `training_batches`; "mask" is
      False for the padding.

    >>> import pcjax.data
    >>> test = pcjax.data.load("digits").test
    >>> [int(batch["mask"].sum()) for batch in pcjax.data.evaluation_batches(test, batch=100)]
    [100, 100, 100, 59]
    """
    share = _share(batch, process_index, process_count)
    normaliser = Normaliser(examples, normalise)
    n = len(examples)

    def make(step: int) -> Batch:
        position = step * batch + process_index * share + np.arange(share)
        index = np.minimum(position, n - 1)
        images, labels = examples.take_labelled(index)
        return _batch(normaliser(images), labels, index, position < n)

    return grain.MapDataset.range(-(-n // batch)).map(make).to_iter_dataset(AHEAD)


class TrainingBatches(Iterator[Batch]):
    """An endless iterator whose state names its step and its pipeline."""

    def __init__(self, make: "_Training"):
        self._make, self._step = make, 0
        self._ahead = _from(0, make)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches an epoch."""
        return self._make.steps_per_epoch

    def __next__(self) -> Batch:
        batch = next(self._ahead)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the state to resume from, as JSON."""
        return {"step": self._step, "pipeline": self._make.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resume from a state of `get_state`; refuse the state of another pipeline."""
        items = state if isinstance(state, Mapping) else {}
        step, stored = items.get("step"), items.get("pipeline")
        if type(step) is not int or step < 0 or not isinstance(stored, Mapping):
            raise RequestError(f"got the state {str(state)[:80]}: expected one from get_state")
        own = self._make.identity
        differences = [
            f"{key} was {stored.get(key)!r} and is {own.get(key)!r}"
            for key in own | dict(stored)
            if stored.get(key) != own.get(key)
        ]
        if differences:
            raise RequestError(
                f"this state is of other batches ({'; '.join(differences)}): make them as they "
                "were, or start anew"
            )
        self._ahead.close()
        # A pipeline that begins at this step depends less on Grain than Grain's own state.
        self._step, self._ahead = step, _from(step, self._make)

    def close(self) -> None:
        """End the threads that work ahead."""
        self._ahead.close()


@dataclasses.dataclass(frozen=True, eq=False)
class _Training:
    """The batch of a step, as a function of the step alone."""

    examples: Examples
    batch: int
    seed: int
    crop: int
    flip: bool
    normaliser: Normaliser
    part: slice  # of each batch, for this process
    columns: dict[str, np.ndarray]
    neighbours: np.ndarray | None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.examples) // self.batch

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that a batch depends on, except the step and the process."""
        near = {} if self.neighbours is None else {"neighbours": self.neighbours.shape[1]}
        return near | {
            "fingerprint": self.examples.fingerprint,
            "batch": self.batch,
            "seed": self.seed,
            "crop": self.crop,
            "flip": self.flip,
            "mean": self.normaliser.mean.tolist(),
            "std": self.normaliser.std.tolist(),
            "columns": {
                name: f"{rows.dtype} {rows.shape}" for name, rows in sorted(self.columns.items())
            },
        }

    def __call__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(len(self.examples), self.seed, epoch)
        index = order[position * self.batch :][: self.batch][self.part]
        # Random numbers are for the whole batch: the number of processes does not change them.
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(CHANGE, step)))
        images, labels = self._augmented(index, random)
        result = _batch(images, labels, index, np.ones(len(index), bool))
        result |= {name: np.asarray(rows[index]) for name, rows in self.columns.items()}
        if self.neighbours is not None:
            drawn = random.integers(0, self.neighbours.shape[1], size=self.batch)[self.part]
            near = self.neighbours[index, drawn]
            columns = {name: np.asarray(rows[near]) for name, rows in self.columns.items()}
            columns["image"] = self._augmented(near, random)[0]
            result |= {f"{NEIGHBOUR}{name}": rows for name, rows in columns.items()}
        return result

    def _augmented(
        self, index: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return this process's augmented images, and their labels."""
        images, labels = self.examples.take_labelled(index)
        if self.crop:
            offsets = random.integers(0, 2 * self.crop + 1, size=(self.batch, 2))
            images = random_crop(images, offsets[self.part], padding=self.crop)
        if self.flip:
            images = horizontal_flip(images, (random.random(self.batch) < 0.5)[self.part])
        return self.normaliser(images), labels


@functools.lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, epoch)))
    return random.permutation(n)


def _batch(
    images: np.ndarray, labels: np.ndarray | None, index: np.ndarray, mask: np.ndarray
) -> Batch:
    labels = np.full(len(index), -1, np.int32) if labels is None else labels
    return {"image": images, "label": labels, "index": index.astype(np.int32), "mask": mask}


def _from(step: int, make: Callable[[int], Batch]) -> Any:
    return iter(grain.MapDataset.range(step, sys.maxsize).map(make).to_iter_dataset(AHEAD))


def _share(batch: int, process_index: int, process_count: int) -> int:
    """Return the number of examples of a batch that one process gets."""
    _checks.require_whole("batch", batch, 1)
    _checks.require_whole("process_count", process_count, 1)
    _checks.require_whole("process_index", process_index, 0, process_count - 1)
    if batch % process_count != 0:
        raise RequestError(
            f"got a batch of {batch} for {process_count} processes: expected a multiple, each gets "
            "an equal part"
        )
    return batch // process_count
