"""Students under torchvision's names: what its models load, and what it does not have."""

import jax
import numpy as np
import pytest
from flax import nnx

from pcjax._checks import RequestError
from pcjax.export.torchvision import torchvision_model, torchvision_tensors
from pcjax.models import build, torch_names
from pcjax.models.functional import functional, functional_shapes


def builder(name, channels, classes, options):
    return lambda seed: build(
        name,
        shape=(64, 64, channels),
        classes=classes,
        rngs=nnx.Rngs(jax.random.key(seed)),
        **options,
    )


def random_arrays(name, channels=3, classes=5, **options):
    _, *shapes = functional_shapes(builder(name, channels, classes, options))
    random = np.random.default_rng(0)
    return {p: random.random(x.shape, np.float32) for part in shapes for p, x in part.items()}


def test_the_last_layer_computes_the_features_where_there_are_two():
    options = {"width": 0.5, "features": 7}
    arrays = random_arrays("shufflenetv2_imagenet", **options)
    tensors = torchvision_tensors("shufflenetv2_imagenet", options, arrays)
    np.testing.assert_array_equal(tensors["fc.weight"], arrays["embed/kernel"].T)
    built = torchvision_model("shufflenetv2_imagenet", options, arrays)
    assert built == "torchvision.models.shufflenet_v2_x0_5(num_classes=7)"
    counted = [name for name in tensors if name.endswith("num_batches_tracked")]
    assert len(counted) == sum(path.endswith("/mean") for path in arrays)
    kept = {path: x.shape for path, x in arrays.items() if not path.startswith("classify")}
    back = torch_names.from_torch(tensors, torch_names.shufflenetv2, kept)
    for path in kept:
        np.testing.assert_array_equal(back[path], arrays[path], err_msg=path)

    alone = {path: x for path, x in arrays.items() if not path.startswith("embed")}
    tensors = torchvision_tensors("shufflenetv2_imagenet", {"width": 0.5}, alone)
    np.testing.assert_array_equal(tensors["fc.bias"], arrays["classify/bias"])
    without = {path: x for path, x in alone.items() if not path.startswith("classify")}
    tensors = torchvision_tensors("shufflenetv2_imagenet", {"width": 0.5}, without)
    assert not [name for name in tensors if name.startswith("fc")]


def test_models_that_torchvision_does_not_have_are_refused():
    for name in ("resnet8", "resnet18_cifar", "mobilenetv2", "vit_tiny", "mlp"):
        with pytest.raises(RequestError, match=rf"torchvision has no {name}, only resnet18, res"):
            torchvision_tensors(name, {}, {})
    arrays = random_arrays("shufflenetv2_imagenet", channels=1, width=0.5)
    with pytest.raises(RequestError, match="reads images of 3 channels, and this student reads 1"):
        torchvision_tensors("shufflenetv2_imagenet", {"width": 0.5}, arrays)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet34", {"features": 6}),
        ("resnet50", {}),
        ("mobilenetv2_imagenet", {}),
        ("mobilenetv2_imagenet", {"width": 0.35, "features": 64}),
        ("mobilenetv2_imagenet", {"width": 1.4}),
        ("shufflenetv2_imagenet", {}),
        ("shufflenetv2_imagenet", {"width": 2.0, "features": 64}),
    ],
)
def test_torchvision_loads_and_computes_the_same(name, options, rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    function, parameters, statistics = functional(builder(name, 3, 5, options), 0)
    statistics = {
        path: np.float32(1 if path.endswith("var") else 0) + rng.random(x.shape, np.float32) / 5
        for path, x in statistics.items()
    }
    statistics = {path: jax.numpy.asarray(x) for path, x in statistics.items()}
    arrays = {path: np.asarray(x) for path, x in (parameters | statistics).items()}
    tensors = torchvision_tensors(name, options, arrays)
    called = torchvision_model(name, options, arrays).removeprefix("torchvision.models.")
    kind, _, arguments = called.removesuffix(")").partition("(")
    pairs = [pair.split("=") for pair in arguments.split(", ")]
    arguments = {key: float(x) if "." in x else int(x) for key, x in pairs}
    model = getattr(torchvision.models, kind)(**arguments).eval()
    model.load_state_dict({key: torch.tensor(x) for key, x in tensors.items()}, strict=True)
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.inference_mode():
        theirs = model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    output = function.apply(parameters, statistics, jax.numpy.asarray(images), train=False)[0]
    ours = np.asarray(output.features if "features" in options else output.logits)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
