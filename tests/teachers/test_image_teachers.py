"""Teachers of images by others: they compute what their files say, or are refused in one line."""

import dataclasses

import numpy as np
import pytest
from small_texts import change, write_safetensors
from small_vits import (
    HEADS,
    HIDDEN,
    IMAGES,
    LAYERS,
    PATCH,
    SIDE,
    WIDTH,
    dataset,
    huggingface_names,
    one_line,
    oracle,
    outputs,
    vit_tensors,
    write_folder,
)

from pcjax._checks import RequestError
from pcjax.models import torch_names
from pcjax.models.torch_names import to_torch
from pcjax.teachers import images
from pcjax.teachers.encoder import function_of
from pcjax.teachers.sources import find_encoder, find_text_encoder

OPTIONS = {
    "width": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "patch": PATCH,
    "intermediate": HIDDEN,
}
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


KINDS = {
    "dinov2": {"layer_scale": True},
    "dinov2_with_registers": {"layer_scale": True, "registers": 3},
    "vit": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_computes_what_its_files_say(kind, tmp_path):
    tensors = vit_tensors(**KINDS[kind])
    folder = write_folder(tmp_path / "a-model", kind, tensors)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    encoder = find_encoder(f"dinov2:{folder}")
    np.testing.assert_allclose(outputs(encoder), oracle(IMAGES, tensors)[:, 0], **CLOSE)
    assert (encoder.name, encoder.width, encoder.side) == ("a-model", WIDTH, SIDE)
    assert (encoder.mean, encoder.std) == images.IMAGENET
    assert encoder.licence == "apache-2.0"
    assert find_encoder(f"dinov2:{folder}") is encoder
    assert find_text_encoder(f"dinov2:{folder}") is None


def test_files_of_a_classifier_and_in_several_files(tmp_path):
    tensors = vit_tensors()
    folder = write_folder(tmp_path, "vit", tensors)
    named = {f"vit.{name}": x for name, x in huggingface_names(tensors, "vit").items()}
    named |= {"classifier.weight": np.ones((3, WIDTH)), "classifier.bias": np.ones(3)}
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{position % 2}.safetensors" for position, name in enumerate(named)}
    for file in set(files.values()):
        held = {name: x for name, x in named.items() if files[name] == file}
        write_safetensors(folder / file, held)
    (folder / "model.safetensors.index.json").write_text("{}")
    change(folder / "model.safetensors.index.json", weight_map=files)
    encoder = find_encoder(f"dinov2:{folder}")
    np.testing.assert_allclose(outputs(encoder), oracle(IMAGES, tensors)[:, 0], **CLOSE)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read(dtype, tmp_path):
    tensors = vit_tensors(layer_scale=True)
    folder = write_folder(tmp_path, "dinov2", tensors)
    named = huggingface_names(tensors, "dinov2")
    write_safetensors(folder / "model.safetensors", named, dtype)
    encoder = find_encoder(f"dinov2:{folder}")
    assert {str(x.dtype) for x in encoder.model.parameters.values()} == {"float32"}
    expected = oracle(IMAGES, tensors)[:, 0]
    np.testing.assert_allclose(outputs(encoder), expected, atol=0.1 * np.abs(expected).max())


@pytest.fixture
def tiny(monkeypatch):
    """Add small architectures to those that are known."""

    def add(name, **options):
        named = images._timm("vit", options=OPTIONS | options, side=SIDE, normalise=images.HALVES)
        monkeypatch.setitem(images.TIMM, name, named)
        images._read_once.cache_clear()

    return add


def test_registers_of_timm_and_of_the_original_dinov2(tiny, tmp_path):
    tiny("tiny", registers=2, layer_scale=True)
    tensors = vit_tensors(registers=2, layer_scale=True)
    original = {**tensors, "mask_token": np.zeros((1, WIDTH), np.float32)}
    original["register_tokens"] = original.pop("reg_token")
    expected = oracle(IMAGES, tensors)[:, 0]
    # timm adds the class token's position to the token, and drops it.
    timm = {**tensors, "cls_token": tensors["cls_token"] + tensors["pos_embed"][:, :1]}
    timm["pos_embed"] = tensors["pos_embed"][:, 1:]
    for name, held in (("original", original), ("timm", timm)):
        path = tmp_path / f"{name}.safetensors"
        write_safetensors(path, held)
        encoder = find_encoder(f"timm:tiny.tagged@{path}")
        np.testing.assert_allclose(outputs(encoder), expected, err_msg=name, **CLOSE)
        assert (encoder.name, encoder.mean, encoder.licence) == ("tiny", (0.5, 0.5, 0.5), None)


def test_positions_are_interpolated_once_for_another_size(tiny, tmp_path):
    tiny("tiny")
    tensors = vit_tensors()
    path = tmp_path / "x.safetensors"
    write_safetensors(path, tensors)
    encoder = images.read_timm(f"tiny@{path}", side=2 * SIDE)
    table = encoder.model.parameters["positions/embedding"]
    assert table.shape == (1 + 4 * 9, WIDTH)
    np.testing.assert_array_equal(table[0], tensors["pos_embed"][0, 0])
    assert outputs(encoder, np.ones((1, 2 * SIDE, 2 * SIDE, 3), np.float32)).shape == (1, WIDTH)
    for side, reason in (
        (SIDE + 1, r"images of 13 x 13 and patches of 4 x 4: expected a multiple"),
        (4000, "images of 4000 x 4000 have too many patches"),
        (0, "got the side of a teacher's images 0: expected an integer from 1 to 4096"),
    ):
        with pytest.raises(RequestError, match=reason):
            images.read_timm(f"tiny@{path}", side=side)


def test_a_folder_of_timm_says_how_images_are_normalised(tiny, tmp_path):
    tiny("tiny")
    write_safetensors(tmp_path / "model.safetensors", vit_tensors())
    (tmp_path / "config.json").write_text('{"architecture": "tiny"}')
    values = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "input_size": [3, 24, 24]}
    change(tmp_path / "config.json", pretrained_cfg=values)
    encoder = find_encoder(f"timm:tiny@{tmp_path}")
    assert (encoder.side, encoder.mean, encoder.std) == (24, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    for wrong, reason in (
        ({"std": [1, 0, 1]}, r"config.json: the std \[1, 0, 1\] is not 3 numbers"),
        ({"mean": 0.5}, "config.json: the mean 0.5 is not 3 numbers"),
        ({"input_size": [3, 24, 12]}, "input_size .* is not that of a square image"),
    ):
        images._read_once.cache_clear()
        change(tmp_path / "config.json", pretrained_cfg=values | wrong)
        with pytest.raises(RequestError, match=reason):
            find_encoder(f"timm:tiny@{tmp_path}")


SHUFFLENET = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory):
    """Write random weights of torchvision's smallest network; return the file and its tensors."""
    shape, options = (224, 224, 3), {"width": 0.5}
    _, *shapes = function_of("shufflenetv2_imagenet", shape, options)
    random = np.random.default_rng(0)
    arrays = {
        path: random.random(x.shape, np.float32) for part in shapes for path, x in part.items()
    }
    tensors = to_torch(arrays, torch_names.shufflenetv2)
    tensors |= {"fc.weight": np.ones((10, 1024)), "fc.bias": np.ones(10)}
    tensors["conv1.1.num_batches_tracked"] = np.ones(())
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    write_safetensors(path, tensors)
    return path, tensors, arrays


