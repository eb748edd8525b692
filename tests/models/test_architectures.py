"""Every model has its published size and shapes, and refuses what it was not made for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax._checks import RequestError
from pcjax.models import MODELS, OPTIONS, build, parameter_count

# As printed, in millions or exact. torchvision's figures are "num_params" in its documentation of the weights; those of
# CIFAR-100's ResNet-20, 32 and 56 the README of heisenbug237/pytorch-cifar100, of its ResNet-18, 34 and 50
# model_information/classic-network.md of rentainhe/pytorch-models. Where nothing is said they are what distillation
# papers print for RepDistiller's networks.
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
}
BY_HAND = {"resnet8": 1, "resnet14": 2, "resnet20": 3, "resnet44": 7}
IMAGENET = ("resnet18", "resnet34", "resnet50", "mobilenetv2_imagenet", "shufflenetv2_imagenet")


@functools.cache
def abstract(name, **options):
    size, classes = (224, 1000) if name in IMAGENET else (32, 100)
    shape = (size, size, 3)
    return nnx.eval_shape(
        lambda: build(name, shape=shape, classes=classes, rngs=nnx.Rngs(0), **options)
    ), shape


def as_printed(count, published):
    return (
        count if isinstance(published, int) else f"{count / 1e6:.{len(published.split('.')[1])}f}"
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name):
    assert as_printed(parameter_count(abstract(name)[0]), PUBLISHED[name]) == PUBLISHED[name]


def test_every_model_is_covered():
    assert set(PUBLISHED) | set(BY_HAND) == set(MODELS) - {"mlp", "cnn"}
    assert set(OPTIONS) <= set(MODELS)


@pytest.mark.parametrize(
    ("name", "width", "published"),
    [
        ("shufflenetv2_imagenet", 0.5, 1_366_792),  # torchvision's num_params
        ("shufflenetv2_imagenet", 2.0, 7_393_996),
        (
            "mobilenetv2_imagenet",
            1.4,
            6.06,
        ),  # tensorflow/models' table; its 3.47 for width 1 are 3.50 in torchvision's count
    ],
)
def test_parameters_of_other_widths(name, width, published):
    count = parameter_count(abstract(name, width=width)[0])
    assert count == published if isinstance(published, int) else abs(count / 1e6 - published) < 0.06


def test_parameters_by_hand():
    # 3x3 convolutions without bias, two numbers for each normalised channel. The stem: 3 9 16 + 32. A block of w
    # channels: 2 (9 w w + 2 w). One that doubles them: 9 w 2w + 4w, 9 2w 2w + 4w and, in the shortcut, w 2w + 4w.
    stem, classes = 3 * 9 * 16 + 32, 64 * 100 + 100

    def same(w):
        return 2 * (9 * w * w + 2 * w)

    def doubling(w):
        return 9 * 2 * w * w + 9 * 4 * w * w + 2 * w * w + 3 * 4 * w

    for name, n in BY_HAND.items():
        expected = (
            stem
            + n * same(16)
            + doubling(16)
            + (n - 1) * same(32)
            + doubling(32)
            + (n - 1) * same(64)
            + classes
        )
        assert parameter_count(abstract(name)[0]) == expected


def multiply_adds(jaxpr):
    """Of all convolutions and matrix products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += multiply_adds(value.jaxpr)
        if equation.primitive.name == "conv_general_dilated":
            *window, inputs, _ = equation.invars[
                1
            ].aval.shape  # (height, width, inputs of a group, outputs)
            total += int(np.prod(window)) * inputs * int(np.prod(equation.outvars[0].aval.shape))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += int(summed) * int(np.prod(equation.outvars[0].aval.shape))
    return total


# What a count of parameters does not see: strides and stems. In thousand millions; torchvision's "GFLOPS" in its
# documentation of the weights, multiply-adds of one 224 x 224 image; of one 32 x 32 image for the two others, from the
# table of D-X-Y/ResNeXt-DenseNet.
MULTIPLY_ADDS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "mobilenetv2_imagenet": 0.301,
    "shufflenetv2_imagenet": 0.145,
    "resnet20": 0.0408,
    "resnet56": 0.1257,
}


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_as_many_as_published(name):
    module, shape = abstract(name)
    graph, state = nnx.split(module)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    traced = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x).logits)(state, image)
    assert abs(multiply_adds(traced.jaxpr) / 1e9 / MULTIPLY_ADDS[name] - 1) < 0.01


