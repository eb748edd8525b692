"""Models as files: what was written is what is read, and nothing else is."""

import json
import pathlib
import pickle
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from test_model_laws import CLASSES, SMALL, few_blocks

from pcjax._checks import RequestError
from pcjax.export import safetensors as exported
from pcjax.export.safetensors import load
from pcjax.models import build
from pcjax.models.functional import functional_shapes
from pcjax.training.embedding import outputs

ABOUT = {"version": "0.0.1", "features": 4, "config": "of a run"}
small = pytest.mark.parametrize("name", SMALL)


@pytest.fixture
def fewer_blocks():
    patch = few_blocks()
    yield
    patch.undo()


def written(path, name, dtype="float32"):
    """A small model of any weights, and its file."""
    known, shape, options, _ = SMALL[name]
    build_options = {"shape": shape, "classes": CLASSES, "dtype": np.dtype(dtype), **options}
    function, *parts = functional_shapes(
        lambda: build(known, rngs=nnx.Rngs(0), axis_name="batch", **build_options)
    )
    random = np.random.default_rng(0)
    arrays = [
        {key: random.uniform(0.1, 1, leaf.shape).astype(np.float32) for key, leaf in of.items()}
        for of in parts
    ]
    model = exported.Architecture(known, CLASSES, dtype, options)
    wanted = exported.Wanted(shape, "uint8", (100.5,) * shape[-1], (0.25,) * shape[-1])
    size = exported.export(path, model, wanted, arrays[0] | arrays[1], ABOUT)
    assert path.stat().st_size == size
    return function, *arrays


@small
def test_what_is_loaded_is_what_was_written(name, tmp_path, fewer_blocks):
    path = tmp_path / "a.safetensors"
    _, parameters, statistics = written(path, name)
    found = load(path)
    known, shape, options, _ = SMALL[name]
    like = nnx.eval_shape(
        lambda: build(known, shape=shape, classes=CLASSES, rngs=nnx.Rngs(0), **options)
    )
    like.eval()
    # An equal graph and equal arrays compute the same.
    assert nnx.graphdef(found.module) == nnx.graphdef(like)
    leaves = nnx.to_flat_state(nnx.state(found.module))
    there = {"/".join(map(str, place)): np.asarray(leaf.get_value()) for place, leaf in leaves}
    assert there.keys() == parameters.keys() | statistics.keys()
    for key, array in (parameters | statistics).items():
        np.testing.assert_array_equal(there[key], array)
    assert found.about == ABOUT
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
    expected = outputs(function, parameters, statistics, normalised)
    found = load(path)(images)
    for own, their in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(own, their)
    assert found.features.std() > 0


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
    """What the file tells of the model, and its arrays."""
    length = int.from_bytes(content[:8], "little")
    told = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["pcjax"])
    return told, safetensors.numpy.load(content)


def forged(told, arrays):
    """A file whose digest is right."""
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    told = told | {"digest": exported._digest(told, arrays)}
    return safetensors.numpy.save(arrays, {"pcjax": json.dumps(told)})


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
            told, arrays = parts(bytes(content))
            assert told == expected[0]
            assert {name: array.tobytes() for name, array in arrays.items()} == {
                name: array.tobytes() for name, array in expected[1].items()
            }


def test_what_is_cut_short_or_claims_too_much_is_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    for length in (0, 1, 7, 8, 9, 100, len(sound) // 2, len(sound) - 1):
        refused(path, sound[:length])
    refused(path, sound + b"more")
    for claimed in (0, 1, 2**20 + 1, 2**40, 2**63, 2**64 - 1):
        refused(path, claimed.to_bytes(8, "little") + sound[8:])
    large = (2**20 + 8).to_bytes(8, "little") + b"{" + b" " * (2**20 + 8)
    assert "larger than any of ours" in refused(path, large)
    for other in (b"", b"PK\x03\x04" * 99, pickle.dumps(print), b"\x93NUMPY" + bytes(200)):
        refused(path, other)
    with pytest.raises(RequestError, match="pcjax export RUN"):
        load(tmp_path / "nothing")
    with pytest.raises(RequestError, match="pcjax export RUN"):
        load(tmp_path)


def test_arrays_that_do_not_belong_together_are_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    told, arrays = parts(sound)
    path.write_bytes(forged(told, arrays))
    load(path)
    kernel = arrays["embed.kernel"]
    for change, said in (
        ({"../../etc/passwd": kernel}, "for ../../etc/passwd, expected nothing"),
        ({"embed.kernel": kernel[:, :2]}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel.T}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel[None]}, "for embed.kernel, expected (6, 4)"),
        ({"embed.kernel": kernel.astype(np.float64)}, "of dtype F64: expected F32"),
        ({"embed.kernel": kernel.astype(np.float16)}, "of dtype F16: expected F32"),
        ({"embed.kernel": kernel.astype(np.int32)}, "of dtype I32: expected F32"),
    ):
        assert said in refused(path, forged(told, arrays | change))
    arrays.pop("norms.0.mean")
    assert "it has nothing for norms.0.mean" in refused(path, forged(told, arrays))
    assert "it has nothing for" in refused(path, forged(told, {}))


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
    {"options": {"widths": [1] * 100_000, "features": 4}},
    {"options": {"widths": [7, 6], "features": 4.0}},
    {"options": {"widths": 7}},
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
    {"multiply": [1] * 5},
    {"multiply": "11111"},
    {"more": 1},
]


@pytest.mark.parametrize(
    ("part", "change"),
    [*(("model", one) for one in MODELS), *(("input", one) for one in INPUTS)],
    ids=lambda one: str(one)[:40],
)
def test_what_no_model_can_be_built_of_is_refused(part, change, sound, tmp_path):
    told, arrays = parts(sound)
    refused(tmp_path / "a.safetensors", forged(told | {part: told[part] | change}, arrays))


def test_metadata_that_are_not_ours_are_refused(sound, tmp_path):
    path = tmp_path / "a.safetensors"
    told, arrays = parts(sound)
    for version in (0, 2, "1", None, [1]):
        assert "this pcjax reads 1" in refused(path, forged(told | {"format": version}, arrays))
    for wrong in ({name: told[name] for name in told if name != "features"}, told | {"heads": {}}):
        assert "its metadata are not" in refused(path, forged(wrong, arrays))
    for text in ("", "1", "null", "{", "[" * 100_000, "\ud83d", '{"format": ' + "9" * 5000 + "}"):
        refused(
            path,
            safetensors.numpy.save(arrays, {"pcjax": text.encode("utf-8", "replace").decode()}),
        )
    assert "not of `pcjax export`" in refused(path, safetensors.numpy.save(arrays))
    assert "not as it was written" in refused(
        path, safetensors.numpy.save(arrays, {"pcjax": json.dumps(told | {"features": 5})})
    )


def test_examples_of_another_kind_are_refused_and_nothing_is_written_where_it_cannot_be(
    sound, tmp_path, monkeypatch
):
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
    deep = exported.Architecture("mlp", None, "float32", {"widths": (1,) * 101})
    with pytest.raises(RequestError, match="at most 100 layers"):
        exported.export(path, deep, model.wanted, {}, ABOUT)
    with pytest.raises(OSError, match="No such file"):
        written(pathlib.Path(tmp_path / "nowhere" / "a.safetensors"), "mlp")
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match=r"pcjax\[export\]"):
        load(path)
