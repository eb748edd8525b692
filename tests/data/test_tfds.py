"""Data sets prepared by TFDS: small ones made here, and two real ones where they exist."""

import io
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pcjax.data import (
    Augmentation,
    Sampling,
    evaluation_batches,
    load,
    statistics,
    training_batches,
)
from pcjax.data import tfds as module
from pcjax.data.examples import keys_of

REAL = pathlib.Path(__file__).parents[3] / "shared" / "tfds"
SIZES = [(20, 30), (12, 12), (31, 17), (24, 24)]


def picture(i, size, kind="PNG"):
    """Return a smooth picture and its encoding."""
    height, width = size
    rows, columns = np.mgrid[:height, :width] / [[[height]], [[width]]]
    image = np.stack([rows, columns, np.full(size, i / 40)], axis=-1) * 255
    buffer = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(
        buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})
    )
    return image.astype(np.uint8), buffer.getvalue()


def prepared(
    folder, splits, *, shape=(8, 6, 3), labels=True, make=None, file_format="array_record"
):
    """Prepare a data set named tiny by TFDS, from {split: labels}."""
    kinds = {"image": tfds.features.Image(shape=shape)}
    if labels:
        kinds["label"] = tfds.features.ClassLabel(names=["cat", "dog", "owl"])
    make = make or (lambda i: picture(i, shape[:2])[1])

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(kinds)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, _):
            return {name: self._generate_examples(given) for name, given in splits.items()}

        def _generate_examples(self, given):
            for i, label in enumerate(given):
                yield i, {"image": io.BytesIO(make(i))} | ({"label": label} if labels else {})

    Tiny(data_dir=folder, file_format=file_format).download_and_prepare()
    return str(folder)


def everything(part):
    return part.take(np.arange(len(part)))


def test_prepared_examples_are_read_back(tmp_path):
    labels = [0, 1, 2, 2, 1, 0, 0, 1, 2, 1]
    given = prepared(tmp_path, {"train": labels, "test": labels[:4]})
    for name in ("tiny", "tiny:1.0.0", "tiny:1.*.*"):
        data = load(f"tfds:{name}", data_dir=given, validation=0.3)
        assert (len(data.train), len(data.validation), len(data.test)) == (7, 3, 4)
    assert data.train.classes == ("cat", "dog", "owl")
    assert data.train.shape == (8, 6, 3)
    assert np.array_equal(everything(data.test), [picture(i, (8, 6))[0] for i in range(4)])
    assert np.array_equal(everything(data.train), [picture(i, (8, 6))[0] for i in data.train.rows])
    assert np.array_equal(data.train.labels, np.array(labels)[data.train.rows])
    assert data.train.labels.dtype == np.int32


def test_on_disk_and_in_memory_are_the_same_examples(tmp_path, monkeypatch):
    labels = (np.arange(40) % 3).tolist()
    given = prepared(tmp_path, {"train": labels, "validation": labels[:9], "test": labels[:4]})
    memory = load("tfds:tiny", data_dir=given)
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    disk = load("tfds:tiny", data_dir=given)
    for one, two in (
        (memory.train, disk.train),
        (memory.validation, disk.validation),
        (memory.test, disk.test),
    ):
        assert isinstance(two.store, module.Records)
        assert not isinstance(one.store, module.Records)
        order = np.array([3, 0, 2, 3])
        assert np.array_equal(one.take(order), two.take(order))
        assert np.array_equal(one.labels, two.labels)
        assert np.allclose(statistics(one), statistics(two))
        keys = keys_of(two.store, np.array([3, 0, 2, 3]))
        assert [*keys[:3]].count(keys[3]) == 1
        assert keys[0] == keys[3]
    pipelines = [
        training_batches(data.train, Sampling(16), augmentation=Augmentation(crop=1, flip=True))
        for data in (memory, disk)
    ]
    for _ in range(5):
        one, two = (next(batches) for batches in pipelines)
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert sum(batch["mask"].sum() for batch in evaluation_batches(disk.validation, batch=4)) == 9
    assert len({disk.train.fingerprint, disk.validation.fingerprint, disk.test.fingerprint}) == 3
    assert disk.train.fingerprint == load("tfds:tiny", data_dir=given).train.fingerprint


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [8, 16, 40])
def test_images_of_differing_sizes_are_brought_to_one(kind, size, tmp_path):
    made = [picture(i, given, kind) for i, given in enumerate(SIZES)]
    given = prepared(
        tmp_path,
        {"train": [0, 1, 2, 0], "test": [0]},
        shape=(None, None, 3),
        make=lambda i: made[i][1],
    )
    data = load("tfds:tiny", data_dir=given, image_size=size, validation=0.0)
    assert data.train.shape == (size, size, 3)
    for i, image in enumerate(everything(data.train).astype(np.float64)):
        # The pictures are ramps from 0 to 255; a square keeps the middle of the longer side's.
        height, width = SIZES[i]
        kept = [min(height, width) / height, min(height, width) / width]
        for axis in (0, 1):
            positions = 0.5 + kept[axis] * ((np.arange(size) + 0.5) / size - 0.5)
            ramp = 255 * positions - 255 / SIZES[i][axis] / 2
            # two neighbouring rows differ by 6 to 32
            assert np.abs(image[..., axis].mean(axis=1 - axis) - ramp).max() < 10
        assert np.abs(image[..., 2] - 255 * i / 40).max() < 8
    with pytest.raises(ValueError, match="differ in size: give image_size, such as 224"):
        load("tfds:tiny", data_dir=given)


