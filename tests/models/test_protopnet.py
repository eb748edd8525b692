"""A head of prototypes on convolutional networks, against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax.models import build, parameter_count

SHAPE, CLASSES = (8, 12, 2), 3
GIVEN = {"widths": (4, 6), "prototypes": 7, "patch_features": 5}


def built(seed=0, **options):
    """Build a model for evaluation, in one compilation."""
    given = {"shape": SHAPE, "classes": CLASSES, **GIVEN, **options}

    def arrays():
        return nnx.split(build("protopnet", rngs=nnx.Rngs(seed), **given))

    module = nnx.merge(*jax.jit(arrays)())
    module.eval()
    return module


def images(n=3):
    return jnp.asarray(np.random.default_rng(1).normal(size=(n, *SHAPE)), jnp.float32)


def float64(x):
    return np.asarray(x, np.float64)


def one_by_one(layer, x):
    """Compute a 1x1 convolution: a linear layer at every position."""
    return x @ float64(layer.kernel[...])[0, 0] + float64(layer.bias[...])


@pytest.mark.parametrize("features", [None, 4])
def test_it_computes_its_formula(features):
    module = built(features=features)
    output = nnx.jit(module)(images())
    pool, maps = module.backbone.pool, {name: float64(x) for name, x in output.maps.items()}
    assert {name: x.shape for name, x in maps.items()} == {
        "stage1": (3, 8, 12, 4),
        "stage2": (3, 4, 6, 6),
        "patches": (3, 4, 6, 5),
        "prototypes": (1, 7, 5),
    }
    hidden = np.maximum(one_by_one(pool.first, maps["stage2"]), 0)
    patches = 1 / (1 + np.exp(-one_by_one(pool.second, hidden)))
    assert np.allclose(maps["patches"], patches, atol=1e-6)

    points = float64(pool.prototypes.points[...])
    assert np.array_equal(maps["prototypes"], points[None])
    activations = np.zeros((3, 7))
    for i in range(3):
        for k in range(7):
            nearest = min(np.sum((z - points[k]) ** 2) for z in patches[i].reshape(-1, 5))
            activations[i, k] = np.log((nearest + 1) / (nearest + 1e-4))
    expected = activations
    if features is not None:
        expected = expected @ float64(module.embed.kernel[...]) + float64(module.embed.bias[...])
    assert np.allclose(output.features, expected, atol=1e-5)
    logits = expected @ float64(module.classify.kernel[...]) + float64(module.classify.bias[...])
    assert np.allclose(output.logits, logits, atol=1e-5)


def test_an_image_with_a_prototype_in_it_activates_that_one_most():
    module = built()
    patches = nnx.jit(module)(images()).maps["patches"]
    module.backbone.pool.prototypes.points[2] = patches[1, 3, 4]
    activations = np.asarray(nnx.jit(module)(images()).features)
    assert activations[:, 2].argmax() == 1
    assert activations[1].argmax() == 2
    assert activations[1, 2] == pytest.approx(np.log(1e4), rel=0.02)
    assert np.isfinite(activations).all()


def test_initial_prototypes_are_uniform_and_differ_by_seed():
    first, second = (
        np.asarray(built(seed, prototypes=300).backbone.pool.prototypes.points[...])
        for seed in (0, 1)
    )
    assert ((first >= 0) & (first <= 1)).all()
    counts = np.histogram(first, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 150).max() < 5 * np.sqrt(150)
    assert np.isclose(first, second, atol=1e-3).mean() < 0.01


@pytest.mark.parametrize(
    ("backbone", "channels"), [("resnet8", 64), ("shufflenetv2", 1024), ("wrn16_1", 64)]
)
def test_a_backbone_keeps_its_parameters_and_maps(backbone, channels):
    def abstract(name, **options):
        return nnx.eval_shape(
            lambda: build(name, shape=SHAPE, classes=None, rngs=nnx.Rngs(0), **options)
        )

    plain, module = abstract(backbone), abstract("protopnet", backbone=backbone)
    head = (channels + 1) * 64 + 65 * 64 + 20 * 64
    assert parameter_count(module) == parameter_count(plain) + head
    maps = nnx.eval_shape(lambda module: module(images()).maps, module)
    assert {*maps} - {"patches", "prototypes"} == {"stage1", "stage2", "stage3"}
    assert maps["patches"].shape[-1] == 64
