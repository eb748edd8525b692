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
from pcjax.data.augment import Augmentation, Changes, view_changes
from pcjax.data.examples import Examples
from pcjax.data.normalise import Normaliser

Batch = dict[str, np.ndarray]
Normalise = tuple[np.ndarray, np.ndarray] | None
Column = np.ndarray | tuple[np.ndarray, ...]

RESERVED = ("image", "label", "index", "mask")
NEIGHBOUR = "neighbour_"  # prefix of the columns of an example's neighbour
# One thread makes a batch while the step runs; a second helps where NumPy releases the lock.
AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
ORDER, CHANGE = 0, 1  # streams of random numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """How examples are drawn into batches.

    batch: number of examples a step, over all processes.
    seed: seed of the order and of the augmentation, at least 0.
    neighbours: (n, k) positions of every example's neighbours. One of them, drawn anew in every
      step, comes with the example as "neighbour_image" and so on.
    process_index: index of this process.
    process_count: number of processes; each gets an equal part of every batch, in order.
    """

    batch: int
    seed: int = 0
    neighbours: np.ndarray | None = None
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        _share(self.batch, self.process_index, self.process_count)
        _checks.require_whole("seed", self.seed, 0)

    @property
    def part(self) -> slice:
        """Return this process's part of every batch."""
        share = _share(self.batch, self.process_index, self.process_count)
        return slice(self.process_index * share, (self.process_index + 1) * share)