def test_grey_colour_and_transparency(tmp_path):
    def painted(mode, i):
        buffer = io.BytesIO()
        Image.new(mode, (6, 8), 40 + i if mode in ("L", "P") else (40 + i,) * len(mode)).save(
            buffer, "PNG"
        )
        return buffer.getvalue()

    modes = ["RGB", "L", "RGBA", "RGB"]
    for channels in (1, 3, 4):
        given = prepared(
            tmp_path / str(channels),
            {"train": [0, 1, 2, 0], "test": [0]},
            shape=(8, 6, channels),
            make=lambda i: painted(modes[i], i),
        )
        images = everything(load("tfds:tiny", data_dir=given, validation=0.0).train)
        assert images.shape == (4, 8, 6, channels)
        assert np.array_equal(images[:, 0, 0, 0], [40, 41, 42, 43])


def test_the_roles_of_splits(tmp_path):
    lengths = {
        "own": ({"train": [0] * 20, "validation": [1] * 5, "test": [2] * 7}, (20, 5, 7)),
        "unlabelled test": (
            {"train": [0] * 20, "validation": [1] * 5, "test": [-1] * 7},
            (18, 2, 5),
        ),
        "no test": ({"train": [0] * 20, "validation": [1] * 5}, (18, 2, 5)),
        "only training": ({"train": [0] * 20}, (14, 2, 4)),
        "only an unlabelled test besides": ({"train": [0] * 20, "test": [-1] * 7}, (14, 2, 4)),
        "others besides": (
            {"train": [0] * 20, "test": [1] * 7, "unsupervised": [0] * 3},
            (18, 2, 7),
        ),
    }
    for name, (splits, expected) in lengths.items():
        data = load("tfds:tiny", data_dir=prepared(tmp_path / name, splits))
        assert (len(data.train), len(data.validation), len(data.test)) == expected, name
    given = prepared(tmp_path / "no labels", {"train": [0] * 20, "test": [0] * 7}, labels=False)
    data = load("tfds:tiny", data_dir=given)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 7)
    assert data.train.labels is None
    assert data.train.classes is None


def refused(*args, **kwargs):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_data_set_is_refused_with_the_command_that_prepares_it(tmp_path):
    message = refused("tfds:cifar100", data_dir=str(tmp_path))
    cause = f"{tmp_path} holds no data set 'cifar100' prepared by TFDS: give its data_dir"
    assert f"{cause}, or prepare it once" in message
    assert f"`tfds build cifar100 --data_dir {tmp_path} --file_format array_record`" in message
    assert "no data set 'cifar101'" in refused("tfds:cifar101", data_dir=str(tmp_path / "nowhere"))
    assert "no data set '../tiny'" in refused("tfds:../tiny", data_dir=str(tmp_path))
    given = prepared(tmp_path, {"train": [0, 1]})
    assert "no data set 'tiny:2.0.0'" in refused("tfds:tiny:2.0.0", data_dir=given)
    assert "no data set 'tiny/large'" in refused("tfds:tiny/large", data_dir=given)
    (tmp_path / "tiny" / "1.0.0" / "dataset_info.json").write_text("{")
    assert "no data set 'tiny'" in refused("tfds:tiny", data_dir=given)


def test_damaged_images_and_records_are_refused(tmp_path):
    given = prepared(
        tmp_path / "a",
        {"train": [0, 1, 2]},
        make=lambda i: b"no image" if i == 1 else picture(i, (8, 6))[1],
    )
    message = refused("tfds:tiny", data_dir=given)
    assert (
        "tiny/1.0.0 train: the image of record 1 cannot be decoded (cannot identify image file"
        in message
    )
    given = prepared(
        tmp_path / "b", {"train": [0, 1, 2]}, make=lambda i: picture(i, (8, 6))[1][:-30]
    )
    assert "the image of record 0 cannot be decoded" in refused("tfds:tiny", data_dir=given)
    given = prepared(tmp_path / "c", {"train": [0, 1, 2]})
    (file,) = pathlib.Path(given).rglob("*.array_record-*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "tiny/1.0.0 train: records cannot be read (a file was cut off)" in refused(
        "tfds:tiny", data_dir=given
    )
    file.unlink()
    assert "records cannot be read" in refused("tfds:tiny", data_dir=given)


