"""Teachers that are ONNX files or functions compute features, or are refused in one line."""

import importlib
import sys

import numpy as np
import pytest
from small_vits import SIDE, dataset, one_line, vit_tensors, write_folder

from pcjax._checks import RequestError
from pcjax.teachers.functions import read_function, read_onnx
from pcjax.teachers.sources import find_encoder

CLOSE = {"rtol": 2e-5, "atol": 2e-5}


def write_onnx(path, shape, *, outputs=("features",), rank=2, dtype=1, width=4):
    """Write a model: the mean over positions, and a product."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    helper = onnx.helper
    axes, channels = ([2, 3], shape[1]) if shape[1] in (1, 3) else ([1, 2], shape[3])
    kernel = np.random.default_rng(0).normal(size=(channels, width)).astype(np.float32)
    constants = [
        onnx.numpy_helper.from_array(kernel, "kernel"),
        onnx.numpy_helper.from_array(np.array(axes), "axes"),
    ]
    nodes = [helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0)]
    result = [shape[0], width] if rank == 2 else [shape[0]]
    declared = [helper.make_tensor_value_info(name, 1, result) for name in outputs]
    for name in outputs:
        nodes.append(helper.make_node("MatMul", ["mean", "kernel"], [f"{name}_rows"]))
        nodes.append(
            helper.make_node("Identity", [f"{name}_rows"], [name])
            if rank == 2
            else helper.make_node("ReduceSum", [f"{name}_rows"], [name], keepdims=0)
        )
    given = [helper.make_tensor_value_info("images", dtype, shape)]
    graph = helper.make_graph(nodes, "mean", given, declared, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return kernel


@pytest.mark.parametrize(
    "shape",
    [("n", 3, SIDE, SIDE), ("n", SIDE, SIDE, 3), (2, 3, SIDE, SIDE), ("n", 3, "h", "w")],
    ids=str,
)
def test_an_onnx_file_computes_features(shape, tmp_path):
    path = tmp_path / "model.onnx"
    kernel = write_onnx(path, shape)
    if "h" in shape:
        one_line(f"onnx:{path}", "reads images of any size; give the side")
        write_folder(tmp_path, "vit", vit_tensors())  # it has a preprocessor_config.json
    encoder = find_encoder(f"onnx:{path}")
    seen = encoder.view(dataset())
    assert (encoder.width, encoder.side, encoder.model) == (4, SIDE, None)
    made = encoder.features(seen.train, seen.normalise, batch=3)
    pixels = (seen.train.take(np.arange(5)) / 255 - seen.normalise[0]) / seen.normalise[1]
    np.testing.assert_allclose(made, pixels.mean(axis=(1, 2)) @ kernel, **CLOSE)
    before = encoder.digest
    path.with_name("model.onnx.data").write_bytes(b"other weights")
    assert find_encoder(f"onnx:{path}").digest != before


def test_an_output_of_an_onnx_file_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(path, ("n", 3, SIDE, SIDE), outputs=("features", "scores"))
    one_line(f"onnx:{path}", "has 2 outputs of features among features .*onnx:FILE#OUTPUT")
    one_line(f"onnx:{path}#x", "has no output x among features")
    assert find_encoder(f"onnx:{path}#scores").width == 4


def test_onnx_files_without_images_or_features_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    for shape, options, reason in (
        (("n", 3, SIDE, SIDE), {"rank": 1}, "has 0 outputs of features among features"),
        (("n", 1, SIDE, SIDE), {}, "give a model of one batch of float32 images"),
        (("n", 3, SIDE, 8), {}, "give a model of one batch of float32 images"),
        (("n", 3, SIDE, SIDE), {"dtype": 11}, "cannot be read|give a model of one batch"),
        (("n", 3, 9999, 9999), {}, "side 9999: expected an integer from 1 to 4096"),
    ):
        write_onnx(path, shape, **options)
        one_line(f"onnx:{path}", reason)
    path.write_bytes(b"no model")
    one_line(f"onnx:{path}", "model.onnx cannot be read: ")
    write_onnx(path, ("n", 3, SIDE, SIDE))
    with pytest.raises(RequestError, match="reads images of 12 x 12, and the side 24 was given"):
        read_onnx(str(path), side=24)


MODULE = """
import numpy as np
def mean(images):
    assert images.ndim == 4
    return images.mean(axis=(1, 2), dtype=np.float32)
def twice(images):
    return 2 * mean(images)
def flat(images): return images.mean(axis=(1, 2, 3))
def whole(images): return images.reshape(len(images), -1).astype(int)
def nothing(images): return np.full((len(images), 2), np.nan)
def wrong(images): raise KeyError("no\\nsuch thing")
varied = lambda images: np.ones((len(images), len(images)))
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module of functions."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_teachers.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    importlib.invalidate_caches()
    yield "own_teachers"
    sys.modules.pop("own_teachers", None)


def test_a_function_gets_the_images_as_they_are_stored(module):
    own = dataset()
    encoder = read_function(f"{module}.mean", own)
    stored = own.train.take(np.arange(5))
    assert (encoder.width, encoder.side) == (3, None)
    seen = encoder.view(own)
    made = encoder.features(seen.train, seen.normalise, batch=2)
    np.testing.assert_allclose(made, stored.mean(axis=(1, 2)), rtol=1e-6)
    assert read_function(f"{module}.mean", own).digest == encoder.digest
    assert read_function(f"{module}.twice", own).digest != encoder.digest
    resized = read_function(f"{module}.mean", own, side=6)
    assert resized.view(own).train.shape == (6, 6, 3)
    assert read_function(f"{module}.mean", dataset((4, 4, 1))).width == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("own_teachers.none", r"cannot be imported \(AttributeError.*give module.function"),
        ("no_such_module.f", r"cannot be imported \(ModuleNotFoundError"),
        ("own_broken.f", r"cannot be imported \(ZeroDivisionError"),
        ("f", "cannot be imported"),
        ("own_teachers.number", "python:own_teachers.number .* is no function"),
        ("own_teachers.flat", r"returned shape \(1,\) of float64 for 1 images"),
        ("own_teachers.whole", "of int64 for 1 images; return floating-point features"),
        ("own_teachers.nothing", "returned NaN or infinite features"),
        ("own_teachers.wrong", "failed for images of shape .*KeyError"),
    ],
)
def test_functions_that_cannot_serve_are_refused(module, name, reason):
    with pytest.raises(RequestError, match=reason) as refusal:
        read_function(name, dataset())
    assert "\n" not in str(refusal.value)


def test_a_function_returns_as_many_features_for_every_batch(module):
    own = dataset()
    encoder = read_function(f"{module}.varied", own)
    with pytest.raises(RequestError, match="returned 2 features an image after 1"):
        encoder.features(own.train, own.normalise, batch=2)
