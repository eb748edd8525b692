"""Batches of examples, made ahead of time by Grain."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np

from pcjax import _checks
from pcjax.data.augment import horizontal_flip, random_crop
from pcjax.data.examples import Examples
from pcjax.data.normalise import Normaliser

Batch = dict[str, np.ndarray]
Normalise = tuple[np.ndarray, np.ndarray] | None

RESERVED = ("image", "label", "index", "mask")
NEIGHBOUR = "neighbour_"  # before the names of what belongs to an example's neighbour
# One thread makes a batch while the step runs; a second pays where NumPy releases the interpreter.
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
    """Batches without end, every epoch in a new order.

    Epoch e visits the examples in a permutation drawn from (seed, e), floor(n / batch) batches of them; the few that
    are left sit this epoch out. How the images of step s are changed is drawn from (seed, s). What a step gets
    therefore depends neither on threads nor on how many processes share its work.

    Args:
      examples: those for training.
      batch: how many examples a step gets, over all processes.
      seed: of the order and of the changes, at least 0.
      crop: images are moved by up to so many pixels each way, zeros (before normalisation) coming in.
      flip: whether every other image, by chance, has left and right exchanged.
      normalise: (mean, std) of each channel, as `statistics` gives; None only brings uint8 to 0..1.
      process_index: which of the processes this is.
      process_count: how many processes there are; each gets an equal part of every batch, in order.
      columns: more to be read with each example, such as a teacher's features, by name: arrays with one row per
        example, in memory or mapped from a file.
      neighbours: (n, k) positions of examples that each example is to come with one of, drawn anew in every step, its
        image and columns named "neighbour_image" and so on.

    Returns:
      An iterator of dictionaries, b = batch / process_count: "image" float32 (b, ...); "label" int32 (b,), -1 where
      there is none; "index" int32 (b,), the positions in `examples`; "mask" bool (b,), all True; and the columns. Its
      `get_state()` can be kept as JSON and given to `set_state` of one that was made in the same way.

    >>> import pcjax.data
    >>> batches = pcjax.data.training_batches(pcjax.data.load("digits").train, batch=32, seed=0, crop=1)
    >>> {name: (rows.dtype.name, rows.shape) for name, rows in next(batches).items()}
    {'image': ('float32', (32, 8, 8, 1)), 'label': ('int32', (32,)), 'index': ('int32', (32,)), 'mask': ('bool', (32,))}
    >>> batches.get_state()["step"]
    1
    """
    share = _share(batch, process_index, process_count)
    n = len(examples)
    _checks.require(
        batch <= n,
        f"got a batch of {batch} and {n} examples: expected at most as many, or more examples",
    )
    _checks.require_whole("seed", seed, 0)
    _checks.require_whole("crop", crop, 0)
    _checks.require(
        isinstance(flip, (bool, np.bool_)), f"got flip {flip!r}: expected True or False"
    )
    images = len(examples.shape) == 3
    wanted = f"got crop={crop} and flip={flip} for examples of shape {examples.shape}"
    _checks.require(
        images or not (crop or flip),
        f"{wanted}: only images (height, width, channels) have them, leave them out",
    )
    for name, rows in (columns or {}).items():
        _checks.require(
            name not in RESERVED,
            f"got a column named {name!r}, as part of every batch is: rename it",
        )
        got = f"got column {name!r} of shape {np.shape(rows)} for {n} examples"
        _checks.require(
            np.ndim(rows) > 0 and len(rows) == n, f"{got}: expected one row per example"
        )
    if neighbours is not None:
        got = f"got neighbours of shape {neighbours.shape} and dtype {neighbours.dtype} for {n} examples"
        table = neighbours.ndim == 2 and len(neighbours) == n and neighbours.shape[1] > 0
        _checks.require(
            table and neighbours.dtype.kind in "iu", f"{got}: expected ({n}, k) integers"
        )
        least, most = int(neighbours.min()), int(neighbours.max())
        _checks.require(
            0 <= least <= most < n, f"got neighbours from {least} to {most}: expected 0 to {n - 1}"
        )
    part = slice(process_index * share, (process_index + 1) * share)
    normaliser = Normaliser(examples, normalise)
    asked = int(batch), int(seed), int(crop), bool(flip)
    make = _Training(examples, *asked, normaliser, part, dict(columns or {}), neighbours)
    return TrainingBatches(make)


def evaluation_batches(
    examples: Examples,
    *,
    batch: int,
    normalise: Normalise = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterable[Batch]:
    """All examples once, in order; the last batch is filled up with its last example, masked.

    Args:
      examples: those to be looked at.
      batch: how many examples there are at a time, over all processes.
      normalise: (mean, std) of each channel, as `statistics` gives; None only brings uint8 to 0..1.
      process_index: which of the processes this is.
      process_count: how many processes there are; each gets an equal part of every batch, in order.

    Returns:
      Dictionaries as those of `training_batches`, with "mask" False for what fills up. May be gone through again.

    >>> import pcjax.data
    >>> test = pcjax.data.load("digits").test
    >>> [int(batch["mask"].sum()) for batch in pcjax.data.evaluation_batches(test, batch=100)]
    [100, 100, 100, 59]
    """
    share = _share(batch, process_index, process_count)
    normaliser = Normaliser(examples, normalise)
    n = len(examples)

    def make(step: int) -> Batch:
        wanted = step * batch + process_index * share + np.arange(share)
        index = np.minimum(wanted, n - 1)
        images, labels = examples.take_labelled(index)
        return _batch(normaliser(images), labels, index, wanted < n)

    return grain.MapDataset.range(-(-n // batch)).map(make).to_iter_dataset(AHEAD)


class TrainingBatches(Iterator[Batch]):
    """An endless iterator that knows where it is, and which pipeline it belongs to."""

    def __init__(self, make: "_Training"):
        self._make, self._step = make, 0
        self._ahead = _from(0, make)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches an epoch has."""
        return self._make.steps_per_epoch

    @property
    def size(self) -> float:
        """The root mean square of all images as they are seen, where `normalise` is of their statistics.

        It is 1 but for the zeros that `crop` brings in, of which as many are counted as there can be.
        """
        return self._make.size

    def __next__(self) -> Batch:
        batch = next(self._ahead)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """What is needed to go on from here: numbers, strings and lists, for JSON."""
        return {"step": self._step, "pipeline": self._make.identity}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from where the state was taken; refuses that of another pipeline."""
        step, given = (
            (state.get(key) for key in ("step", "pipeline"))
            if isinstance(state, Mapping)
            else (None, None)
        )
        known = (
            isinstance(given, Mapping)
            and isinstance(step, int)
            and not isinstance(step, bool)
            and step >= 0
        )
        _checks.require(
            known, f"got the state {str(state)[:80]}: expected one that get_state has given"
        )
        own, there = self._make.identity, dict(given or {})
        differences = [
            f"{key} was {there.get(key)!r} and is {own.get(key)!r}"
            for key in (*own, *(key for key in there if key not in own))
            if there.get(key) != own.get(key)
        ]
        found = "; ".join(differences)
        _checks.require(
            not found,
            f"this state is of other batches ({found}): make them as they were, or start anew",
        )
        self._ahead.close()
        # A pipeline that begins at this step: what Grain's own state looks like is Grain's affair.
        self._step, self._ahead = int(step or 0), _from(int(step or 0), self._make)

    def close(self) -> None:
        """Ends the threads that work ahead."""
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
    part: slice  # this process's
    columns: dict[str, np.ndarray]
    neighbours: np.ndarray | None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.examples) // self.batch

    @property
    def size(self) -> float:
        inside = 1.0
        for length in self.examples.shape[:2] if self.crop else ():
            inside *= max(0.0, 1 - self.crop / length)
        zeros = np.mean((self.normaliser.mean / self.normaliser.std) ** 2)
        return float(np.sqrt(1 + (1 - inside) * zeros))

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that what a step gets depends on, other than the step and the process."""
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
        rows = _order(len(self.examples), self.seed, epoch)[
            position * self.batch : (position + 1) * self.batch
        ]
        # Drawn for the whole batch, so that however many processes see the same.
        random = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(CHANGE, step)))
        index = rows[self.part]
        images, labels = self._seen(index, random)
        result = _batch(images, labels, index, np.ones(len(index), bool))
        result |= {name: np.asarray(rows[index]) for name, rows in self.columns.items()}
        if self.neighbours is not None:
            drawn = random.integers(0, self.neighbours.shape[1], size=self.batch)[self.part]
            near = self.neighbours[index, drawn]
            result[f"{NEIGHBOUR}image"] = self._seen(near, random)[0]
            result |= {
                f"{NEIGHBOUR}{name}": np.asarray(rows[near]) for name, rows in self.columns.items()
            }
        return result

    def _seen(
        self, index: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The images of this process as they are seen in a step, and their labels."""
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
    """How many examples of a batch one process gets."""
    _checks.require_whole("batch", batch, 1)
    _checks.require_whole("process_count", process_count, 1)
    _checks.require_whole("process_index", process_index, 0, process_count - 1)
    divided = f"got a batch of {batch} for {process_count} processes"
    _checks.require(
        batch % process_count == 0, f"{divided}: expected a multiple, each gets an equal part"
    )
    return batch // process_count