def test_a_file_of_torchvision_has_every_array(shufflenet):
    path, _, arrays = shufflenet
    encoder = find_encoder(f"torchvision:{SHUFFLENET}@{path}")
    model = encoder.model
    assert model.parameters.keys() | model.statistics.keys() == arrays.keys()
    for name, array in (model.parameters | model.statistics).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    assert (encoder.width, encoder.side, encoder.mean) == (1024, 224, images.IMAGENET[0])
    assert encoder.settings()["side"] == 224


def test_a_data_set_is_seen_in_the_teachers_size_and_normalisation(tmp_path):
    encoder = find_encoder(f"dinov2:{write_folder(tmp_path, 'vit', vit_tensors())}")
    for shape in ((9, 10, 3), (9, 10, 1), (SIDE, SIDE, 3)):
        own = dataset(shape)
        seen = encoder.view(own)
        assert seen.train.shape == (SIDE, SIDE, 3)
        mean, std = seen.normalise
        assert (tuple(mean), tuple(std)) == images.IMAGENET
        assert own.fixed_normalise is None
        assert len(own.normalise[0]) == shape[2]
    made = encoder.features(seen.train, seen.normalise, batch=2)
    pixels = (own.train.take(np.arange(5)) / 255 - mean) / std
    np.testing.assert_allclose(made, outputs(encoder, pixels.astype(np.float32)), **CLOSE)
    other = dataclasses.replace(encoder, std=(1.0, 1.0, 1.0))
    assert other.settings() != encoder.settings()
    for wrong in (dataset((9,)), dataset((9, 10, 4))):
        with pytest.raises(RequestError, match=r"reads images of 1 or 3 channels, and made-up has"):
            encoder.check(wrong)