# Of a 32 x 32 image, as RepDistiller's comments and paper have them: (height = width, channels) of the stages.
MAPS = {
    "resnet8x4": [(32, 64), (16, 128), (8, 256)],
    "wrn40_2": [(32, 32), (16, 64), (8, 128)],
    "mobilenetv2": [(16, 12), (8, 16), (4, 48), (2, 160)],
    "shufflenetv2": [(16, 116), (8, 232), (4, 464)],
    "resnet50_cifar": [(32, 256), (16, 512), (8, 1024), (4, 2048)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_shapes_and_dtypes_of_what_large_models_return(name):
    module, shape = abstract(name, dtype=jnp.bfloat16)
    graph, state = nnx.split(module)
    image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    output = jax.eval_shape(lambda state, x: nnx.merge(graph, state)(x), state, image)
    expected = {
        f"stage{i}": (2, size, size, width) for i, (size, width) in enumerate(MAPS[name], 1)
    }
    assert {key: value.shape for key, value in output.maps.items()} == expected
    assert {value.dtype for value in output.maps.values()} == {jnp.dtype(jnp.bfloat16)}
    assert output.features.dtype == output.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))


def test_without_a_classifier():
    module = nnx.eval_shape(
        lambda: build("cnn", shape=(8, 8, 3), classes=None, features=7, rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(module)
    output = jax.eval_shape(
        lambda state, x: nnx.merge(graph, state)(x), state, jnp.ones((2, 9, 12, 3))
    )
    assert output.logits is None
    assert output.features.shape == (2, 7)
    assert output.maps["stage2"].shape == (2, 5, 6, 64)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet21", {}, "unknown model 'resnet21': expected one of 'mlp', 'cnn', 'resnet8'"),
        ("resnet20", {"width": 2}, "unknown option 'width' of the model 'resnet20': expected none"),
        (
            "cnn",
            {"width": 2},
            "unknown option 'width' of the model 'cnn': expected one of 'widths', 'features'",
        ),
        ("cnn", {"shape": (64,)}, r"got shape \(64,\): cnn takes images.* choose 'mlp'"),
        ("wrn16_1", {"shape": (32, 32)}, r"got shape \(32, 32\): a wide ResNet takes images"),
        (
            "resnet8",
            {"shape": (32, 0, 3)},
            r"got size 0 in shape \(32, 0, 3\): expected an integer of at least 1",
        ),
        ("mlp", {"shape": ()}, r"got shape \(\): expected that of one example"),
        ("mlp", {"widths": (3, 0)}, r"got width 0 in widths \(3, 0\)"),
        ("cnn", {"widths": ()}, r"got widths \(\)"),
        ("cnn", {"features": 0}, "got features 0: expected an integer of at least 1"),
        ("resnet8", {"classes": 0}, r"got classes 0 \(None builds no classifier\)"),
        ("resnet8", {"dtype": jnp.int32}, "got dtype .*int32.*: expected a floating-point one"),
        ("mobilenetv2", {"width": -1.0}, "got width -1.0: expected a positive, finite number"),
        ("mobilenetv2", {"width": 0.05}, "got width 0.05: expected at least 1/16"),
        ("shufflenetv2", {"width": 0.7}, "got width 0.7: expected one of 0.5, 1.0, 1.5, 2.0"),
    ],
)
def test_what_cannot_be_built_is_refused(name, given, message):
    with pytest.raises(RequestError, match=message):
        nnx.eval_shape(
            lambda: build(
                name, **{"shape": (32, 32, 3), "classes": 10, "rngs": nnx.Rngs(0), **given}
            )
        )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        (
            "cnn",
            (2, 8, 8, 1),
            jnp.float32,
            r"batch of shape \(2, 8, 8, 1\).* of shape \(any, any, 3\)",
        ),
        ("resnet8", (8, 8, 3), jnp.float32, r"batch of shape \(8, 8, 3\)"),
        ("mlp", (2, 8, 8, 1), jnp.float32, r"batch of shape \(2, 8, 8, 1\).* of shape \(8, 8, 3\)"),
        ("shufflenetv2", (2, 8, 8, 3), jnp.uint8, "batch of dtype uint8: expected floating-point"),
    ],
)
def test_what_a_model_was_not_built_for_is_refused(name, shape, dtype, message):
    def called():
        return build(name, shape=(8, 8, 3), classes=2, rngs=nnx.Rngs(0))(
            jnp.ones(shape, dtype)
        ).features

    with pytest.raises(RequestError, match=message):
        jax.eval_shape(called)
