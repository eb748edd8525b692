"""Examples that TFDS has prepared as array_record, read without TensorFlow."""

import concurrent.futures
import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pcjax import _checks
from pcjax.data.examples import SAMPLES, Arrays, Splits, Store, digest

IN_MEMORY = 2**30  # bytes, decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SMALL = (
    64 * 64 * 3
)  # numbers; such images wait for the interpreter, larger ones for their decoder, which lets go of it


def read(name: str, data_dir: str | None, image_size: int | None) -> Splits:
    """The examples of a data set by its TFDS name."""
    builder = _builder(name, data_dir)
    image_key, label_key = _keys(name, builder)
    stored = builder.info.features[image_key].shape
    shape = _shape(name, builder.info.features[image_key], image_size)
    large = None in stored or math.prod(stored) > SMALL
    from tensorflow_datasets.core import decode

    raw = decode.DeserializeMethod.RAW_BYTES
    sources = {
        part: builder.as_data_source(part, deserialize_method=raw, file_format="array_record")
        for part in builder.info.splits
    }
    found = {
        part: Records(
            f"{builder.info.full_name} {part}", source, image_key, label_key, shape, large
        )
        for part, source in sources.items()
        if part in ("train", "validation", "test") and len(source)
    }
    _checks.require(
        "train" in found,
        f"tfds:{name} has the splits {', '.join(sources)}: expected one named train",
    )
    # Some competitions keep their test labels to themselves; the validation examples are what one tests on there.
    unlabelled = "test" in found and label_key is not None and not found["test"].is_labelled()
    if unlabelled or "test" not in found:
        found = {"train": found["train"]} | (
            {"test": found["validation"]} if "validation" in found else {}
        )
    loaded = {part: records.in_memory_if_small() for part, records in found.items()}
    classes = None if label_key is None else tuple(builder.info.features[label_key].names)
    return Splits(loaded["train"], loaded.get("validation"), loaded.get("test"), classes)