def test_files_that_are_none_are_refused(tmp_path):
    for kind, name, reason in (
        ("torchvision", "resnet18", "names no file; give torchvision:resnet18@FILE.safetensors"),
        ("torchvision", f"resnet99@{tmp_path}", r"unknown architecture of torchvision 'resnet99'"),
        ("timm", f"vit_huge@{tmp_path}", "unknown architecture of timm .*export it to ONNX"),
        ("torchvision", "resnet18@no.safetensors", "There is no file no.safetensors"),
        ("timm", f"resnet18@{tmp_path}", "has no model.safetensors; give the folder"),
        ("dinov2", f"{tmp_path}/no", "There is no folder"),
        ("dinov2", f"{tmp_path}", "has no model.safetensors"),
        ("onnx", "no.onnx", "There is no file no.onnx"),
    ):
        one_line(f"{kind}:{name}", reason)
    for suffix in (".pth", ".pt", ".bin"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(b"x")
        command = "is not read; convert it with: python -c .*weights_only=True.*'.*x.safetensors'"
        one_line(f"torchvision:resnet18@{path}", command)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    one_line(f"dinov2:{tmp_path}", "convert pytorch_model.bin with AutoModel")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is cut short"),
        (b"\xff" * 20, "it is cut short"),
        ((2**25 + 1).to_bytes(8, "little"), "its header has 33554433 bytes, more than"),
        (b"\x10" + bytes(7) + b"{" * 40, "invalid JSON in header"),
    ],
)
def test_hostile_headers_are_refused(content, reason, tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(content)
        if "more" in reason:
            file.truncate(2**25 + 100)
    one_line(f"torchvision:{SHUFFLENET}@{path}", f"x.safetensors cannot be read: .*{reason}")


def test_tensors_that_do_not_fit_are_refused(shufflenet, tmp_path):
    _, tensors, _ = shufflenet
    path = tmp_path / "x.safetensors"
    wrong = {"conv5.0.weight": np.full((1024, 192, 1, 1), np.nan)}
    few = {name: x for name, x in tensors.items() if "stage4" not in name}
    for held, reason in (
        (few, r"missing \(stage4"),
        ({**tensors, "stem.x": np.ones(2)}, r"1 not needed \(stem.x\)"),
        ({**tensors, "conv1.0.weight": np.ones((24, 1, 3, 3))}, r"1 of another shape \(conv1.0.w"),
        (tensors | wrong, "its tensor conv5.0.weight has NaN or infinite numbers"),
    ):
        write_safetensors(path, held)
        images._read_once.cache_clear()
        one_line(f"torchvision:{SHUFFLENET}@{path}", reason)


FAULTS = {
    "another model": ({"model_type": "dinov3"}, "unknown model_type in .*config.json: 'dinov3'"),
    "another activation": ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
    "gated layers": ({"use_swiglu_ffn": True}, "use_swiglu_ffn True is not supported"),
    "no biases": ({"qkv_bias": False}, "qkv_bias False is not supported"),
    "grey images": ({"num_channels": 1}, "num_channels 1 is not supported"),
    "a huge width": ({"hidden_size": 2**40}, "hidden_size 1099511627776: expected an integer"),
    "width as text": ({"hidden_size": "8"}, "hidden_size '8': expected an integer"),
    "two sides": ({"patch_size": [4, 4]}, r"patch_size \[4, 4\]: expected an integer"),
    "odd heads": ({"num_attention_heads": 3}, "config.json: .*width 8 and 3 heads: expected"),
    "another depth": ({"num_hidden_layers": 3}, r"18 missing \(encoder.layer.2"),
    "another width": ({"hidden_size": 16}, "of another shape"),
    "no epsilon": ({"layer_norm_eps": 0}, "layer_norm_eps 0: expected a positive"),
    "a ratio of text": ({"mlp_ratio": "x"}, "mlp_ratio 'x': expected a positive"),
    "registers": (
        {"model_type": "dinov2_with_registers", "num_register_tokens": 2},
        r"1 missing \(embeddings.register_tokens\)",
    ),
}
IMAGE_FAULTS = {
    "oblong images": ({"crop_size": {"height": 12, "width": 8}}, "not that of a square image"),
    "huge images": ({"crop_size": {"height": 9999, "width": 9999}}, "crop_size 9999: expected"),
    "no mean": ({"image_mean": None}, "the mean None is not 3 numbers"),
    "texts as mean": ({"image_mean": ["0", "0", "0"]}, "the mean .* is not 3 numbers"),
    "values to 255": ({"do_rescale": False}, "rescale_factor must be 1/255"),
    "another factor": ({"rescale_factor": 1.0}, "rescale_factor must be 1/255"),
    "a factor of text": ({"rescale_factor": "a"}, "rescale_factor 'a': expected a positive"),
}


@pytest.mark.parametrize("fault", [*FAULTS, *IMAGE_FAULTS])
def test_folders_that_do_not_fit_are_refused(fault, tmp_path):
    folder = write_folder(tmp_path / "it", "dinov2", vit_tensors(layer_scale=True))
    name = "config.json" if fault in FAULTS else "preprocessor_config.json"
    changes, reason = (FAULTS | IMAGE_FAULTS)[fault]
    change(folder / name, **changes)
    one_line(f"dinov2:{folder}", reason)


def test_a_folder_without_a_preprocessor_is_refused(tmp_path):
    folder = write_folder(tmp_path / "it", "vit", vit_tensors())
    (folder / "preprocessor_config.json").unlink()
    one_line(f"dinov2:{folder}", "it has no preprocessor_config.json, .*AutoImageProcessor")


def test_images_that_are_not_normalised_or_cropped(tmp_path):
    folder = write_folder(tmp_path, "vit", vit_tensors())
    path = folder / "preprocessor_config.json"
    change(path, do_normalize=False, do_center_crop=False, size={"height": 8, "width": 8})
    encoder = find_encoder(f"dinov2:{folder}")
    assert (encoder.side, encoder.mean, encoder.std) == (8, (0.0,) * 3, (1.0,) * 3)
