"""Read teachers of images from weights of torchvision and timm; no code of others runs."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.data import Dataset, Examples
from pcjax.data.fitted import sized
from pcjax.models import torch_names
from pcjax.models.torch_names import Family
from pcjax.models.vit import interpolated
from pcjax.teachers.encoder import Encoder, ModelEncoder, function_of
from pcjax.teachers.tensors import (
    WEIGHTS,
    load_files,
    read_licence,
    read_object,
    weight_files,
)
from pcjax.training.embedding import FrozenModel, output_shape

CHANNELS = 3
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RESIZE = "linear, antialiased"
MOST_SIDE, MOST_PATCHES = 4096, 256  # of an image, and along a side of it
MOST_PIXELS = 64 * 224 * 224  # at a time: attention takes memory like the square of its tokens
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({{k: v.contiguous() for k, v in '
    "torch.load('{0}', map_location='cpu', weights_only=True).items()}}, '{1}')\""
)
OTHERS = "export it to ONNX and give onnx:FILE, or give vectors:FILE"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageReader(Encoder):
    """A model or a function of images, and how it reads them.

    architecture: of `pcjax.models.MODELS`; None for a function.
    options: of the architecture.
    side: height and width of its images; None: images are not resized.
    mean: subtracted from every channel of images from 0 to 1; None: as they are stored.
    std: the divisor of every channel.
    """

    architecture: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    side: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def check(self, dataset: Dataset) -> None:
        """Refuse examples that are no images."""
        shape = dataset.train.shape
        if len(shape) != 3 or shape[2] not in (1, CHANNELS):
            raise RequestError(
                f"{self.name} (teacher.source) reads images of 1 or 3 channels, and "
                f"{dataset.source} has examples of shape {shape}; choose another data.source or "
                "another teacher.source."
            )

    def view(self, dataset: Dataset) -> Dataset:
        """Return images of the model's size, with its mean and standard deviation."""
        self.check(dataset)
        if self.side is not None:
            dataset = sized(dataset, (self.side, self.side, CHANNELS))
        if self.mean is None:
            return dataset
        normalise = (np.array(self.mean), np.array(self.std))
        return dataclasses.replace(dataset, fixed_normalise=normalise)

    def settings(self) -> dict[str, Any]:
        """Return the architecture, and the size and normalisation of the images."""
        mean, std = (x if x is None else list(x) for x in (self.mean, self.std))
        return {
            "architecture": self.architecture,
            "options": dict(self.options),
            "side": self.side,
            "mean": mean,
            "std": std,
            "resize": None if self.side is None else RESIZE,
        }


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageEncoder(ImageReader, ModelEncoder):
    """A model of images that JAX computes."""

    def features(
        self, examples: Examples, normalise: tuple[np.ndarray, np.ndarray], batch: int
    ) -> np.ndarray:
        """Compute the features of examples, fewer at a time where their images are large."""
        height, width, _ = examples.shape
        return super().features(
            examples, normalise, max(1, min(batch, MOST_PIXELS // (height * width)))
        )


class Pretrained(NamedTuple):
    """An architecture under the name that another package gives it.

    kind: our name, of `pcjax.models.MODELS`.
    family: the names of its tensors.
    options: of our architecture.
    side: the side of its images by default.
    normalise: the mean and the standard deviation of its images.
    antialias: whether its table of positions is interpolated with antialiasing.
    prefix: what some files put before every name.
    renamed: other names that parts of its tensors had.
    """

    kind: str
    family: Family
    options: Mapping[str, Any] = {}
    side: int = 224
    normalise: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    antialias: bool = False
    prefix: str = ""
    renamed: Mapping[str, str] = {}


_RESNETS = {name: Pretrained(name, torch_names.resnet) for name in ("resnet18", "resnet34")}
_RESNETS["resnet50"] = Pretrained("resnet50", torch_names.resnet)

TORCHVISION = _RESNETS | {
    "mobilenet_v2": Pretrained("mobilenetv2_imagenet", torch_names.mobilenetv2),
    **{
        f"shufflenet_v2_x{str(width).replace('.', '_')}": Pretrained(
            "shufflenetv2_imagenet", torch_names.shufflenetv2, {"width": width}
        )
        for width in (0.5, 1.0, 1.5, 2.0)
    },
    "vit_b_16": Pretrained(
        "vit_base",
        torch_names.vit_torchvision,
        renamed={"mlp.linear_1": "mlp.0", "mlp.linear_2": "mlp.3"},
    ),
}
_DINOV2 = {"patch": 14, "layer_scale": True}
_timm = functools.partial(
    Pretrained,
    family=torch_names.vit_timm,
    antialias=True,
    renamed={"register_tokens": "reg_token"},  # the original DINOv2
)
TIMM = _RESNETS | {
    "mobilenetv2_100": Pretrained("mobilenetv2_imagenet", torch_names.mobilenetv2_timm),
    **{
        f"vit_{size}_patch16_224": _timm(f"vit_{size}", normalise=HALVES)
        for size in ("tiny", "small", "base")
    },
    **{
        f"vit_{size}_patch14{form}_dinov2": _timm(
            f"vit_{size}", options=_DINOV2 | registers, side=518
        )
        for size in ("small", "base")
        for form, registers in (("", {}), ("_reg4", {"registers": 4}))
    },
}
# What else is in such files: classifiers, and the token that stands for masked patches.
UNUSED = (
    *("fc.", "classifier.", "head.", "heads.", "pooler."),
    *("mask_token", "embeddings.mask_token"),
)


def read_torchvision(
    name: str, dataset: Dataset | None = None, *, side: int | None = None
) -> ImageEncoder:
    """Read "ARCH@FILE", a state dict of torchvision's model ARCH.

    Args:
      name: such as "resnet50@resnet50.safetensors".
      dataset: not used.
      side: of the images; None: the architecture's.
    """
    return _read("torchvision", TORCHVISION, name, side)


def read_timm(
    name: str, dataset: Dataset | None = None, *, side: int | None = None
) -> ImageEncoder:
    """Read "ARCH@FILE", a state dict of timm's model ARCH; see `read_torchvision`.

    The mean and standard deviation come from timm's config.json beside the file, where it is there.
    """
    return _read("timm", TIMM, name, side)


def _read(
    package: str, known: Mapping[str, Pretrained], name: str, side: int | None
) -> ImageEncoder:
    name, _, file = name.partition("@")
    architecture = name.partition(".")[0]  # "vit_small_patch14_dinov2.lvd142m" has a tag
    if not file:
        raise RequestError(
            f"teacher.source={package}:{name} names no file; give "
            f"{package}:{name}@FILE.safetensors."
        )
    _checks.require_name(f"architecture of {package}", architecture, known, f"; {OTHERS}")
    path = pathlib.Path(file).expanduser()
    convert = CONVERT.format("pytorch_model.bin", WEIGHTS)
    paths = weight_files(path, convert) if path.is_dir() else [path]
    return _read_once(package, architecture, tuple(map(stamped, paths)), side)


def stamped(path: pathlib.Path) -> tuple[pathlib.Path, int]:
    """Return a file of weights and the time of its last change; refuse files that are none."""
    if not path.is_file():
        raise RequestError(f"There is no file {path} (teacher.source).")
    if path.suffix in PICKLED:
        command = CONVERT.format(path, path.with_suffix(".safetensors"))
        raise RequestError(f"{path} may hold code and is not read; convert it with: {command}")
    return path, path.stat().st_mtime_ns


@functools.lru_cache(maxsize=2)
def _read_once(
    package: str, name: str, files: tuple[tuple[pathlib.Path, int], ...], side: int | None
) -> ImageEncoder:
    pretrained = {"torchvision": TORCHVISION, "timm": TIMM}[package][name]
    paths = [path for path, _ in files]
    (mean, std), default_side = _timm_config(paths[0].parent, name, pretrained)
    own_folder = paths[0].name == WEIGHTS
    return encoder_of(
        pretrained,
        paths,
        name=name,
        side=default_side if side is None else side,
        mean=mean,
        std=std,
        licence=read_licence(paths[0].parent) if own_folder else None,
    )


def _timm_config(folder: pathlib.Path, name: str, pretrained: Pretrained) -> tuple[Any, int]:
    """Return the normalisation and the side of timm's config.json, or the architecture's."""
    path = folder / "config.json"
    normalise, side = pretrained.normalise, pretrained.side
    settings = read_object(path, missing={})
    values = settings.get("pretrained_cfg")
    if settings.get("architecture") != name or not isinstance(values, dict):
        return normalise, side
    mean, std = values.get("mean", normalise[0]), values.get("std", normalise[1])
    shape = values.get("input_size", (CHANNELS, side, side))
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or shape[1] != shape[2]:
        raise RequestError(f"{path}: input_size {shape!r} is not that of a square image.")
    return checked_normalise(path, mean, std), checked_side(f"{path}: input_size", shape[1])


def checked_side(what: str, side: Any) -> int:
    """Refuse a side that images do not have."""
    _checks.require_whole(what, side, 1, MOST_SIDE)
    return int(side)


def checked_normalise(path: pathlib.Path, mean: Any, std: Any) -> tuple[Any, Any]:
    """Refuse a mean and a standard deviation that are not three finite numbers each."""
    for name, numbers in (("mean", mean), ("std", std)):
        plain = isinstance(numbers, (list, tuple)) and len(numbers) == CHANNELS
        if not plain or not all(
            isinstance(x, (int, float)) and math.isfinite(x) and (x > 0 or name == "mean")
            for x in numbers
        ):
            raise RequestError(f"{path}: the {name} {numbers!r} is not {CHANNELS} numbers.")
    return tuple(map(float, mean)), tuple(map(float, std))


def encoder_of(
    pretrained: Pretrained, paths: list[pathlib.Path], *, side: int, **facts: Any
) -> ImageEncoder:
    """Read a model's weights from files; refuse in one line those that do not fit.

    Args:
      pretrained: the architecture.
      paths: the files.
      side: of the images.
      **facts: the other fields of an `ImageEncoder`.
    """
    checked_side("the side of a teacher's images", side)
    if side > MOST_PATCHES * pretrained.options.get("patch", 16):
        raise RequestError(f"images of {side} x {side} have too many patches; give smaller ones")
    shape = (side, side, CHANNELS)
    function, parameters, statistics = function_of(pretrained.kind, shape, pretrained.options)
    shapes = {path: leaf.shape for path, leaf in (parameters | statistics).items()}

    def select(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {}
        for name, tensor in tensors.items():
            name = name.removeprefix(pretrained.prefix)
            for other, ours in pretrained.renamed.items():
                name = name.replace(other, ours)
            given[name] = tensor
        if "positions/embedding" in shapes:
            _bring_positions(given, pretrained, shape)
        return torch_names.from_torch(given, pretrained.family, shapes, UNUSED)

    arrays = {name: jnp.asarray(array) for name, array in load_files(paths, select).items()}
    model = FrozenModel(
        function,
        {path: arrays[path] for path in parameters},
        {path: arrays[path] for path in statistics},
    )
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    width = int(output_shape(model, image).features.shape[1])
    facts |= {"architecture": pretrained.kind, "options": dict(pretrained.options)}
    return ImageEncoder(width=width, model=model, side=side, **facts)


def _bring_positions(
    tensors: dict[str, np.ndarray], pretrained: Pretrained, shape: tuple[int, ...]
) -> None:
    """Bring the table of positions to the grid of the images, with a row for the class token.

    timm's ViT with registers has no such row. A table that is none stays, and is refused later.
    """
    (name,) = pretrained.family("positions/embedding")
    table = tensors.get(name)
    if table is None or table.ndim != 3 or len(table) != 1 or table.shape[1] < 2:
        return
    table = np.asarray(table[0], np.float32)
    if _is_square(len(table)):
        first = np.zeros_like(table[:1])
    elif _is_square(len(table) - 1):
        first, table = table[:1], table[1:]
    else:
        return
    side = shape[0] // pretrained.options.get("patch", 16)
    patches = interpolated(table, (side, side), pretrained.antialias)
    tensors[name] = np.concatenate([first, patches])[None]


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number