def training_batches(
    examples: Examples,
    sampling: Sampling,
    *,
    augmentation: Augmentation | None = None,
    normalise: Normalise = None,
    columns: Mapping[str, Column] | None = None,
) -> "TrainingBatches":
    """Make endless training batches, with a new order in every epoch.

    Epoch e visits the examples in a permutation drawn from (seed, e), in floor(n / batch) batches;
    the remaining examples are left out of this epoch. The random changes of step s are drawn from
    (seed, s). A batch depends neither on threads nor on the number of processes.

    Args:
      examples: the training examples.
      sampling: the size of a batch, the seed, and this process's part.
      augmentation: the random changes of images; None for none.
      normalise: (mean, std) of each channel, as `statistics` returns; None only divides uint8 by
        255.
      columns: arrays with one row per example, by name, such as a teacher's features; in memory or
        mapped from a file. A tuple of them has one array for each view.

    Returns:
      An iterator of dictionaries, with b = batch / process_count: "image" float32 (b, ...); "label"
      int32 (b,), -1 for none; "index" int32 (b,), positions in `examples`; "mask" bool (b,), all
      True; and the columns. Its `get_state()` is JSON, for `set_state` of an equal iterator.

    >>> from pcjax.data import Augmentation, Sampling, load, training_batches
    >>> digits, sampling = load("digits").train, Sampling(batch=32, seed=0)
    >>> batches = training_batches(digits, sampling, augmentation=Augmentation(crop=1))
    >>> {name: (rows.dtype.name, rows.shape) for name, rows in next(batches).items()}
    {'image': ('float32', (32, 8, 8, 1)), 'label': ('int32', (32,)),
     'index': ('int32', (32,)), 'mask': ('bool', (32,))}
    >>> batches.get_state()["step"]
    1
    """
    n, batch, augmentation = len(examples), sampling.batch, augmentation or Augmentation()
    if batch > n:
        raise RequestError(
            f"got a batch of {batch} and {n} examples: expected a batch of at most {n}"
        )
    crop, flip = augmentation.crop, augmentation.flip
    if len(examples.shape) != 3 and (crop or flip):
        raise RequestError(
            f"got crop={crop} and flip={flip} for examples of shape {examples.shape}: only images "
            "(height, width, channels) have them, leave them out"
        )
    columns = dict(columns or {})
    for name, column in columns.items():
        if name in RESERVED:
            raise RequestError(f"got a column named {name!r}, which every batch has: rename it")
        arrays = column if isinstance(column, tuple) else (column,)
        if isinstance(column, tuple) and len(column) != augmentation.views:
            raise RequestError(
                f"got column {name!r} of {len(column)} arrays for {augmentation.views} views: "
                "expected one for each view"
            )
        for rows in arrays:
            if np.ndim(rows) == 0 or len(rows) != n:
                raise RequestError(
                    f"got column {name!r} of shape {np.shape(rows)} for {n} examples: expected one "
                    "row per example"
                )
    if sampling.neighbours is not None:
        _check_neighbours(sampling.neighbours, n)
    return TrainingBatches(
        _BatchMaker(examples, sampling, augmentation, Normaliser(examples, normalise), columns)
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
    """Make batches of all examples once, in order; the last example pads the last batch.

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

    def __init__(self, make: "_BatchMaker"):
        self._make, self._step = make, 0
        self._ahead: Any = None

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches an epoch."""
        return self._make.steps_per_epoch

    def __next__(self) -> Batch:
        if self._ahead is None:
            # A new pipeline begins at this step, so that no stored state depends on Grain.
            self._ahead = _from(self._step, self._make)
        batch = next(self._ahead)
        self._step += 1
        return batch

    def draw(self) -> Batch:
        """Draw the next batch without making it, for a device that holds the examples.

        Returns:
          The arrays of its `Draw`, each (b, ...).
        """
        self.close()
        self._step += 1
        return self._make.draw(self._step - 1).arrays()

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
        self.close()
        self._step = step

    def close(self) -> None:
        """End the threads that work ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """The random choices behind a process's part of a batch.

    epoch: number of the epoch, which selects the view of columns that have several.
    index: (b,) positions of the examples.
    changes: the changes of their images.
    near: (b,) positions of their neighbours; None where the batch has none.
    near_changes: the changes of the neighbours' images.
    """

    epoch: int
    index: np.ndarray
    changes: Changes
    near: np.ndarray | None = None
    near_changes: Changes | None = None

    def arrays(self) -> Batch:
        """Return the fields that are not None by name, as int32 or bool."""
        parts = {"epoch": np.full(len(self.index), self.epoch), "index": self.index}
        parts |= {"near": self.near}
        for prefix, changes in (("", self.changes), (NEIGHBOUR, self.near_changes)):
            if changes is not None:
                parts |= {f"{prefix}offsets": changes.offsets, f"{prefix}flipped": changes.flipped}
        return {
            name: x if x.dtype == bool else x.astype(np.int32)
            for name, x in parts.items()
            if x is not None
        }


@dataclasses.dataclass(frozen=True, eq=False)
class _BatchMaker:
    """Make the batch of a step, from the step's number alone."""

    examples: Examples
    sampling: Sampling
    augmentation: Augmentation
    normaliser: Normaliser
    columns: dict[str, Column]

    @property
    def steps_per_epoch(self) -> int:
        return len(self.examples) // self.sampling.batch

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """All that a batch depends on, except the step and the process."""
        neighbours = self.sampling.neighbours
        near = {} if neighbours is None else {"neighbours": neighbours.shape[1]}
        return (
            near
            | {
                "fingerprint": self.examples.fingerprint,
                "batch": int(self.sampling.batch),
                "seed": int(self.sampling.seed),
                "crop": int(self.augmentation.crop),
                "flip": bool(self.augmentation.flip),
                "mean": self.normaliser.mean.tolist(),
                "std": self.normaliser.std.tolist(),
                "columns": {
                    name: f"{rows.dtype} {rows.shape}"
                    for name, rows in sorted(self._columns_of(0).items())
                },
            }
            | ({"views": self.augmentation.views} if self.augmentation.views else {})
        )

    def _columns_of(self, epoch: int) -> dict[str, np.ndarray]:
        """Return the columns of the view that an epoch shows."""
        return {
            name: column[epoch % len(column)] if isinstance(column, tuple) else column
            for name, column in self.columns.items()
        }

    def draw(self, step: int) -> Draw:
        """Draw this process's part of the batch of a step."""
        batch, seed, part = self.sampling.batch, self.sampling.seed, self.sampling.part
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(len(self.examples), seed, epoch)
        index = order[position * batch :][:batch][part]
        # Random numbers are for the whole batch: the number of processes does not change them.
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(CHANGE, step)))
        changes = self._changes(index, random, epoch)
        neighbours = self.sampling.neighbours
        if neighbours is None:
            return Draw(epoch, index, changes)
        drawn = random.integers(0, neighbours.shape[1], size=batch)[part]
        near = neighbours[index, drawn]
        return Draw(epoch, index, changes, near, self._changes(near, random, epoch))

    def _changes(self, index: np.ndarray, random: np.random.Generator, epoch: int) -> Changes:
        views, part = self.augmentation.views, self.sampling.part
        if views:
            return view_changes(self.augmentation, epoch % views, len(self.examples)).of(index)
        return self.augmentation.draw(random, self.sampling.batch).of(part)

    def __call__(self, step: int) -> Batch:
        draw = self.draw(step)
        epoch, index = draw.epoch, draw.index
        images, labels = self.examples.take_labelled(index)
        columns = self._columns_of(epoch)
        result = _batch(
            self.normaliser(draw.changes.apply(images)), labels, index, np.ones(len(index), bool)
        )
        result |= {name: np.asarray(rows[index]) for name, rows in columns.items()}
        near = draw.near
        if near is not None and draw.near_changes is not None:
            beside = {name: np.asarray(rows[near]) for name, rows in columns.items()}
            beside["image"] = self.normaliser(draw.near_changes.apply(self.examples.take(near)))
            result |= {f"{NEIGHBOUR}{name}": rows for name, rows in beside.items()}
        return result


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
