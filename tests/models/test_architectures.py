"""Every model has its published size and shapes, and refuses other options and inputs."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import few_blocks
from flax import nnx

from pcjax._checks import RequestError
from pcjax.models import MODELS, PARAMETERS, build, describe, options_of, parameter_count
from pcjax.models.cnn import CNN

# As printed: exact, or in millions. torchvision's figures are "num_params" in its documentation of
# the weights. Those of CIFAR-100's ResNet-20, 32 and 56 are in the README of
# heisenbug237/pytorch-cifar100, of its ResNet-18, 34 and 50 in model_information/classic-network.md
# of rentainhe/pytorch-models. All others are those that distillation papers print for
# RepDistiller's networks.
PUBLISHED: dict[str, str | int] = {
    "resnet20": "0.278",
    "resnet32": "0.473",
    "resnet56": "0.862",
    "resnet110": "1.737",
    "resnet8x4": "1.234",
    "resnet32x4": 7_433_860,
    "wrn16_1": "0.2",  # the paper's, as are 0.7 and 2.2 for the wider ones
    "wrn16_2": "0.703",
    "wrn40_1": "0.570",
    "wrn40_2": 2_255_156,  # AugMix's, the same network
    "mobilenetv2": "0.813",
    "shufflenetv2": "1.356",
    "resnet18_cifar": "11.22",
    "resnet34_cifar": "21.33",
    "resnet50_cifar": "23.71",
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "mobilenetv2_imagenet": 3_504_872,
    "shufflenetv2_imagenet": 2_278_604,
    "vit_tiny": "5.72",  # these two are timm's, in results/results-imagenet.csv
    "vit_small": "22.05",
    "vit_base": 86_567_656,
}
QUICK = ("resnet20", "wrn16_2", "mobilenetv2", "shufflenetv2", "resnet18", "vit_base")
BY_HAND = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet44": 7}  # blocks a stage


@functools.cache
def abstract(name, **options):
    """Return a model without weights, and its shape."""
    imagenet = MODELS[name].keywords.get("imagenet", "vit" in name)
    shape, classes = ((224, 224, 3), 1000) if imagenet else ((32, 32, 3), 100)
    options = {"shape": shape, "classes": classes, **options}
    return nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **options)), shape


def same_as_printed(count, published):
    if isinstance(published, int):
        return count == published
    return f"{count / 1e6:.{len(published.split('.')[1])}f}" == published


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.nightly] * (x not in QUICK)) for x in PUBLISHED],
)
def test_parameter_counts_are_as_published(name):
    count = parameter_count(abstract(name)[0])
    assert same_as_printed(count, PUBLISHED[name])
    assert count == PARAMETERS[name]


def test_the_default_bert_has_the_parameters_of_all_minilm_l6_v2():
    with_pooler = 22_713_216  # as the model's file has it
    module = nnx.eval_shape(lambda: build("bert", shape=(8,), classes=None, rngs=nnx.Rngs(0)))
    assert parameter_count(module) == with_pooler - (384 + 1) * 384


def test_every_model_is_covered_and_described():
    by_options = {"mlp", "cnn", "protopnet", "static", "bert", "vit"}
    assert set(PUBLISHED) | set(BY_HAND) == set(MODELS) - by_options
    assert set(PARAMETERS) == set(MODELS) - by_options
    rows = {name: (count, options) for name, count, options in describe()[2]}
    assert set(MODELS) <= set(rows)
    assert rows["resnet8"] == ("83,892", "features [None]")
    assert rows["cnn"] == ("by its options", "widths [(32, 64, 128)], features [64]")


@pytest.mark.parametrize(
    ("name", "width", "published"),
    [
        ("shufflenetv2_imagenet", 0.5, 1_366_792),  # torchvision's num_params
        pytest.param("shufflenetv2_imagenet", 2.0, 7_393_996, marks=pytest.mark.nightly),
        # The table of tensorflow/models has 6.06, and 3.47 for width 1 where torchvision has 3.50.
        ("mobilenetv2_imagenet", 1.4, "6.1"),
    ],
)
def test_parameter_counts_of_other_widths(name, width, published):
    assert same_as_printed(parameter_count(abstract(name, width=width)[0]), published)


def test_parameter_counts_by_hand():
    # 3x3 convolutions without bias, two numbers for each normalised channel. The stem has
    # 3 9 16 + 32, a block of w channels 2 (9 w w + 2 w). One that doubles them has 9 w 2w + 4w,
    # 9 2w 2w + 4w and, in the shortcut, w 2w + 4w.
    def block(w):
        return 2 * (9 * w * w + 2 * w)

    def doubling(w):
        return 9 * 2 * w * w + 9 * 4 * w * w + 2 * w * w + 3 * 4 * w

    ends = 3 * 9 * 16 + 32 + 64 * 100 + 100
    for name, n in BY_HAND.items():
        first, rest = n * block(16), (n - 1) * (block(32) + block(64))
        expected = ends + first + doubling(16) + doubling(32) + rest
        assert parameter_count(abstract(name)[0]) == PARAMETERS[name] == expected


def multiply_adds(jaxpr):
    """Count those of all convolutions and matrix products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += multiply_adds(value.jaxpr)
        if equation.primitive.name == "conv_general_dilated":
            # (height, width, inputs of a group, outputs)
            *window, inputs, _ = equation.invars[1].aval.shape
            total += int(np.prod(window)) * inputs * int(np.prod(equation.outvars[0].aval.shape))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += int(summed) * int(np.prod(equation.outvars[0].aval.shape))
    return total


