"""Where examples come from: `load` by a short name."""

import dataclasses
from typing import Any

import numpy as np

from pcjax import _checks
from pcjax.data import arrays, records
from pcjax.data.examples import Arrays, Dataset, Examples, Splits, hold_out, whole

TEST_SHARE = 0.2
KINDS = '"digits", "tfds:NAME" or "arrays:PATH"'


def load(
    source: str,
    *,
    data_dir: str | None = None,
    validation: float = 0.1,
    image_size: int | None = None,
    unseen: int = 0,
    part: float = 1.0,
) -> Dataset:
    """A data set's training, validation and test examples, by the name of where they come from.

    A source that has no test examples of its own gets a fifth of its examples held out for it, and one that has no
    validation examples besides, the share `validation` of those for training. What is held out is the same on every
    machine, and every class is held out in proportion.

    Args:
      source: "digits", 1,797 images of 8 x 8 that come with scikit-learn. "tfds:NAME", a data set that TFDS has
        prepared as array_record (NAME may have a configuration and a version, "NAME/CONFIG:1.0.0"); one of at most
        1 GB is decoded into memory, another is decoded as it is read. "arrays:PATH", your own: a .npy file of
        examples without labels; a .npz file with "images" (or "features", or "x"), and optionally "labels" (or "y"),
        "classes" (names), and the same with "test_" and "validation_" before them; or a folder of train.npz and
        optionally test.npz and validation.npz (or .npy). Examples are (n, height, width, channels), (n, height,
        width) or (n, features), of integers or floats; uint8 means 0 to 255.
      data_dir: where TFDS has prepared its data sets; None is TFDS's own default.
      validation: the share of the training examples that is held out for validation, from 0 to below 1.
      image_size: height and width that images of a TFDS data set are brought to, the shorter side scaled and the
        middle cut out; needed where they differ in size.
      unseen: how many classes, the last ones by number, are left out of all parts; their test examples are the part
        `unseen` of the data set. Which examples are test examples does not depend on it.
      part: the share of the examples of every part that is used, of every class alike: less to try things out quickly.

    Returns:
      The data set.

    >>> digits = load("digits")
    >>> [len(part) for part in (digits.train, digits.validation, digits.test)], digits.train.shape
    ([1294, 144, 359], (8, 8, 1))
    """
    real = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    _checks.require(
        real and 0 <= validation < 1,
        f"got validation {validation!r}: expected a share, from 0 to below 1",
    )
    if image_size is not None:
        _checks.require_whole("image_size", image_size, 1)
    _checks.require_whole("unseen", unseen, 0)
    shares = isinstance(part, (int, float)) and not isinstance(part, bool) and 0 < part <= 1
    _checks.require(shares, f"got part {part!r}: expected a share, above 0 and at most 1")
    kind, _, name = source.partition(":") if isinstance(source, str) else ("", "", "")
    known = source == "digits" or (kind in ("tfds", "arrays") and name != "")
    _checks.require(known, f"unknown data source {source!r}: expected {KINDS}")
    if kind != "tfds":
        for what, given in (("data_dir", data_dir), ("image_size", image_size)):
            _checks.require(
                given is None,
                f'got {what} {given!r} for {source!r}: only "tfds:NAME" has one, leave it out',
            )
    if kind == "digits":
        splits = _digits()
    elif kind == "arrays":
        splits = arrays.read(name)
    else:
        splits = records.read(name, data_dir, image_size)
    divided = _divided(source, splits, validation)
    if part < 1:
        parts = (
            hold_out(one, part)[1] for one in (divided.train, divided.validation, divided.test)
        )
        divided = Dataset(source, *parts)
        _checks.require(
            len(divided.train) > 0, f"got part {part!r} of {source!r}: nothing is left, use more"
        )
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
    _checks.require(
        len(train) > 0,
        f"nothing is left of {source!r} to train on: give more examples, or hold out less",
    )
    return Dataset(source, train, valid, test)


def _without_last(data: Dataset, unseen: int) -> Dataset:
    """The data set without its last classes, whose test examples are a part of their own."""
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    labels, got = [], f"got unseen {unseen} for {data.source!r}"
    for name, part in parts.items():
        known = part.labels
        if known is None or np.any(known < 0):
            raise _checks.RequestError(
                f"{got}, with {name} examples without a label: expected the class of each"
            )
        labels.append(known)
    names = data.train.classes
    most = max((int(known.max()) for known in labels if len(known)), default=-1)
    classes = most + 1 if names is None else len(names)
    expected = "expected at least 2, and 2 others to be seen; leave out fewer or more"
    _checks.require(2 <= unseen <= classes - 2, f"{got}, which has {classes} classes: {expected}")
    seen = classes - unseen

    def of(part: Examples, chosen: np.ndarray, classes: tuple[str, ...] | None) -> Examples:
        return dataclasses.replace(part, rows=part.rows[chosen], classes=classes)

    names_seen = None if names is None else names[:seen]
    kept = [
        of(part, known < seen, names_seen)
        for part, known in zip(parts.values(), labels, strict=True)
    ]
    _checks.require(len(kept[0]) > 0, f"{got}: nothing is left to train on; leave out fewer")
    return Dataset(data.source, *kept, unseen=of(data.test, labels[2] >= seen, names))


def _digits() -> Splits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _checks.RequestError(
            'the source "digits" comes with scikit-learn, which is not installed: `pip install scikit-learn`'
        ) from error
    digits: Any = load_digits()
    images = (digits.images / 16).astype(np.float32)[..., None]
    store = Arrays(images, digits.target.astype(np.int32))
    return Splits(store, None, None, tuple(str(name) for name in digits.target_names))
