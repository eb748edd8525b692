"""Exports of models of images: other programs compute the same features from the same images."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import CLASSES, SMALL, few_blocks
from children import environment
from flax import nnx
from sklearn.datasets import load_digits

from pcjax._checks import RequestError
from pcjax.export import safetensors as exported
from pcjax.export.card import CardFacts
from pcjax.export.formats import Student, find_format
from pcjax.export.functions import of_scaled, of_stored
from pcjax.export.measure import Runtime
from pcjax.export.onnx_images import write_onnx_images
from pcjax.models import build
from pcjax.models.functional import functional_shapes

BATCHES = (1, 7)
FACTS = CardFacts(
    name="a-student",
    architecture="resnet8",
    features=64,
    parameters=77_104,
    size=311_104,
    shape=(8, 8, 3),
    stored="uint8",
    max_tokens=None,
    formats=(),
    teacher="a-teacher",
    losses=("perception_coherence",),
    examples=12_345,
    fingerprint="0123abcd",
)
FEW = ["cnn", "resnet8"]
MORE = [name for name in SMALL if name not in FEW]


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture
def fewer_blocks():
    with few_blocks():
        yield


def student(architecture, shape, options):
    """Return a student of random weights and random running statistics."""
    _, *parts = functional_shapes(
        lambda seed: build(
            architecture, shape=shape, classes=CLASSES, rngs=nnx.Rngs(seed), **options
        )
    )
    random, arrays = np.random.default_rng(0), {}
    for path, leaf in {**parts[0], **parts[1]}.items():
        kind = path.rpartition("/")[2]
        if kind in ("var", "scale"):
            array = random.uniform(0.5, 1.5, leaf.shape)
        else:
            fan_in = max(1, np.prod(leaf.shape[:-1])) if kind == "kernel" else 10
            array = random.normal(0, (2 / fan_in) ** 0.5, leaf.shape)
        arrays[path] = array.astype(np.float32)
    options = {n: tuple(x) if isinstance(x, list) else x for n, x in options.items()}
    model = exported.Architecture(architecture, CLASSES, "float32", options)
    channels = shape[-1]
    inputs = exported.Inputs(
        shape, "uint8", tuple(np.linspace(90.0, 140, channels).tolist()), (0.0175,) * channels
    )
    width = arrays["classify/kernel"].shape[0]
    about = {"version": "0.0.1", "features": width, "config": "of a run"}
    facts = dataclasses.replace(FACTS, architecture=architecture, shape=shape, features=width)
    return Student(model, inputs, arrays, about, facts)


def images(shape, count):
    """Return handwritten digits, enlarged and cut to a shape, as they are stored: uint8."""
    digits = (load_digits().images[:count] * (255 / 16)).astype(np.uint8)
    if len(shape) == 1:
        return digits[:, 3, : shape[0]]
    large = np.kron(digits, np.ones((3, 3), np.uint8))[:, 4 : 4 + shape[0], 4 : 4 + shape[1], None]
    return np.repeat(large, shape[2], axis=3)


def onnx_outputs(path, stored):
    """Compute what onnxruntime computes, from pixels as a user of the file has them."""
    session = package("onnxruntime").InferenceSession(path)
    scaled = stored.astype(np.float32) / np.float32(255)
    scaled = scaled.transpose(0, 3, 1, 2) if scaled.ndim == 4 else scaled
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {session.get_inputs()[0].name: scaled})
    return dict(zip(names, outputs, strict=True))


def require_close(actual, expected, tolerance):
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert expected.std() > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [n if n in ("cnn", "resnet8") else pytest.param(n, marks=pytest.mark.gate) for n in SMALL],
)
def test_onnxruntime_computes_the_same_outputs(name, tmp_path, fewer_blocks):
    package("onnx")
    architecture, shape, options, _ = SMALL[name]
    model = student(architecture, shape, options)
    path = find_format("onnx").write(tmp_path, model)
    expected = model.module()(images(shape, max(BATCHES)))
    for batch in BATCHES:
        outputs = onnx_outputs(path, images(shape, batch))
        assert outputs.keys() == {"embedding", "logits"}
        require_close(outputs["embedding"], expected.features[:batch], 1e-5)
        require_close(outputs["logits"], expected.logits[:batch], 1e-5)


def operations(path):
    onnx = package("onnx")
    model = onnx.load(path)
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


def test_batch_normalisation_is_inside_the_convolutions(tmp_path):
    path = find_format("onnx").write(tmp_path, student("resnet8", (8, 8, 3), {}))
    # The first product and sum normalise the pixels; the others are shortcuts and a last bias.
    assert operations(path) == {
        "Mul": 1,
        "Add": 1 + 3 + 1,
        "Conv": 9,
        "Relu": 7,
        "ReduceMean": 1,
        "MatMul": 1,
        "Identity": 2,
    }


def test_relu6_is_one_operation(tmp_path, fewer_blocks):
    model = student("mobilenetv2_imagenet", (16, 16, 3), {"width": 0.25})
    path = find_format("onnx").write(tmp_path, model)
    assert operations(path)["Clip"] == 9
    assert "Relu" not in operations(path)
    assert "Transpose" not in operations(path)
    stored = images((16, 16, 3), 3)
    expected = model.module()(stored).features
    require_close(onnx_outputs(path, stored)["embedding"], expected, 1e-4)


@pytest.mark.parametrize("format_name", ["onnx", "stablehlo"])
def test_normalised_features_have_length_one(format_name, tmp_path):
    plain = student("cnn", (6, 5, 1), {"widths": (4, 6), "features": 5})
    stored = images((6, 5, 1), 7)
    path = find_format(format_name).write(tmp_path, dataclasses.replace(plain, normalise=True))
    if format_name == "onnx":
        features = onnx_outputs(path, stored)["embedding"]
    else:
        loaded = jax.export.deserialize(bytearray(path.read_bytes()))
        features = np.asarray(loaded.call(stored)["embedding"])
    expected = np.asarray(plain.module().features(stored))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    require_close(features, expected, 1e-5)


def test_the_file_states_its_input(tmp_path):
    onnx = package("onnx")
    path = find_format("onnx").write(tmp_path, student("resnet8", (8, 8, 3), {}))
    loaded = onnx.load(path)
    facts = {each.key: each.value for each in loaded.metadata_props}
    assert "pixels divided by 255" in facts["input"]
    assert facts["config"] == "of a run"
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*loaded.graph.input, *loaded.graph.output)
    }
    assert shapes == {
        "pixel_values": ["batch", 3, 8, 8],
        "embedding": ["batch", 64],
        "logits": ["batch", CLASSES],
    }


def test_weights_in_eight_bits_are_the_nearest_of_their_channel(tmp_path):
    onnx = package("onnx")
    model = student("resnet8", (16, 16, 3), {})
    whole = find_format("onnx").write(tmp_path, model)
    path = find_format("onnx-int8").write(tmp_path, model)
    assert path.stat().st_size < 0.3 * whole.stat().st_size
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}
    nodes = [n for n in onnx.load(path).graph.node if n.op_type == "DequantizeLinear"]
    floats = [onnx.numpy_helper.to_array(x) for x in onnx.load(whole).graph.initializer]
    weights = [x for x in floats if x.ndim == 4 or x.shape == (64, CLASSES)]
    assert len(nodes) == len(weights) == 10
    for node, weight in zip(nodes, weights, strict=True):
        stored, scale = (arrays[name] for name in node.input)
        axis = node.attribute[0].i
        sizes = [-1 if i == axis else 1 for i in range(weight.ndim)]
        assert stored.dtype == np.int8
        assert abs(stored.astype(int)).max() == 127
        error = np.abs(stored * scale.reshape(sizes) - weight)
        assert (error <= 0.501 * scale.reshape(sizes)).all()
    stored = images((16, 16, 3), 7)
    features = Runtime(path, model.inputs).features(stored)
    require_close(features, model.module().features(stored), 0.05)
    require_close(onnx_outputs(path, stored)["embedding"], features, 1e-5)


CHILD = """
import sys

