"""A student of images begins with the weights of a pretrained model, except its last layers."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from pcjax import data
from pcjax.config import Config, Model, Training
from pcjax.display import Display
from pcjax.export.torchvision import torchvision_tensors
from pcjax.teachers import check_initial, initialised_by_teacher
from pcjax.training.build import build_model

OPTIONS = {"width": 0.5}
NAME = "shufflenetv2_imagenet"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=images)
    return data.load(f"arrays:{path}")


def built(dataset, options, seed, shapes_only=True):
    training = Training(seed=seed)
    return build_model(Model(NAME, options), dataset, training, 0, shapes_only=shapes_only)


@pytest.fixture(scope="module")
def file(dataset, tmp_path_factory):
    """Return a state dict of torchvision, and our arrays in it."""
    model = built(dataset, OPTIONS, 1)
    shapes = {**model.parameters, **model.statistics}
    rng = np.random.default_rng(2)
    arrays = {n: rng.normal(size=x.shape).astype(np.float32) for n, x in shapes.items()}
    path = tmp_path_factory.mktemp("weights") / "shufflenet.safetensors"
    safetensors.numpy.save_file(torchvision_tensors(NAME, OPTIONS, arrays), path)
    return path, arrays


@pytest.mark.gate
def test_everything_but_the_last_layer_is_taken(dataset, file):
    path, arrays = file
    options = OPTIONS | {"features": 6}
    student = built(dataset, options, 3, shapes_only=False)
    source = f"torchvision:shufflenet_v2_x0_5@{path}"
    config = Config(student=Model(NAME, options), initial=source)
    check_initial(student, config, dataset)
    begun = initialised_by_teacher(student, config, dataset, Display(quiet=True))
    for before, after in (
        (student.parameters, begun.parameters),
        (student.statistics, begun.statistics),
    ):
        assert before.keys() == after.keys()
        for name, array in after.items():
            own = name.startswith("embed/")
            np.testing.assert_array_equal(array, before[name] if own else arrays[name])
    assert any(name.startswith("embed/") for name in begun.parameters)
    assert begun.output(jax.numpy.zeros((1, 8, 8, 3))).features.shape == (1, 6)


def test_a_model_that_does_not_fit_is_refused(dataset, file):
    path, _ = file
    student = built(dataset, {"width": 1.0}, 3)
    for initial, architecture, message in (
        (f"torchvision:shufflenet_v2_x0_5@{path}", NAME, "has shape .* and the file has shape"),
        (f"torchvision:shufflenet_v2_x0_5@{path}", "cnn", f"give --student.name {NAME}"),
        ("torchvision:resnet18@none.safetensors", NAME, "no file none.safetensors"),
        ("minilm:x", NAME, "names too much"),
        ("vectors:x.npy", NAME, "pretrained model of"),
        ("nonsense:x", NAME, "nonsense"),
    ):
        config = Config(student=Model(architecture), initial=initial)
        with pytest.raises(ValueError, match=message) as refusal:
            check_initial(student, config, dataset)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match="is none of random, teacher"):
        Config(initial="nonsense")
