"""Read teachers of images from folders of Hugging Face: ViT, and DINOv2 with registers or not."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data import Dataset
from pcjax.models import torch_names
from pcjax.teachers.images import (
    CHANNELS,
    OTHERS,
    ImageEncoder,
    Pretrained,
    checked_normalise,
    checked_side,
    encoder_of,
    stamped,
)
from pcjax.teachers.tensors import read_licence, read_object, weight_files

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
KINDS = ("dinov2", "dinov2_with_registers", "vit")
# Our options, fields of config.json, and what transformers takes where one is missing.
SIZES = {
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "patch": ("patch_size", None),
}
PATCHES = {"vit": 16, "dinov2": 14, "dinov2_with_registers": 14}
# Fields of config.json with the only value that is supported; it is the default.
FIXED = {
    "hidden_act": "gelu",
    "qkv_bias": True,
    "num_channels": CHANNELS,
    "use_swiglu_ffn": False,
}
MOST_LAYERS, MOST = 512, 2**16
CONVERT = "AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER)"


def read_image_folder(
    name: str, dataset: Dataset | None = None, *, side: int | None = None
) -> ImageEncoder:
    """Read a folder with config.json, model.safetensors and preprocessor_config.json.

    The features are the class token after the last normalisation.

    Args:
      name: the folder.
      dataset: not used.
      side: of the images; None: as preprocessor_config.json has it.
    """
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        raise RequestError(f"There is no folder {folder} (teacher.source).")
    paths = [folder / CONFIG, *weight_files(folder, CONVERT)]
    if (folder / PREPROCESSOR).is_file():
        paths.append(folder / PREPROCESSOR)
    return _read_once(folder, tuple(map(stamped, paths)), side)


@functools.lru_cache(maxsize=2)
def _read_once(
    folder: pathlib.Path, _: tuple[tuple[pathlib.Path, int], ...], side: int | None
) -> ImageEncoder:
    path = folder / CONFIG
    pretrained = _pretrained(path, read_object(path))
    if not (folder / PREPROCESSOR).is_file():
        raise RequestError(
            f"{folder} has no {PREPROCESSOR}, which has the size and the normalisation of the "
            "images; write it with AutoImageProcessor.from_pretrained(...).save_pretrained(FOLDER)."
        )
    own_side, mean, std = read_preprocessor(folder / PREPROCESSOR)
    try:
        return encoder_of(
            pretrained,
            weight_files(folder, CONVERT),
            name=folder.resolve().name,
            side=own_side if side is None else side,
            mean=mean,
            std=std,
            licence=read_licence(folder),
        )
    except RequestError as error:
        message = str(error).removesuffix(".")
        inside = str(folder) in message
        raise RequestError(f"{message}." if inside else f"{path}: {message}.") from error


def _pretrained(path: pathlib.Path, settings: Mapping[str, Any]) -> Pretrained:
    kind = settings.get("model_type")
    _checks.require_name(f"model_type in {path}:", kind, KINDS, f"; {OTHERS}")
    for field, value in FIXED.items():
        if settings.get(field, value) != value:
            raise RequestError(
                f"{path}: {field} {settings[field]!r} is not supported, only {value!r}; {OTHERS}."
            )
    options: dict[str, Any] = {}
    for option, (field, default) in SIZES.items():
        options[option] = settings.get(field, default or PATCHES[str(kind)])
        most = MOST_LAYERS if option == "layers" else MOST
        _checks.require_whole(f"{path}: {field}", options[option], 1, most)
    dino = kind != "vit"
    if dino:
        ratio = settings.get("mlp_ratio", 4)
        _checks.require_positive(f"{path}: mlp_ratio", ratio)
        options["intermediate"] = int(options["width"] * ratio)
    else:
        options["intermediate"] = settings.get("intermediate_size", 3072)
    _checks.require_whole(f"{path}: intermediate size", options["intermediate"], 1, MOST)
    registers = settings.get("num_register_tokens", 4) if kind == KINDS[1] else 0
    _checks.require_whole(f"{path}: num_register_tokens", registers, 0, MOST_LAYERS)
    epsilon = settings.get("layer_norm_eps", 1e-6 if dino else 1e-12)
    _checks.require_positive(f"{path}: layer_norm_eps", epsilon)
    options |= {"registers": registers, "layer_scale": dino, "epsilon": float(epsilon)}
    return Pretrained(
        "vit",
        torch_names.dinov2_huggingface if dino else torch_names.vit_huggingface,
        options,
        antialias=kind == KINDS[1],
        prefix="vit." if kind == "vit" else f"{kind}.",
    )


def read_preprocessor(path: pathlib.Path) -> tuple[int, Any, Any]:
    """Return the side, the mean and the standard deviation of a preprocessor_config.json."""
    settings = read_object(path)
    crop = settings.get("do_center_crop", "crop_size" in settings) is True
    field = "crop_size" if crop else "size"
    size = settings.get(field, 224)
    sides = [*size.values()] if isinstance(size, dict) else [size]
    if not sides or any(each != sides[0] for each in sides):
        raise RequestError(f"{path}: {field} {size!r} is not that of a square image.")
    side = checked_side(f"{path}: {field}", sides[0])
    factor = settings.get("rescale_factor", 1 / 255)
    _checks.require_positive(f"{path}: rescale_factor", factor)
    if settings.get("do_rescale", True) is not True or abs(float(factor) * 255 - 1) > 1e-3:
        raise RequestError(f"{path}: rescale_factor must be 1/255, and do_rescale true.")
    if settings.get("do_normalize", True) is not True:
        return side, (0.0,) * CHANNELS, (1.0,) * CHANNELS
    mean, std = settings.get("image_mean"), settings.get("image_std")
    return side, *checked_normalise(path, mean, std)
