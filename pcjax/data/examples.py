"""Examples and the splits of a data set, in memory or on disk."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

HASHED_WHOLE = 2**27  # bytes; the fingerprint of larger arrays takes samples
ENCODED_WHOLE = 2**30  # bytes of encoded images, which take far longer to decode than to hash
SAMPLES = 1024
SPLIT_SEED = 0
SPLITS = ("train", "validation", "test")


@runtime_checkable
class Store(Protocol):
    """Stored examples: arrays in memory or mapped from a file, or records decoded on reading."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype of what `read` returns: uint8, a kind of float, or int32 for tokens."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the contents, in their order."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the examples of these rows and, where there are any, their labels."""
        ...

    def labels(self) -> np.ndarray | None:
        """Return all labels, which may take a pass over the records."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Examples as arrays in memory or mapped from a file."""

    images: np.ndarray
    known_labels: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.images.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """The stored dtype for uint8 and floats; float32 for other integers."""
        kept = self.images.dtype.kind == "f" or self.images.dtype == np.uint8
        return self.images.dtype if kept else np.dtype(np.float32)

    @property
    def fingerprint(self) -> str:
        """A hash of the arrays, of samples where they are large."""
        labels = () if self.known_labels is None else (self.known_labels,)
        return digest(part for array in (self.images, *labels) for part in array_parts(array))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the examples of these rows and, where there are any, their labels."""
        images = np.asarray(self.images[rows]).astype(self.dtype, copy=False)
        return images, None if self.known_labels is None else self.known_labels[rows]

    def labels(self) -> np.ndarray | None:
        """Return all labels."""
        return self.known_labels


# Any, as a check of the protocol would read the fingerprint of a store that may be damaged.
def in_memory(store: Any, limit: int) -> Store:
    """Read all examples of a store once, where they then take at most `limit` bytes."""
    size = len(store) * math.prod(store.shape) * store.dtype.itemsize
    return store if size > limit else Arrays(*store.read(np.arange(len(store))))


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Hash parts of bytes, and where each ends."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(len(part).to_bytes(8, "little"))  # or ("ab", "c") would be ("a", "bc")
        result.update(part)
    return result.hexdigest()


def keys_of(store: Any, rows: np.ndarray) -> np.ndarray:
    """Hash each of these examples without its label; equal keys mean equal examples.

    A store whose examples take long to read has a method `keys` of its own.

    Returns:
      (n,) hashes of 16 bytes.
    """
    if hasattr(store, "keys"):
        return store.keys(rows)
    examples = store.read(rows)[0]
    head = f"{examples.dtype.str} {store.shape}".encode()
    return hashed((head, np.ascontiguousarray(example).tobytes()) for example in examples)


def hashed(examples: Iterable[Iterable[bytes]]) -> np.ndarray:
    """Hash the parts of every example, as `keys_of` returns it."""
    return np.array([bytes.fromhex(digest(parts)) for parts in examples], "S16")


def array_parts(array: np.ndarray) -> Iterable[bytes]:
    """Yield the bytes of an array, of samples of its rows where it is large."""
    yield f"{array.dtype.str} {array.shape}".encode()
    for rows in blocks(sampled(len(array), array.nbytes, HASHED_WHOLE), array):
        yield np.ascontiguousarray(array[rows]).tobytes()


def sampled(rows: int, size: int, whole: int) -> np.ndarray:
    """Return all rows where their size is at most `whole`, else an even sample of them."""
    return (
        np.arange(rows)
        if size <= whole
        else np.linspace(0, rows - 1, min(rows, SAMPLES)).astype(np.int64)
    )


def blocks(rows: np.ndarray, array: np.ndarray) -> Iterable[np.ndarray]:
    """Yield rows of an array in blocks of about 16 MB."""
    each = max(1, array.nbytes // max(1, len(array)))
    step = max(1, 2**24 // each)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Rows of a store, with the classes' names."""

    store: Store
    rows: np.ndarray  # in order
    classes: tuple[str, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (height, width, channels) or (features,)."""
        return self.store.shape

    @property
    def dtype(self) -> np.dtype:
        """uint8 or a kind of float; int32 where the examples are tokens of texts."""
        return self.store.dtype

    @property
    def input_dtype(self) -> np.dtype:
        """The dtype that a model gets: float32, or int32 for tokens."""
        return self.dtype if self.dtype.kind == "i" else np.dtype(np.float32)

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, " n"] | None:
        """All labels as int32, -1 where one is unknown; None without labels.

        Where the examples stay on disk, this is a pass over all of them.
        """
        labels = self.store.labels()
        return None if labels is None else labels[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the data, their order and the split; beyond 128 MB, of samples."""
        return digest([self.store.fingerprint.encode(), self.rows.astype("<i8").tobytes()])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Examples({len(self)} of {self.dtype} {self.shape})"

    def take(self, indices: np.ndarray) -> Shaped[np.ndarray, "..."]:
        """Read the examples of these positions, neither scaled nor normalised."""
        return self.store.read(self.rows[indices])[0]

    def take_labelled(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read the examples of these positions and, in the same pass, their labels."""
        return self.store.read(self.rows[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in disjoint parts."""

    source: str
    train: Examples
    validation: Examples
    test: Examples
    unseen: Examples | None = None  # test examples of classes that no other part has
    vocabulary: Any = None  # the tokenizer (`pcjax.data.tokens.Vocabulary`) where they are texts
    # the mean and deviation of a model that needs its own
    fixed_normalise: tuple[np.ndarray, np.ndarray] | None = dataclasses.field(
        default=None, kw_only=True
    )

    @property
    def parts(self) -> dict[str, Examples]:
        """The splits by name, and "unseen" where classes were left out."""
        parts = {split: getattr(self, split) for split in SPLITS}
        return parts if self.unseen is None else parts | {"unseen": self.unseen}

    @functools.cached_property
    def normalise(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the training examples' mean and standard deviation, by channel, or fixed ones."""
        if self.fixed_normalise is not None:
            return self.fixed_normalise
        from pcjax.data.normalise import statistics  # it needs Examples

        return statistics(self.train)

    @functools.cached_property
    def class_count(self) -> int | None:
        """Return how many classes a model of the training examples tells apart, if any."""
        if self.train.classes is not None:
            return len(self.train.classes)
        labels = self.train.labels
        return None if labels is None or labels.max() < 0 else int(labels.max()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash the fingerprints of all parts."""
        return digest(part.fingerprint.encode() for part in self.parts.values())


class Splits(NamedTuple):
    """The splits that a source has; `load` holds a missing one out of the training examples."""

    train: Store
    validation: Store | None = None
    test: Store | None = None
    classes: tuple[str, ...] | None = None


def whole(store: Store, classes: tuple[str, ...] | None) -> Examples:
    """Return all examples of a store."""
    return Examples(store, np.arange(len(store)), classes)


def hold_out(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """Split examples into those kept and those held out.

    The split is the same on every machine. It keeps the order, and holds out of every class alike.
    """
    n = len(examples)
    # NumPy promises that this bit generator's stream does not change.
    random = np.random.Generator(np.random.PCG64(SPLIT_SEED)).random(n)
    # Labels on disk cost a pass over all records, and large data sets come near the proportions.
    labels = examples.labels if hasattr(examples.store, "known_labels") else None
    order = np.lexsort((random,) if labels is None else (random, labels))
    count = round(share * n)
    held = np.zeros(n, bool)
    held[order[((np.arange(count) + 0.5) * n / max(count, 1)).astype(np.int64)]] = True
    kept, out = (dataclasses.replace(examples, rows=examples.rows[part]) for part in (~held, held))
    return kept, out
