"""Exports: they are loaded as written, and all other files are refused."""

import functools
import json
import pathlib
import pickle

import chex
import numpy as np
import pytest
import safetensors.numpy
from architectures import CLASSES, SMALL, few_blocks
from flax import nnx

from pcjax._checks import RequestError
from pcjax.export import safetensors as exported
from pcjax.export.safetensors import load
from pcjax.models import build
from pcjax.models.functional import functional_shapes
from pcjax.training.embedding import jitted_outputs

ABOUT = {"version": "0.0.1", "features": 4, "config": "of a run"}
small = pytest.mark.parametrize("name", SMALL)


@pytest.fixture
def fewer_blocks():
    with few_blocks():
        yield


@functools.cache
def abstract(name, dtype):
    """Return a small model as a function, and the shapes of its arrays."""
    known, shape, options, _ = SMALL[name]
    options = {"shape": shape, "classes": CLASSES, "dtype": np.dtype(dtype), **options}
    with few_blocks():
        return functional_shapes(
            lambda seed: build(known, rngs=nnx.Rngs(seed), axis_name="batch", **options)
        )


def written(path, name, dtype="float32"):
    """Export a small model of random weights; return its function and arrays."""
    known, shape, options, _ = SMALL[name]
    function, *parts = abstract(name, dtype)
    random = np.random.default_rng(0)
    arrays = [
        {key: random.uniform(0.1, 1, leaf.shape).astype(np.float32) for key, leaf in of.items()}
        for of in parts
    ]
    options = {n: tuple(x) if isinstance(x, list) else x for n, x in options.items()}
    model = exported.Architecture(known, CLASSES, dtype, options)
    inputs = exported.Inputs(shape, "uint8", (100.5,) * shape[-1], (0.25,) * shape[-1])
    size = exported.export(path, model, inputs, arrays[0] | arrays[1], ABOUT)
    assert path.stat().st_size == size
    return function, *arrays


@small
def test_exports_are_loaded_as_written(name, tmp_path, fewer_blocks):
    path = tmp_path / "a.safetensors"
    _, parameters, statistics = written(path, name)
    exported_model = load(path)
    known, shape, options, _ = SMALL[name]
    like = nnx.eval_shape(
        lambda: build(known, shape=shape, classes=CLASSES, rngs=nnx.Rngs(0), **options)
    )
    like.eval()
    # An equal graph and equal arrays compute the same.
    assert nnx.graphdef(exported_model.module) == nnx.graphdef(like)
    leaves = nnx.to_flat_state(nnx.state(exported_model.module))
    loaded = {"/".join(map(str, place)): np.asarray(leaf.get_value()) for place, leaf in leaves}
    assert loaded.keys() == parameters.keys() | statistics.keys()
    for key, array in (parameters | statistics).items():
        np.testing.assert_array_equal(loaded[key], array)
    assert exported_model.about == ABOUT
    again = path.read_bytes()
    written(path, name)
    assert path.read_bytes() == again


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlp of images", "float32"), ("cnn", "float32"), ("cnn", "bfloat16")]
)
def test_features_are_those_of_the_model_bit_for_bit(name, dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    function, parameters, statistics = written(path, name, dtype)
    images = np.random.default_rng(1).integers(0, 256, (6, *SMALL[name][1]), np.uint8)
    normalised = (images.astype(np.float32) - np.float32(100.5)) * np.float32(0.25)
    expected = jitted_outputs(function, parameters, statistics, normalised)
    output = load(path)(images)
    chex.assert_trees_all_equal(output, expected)
    assert output.features.std() > 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "a.safetensors"
    written(path, "mlp")
    return path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def parts(content):
    """Return a file's metadata and its arrays."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["pcjax"])
    return metadata, safetensors.numpy.load(content)


def forged(metadata, arrays):
    """Return the content of a file with a valid digest."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = metadata | {"digest": exported._digest(metadata, arrays)}
    return safetensors.numpy.save(arrays, {"pcjax": json.dumps(metadata)})


def test_one_flipped_bit_anywhere_is_found(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    random = np.random.default_rng(0)
    expected = parts(sound)
    for place in (*range(0, len(sound), 3), *range(8)):
        content = bytearray(sound)
        content[place] ^= 1 << random.integers(8)
        path.write_bytes(content)
        try:
            load(path)
        except RequestError:
            continue
        else:  # a space more or less where there may be any
            metadata, arrays = parts(bytes(content))
            assert metadata == expected[0]
            assert {name: array.tobytes() for name, array in arrays.items()} == {
                name: array.tobytes() for name, array in expected[1].items()
            }


def test_files_cut_short_or_with_large_claims_are_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (0, 1, 7, 8, 9, 100, len(sound) // 2, len(sound) - 1):
        refused(path, sound[:length])
    refused(path, sound + b"more")
    for claimed in (0, 1, 2**20 + 1, 2**40, 2**63, 2**64 - 1):
        refused(path, claimed.to_bytes(8, "little") + sound[8:])
    large = (2**20 + 8).to_bytes(8, "little") + b"{" + b" " * (2**20 + 8)
    assert "more than 1048576" in refused(path, large)
    for other in (b"", b"PK\x03\x04" * 99, pickle.dumps(print), b"\x93NUMPY" + bytes(200)):
        refused(path, other)
    with pytest.raises(RequestError, match="pcjax export RUN"):
        load(tmp_path / "nothing")
    with pytest.raises(RequestError, match="pcjax export RUN"):
        load(tmp_path)


def test_arrays_that_do_not_belong_together_are_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    metadata, arrays = parts(sound)
    path.write_bytes(forged(metadata, arrays))
    load(path)
    kernel = arrays["embed.kernel"]
    for change, message in (
        ({"../../etc/passwd": kernel}, "for ../../etc/passwd, expected None"),
        ({"embed.kernel": kernel[:, :2]}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel.T}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel[None]}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel.astype(np.float64)}, "of dtype F64, expected F32"),
        ({"embed.kernel": kernel.astype(np.float16)}, "of dtype F16, expected F32"),
        ({"embed.kernel": kernel.astype(np.int32)}, "of dtype I32, expected F32"),
    ):
        assert message in refused(path, forged(metadata, arrays | change))
    arrays.pop("norms.0.mean")
    assert "it has nothing for norms.0.mean" in refused(path, forged(metadata, arrays))
    assert "it has nothing for" in refused(path, forged(metadata, {}))


