"""Examples and the splits of a data set, wherever the numbers lie."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

HASHED_WHOLE = 2**27  # bytes; of what is larger the fingerprint takes samples
SAMPLES = 1024
SPLIT_SEED = 0
SPLITS = ("train", "validation", "test")


@runtime_checkable
class Store(Protocol):
    """Where examples lie: arrays in memory or mapped from a file, or records that are decoded when they are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """What `read` gives: uint8, or a kind of float."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of what lies here, in its order."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The examples of these rows and, where there are any, their labels."""
        ...

    def labels(self) -> np.ndarray | None:
        """All labels, which may take a pass over the records."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples as arrays: in memory, or mapped from a file that is larger than that."""

    images: np.ndarray
    known_labels: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """uint8 and floats stay what they are; other integers are read as float32."""
        kept = self.images.dtype.kind == "f" or self.images.dtype == np.uint8
        return self.images.dtype if kept else np.dtype(np.float32)

    @property
    def fingerprint(self) -> str:
        """A hash of the arrays: of all of them, or of samples of those that are large."""
        labels = () if self.known_labels is None else (self.known_labels,)
        return digest(part for array in (self.images, *labels) for part in _parts(array))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The examples of these rows and, where there are any, their labels."""
        images = np.asarray(self.images[rows]).astype(self.dtype, copy=False)
        return images, None if self.known_labels is None else self.known_labels[rows]

    def labels(self) -> np.ndarray | None:
        """All labels."""
        return self.known_labels


def digest(parts: Iterable[bytes]) -> str:
    """A short hash of some bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # or ("ab", "c") would be ("a", "bc")
        digest.update(part)
    return digest.hexdigest()


def _parts(array: np.ndarray) -> Iterable[bytes]:
    yield f"{array.dtype.str} {array.shape}".encode()
    for rows in blocks(sampled(len(array), array.nbytes, HASHED_WHOLE), array):
        yield np.ascontiguousarray(array[rows]).tobytes()


def sampled(rows: int, size: int, whole: int) -> np.ndarray:
    """All rows of what has at most `whole` bytes, else an even sample of them."""
    return (
        np.arange(rows)
        if size <= whole
        else np.linspace(0, rows - 1, min(rows, SAMPLES)).astype(np.int64)
    )


def blocks(rows: np.ndarray, array: np.ndarray) -> Iterable[np.ndarray]:
    """These rows in turns of some 16 MB each."""
    each = max(1, array.nbytes // max(1, len(array)))
    step = max(1, 2**24 // each)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Examples one can count, read and recognise."""

    store: Store
    rows: np.ndarray  # those of the store that belong to these examples, in order
    classes: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (height, width, channels) or (features,)."""
        return self.store.shape

    @property
    def dtype(self) -> np.dtype:
        """uint8, or a kind of float."""
        return self.store.dtype

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """All labels as int32, -1 where one is unknown; None if there are none. Of a large data set, a pass over it."""
        labels = self.store.labels()
        return None if labels is None else labels[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash that changes with the data, their order and the split; of more than 128 MB, samples are hashed."""
        return digest([self.store.fingerprint.encode(), self.rows.astype("<i8").tobytes()])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Examples({len(self)} of {self.dtype} {self.shape})"

    def take(self, indices: np.ndarray) -> Shaped[np.ndarray, "..."]:
        """The examples of these positions as they are: not scaled, not normalised."""
        return self.store.read(self.rows[indices])[0]

    def take_labelled(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The examples of these positions and, in the same pass, their labels."""
        return self.store.read(self.rows[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in parts that have nothing in common."""

    source: str
    train: Examples
    validation: Examples
    test: Examples
    unseen: Examples | None = (
        None  # test examples of the classes that no other part has, where some were left out
    )

    @property
    def parts(self) -> dict[str, Examples]:
        """The splits by name, and the test examples of unseen classes where some were left out."""
        parts = {split: getattr(self, split) for split in SPLITS}
        return parts if self.unseen is None else parts | {"unseen": self.unseen}

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of all parts."""
        return digest(part.fingerprint.encode() for part in self.parts.values())


class Splits(NamedTuple):
    """What a source has by itself; None is held out of the training data."""

    train: Store
    validation: Store | None
    test: Store | None
    classes: tuple[str, ...] | None


def whole(store: Store, classes: tuple[str, ...] | None) -> Examples:
    """All examples of a store."""
    return Examples(store, np.arange(len(store)), classes)


def hold_out(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """What is kept and what is held out: the same on every machine, in order, every class in proportion."""
    n = len(examples)
    # The bit generator by name: its stream is the one that NumPy promises not to change.
    random = np.random.Generator(np.random.PCG64(SPLIT_SEED)).random(n)
    # Reading the labels of a data set that stays on disk is a pass over it, and one so large is near its proportions.
    labels = examples.labels if isinstance(examples.store, Arrays) else None
    order = np.lexsort((random,) if labels is None else (random, labels))
    count = round(share * n)
    held = np.zeros(n, bool)
    held[order[((np.arange(count) + 0.5) * n / max(count, 1)).astype(np.int64)]] = True
    kept, out = (
        Examples(examples.store, examples.rows[where], examples.classes) for where in (~held, held)
    )
    return kept, out
