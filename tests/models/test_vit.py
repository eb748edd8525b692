"""Vision transformers compute what their formulas say; names of others lead there and back."""

import functools
import math

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_vits import GRID, HEADS, HIDDEN, LAYERS, PATCH, SIDE, WIDTH, oracle, vit_tensors

from pcjax._checks import RequestError
from pcjax.models import build, torch_names
from pcjax.models.functional import functional_shapes
from pcjax.models.vit import interpolated

OPTIONS = {
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "patch": PATCH,
    "intermediate": HIDDEN,
}


@functools.cache
def shapes_of(name, **options):
    """Return an architecture as a function, and the shapes of its arrays by path."""
    shape = (SIDE, SIDE, 3)
    functional, parameters, statistics = functional_shapes(
        lambda _: build(name, shape=shape, classes=None, rngs=nnx.Rngs(0), **options)
    )
    return functional, {path: x.shape for path, x in (parameters | statistics).items()}


@pytest.mark.parametrize(
    ("registers", "layer_scale", "pooling"),
    [(0, False, "cls+mean"), (3, True, "cls"), (3, True, "mean"), (3, True, "cls+mean")],
)
def test_a_small_vit_computes_its_formula(registers, layer_scale, pooling, rng):
    tensors = vit_tensors(registers=registers, layer_scale=layer_scale)
    options = OPTIONS | {"registers": registers, "layer_scale": layer_scale, "pooling": pooling}
    functional, shapes = shapes_of("vit", **options)
    arrays = torch_names.from_torch(tensors, torch_names.vit_timm, shapes)
    images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    output = jax.jit(lambda arrays, x: functional.apply(arrays, {}, x, train=False)[0])(
        arrays, images
    )
    tokens = oracle(images, tensors)
    cls, mean = tokens[:, 0], tokens[:, 1 + registers :].mean(axis=1)
    expected = {"cls": [cls], "mean": [mean], "cls+mean": [cls, mean]}[pooling]
    np.testing.assert_allclose(output.features, np.concatenate(expected, 1), rtol=2e-5, atol=2e-5)
    assert output.maps["stage1"].shape == (2, GRID, GRID, WIDTH)
    # Their mean becomes 0 and their variance 1, before scale and bias.
    maps = np.asarray(output.maps["stage1"]).reshape(2, GRID**2, WIDTH)
    centred = maps - maps.mean(axis=2, keepdims=True)
    patches = centred / centred.std(axis=2, keepdims=True)
    patches = patches * tensors["norm.weight"] + tensors["norm.bias"]
    np.testing.assert_allclose(patches, tokens[:, 1 + registers :], rtol=1e-3, atol=1e-4)


