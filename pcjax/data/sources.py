"""Where examples come from: `load` by a short name."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data import arrays, digits, images, texts, tfds
from pcjax.data.examples import Dataset, Examples, Splits, hold_out, whole

TEST_SHARE = 0.2


class Source(NamedTuple):
    """Where examples can come from.

    read: (name, **options) -> Splits, with the options among data_dir, image_size, image_labels,
      text_column and label_column that it takes.
    title: its description, for `pcjax list sources`.
    named: True for "KIND:NAME", False for "KIND" alone.
    is_path: True where NAME is a path.
    """

    read: Callable[..., Splits]
    title: str
    named: bool = True
    is_path: bool = False


# A package adds its own by an entry point of the group "pcjax.sources" that names a `Source`.
SOURCES: dict[str, Source] = {
    "digits": Source(digits.read, "scikit-learn's handwritten digits", named=False),
    "tfds": Source(tfds.read, "tfds:NAME, a data set that TFDS has prepared as array_record"),
    "arrays": Source(
        arrays.read, "arrays:PATH, your own .npz with images and labels, or .npy", is_path=True
    ),
    "images": Source(
        images.read,
        "images:PATH, your own folder, list, .parquet or .tar of images",
        is_path=True,
    ),
    "text": Source(
        texts.read, "text:PATH, your own .txt, .csv, .jsonl or .parquet of texts", is_path=True
    ),
}


def _installed() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group="pcjax.sources")}


def all_sources() -> dict[str, Source]:
    """Return the sources of this package and of installed ones, by name."""
    return SOURCES | {name: entry.load() for name, entry in _installed().items()}


def find_source(source: str) -> tuple[Source, str]:
    """Return the source of a short name, and the name behind the colon."""
    if not isinstance(source, str):
        raise RequestError(f"unknown data source {source!r}: expected a name such as 'digits'")
    kind, _, name = source.partition(":")
    if kind not in SOURCES:
        installed = _installed()
        if kind in installed:
            SOURCES[kind] = installed[kind].load()
        elif not name and difflib.get_close_matches(kind, [*SOURCES, *installed], n=1) == []:
            raise RequestError(
                f"unknown data source {source!r}: did you mean 'tfds:{source}'? Expected "
                f"{' or '.join(_forms())}"
            )
        else:
            _checks.require_name("data source", kind, [*SOURCES, *installed])
    source_kind = SOURCES[kind]
    if source_kind.named != bool(name):
        raise RequestError(f"unknown data source {source!r}: expected {' or '.join(_forms())}")
    return source_kind, name


def _forms() -> list[str]:
    return [
        f"{kind}:{'PATH' if source.is_path else 'NAME'}" if source.named else kind
        for kind, source in SOURCES.items()
    ]


def load(
    source: str,
    *,
    data_dir: str | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
    unseen: int = 0,
    part: float = 1.0,
    text_column: str | None = None,
    label_column: str | None = None,
    image_labels: str | None = None,
) -> Dataset:
    """Load a data set and split it into training, validation and test examples.

    Where a source has no test examples of its own, a fifth of its examples are held out for it.
    Where it has no validation examples, the share `validation` of the training examples is held
    out. The split is the same on every machine, and every class is held out in proportion.

    Args:
      source: "digits", 1,797 images of 8 x 8 that come with scikit-learn.
        "tfds:NAME", a data set that TFDS has prepared as array_record. NAME may have a
        configuration and a version, "NAME/CONFIG:1.0.0". At most 1 GB is decoded into memory.
        "arrays:PATH", your own .npz file with the arrays images (or features), labels and classes,
        and also test_images, test_labels, validation_images and validation_labels; all but the
        first are optional. PATH may also be a .npy file, or a folder with train.npz and test.npz:
        see `pcjax.data.arrays`.
        "images:PATH", your own images in a folder, a list, .parquet or .tar files; see
        `pcjax.data.images`.
        "text:PATH", your own texts in a file or a folder; see `pcjax.data.texts`.
      data_dir: the folder of TFDS's prepared data sets; None is TFDS's own default.
      validation: the share of the training examples that is held out for validation, in [0, 1).
      image_size: height and width of the images: the shorter side is scaled to it and the middle
        is cut out; needed where images differ in size.
      unseen: number of classes, the last ones, left out of all parts; their test examples become
        the part `unseen`. The choice of test examples does not depend on it.
      part: the share of every part that is used, of every class alike.
      text_column: the column of texts in .csv, .tsv, .jsonl and .parquet files; None is "text".
      label_column: the column of classes; None is "label" for texts, which may lack it, and no
        column for images.
      image_labels: "folders" takes the classes of images from the names of their folders.

    Returns:
      The data set.

    >>> digits = load("digits")
    >>> [len(part) for part in (digits.train, digits.validation, digits.test)], digits.train.shape
    ([1294, 144, 359], (8, 8, 1))
    """
    _checks.require_share("validation", validation)
    _checks.require_share("part", part)
    if validation == 1:
        raise RequestError("got validation 1: expected a share below 1")
    if part == 0:
        raise RequestError("got part 0: expected a share above 0")
    if image_size is not None:
        _checks.require_whole("image_size", image_size, 1)
    _checks.require_whole("unseen", unseen, 0)
    source_kind, name = find_source(source)
    options = {
        option: value
        for option, value in (
            ("data_dir", data_dir),
            ("image_size", image_size),
            ("text_column", text_column),
            ("label_column", label_column),
            ("image_labels", image_labels),
        )
        if value is not None
    }
    takes = inspect.signature(source_kind.read).parameters
    for option, value in options.items():
        if option not in takes:
            raise RequestError(f"{source!r} takes no {option}; remove {option}={value!r}")
    splits = source_kind.read(name, **options)
    divided = _divided(source, splits, validation)
    if part < 1:
        divided = Dataset(source, *(hold_out(one, part)[1] for one in divided.parts.values()))
        if not len(divided.train):
            raise RequestError(f"got part {part!r} of {source!r}: nothing is left, use more")
    return _without_last(divided, unseen) if unseen else divided


def _divided(source: str, splits: Splits, validation: float) -> Dataset:
    train = whole(splits.train, splits.classes)
    if splits.test is None:
        train, test = hold_out(train, TEST_SHARE)
    else:
        test = whole(splits.test, splits.classes)
    if splits.validation is None:
        train, valid = hold_out(train, validation)
    else:
        valid = whole(splits.validation, splits.classes)
    if not len(train):
        raise RequestError(
            f"nothing is left of {source!r} to train on: give more examples, or hold out less"
        )
    return Dataset(source, train, valid, test)


def _without_last(data: Dataset, unseen: int) -> Dataset:
    """Move the test examples of the last classes to a part of their own."""
    cause = f"got unseen {unseen} for {data.source!r}"
    labels = {}
    for name, part in data.parts.items():
        if part.labels is None or np.any(part.labels < 0):
            raise RequestError(
                f"{cause}, with {name} examples without a label: expected the class of each"
            )
        labels[name] = part.labels
    names = data.train.classes
    highest = max(int(array.max(initial=-1)) for array in labels.values())
    classes = highest + 1 if names is None else len(names)
    if not 2 <= unseen <= classes - 2:
        raise RequestError(
            f"{cause}, which has {classes} classes: expected at least 2, and 2 others to be seen; "
            "leave out fewer or more"
        )
    seen = classes - unseen

    def choose(name: str, rows: np.ndarray, classes: tuple[str, ...] | None) -> Examples:
        part = data.parts[name]
        return dataclasses.replace(part, rows=part.rows[rows], classes=classes)

    kept = {
        name: choose(name, labels[name] < seen, None if names is None else names[:seen])
        for name in data.parts
    }
    if not len(kept["train"]):
        raise RequestError(f"{cause}: nothing is left to train on; leave out fewer")
    return dataclasses.replace(data, **kept, unseen=choose("test", labels["test"] >= seen, names))