class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("pcjax", "flax"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import jax, numpy as np
loaded = jax.export.deserialize(bytearray(open("student.stablehlo", "rb").read()))
stored = np.load("images.npy")
features = [loaded.call(stored[:n])["embedding"] for n in (1, 7)]
np.savez("features.npz", one=features[0], seven=features[1])
assert not {"pcjax", "flax"} & sys.modules.keys()
"""


def test_stablehlo_runs_without_pcjax(tmp_path):
    model = student("resnet8", (8, 8, 3), {})
    path = find_format("stablehlo").write(tmp_path, model)
    stored = images((8, 8, 3), 7)
    np.save(tmp_path / "images.npy", stored)
    subprocess.run([sys.executable, "-c", CHILD], check=True, cwd=tmp_path, env=environment())
    expected = model.module().features(stored)
    with np.load(tmp_path / "features.npz") as features:
        require_close(features["one"], expected[:1], 1e-5)
        require_close(features["seven"], expected, 1e-5)
    description = json.loads((tmp_path / "student.stablehlo.json").read_text())
    assert description["jax"] == jax.__version__
    assert description["input"] == {"dtype": "uint8", "shape": ["batch", "8", "8", "3"]}
    assert path.name in description["use"]


def centred(x):
    return x - x.mean(-1, keepdims=True)


FUNCTIONS = {
    "transposed products": lambda x: jnp.einsum("nhqd,nhkd->nhqk", x, x[:, :, :1] * 2),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1),
    "layer norm": lambda x: centred(x) * jax.lax.rsqrt((centred(x) ** 2).mean(-1, keepdims=True)),
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu by tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "swish": jax.nn.silu,
    "hard swish": jax.nn.hard_swish,
    "first of an axis": lambda x: x[:, 0] + x[:, 1:2, 0],
    "every second": lambda x: jax.lax.slice_in_dim(x, 1, 4, 2, axis=3),
    "a constant row before": lambda x: jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(4.0), (x.shape[0], 3, 1, 4)), x], axis=2
    ),
    "halves swapped": lambda x: jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], axis=-1),
    "interleaved": lambda x: jnp.stack((x, 2 * x), axis=-1).reshape(x.shape[0], 3, 2, 8),
    "turned and flattened": lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1),
    "patches": lambda x: (
        x.reshape(x.shape[0], 3, 2, 2, 2).swapaxes(1, 3).reshape(x.shape[0], 2, 12)
    ),
    "pooled": lambda x: nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))),
    "constants on both sides": lambda x: 1 - 2 / (3 - x) + jnp.maximum(x, jnp.arange(4.0)),
    "a larger constant": lambda x: x[:, :1] + jnp.arange(24.0).reshape(1, 3, 2, 4),
    "powers": lambda x: x**2 - x**3 + jnp.sqrt(jnp.abs(x)),
    "sums that are no means": lambda x: x.sum((1, 2)) + x.max((1, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations_are_those_of_jax(name, tmp_path):
    package("onnx")
    function = FUNCTIONS[name]
    inputs = exported.Inputs((3, 2, 4), "float32", (0.0,) * 4, (1.0,) * 4)
    model = exported.Exported(nnx.Module(), inputs, {"version": "", "config": ""})
    path = tmp_path / "model.onnx"
    write_onnx_images(path, model, lambda x: {"embedding": function(x)})
    session = package("onnxruntime").InferenceSession(path)
    x = np.random.default_rng(0).normal(size=(max(BATCHES), 3, 2, 4)).astype(np.float32)
    expected = np.asarray(jax.jit(function)(x))
    for batch in BATCHES:
        (actual,) = session.run(None, {"pixel_values": x[:batch].transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(actual, expected[:batch], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.sort(x, axis=-1),
        lambda x: x - x.mean(axis=0),
        lambda x: x.reshape(-1, 4),
        lambda x: x.astype(jnp.int32) + x,
        lambda x: jnp.einsum("nijk,lij->nlk", x, jnp.ones((5, 3, 2))),
    ],
    ids=["sort", "over the batch", "batch reshaped", "integers", "two axes summed"],
)
def test_unknown_operations_are_refused_in_one_line(function, tmp_path):
    package("onnx")
    inputs = exported.Inputs((3, 2, 4), "float32", (0.0,) * 4, (1.0,) * 4)
    model = exported.Exported(nnx.Module(), inputs, {"version": "", "config": ""})
    with pytest.raises(RequestError, match="--format stablehlo") as caught:
        write_onnx_images(tmp_path / "a.onnx", model, lambda x: {"embedding": function(x)})
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_both_functions_agree():
    model = student("cnn", (6, 5, 1), {"widths": (4, 6), "features": 5}).module()
    stored = images((6, 5, 1), 7)
    one = of_stored(model, normalise=False)(stored)
    two = of_scaled(model, normalise=False)(stored.astype(np.float32) / np.float32(255))
    require_close(two["embedding"], one["embedding"], 1e-5)
    require_close(one["logits"], model(stored).logits, 1e-6)


def test_the_code_of_the_card_runs(tmp_path):
    image = package("PIL.Image")
    package("onnx")
    package("onnxruntime")
    model = student("resnet8", (8, 8, 3), {})
    path = find_format("onnx-int8").write(tmp_path, model)
    card = model.card_of("onnx-int8", measured=("It takes 1 ms.",))
    assert "It takes 1 ms." in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for name in ("one.jpg", "another.jpg"):
        image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path.parent / name)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(vectors.shape)"],
        check=True,
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(2, 64)\n"


def test_other_formats_refuse_images_in_one_line(tmp_path):
    model = student("cnn", (6, 5, 1), {"widths": (4, 6), "features": 5})
    for name in ("sentence-transformers", "model2vec"):
        with pytest.raises(RequestError, match="give --format safetensors, onnx"):
            find_format(name).write(tmp_path, model)
    with pytest.raises(RequestError, match="torchvision has no cnn"):
        find_format("torchvision").write(tmp_path, model)


TORCHVISION = {
    "resnet18": ("resnet18", {}),
    "resnet50": ("resnet50", {"features": 16}),
    "mobilenetv2_imagenet": ("mobilenetv2_imagenet", {"width": 0.5, "features": 16}),
    "shufflenetv2_imagenet": ("shufflenetv2_imagenet", {"width": 0.5}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_loads_the_file(name, tmp_path):
    for each in ("torch", "torchvision"):
        if importlib.util.find_spec(each) is None:
            pytest.skip(f"{each} is not installed")
    import safetensors.torch
    import torch
    import torchvision

    architecture, options = TORCHVISION[name]
    shape = (64, 64, 3)
    model = student(architecture, shape, options)
    path = find_format("torchvision").write(tmp_path, model)
    with safetensors.safe_open(path, framework="pt") as file:
        facts = file.metadata()
    function, _, arguments = facts["model"].removesuffix(")").partition("(")
    built = getattr(torchvision.models, function.rpartition(".")[2])(
        **{k: json.loads(v) for k, v in (each.split("=") for each in arguments.split(", "))}
    )
    built.load_state_dict(safetensors.torch.load_file(path))
    built.eval()
    mean, std = (
        torch.tensor(json.loads(text)).reshape(1, -1, 1, 1)
        for text in re.findall(r"=(\[.*?\])", facts["preprocessing"])
    )
    stored = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    pixels = torch.from_numpy(stored.transpose(0, 3, 1, 2).copy()) / 255
    with torch.inference_mode():
        actual = built((pixels - mean) / std).numpy()
    output = model.module()(stored)
    require_close(actual, output.features if "features" in options else output.logits, 1e-4)