def _builder(name: str, data_dir: str | None) -> Any:
    try:
        from tensorflow_datasets.core import constants, read_only_builder
    except ImportError as error:
        raise _checks.RequestError(
            "a source of TFDS needs it installed: `pip install tensorflow-datasets pillow`"
        ) from error
    where = os.path.expanduser(constants.DATA_DIR if data_dir is None else data_dir)  # noqa: PTH111  may be gs://
    prepare = f"`tfds build {name} --data_dir {where} --file_format array_record`"
    strange: list[str] = []
    try:
        with _tfds_alone(strange):
            builder = read_only_builder.builder_from_files(name, data_dir=where)
    except ImportError as error:  # of what reads a bucket
        raise _checks.RequestError(f"cannot read {where}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # files that are absent or damaged make TFDS raise nearly anything
        got = f"the features.json of {name!r} in {where} names {', '.join(strange)}"
        _checks.require(
            not strange,
            f"{got}: expected TFDS's own kinds of features, code of others is not imported",
        )
        raise _checks.RequestError(
            f"no data set {name!r} prepared by TFDS in {where}: give its data_dir, or prepare it once, "
            f"where TensorFlow is installed, by {prepare}"
        ) from error
    formats = sorted(str(given.value) for given in builder.info.available_file_formats())
    stored = f"{name!r} in {where} is stored as {', '.join(formats)}"
    _checks.require(
        "array_record" in formats, f"{stored}, which has no random access: prepare it by {prepare}"
    )
    return builder


@contextlib.contextmanager
def _tfds_alone(strange: list[str]) -> Iterator[None]:
    """Inside, TFDS takes its own classes only: it would import whatever module a features.json names."""
    from tensorflow_datasets.core.features.feature import FeatureConnector

    before, found = FeatureConnector.__dict__["cls_from_name"], FeatureConnector.cls_from_name

    def known(name: str) -> Any:
        if (
            re.fullmatch(
                r"tensorflow_datasets\.core\.features\.(?!\w*test)[a-z_]+\.[A-Za-z]+", str(name)
            )
            is None
        ):
            strange.append(str(name))
            raise ValueError(f"{name} is not TFDS's own")
        return found(name)

    setattr(FeatureConnector, "cls_from_name", staticmethod(known))  # noqa: B010
    try:
        yield
    finally:
        setattr(FeatureConnector, "cls_from_name", before)  # noqa: B010


def _keys(name: str, builder: Any) -> tuple[str, str | None]:
    """The features that hold the image and its label."""
    from tensorflow_datasets.core import features as kinds

    features, pair = dict(builder.info.features.items()), builder.info.supervised_keys
    supervised = (
        pair
        if isinstance(pair, tuple) and len(pair) == 2 and all(key in features for key in pair)
        else ()
    )
    images = [
        key
        for key in (*supervised, "image", *sorted(features))
        if isinstance(features.get(key), kinds.Image)
    ]
    labels = [
        key for key in (*supervised, "label") if isinstance(features.get(key), kinds.ClassLabel)
    ]
    got = f"tfds:{name} has the features {', '.join(sorted(features))}"
    _checks.require(
        len(images) > 0, f'{got}, none of them an image: save what you need as "arrays:PATH"'
    )
    return images[0], labels[0] if labels else None


def _shape(name: str, image: Any, image_size: int | None) -> tuple[int, int, int]:
    height, width, channels = image.shape
    got = f"tfds:{name} has images of {image.np_dtype} {image.shape}"
    usable = image.np_dtype == np.uint8 and channels in MODES
    _checks.require(
        usable, f'{got}: expected uint8 and 1, 3 or 4 channels, save others as "arrays:PATH"'
    )
    if image_size is not None:
        return image_size, image_size, channels
    _checks.require(
        None not in (height, width), f"{got}, which differ in size: give image_size, such as 224"
    )
    return height, width, channels


class Records:
    """Examples as encoded images on disk, decoded whenever they are read."""

    def __init__(
        self,
        name: str,
        source: Any,
        image_key: str,
        label_key: str | None,
        shape: tuple[int, ...],
        large: bool,
    ):
        self.name, self.source, self.shape, self.dtype = name, source, shape, np.dtype(np.uint8)
        self.image_key, self.label_key = image_key, label_key
        self.threads, self.at_once = (os.cpu_count() or 1, 8) if large else (1, 256)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def fingerprint(self) -> str:
        """A hash of the name, the sizes and some of the records."""
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLES)).astype(np.int64).tolist()
        return digest([f"{self.name} {len(self)} {self.shape}".encode(), *self._raw(rows)])

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The examples of these rows, decoded, and their labels."""
        images = np.empty((len(rows), *self.shape), np.uint8)
        labels = np.empty(len(rows), np.int32)

        def decode(start: int) -> None:
            part = rows[start : start + self.at_once].tolist()
            for i, features in enumerate(self._features(part), start):
                images[i] = self._image(features, int(rows[i]))
                labels[i] = (
                    -1 if self.label_key is None else features[self.label_key].int64_list.value[0]
                )

        self._in_threads(decode, len(rows))
        return images, None if self.label_key is None else labels

    def labels(self) -> np.ndarray | None:
        """All labels, by a pass over the records that decodes no image."""
        if self.label_key is None:
            return None
        labels = np.empty(len(self), np.int32)

        def look(start: int) -> None:
            part = range(start, min(start + self.at_once, len(self)))
            labels[part.start : part.stop] = self._labels(part)

        self._in_threads(look, len(self))
        return labels

    def is_labelled(self) -> bool:
        """Whether any of the first records has a label."""
        return (
            self.label_key is not None
            and max(self._labels(range(min(len(self), self.at_once)))) >= 0
        )

    def in_memory_if_small(self) -> Store:
        """The examples decoded once, if they then take at most 1 GB."""
        if len(self) * math.prod(self.shape) > IN_MEMORY:
            return self
        return Arrays(*self.read(np.arange(len(self))))

    def _raw(self, rows: Sequence[int]) -> Sequence[bytes]:
        try:
            records = self.source.__getitems__(rows)
        except Exception as error:  # array_record has no exceptions of its own
            raise _checks.RequestError(self._damaged(str(error).partition("\n")[0])) from error
        # Of a file that was cut off array_record gives nothing, and says nothing.
        _checks.require(all(records), self._damaged("a file was cut off"))
        return records

    def _damaged(self, reason: str) -> str:
        return f"{self.name}: records cannot be read ({reason}): prepare the data set again"

    def _features(self, rows: Sequence[int]) -> list[Any]:
        # Straight from the protocol buffer: TFDS's own decoding takes some five times as long for small images, and by
        # which of two libraries it is done depends on what happens to be installed.
        from tensorflow_datasets.proto import tf_example_pb2

        parse: Any = getattr(tf_example_pb2, "Example").FromString  # noqa: B009  made at run time, no type knows it
        return [parse(record).features.feature for record in self._raw(rows)]

    def _labels(self, rows: Sequence[int]) -> list[int]:
        return [features[self.label_key].int64_list.value[0] for features in self._features(rows)]

    def _image(self, features: Any, row: int) -> np.ndarray:
        from PIL import Image

        height, width, channels = self.shape
        try:
            with Image.open(io.BytesIO(features[self.image_key].bytes_list.value[0])) as image:
                # A JPEG may be decoded at a fraction of its size that suffices; it then ends within the last pixel.
                drafted = (
                    image.draft(None, (width, height)) if image.size != (width, height) else None
                )
                across, down = drafted[1][2:] if drafted else image.size
                image.load()
            if image.mode != MODES[channels]:
                image = image.convert(MODES[channels])
            if image.size != (width, height):
                scale = min(across / width, down / height)
                left, top = (across - scale * width) / 2, (down - scale * height) / 2
                middle = (left, top, left + scale * width, top + scale * height)
                image = image.resize((width, height), Image.Resampling.BICUBIC, middle)
            return np.asarray(image).reshape(self.shape)
        except (OSError, SyntaxError, IndexError, ValueError) as error:
            raise _checks.RequestError(
                f"{self.name}: the image of record {row} cannot be decoded ({error}): prepare the data set again"
            ) from error

    def _in_threads(self, work: Callable[[int], None], n: int) -> None:
        """Calls it with the first of every so many of n records."""
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            list(
                pool.map(work, range(0, n, self.at_once))
            )  # the list raises what a thread has raised
