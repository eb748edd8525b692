"""Read data sets that TFDS has prepared as array_record, without TensorFlow."""

import concurrent.futures
import copy
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pcjax._checks import RequestError
from pcjax.data.examples import SAMPLES, Splits, digest, hashed, in_memory

IN_MEMORY = 2**30  # bytes, decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SMALL = 64 * 64 * 3  # numbers an image; larger ones are decoded without the interpreter lock
OWN_FEATURES = re.compile(r"tensorflow_datasets\.core\.features\.(?!\w*test)[a-z_]+\.[A-Za-z]+")


def read(name: str, *, data_dir: str | None = None, image_size: int | None = None) -> Splits:
    """Read a data set by its TFDS name.

    Args:
      name: NAME, NAME/CONFIG or NAME/CONFIG:VERSION.
      data_dir: the folder of prepared data sets; None: TFDS's default.
      image_size: height and width of the images: the shorter side is scaled to it and the middle
        is cut out.
    """
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
    records = {
        part: Records(
            f"{builder.info.full_name} {part}", source, image_key, label_key, shape, large
        )
        for part, source in sources.items()
        if part in ("train", "validation", "test") and len(source)
    }
    if "train" not in records:
        raise RequestError(
            f"tfds:{name} has the splits {', '.join(sources)}: expected one named train"
        )
    test, validation = records.get("test"), records.get("validation")
    # Some competitions keep their test labels; their validation examples then serve as test.
    if test is None or (label_key is not None and not test.is_labelled()):
        test, validation = validation, None
    validation, test = (
        None if part is None else in_memory(part, IN_MEMORY) for part in (validation, test)
    )
    classes = None if label_key is None else tuple(builder.info.features[label_key].names)
    return Splits(in_memory(records["train"], IN_MEMORY), validation, test, classes)


