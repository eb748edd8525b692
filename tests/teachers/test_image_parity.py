"""Weights of others compute the features of the real modules: random ones, in PyTorch."""

import numpy as np
import pytest
from small_texts import write_safetensors
from small_vits import outputs, write_preprocessor

from pcjax.teachers.image_folders import read_image_folder
from pcjax.teachers.sources import find_teacher


def randomised(model, torch):
    """Draw all weights and statistics of a module anew, of an even scale through its layers."""
    generator = torch.Generator().manual_seed(0)
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        if not x.is_floating_point():
            continue
        plain = x.ndim > 1 and "token" not in name and "pos" not in name
        scale = x[0].numel() ** -0.5 if plain else 0.2
        drawn = scale * torch.randn(x.shape, generator=generator)
        positive = name.endswith("running_var") or (x.ndim == 1 and not name.endswith("bias"))
        shift = 1 if positive and not name.endswith("running_mean") else 0
        x.data = (drawn + shift).abs() if name.endswith("running_var") else drawn + shift
    return model.eval()


def agree(encoder, images, expected):
    """Compare with torch's features, relative to their largest number."""
    made = outputs(encoder, images.permute(0, 2, 3, 1).numpy())
    difference = np.abs(made - expected.numpy()).max() / np.abs(expected.numpy()).max()
    assert difference < 1e-4
    assert np.abs(made[0] - made[1]).max() > 1e-3 * np.abs(made).max()


PUBLISHED = [
    *("torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50"),
    *("torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5"),
    *("torchvision:shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x1_5"),
    *("torchvision:shufflenet_v2_x2_0", "torchvision:vit_b_16"),
    *("timm:resnet18", "timm:mobilenetv2_100", "timm:vit_tiny_patch16_224"),
    *("timm:vit_small_patch14_dinov2", "timm:vit_small_patch14_reg4_dinov2"),
]


@pytest.mark.nightly
@pytest.mark.parametrize("source", PUBLISHED)
def test_random_weights_agree_with_the_real_modules(source, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    package, _, name = source.partition(":")
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "torchvision":
        model = getattr(module.models, name)()
        last = {"m": "classifier", "v": "heads"}.get(name[0], "fc")
        options = {}
    else:
        # DINOv2's own positions are for 518 pixels, which take long.
        options = {"img_size": 224} if "dinov2" in name else {}
        model, last = module.create_model(name, num_classes=0), None
    randomised(model, torch)
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {name: x.numpy() for name, x in model.state_dict().items()})
    if options:
        from timm.models.vision_transformer import checkpoint_filter_fn

        smaller = module.create_model(name, num_classes=0, **options).eval()
        smaller.load_state_dict(checkpoint_filter_fn(model.state_dict(), smaller))
        model = smaller
    if last:
        setattr(model, last, torch.nn.Identity())
    images_in = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(images_in)
    agree(find_teacher(source)[0].read(f"{name}@{path}", None, side=224), images_in, expected)


@pytest.mark.nightly
@pytest.mark.parametrize("side", [42, 56, 70])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_random_folders_agree_with_transformers(kind, side, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=50,
        image_size=56,
        patch_size=14,
    )
    model = randomised(getattr(transformers, f"{kind}Model")(config), torch)
    model.save_pretrained(tmp_path)
    write_preprocessor(tmp_path)
    images_in = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    options = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    with torch.inference_mode():
        expected = model(pixel_values=images_in, **options).last_hidden_state[:, 0]
    agree(read_image_folder(str(tmp_path), side=side), images_in, expected)