EVIL = """
import pathlib
pathlib.Path({canary!r}).touch()
from tensorflow_datasets.core import features
class Kind(features.Image):
    pass
"""


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "evil.Kind",
        "unittest.__main__.Kind",
        "this.Kind",
        "tensorflow_datasets.core.features.image_feature_test.Kind",
        "tensorflow_datasets.testing.Kind",
        "tensorflow_datasets.core.features.evil.deep.Kind",
        "Kind",
        "",
    ],
)
def test_no_code_that_a_data_set_names_is_imported(name, legacy, tmp_path, monkeypatch):
    folder, canary = prepared(tmp_path / "data", {"train": [0, 1, 2]}), tmp_path / "canary"
    (tmp_path / "evil.py").write_text(EVIL.format(canary=str(canary)))
    monkeypatch.syspath_prepend(tmp_path)
    path = pathlib.Path(folder) / "tiny" / "1.0.0" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["image"]["pythonClassName"] = name
    path.write_text(json.dumps({"type": name, "content": {}} if legacy else features))
    before = set(sys.modules)
    assert f"names {name}" in refused("tfds:tiny", data_dir=folder)
    new = set(sys.modules) - before
    assert not any(
        module.startswith(("evil", "this", "unittest.__main__")) or "_test" in module
        for module in new
    )
    assert not canary.exists()


def test_a_flipped_bit_is_never_read_as_data(tmp_path):
    given = prepared(tmp_path, {"train": [0, 1, 2], "test": [0]})
    expected = load("tfds:tiny", data_dir=given, validation=0.0).train
    (file,) = pathlib.Path(given).rglob("*train.array_record-*")
    content = file.read_bytes()
    errors = []
    for where in np.flatnonzero(np.frombuffer(content, np.uint8))[::20].tolist():  # much is padding
        file.write_bytes(content[:where] + bytes([content[where] ^ 16]) + content[where + 1 :])
        try:
            train = load("tfds:tiny", data_dir=given, validation=0.0).train
        except ValueError as error:
            errors.append(str(error))
        else:
            assert np.array_equal(everything(train), everything(expected))
            assert np.array_equal(train.labels, expected.labels)
    assert len(errors) > 10
    assert all("records cannot be read" in each for each in errors)


def test_unsupported_splits_features_and_formats_are_refused(tmp_path):
    given = prepared(tmp_path / "a", {"validation": [0, 1], "test": [0]})
    message = refused("tfds:tiny", data_dir=given)
    assert "tfds:tiny has the splits validation, test: expected one named train" in message
    given = prepared(tmp_path / "b", {"train": [0, 1]}, shape=(8, 6, 2))
    message = refused("tfds:tiny", data_dir=given)
    assert (
        "tfds:tiny has images of uint8 (8, 6, 2): expected uint8 and 1, 3 or 4 channels" in message
    )
    given = prepared(tmp_path / "c", {"train": [0, 1]})
    for name, before, after, expected in (
        (
            "features.json",
            '"tensorflow_datasets.core.features.image_feature.Image"',
            '"tensorflow_datasets.core.features.text_feature.Text"',
            "has the features image, label, none of them an image",
        ),
        (
            "dataset_info.json",
            '"array_record"',
            '"tfrecord"',
            "is stored as tfrecord, which has no random access: prepare it by `tfds build tiny",
        ),
    ):
        (file,) = pathlib.Path(given).rglob(name)
        content = file.read_text()
        assert before in content
        file.write_text(content.replace(before, after))
        assert expected in refused("tfds:tiny", data_dir=given)
        file.write_text(content)


@pytest.mark.nightly
def test_fashion_mnist():
    if not (REAL / "fashion_mnist").exists():
        pytest.skip(f"Fashion-MNIST has not been prepared in {REAL}")
    fashion = load("tfds:fashion_mnist", data_dir=str(REAL))
    assert (len(fashion.train), len(fashion.validation), len(fashion.test)) == (54000, 6000, 10000)
    assert fashion.train.shape == (28, 28, 1)
    assert len(fashion.train.classes) == 10
    for part, each in ((fashion.train, 5400), (fashion.validation, 600), (fashion.test, 1000)):
        assert np.abs(np.bincount(part.labels) - each).max() <= 1
    mean, std = statistics(fashion.train)
    assert np.allclose([mean[0], std[0]], [0.2860, 0.3530], atol=5e-4)  # as everyone normalises it


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100"])
def test_images_and_labels_are_those_that_tfds_decodes(name, monkeypatch):
    if not (REAL / name).exists():
        pytest.skip(f"{name} has not been prepared in {REAL}")
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    data = load(f"tfds:{name}", data_dir=str(REAL))
    source = tfds.data_source(name, split="test", data_dir=str(REAL))
    rows = np.array([0, 9999, 17, 4321, 5000])
    images, labels = data.test.take_labelled(rows)
    assert np.array_equal(images, [source[i]["image"] for i in rows.tolist()])
    assert np.array_equal(labels, [source[i]["label"] for i in rows.tolist()])
    assert np.array_equal(data.test.labels[rows], labels)
    assert len(data.train.classes) == (100 if name == "cifar100" else 10)


@pytest.mark.nightly
def test_a_moved_data_set_is_the_same(tmp_path):
    if not (REAL / "cifar100").exists():
        pytest.skip(f"CIFAR-100 has not been prepared in {REAL}")
    shutil.copytree(REAL / "cifar100", tmp_path / "cifar100")
    moved, real = (load("tfds:cifar100", data_dir=str(folder)) for folder in (tmp_path, REAL))
    assert moved.train.fingerprint == real.train.fingerprint