def bicubic(table, side):
    """Resize a table (rows, columns) as Pillow does: another hand's bicubic, with antialiasing."""
    return np.asarray(Image.fromarray(table).resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("side", [3, 5, 7, 16, 23])
def test_antialiased_positions_are_those_of_pillow(side, rng):
    table = rng.normal(size=(7 * 7, 4)).astype(np.float32)
    made = interpolated(table, (side, side), True).reshape(side, side, 4)
    for channel in range(4):
        expected = bicubic(table[:, channel].reshape(7, 7), side)
        np.testing.assert_allclose(made[..., channel], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [3, 5, 7, 16])
def test_plain_positions_are_cubic_convolutions(side, rng):
    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0

    row = rng.normal(size=7)
    expected = []
    for position in range(side):
        centre = (position + 0.5) * 7 / side - 0.5
        first = math.floor(centre) - 1
        taps = [(min(max(first + k, 0), 6), kernel(centre - first - k)) for k in range(4)]
        expected.append(sum(row[index] * share for index, share in taps))
    columns = rng.normal(size=7)
    table = np.outer(row, columns).reshape(49, 1).astype(np.float32)
    made = interpolated(table, (side, 7), False).reshape(side, 7)
    np.testing.assert_allclose(made, np.outer(expected, columns), rtol=1e-5, atol=1e-5)


def test_positions_of_another_shape_are_refused():
    with pytest.raises(RequestError, match="a table of 6 positions: expected those of a square"):
        interpolated(np.zeros((6, 2), np.float32), (3, 3), False)


FAMILIES = {
    "resnet50": ("resnet50", torch_names.resnet, {"features": 3}),
    "mobilenetv2": ("mobilenetv2_imagenet", torch_names.mobilenetv2, {"features": 3}),
    "mobilenetv2 of timm": ("mobilenetv2_imagenet", torch_names.mobilenetv2_timm, {"features": 3}),
    "shufflenetv2": ("shufflenetv2_imagenet", torch_names.shufflenetv2, {"width": 0.5}),
    "vit of torchvision": ("vit", torch_names.vit_torchvision, OPTIONS),
    "vit of timm": ("vit", torch_names.vit_timm, OPTIONS | {"registers": 2, "layer_scale": True}),
    "vit of Hugging Face": ("vit", torch_names.vit_huggingface, OPTIONS),
    "dinov2": (
        "vit",
        torch_names.dinov2_huggingface,
        OPTIONS | {"registers": 2, "layer_scale": True},
    ),
}


@functools.cache
def named(family):
    """Return random arrays of an architecture, and the tensors that hold them."""
    name, names, options = FAMILIES[family]
    _, shapes = shapes_of(name, **options)
    random = np.random.default_rng(0)
    arrays = {path: random.random(shape, np.float32) for path, shape in shapes.items()}
    return arrays, torch_names.to_torch(arrays, names)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_lead_there_and_back(family):
    arrays, tensors = named(family)
    names = FAMILIES[family][1]
    shapes = {path: x.shape for path, x in arrays.items()}
    back = torch_names.from_torch(tensors, names, shapes)
    assert back.keys() == arrays.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
    assert sum(x.size for x in tensors.values()) == sum(x.size for x in arrays.values())
    assert not jax.tree.leaves(torch_names.from_torch({}, names, {}))


# Of torchvision's, timm's and Hugging Face's state dicts.
KNOWN = {
    "resnet50": {
        "conv1.weight": (64, 3, 7, 7),
        "layer2.0.downsample.1.running_var": (512,),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "fc.weight": (3, 2048),
    },
    "mobilenetv2": {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.2.bias": (16,),
        "features.17.conv.2.weight": (320, 960, 1, 1),
        "features.18.1.running_mean": (1280,),
        "classifier.1.bias": (3,),
    },
    "mobilenetv2 of timm": {
        "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
        "blocks.5.2.conv_dw.weight": (960, 1, 3, 3),
        "conv_head.weight": (1280, 320, 1, 1),
    },
    "shufflenetv2": {
        "stage2.0.branch1.0.weight": (24, 1, 3, 3),
        "stage3.7.branch2.6.bias": (48,),
        "conv5.0.weight": (1024, 192, 1, 1),
    },
    "vit of torchvision": {
        "class_token": (1, 1, WIDTH),
        "encoder.pos_embedding": (1, 10, WIDTH),
        "encoder.layers.encoder_layer_1.self_attention.in_proj_weight": (3 * WIDTH, WIDTH),
        "encoder.layers.encoder_layer_1.mlp.3.weight": (WIDTH, HIDDEN),
    },
    "vit of timm": {"reg_token": (1, 2, WIDTH), "blocks.1.ls2.gamma": (WIDTH,)},
    "vit of Hugging Face": {
        "encoder.layer.0.attention.attention.key.weight": (WIDTH, WIDTH),
        "encoder.layer.0.layernorm_after.bias": (WIDTH,),
    },
    "dinov2": {"encoder.layer.1.layer_scale1.lambda1": (WIDTH,)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_have_the_names_and_shapes_of_others(family):
    tensors = named(family)[1]
    for name, shape in KNOWN[family].items():
        assert tensors[name].shape == shape, name


def test_every_tensor_that_does_not_fit_is_named():
    arrays, tensors = named("resnet50")
    shapes = {path: x.shape for path, x in arrays.items()}
    tensors = dict(tensors)
    wrong = tensors["layer1.0.bn1.bias"].copy()
    wrong[3] = np.nan
    tensors |= {"layer1.0.bn1.bias": wrong, "conv1.weight": np.zeros((64, 1, 7, 7))}
    tensors |= {f"extra.{number}": np.zeros(1) for number in range(7)}
    del tensors["bn1.running_mean"], tensors["bn1.weight"]
    with pytest.raises(RequestError) as refusal:
        torch_names.from_torch(tensors, torch_names.resnet, shapes)
    assert str(refusal.value) == (
        "its tensors do not fit: 2 missing (bn1.weight, bn1.running_mean); "
        "7 not needed (extra.{0-6}); "
        "1 of another shape (conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)); "
        "1 with NaN or infinite numbers (layer1.0.bn1.bias)"
    )
    kept = {name: x for name, x in tensors.items() if not name.startswith("extra")}
    with pytest.raises(RequestError, match="2 missing"):
        torch_names.from_torch(kept | {"head.bias": wrong}, torch_names.resnet, shapes, ("head.",))