def _builder(name: str, data_dir: str | None) -> Any:
    try:
        from tensorflow_datasets.core import constants, read_only_builder
    except ImportError as error:
        raise RequestError(
            "tfds:NAME needs TFDS; install it with `pip install tensorflow-datasets pillow`"
        ) from error
    folder = os.path.expanduser(data_dir or constants.DATA_DIR)  # noqa: PTH111, may be gs://
    prepare = f"`tfds build {name} --data_dir {folder} --file_format array_record`"
    try:
        _check_feature_classes(folder, name)
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
    except RequestError:
        raise
    except ImportError as error:  # a package that reads buckets is missing
        raise RequestError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
    except Exception as error:  # absent or damaged files make TFDS raise nearly anything
        raise RequestError(
            f"{folder} holds no data set {name!r} prepared by TFDS: give its data_dir, or prepare "
            f"it once, where TensorFlow is installed, by {prepare}"
        ) from error
    formats = sorted(str(item.value) for item in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise RequestError(
            f"{name!r} in {folder} is stored as {', '.join(formats)}, which has no random access: "
            f"prepare it by {prepare}"
        )
    return builder


def _check_feature_classes(folder: str, name: str) -> None:
    """Refuse a features.json with classes that are not TFDS's own: TFDS would import them."""
    from etils import epath

    dataset = epath.Path(folder, re.split("[/:]", name)[0])
    # NAME/VERSION and NAME/CONFIG/VERSION
    paths = [*dataset.glob("*/features.json"), *dataset.glob("*/*/features.json")]
    for path in paths:
        for class_name in _class_names(json.loads(path.read_text())):
            if not OWN_FEATURES.fullmatch(class_name):
                raise RequestError(
                    f"{path} names {class_name}, which is not one of TFDS's own features; other "
                    "code is not imported"
                )


def _class_names(value: Any) -> Iterator[str]:
    """Yield every class that a features.json names, at any depth."""
    if isinstance(value, list):
        for item in value:
            yield from _class_names(item)
    elif isinstance(value, dict):
        legacy = ("type",) if "content" in value else ()
        for key, item in value.items():
            if key in ("pythonClassName", "python_class_name", *legacy):
                yield str(item)
            yield from _class_names(item)


def _keys(name: str, builder: Any) -> tuple[str, str | None]:
    """Return the names of the features that hold the image and its label."""
    from tensorflow_datasets.core import features as kinds

    features, pair = dict(builder.info.features.items()), builder.info.supervised_keys
    supervised = pair if isinstance(pair, tuple) and len(pair) == 2 else ()

    def first(candidates: Sequence[str], kind: type) -> str | None:
        return next((key for key in candidates if isinstance(features.get(key), kind)), None)

    image = first((*supervised, "image", *sorted(features)), kinds.Image)
    if image is None:
        raise RequestError(
            f"tfds:{name} has the features {', '.join(sorted(features))}, none of them an image: "
            'save what you need as "arrays:PATH"'
        )
    return image, first((*supervised, "label"), kinds.ClassLabel)


def _shape(name: str, image: Any, image_size: int | None) -> tuple[int, int, int]:
    height, width, channels = image.shape
    cause = f"tfds:{name} has images of {image.np_dtype} {image.shape}"
    if image.np_dtype != np.uint8 or channels not in MODES:
        raise RequestError(
            f'{cause}: expected uint8 and 1, 3 or 4 channels, save others as "arrays:PATH"'
        )
    if image_size is not None:
        return image_size, image_size, channels
    if None in (height, width):
        raise RequestError(f"{cause}, which differ in size: give image_size, such as 224")
    return height, width, channels


class Records:
    """Encoded images on disk, decoded whenever they are read."""

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
        """A hash of the name, the sizes and a sample of the records."""
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLES)).astype(np.int64).tolist()
        return digest([f"{self.name} {len(self)} {self.shape}".encode(), *self._raw(rows)])

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash each of these records, and the size of its image."""
        shape = repr(self.shape).encode()
        return hashed((shape, record) for record in self._raw(rows.tolist()))

    def at_size(self, side: int) -> "Records":
        """Return the same images, decoded at another size."""
        other = copy.copy(self)
        other.shape = (side, side, self.shape[2])
        return other

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read and decode the examples of these rows, and their labels."""
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
        """Read all labels, in a pass over the records that decodes no image."""
        if self.label_key is None:
            return None
        labels = np.empty(len(self), np.int32)

        def read(start: int) -> None:
            part = range(start, min(start + self.at_once, len(self)))
            labels[part.start : part.stop] = self._labels(part)

        self._in_threads(read, len(self))
        return labels

    def is_labelled(self) -> bool:
        """Return True if one of the first records has a label."""
        return (
            self.label_key is not None
            and max(self._labels(range(min(len(self), self.at_once)))) >= 0
        )

    def _raw(self, rows: Sequence[int]) -> Sequence[bytes]:
        try:
            records = self.source.__getitems__(rows)
        except Exception as error:  # array_record raises nearly anything
            raise RequestError(self._damaged(str(error).partition("\n")[0])) from error
        # array_record returns empty records of a file that was cut off, without an error.
        if not all(records):
            raise RequestError(self._damaged("a file was cut off"))
        return records

    def _damaged(self, reason: str) -> str:
        return f"{self.name}: records cannot be read ({reason}): prepare the data set again"

    def _features(self, rows: Sequence[int]) -> list[Any]:
        # TFDS's own decoding takes five times as long for small images, and uses whichever of two
        # libraries is installed.
        from tensorflow_datasets.proto import tf_example_pb2

        parse: Any = vars(tf_example_pb2)["Example"].FromString  # made at run time, without a type
        return [parse(record).features.feature for record in self._raw(rows)]

    def _labels(self, rows: Sequence[int]) -> list[int]:
        return [features[self.label_key].int64_list.value[0] for features in self._features(rows)]

    def _image(self, features: Any, row: int) -> np.ndarray:
        from PIL import Image

        height, width, channels = self.shape
        try:
            with Image.open(io.BytesIO(features[self.image_key].bytes_list.value[0])) as image:
                # A JPEG is decoded at the smallest fraction that suffices; its last pixel may be
                # covered in part.
                resizes = image.size != (width, height)
                drafted = image.draft(None, (width, height)) if resizes else None
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
            raise RequestError(
                f"{self.name}: the image of record {row} cannot be decoded ({error}): prepare the "
                "data set again"
            ) from error

    def _in_threads(self, work: Callable[[int], None], n: int) -> None:
        """Call `work` with the first position of every block of n records."""
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, range(0, n, self.at_once)))  # list raises the threads' errors