# They depend on strides and stems, which parameter counts do not. In thousand millions, for one
# image: torchvision's "GFLOPS" in its documentation of the weights; for the two others, the table
# of D-X-Y/ResNeXt-DenseNet.
MULTIPLY_ADDS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "mobilenetv2_imagenet": 0.301,
    "shufflenetv2_imagenet": 0.145,
    "vit_base": 17.564,
    "resnet20": 0.0408,
    "resnet56": 0.1257,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=[pytest.mark.nightly] * (x in ("resnet34", "resnet50", "resnet56")))
        for x in MULTIPLY_ADDS
    ],
)
def test_multiply_adds_are_as_published(name):
    module, shape = abstract(name)
    graph, state = nnx.split(module)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    traced = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x).logits)(state, image)
    assert abs(multiply_adds(traced.jaxpr) / 1e9 / MULTIPLY_ADDS[name] - 1) < 0.01


def outputs(module, shape):
    """Return the shapes of a model's outputs for images."""
    graph, state = nnx.split(module)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, images)


# Of 32 x 32 images, as in RepDistiller's comments and paper: (height = width, channels) by stage.
MAPS = {
    "resnet8x4": [(32, 64), (16, 128), (8, 256)],
    "wrn40_2": [(32, 32), (16, 64), (8, 128)],
    "mobilenetv2": [(16, 12), (8, 16), (4, 48), (2, 160)],
    "shufflenetv2": [(16, 116), (8, 232), (4, 464)],
    "resnet50_cifar": [(32, 256), (16, 512), (8, 1024), (4, 2048)],
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.nightly] * (x != "mobilenetv2")) for x in MAPS]
)
def test_shapes_and_dtypes_of_large_models(name):
    module, shape = abstract(name, dtype=jnp.bfloat16)
    output = outputs(module, (2, *shape))
    assert {key: value.shape for key, value in output.maps.items()} == {
        f"stage{i}": (2, size, size, width) for i, (size, width) in enumerate(MAPS[name], 1)
    }
    assert {value.dtype for value in output.maps.values()} == {jnp.dtype(jnp.bfloat16)}
    assert output.features.dtype == output.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(module)))


def test_without_a_classifier_and_of_another_size():
    def new():
        return build("cnn", shape=(8, 8, 3), classes=None, features=7, rngs=nnx.Rngs(0))

    output = outputs(nnx.eval_shape(new), (2, 9, 12, 3))
    assert output.logits is None
    assert output.features.shape == (2, 7)
    assert output.maps["stage2"].shape == (2, 5, 6, 64)


@pytest.mark.parametrize(
    "name", ["mlp", "cnn", "resnet8", "wrn16_1", "mobilenetv2", "shufflenetv2", "vit_tiny"]
)
def test_a_last_layer_gives_any_number_of_features(name):
    assert "features" in options_of(name)
    widths = {"mlp": 256, "cnn": 128}
    # The laws of models see the others without that layer.
    for features in (5, None) if name in ("mlp", "cnn") else (5,):
        options = {"shape": (32, 32, 3), "classes": 10, "features": features}
        options |= {"layers": 1} if name == "vit_tiny" else {}
        with few_blocks():
            module = nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **options))
        output = outputs(module, (2, 32, 32, 3))
        assert output.features.shape == (2, features or widths[name])
        assert output.logits.shape == (2, 10)