MODELS = [
    {"name": "__import__('os')"},
    {"name": ["mlp"]},
    {"name": "resnet8"},
    {"classes": 0},
    {"classes": True},
    {"classes": 2**40},
    {"classes": 7},
    {"dtype": "object"},
    {"dtype": "float64"},
    {"options": []},
    {"options": {"rngs": 1}},
    {"options": {"width": "wide"}},
    {"options": {"width": [1.0]}},
    {"options": {"widths": [2**20] * 4, "features": 2**20}},
    {"options": {"widths": [7, 6], "features": 4.0}},
    {"extra": 1},
]
INPUTS = [
    {"shape": []},
    {"shape": [5, 0]},
    {"shape": [2**20] * 8},
    {"shape": [-5]},
    {"shape": 5},
    {"shape": [True]},
    {"dtype": "object"},
    {"dtype": None},
    {"subtract": [0.0]},
    {"subtract": [float("nan")] * 5},
    {"multiply": [1e300] * 5},
    {"multiply": "11111"},
    {"more": 1},
]


@pytest.mark.parametrize(
    ("part", "change"),
    [*(("model", one) for one in MODELS), *(("input", one) for one in INPUTS)],
    ids=lambda one: str(one)[:40],
)
def test_impossible_models_and_inputs_are_refused(part, change, sound, tmp_path):
    metadata, arrays = parts(sound)
    refused(tmp_path / "a.safetensors", forged(metadata | {part: metadata[part] | change}, arrays))


def test_foreign_metadata_is_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    metadata, arrays = parts(sound)
    for version in (0, 1, "2", None, [2]):
        assert "it is not of format 2" in refused(
            path, forged(metadata | {"format": version}, arrays)
        )
    for wrong in (
        {name: metadata[name] for name in metadata if name != "features"},
        metadata | {"heads": {}},
    ):
        assert "its metadata are incomplete" in refused(path, forged(wrong, arrays))
    for text in ("", "1", "null", "{", "[" * 100_000, "\ud83d", '{"format": ' + "9" * 5000 + "}"):
        refused(
            path,
            safetensors.numpy.save(arrays, {"pcjax": text.encode("utf-8", "replace").decode()}),
        )
    assert "`pcjax export` did not write it" in refused(path, safetensors.numpy.save(arrays))
    assert "it changed since it was written" in refused(
        path, safetensors.numpy.save(arrays, {"pcjax": json.dumps(metadata | {"features": 5})})
    )


def test_other_examples_and_paths_are_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(sound)
    model = load(path)
    assert model.prepare(np.full((2, 5), 102, np.uint8)).tolist() == [[0.375] * 5] * 2
    for wrong in (
        np.zeros((2, 4), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((2, 5), np.float32),
        np.zeros((2, 5), int),
    ):
        with pytest.raises(RequestError, match="got examples of"):
            model.prepare(wrong)
    with pytest.raises(OSError, match="No such file"):
        written(pathlib.Path(tmp_path / "nowhere" / "a.safetensors"), "mlp")