@pytest.mark.bad_input
def test_models_of_other_packages_take_options(monkeypatch):
    class Own(CNN):
        def __init__(self, shape, classes, *, rngs, dtype, axis_name, size: int = 3):
            options = {"rngs": rngs, "dtype": dtype, "axis_name": axis_name}
            super().__init__(shape, classes, widths=(2,), features=size, **options)

    entry = types.SimpleNamespace(name="own", load=lambda: Own)
    own = {"pcjax.models": [entry]}
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: own.get(group, []))
    assert [*options_of("own")] == ["size"]
    assert ["own", "by its options", "size [3]"] in describe()[2]
    module = build("own", shape=(4, 4, 1), classes=2, rngs=nnx.Rngs(0), size=5)
    assert outputs(module, (2, 4, 4, 1)).features.shape == (2, 5)
    with pytest.raises(RequestError, match=r"unknown option of own 'sizes'.*'size'"):
        build("own", shape=(4, 4, 1), classes=2, rngs=nnx.Rngs(0), sizes=5)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet21", {}, r"unknown model 'resnet21' \(did you mean 'resnet32'\?\): .*'mlp', 'cnn'"),
        ("resnet20", {"width": 2}, "option of resnet20 'width'.*one of 'features'"),
        ("cnn", {"width": 2}, "option of cnn 'width' .*one of 'widths', 'features'"),
        ("cnn", {"shape": (64,)}, r"model 'cnn': got shape \(64,\): expected images.*'mlp'"),
        ("wrn16_1", {"shape": (32, 32)}, r"got shape \(32, 32\): expected images"),
        (
            "resnet8",
            {"shape": (32, 0, 3)},
            r"got size 0 in shape \(32, 0, 3\): expected an integer",
        ),
        ("mlp", {"shape": ()}, r"got shape \(\): expected the shape of one example"),
        ("mlp", {"widths": (3, 0)}, r"model 'mlp': got width 0 in widths \(3, 0\)"),
        ("cnn", {"widths": ()}, r"got widths \(\)"),
        ("cnn", {"features": 0}, "got features 0: expected an integer of at least 1"),
        ("resnet8", {"features": 0}, "model 'resnet8': got features 0: expected an integer of at"),
        ("resnet8", {"classes": 0}, r"got classes 0 \(None builds no classifier\)"),
        ("resnet8", {"dtype": jnp.int32}, "int32.*is not a floating-point type"),
        ("mobilenetv2", {"width": -1.0}, "got width -1.0: expected a positive, finite number"),
        ("mobilenetv2", {"width": 0.05}, "got width 0.05: expected at least 1/16"),
        ("shufflenetv2", {"width": 0.7}, "'shufflenetv2': got width 0.7: expected 0.5, 1.0, 1.5"),
        ("vit_tiny", {"patch": 5}, "got images of 32 x 32 and patches of 5 x 5: expected a mult"),
        ("vit_tiny", {"layers": 0}, "model 'vit_tiny': got layers 0: expected an integer"),
        ("vit_tiny", {"registers": -1}, "got registers -1: expected an integer of at least 0"),
        ("vit_tiny", {"pooling": "max"}, "unknown pooling 'max'.* 'cls', 'mean', 'cls.mean'"),
        ("vit_tiny", {"epsilon": 0.0}, "got epsilon 0.0: expected a positive"),
        ("protopnet", {"backbone": "vit"}, "unknown backbone 'vit'.*expected one of 'cnn'"),
        ("protopnet", {"prototypes": 0}, "got prototypes 0: expected an integer of at least 1"),
        ("protopnet", {"patch_features": 0}, "got patch_features 0: expected an integer of at"),
        ("protopnet", {"backbone": "resnet8", "widths": (8,)}, "only 'cnn' takes widths; remove"),
        ("protopnet", {"shape": (64,)}, r"'protopnet': got shape \(64,\): expected images"),
    ],
)
def test_impossible_options_are_refused(name, options, message):
    options = {"shape": (32, 32, 3), "classes": 10, **options}
    with pytest.raises(RequestError, match=message):
        nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **options))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("cnn", (2, 8, 8, 1), jnp.float32, r"shape \(2, 8, 8, 1\).* shape \(any, any, 3\)"),
        ("resnet8", (8, 8, 3), jnp.float32, r"batch of shape \(8, 8, 3\)"),
        ("mlp", (2, 8, 8, 1), jnp.float32, r"shape \(2, 8, 8, 1\).* of shape \(8, 8, 3\)"),
        ("shufflenetv2", (2, 8, 8, 3), jnp.uint8, "batch of dtype uint8: expected floating-point"),
        ("vit_tiny", (2, 16, 8, 3), jnp.float32, r"\(2, 16, 8, 3\).* of shape \(8, 8, 3\)"),
    ],
)
def test_other_inputs_are_refused(name, shape, dtype, message):
    def features():
        options = {"patch": 4} if name == "vit_tiny" else {}
        module = build(name, shape=(8, 8, 3), classes=2, rngs=nnx.Rngs(0), **options)
        return module(jnp.ones(shape, dtype)).features

    with pytest.raises(RequestError, match=message):
        jax.eval_shape(features)
