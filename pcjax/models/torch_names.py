"""Names and layouts that PyTorch's packages give to the parameters of an architecture.

A family is a function of one of our paths, "stages/0/layers/1/conv1/conv/kernel". It returns the
name of the tensor that holds this parameter, or several names where it holds them stacked.

    resnet                         torchvision and timm
    mobilenetv2, mobilenetv2_timm  torchvision; timm
    shufflenetv2                   torchvision
    vit_torchvision, vit_timm      torchvision; timm
    vit_huggingface                Hugging Face's ViT
    dinov2_huggingface             Hugging Face's DINOv2, with registers or without
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from pcjax._checks import RequestError
from pcjax.models import mobilenetv2 as architecture

Family = Callable[[str], tuple[str, ...]]
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
LINEAR = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _convolutional(
    path: str, head: str, place: Callable[[list[str]], tuple[str, str]]
) -> tuple[str, ...]:
    """Name a parameter of a network of convolutions, each followed by batch normalisation.

    Args:
      path: of the parameter.
      head: the linear layer at the end. It holds the features' layer where there is one.
      place: returns the names of a convolution and of its batch normalisation.
    """
    *parts, kind, leaf = path.split("/")
    if not parts:
        return (f"{head}.{LINEAR[leaf]}",)
    conv, norm = place(parts)
    return (f"{conv}.weight",) if kind == "conv" else (f"{norm}.{NORM[leaf]}",)


def resnet(path: str) -> tuple[str, ...]:
    """Name a parameter of a ResNet as torchvision and timm do.

    >>> resnet("stages/0/layers/1/conv2/norm/mean")
    ('layer1.1.bn2.running_mean',)
    """

    def place(parts: list[str]) -> tuple[str, str]:
        if parts == ["stem"]:
            return "conv1", "bn1"
        _, stage, _, block, layer = parts
        before = f"layer{int(stage) + 1}.{block}"
        if layer == "shortcut":
            return f"{before}.downsample.0", f"{before}.downsample.1"
        return f"{before}.{layer}", f"{before}.{layer.replace('conv', 'bn')}"

    return _convolutional(path, "fc", place)


def mobilenetv2(path: str) -> tuple[str, ...]:
    """Name a parameter of a MobileNetV2 as torchvision does.

    >>> mobilenetv2("stages/1/layers/0/depthwise/conv/kernel")
    ('features.2.conv.1.0.weight',)
    """
    depths = [depth for _, _, depth, _ in architecture.STAGES]

    def place(parts: list[str]) -> tuple[str, str]:
        if len(parts) == 1:
            number = 0 if parts == ["stem"] else 1 + sum(depths)
            return f"features.{number}.0", f"features.{number}.1"
        _, stage, _, block, layer = parts
        before = f"features.{1 + sum(depths[: int(stage)]) + int(block)}.conv"
        # The first stage does not expand.
        layers = ["depthwise", "project"] if stage == "0" else ["expand", "depthwise", "project"]
        number = layers.index(layer)
        if layer == "project":
            return f"{before}.{number}", f"{before}.{number + 1}"
        return f"{before}.{number}.0", f"{before}.{number}.1"

    return _convolutional(path, "classifier.1", place)


def mobilenetv2_timm(path: str) -> tuple[str, ...]:
    """Name a parameter of a MobileNetV2 as timm does.

    >>> mobilenetv2_timm("stages/1/layers/0/project/norm/scale")
    ('blocks.1.0.bn3.weight',)
    """
    ends = {"stem": ("conv_stem", "bn1"), "last": ("conv_head", "bn2")}
    first = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
    others = {
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    }

    def place(parts: list[str]) -> tuple[str, str]:
        if len(parts) == 1:
            return ends[parts[0]]
        _, stage, _, block, layer = parts
        conv, norm = (first if stage == "0" else others)[layer]
        return f"blocks.{stage}.{block}.{conv}", f"blocks.{stage}.{block}.{norm}"

    return _convolutional(path, "classifier", place)


def shufflenetv2(path: str) -> tuple[str, ...]:
    """Name a parameter of a ShuffleNetV2 as torchvision does.

    >>> shufflenetv2("stages/2/layers/3/branch/depthwise/norm/var")
    ('stage4.3.branch2.4.running_var',)
    """
    left = {"depthwise": 0, "conv": 2}
    right = {"conv1": 0, "depthwise": 3, "conv2": 5}

    def place(parts: list[str]) -> tuple[str, str]:
        if len(parts) == 1:
            before = "conv1" if parts == ["stem"] else "conv5"
            return f"{before}.0", f"{before}.1"
        stage, block, *layers = parts[1], *parts[3:]
        before = f"stage{int(stage) + 2}.{block}"
        if layers[0] == "branch":
            number, before = right[layers[1]], f"{before}.branch2"
        else:
            number, before = left[layers[0]], f"{before}.branch1"
        return f"{before}.{number}", f"{before}.{number + 1}"

    return _convolutional(path, "fc", place)


class _Transformer(NamedTuple):
    """Names of a ViT's layers by our names; {} stands for "weight" or "bias".

    ends: the layers outside of the blocks.
    block: what stands before the names of a block's layers, with {} for its number.
    layers: the layers of a block; several names where it has a layer in parts.
    """

    ends: Mapping[str, str]
    block: str
    layers: Mapping[str, str | tuple[str, ...]]

    def __call__(self, path: str) -> tuple[str, ...]:
        *places, leaf = path.split("/")
        if places[0] == "blocks":
            _, number, layer = places
            before, names = self.block.format(number), self.layers.get(layer, ())
        else:
            before, names = "", self.ends.get(places[0], ())
        names = (names,) if isinstance(names, str) else names
        return tuple(before + name.format(LINEAR.get(leaf)) for name in names)


vit_timm: Family = _Transformer(
    {
        "patches": "patch_embed.proj.{}",
        "cls": "cls_token",
        "registers": "reg_token",
        "positions": "pos_embed",
        "norm": "norm.{}",
    },
    "blocks.{}.",
    {
        "norm1": "norm1.{}",
        "qkv": "attn.qkv.{}",
        "mixed": "attn.proj.{}",
        "scale1": "ls1.gamma",
        "norm2": "norm2.{}",
        "inner": "mlp.fc1.{}",
        "outer": "mlp.fc2.{}",
        "scale2": "ls2.gamma",
    },
)
vit_torchvision: Family = _Transformer(
    {
        "patches": "conv_proj.{}",
        "cls": "class_token",
        "positions": "encoder.pos_embedding",
        "norm": "encoder.ln.{}",
    },
    "encoder.layers.encoder_layer_{}.",
    {
        "norm1": "ln_1.{}",
        "qkv": "self_attention.in_proj_{}",
        "mixed": "self_attention.out_proj.{}",
        "norm2": "ln_2.{}",
        "inner": "mlp.0.{}",
        "outer": "mlp.3.{}",
    },
)
_HUGGINGFACE = {
    "patches": "embeddings.patch_embeddings.projection.{}",
    "cls": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "norm": "layernorm.{}",
}
_HUGGINGFACE_ATTENTION = {
    "qkv": tuple(f"attention.attention.{part}.{{}}" for part in ("query", "key", "value")),
    "mixed": "attention.output.dense.{}",
}
vit_huggingface: Family = _Transformer(
    _HUGGINGFACE,
    "encoder.layer.{}.",
    {
        **_HUGGINGFACE_ATTENTION,
        "norm1": "layernorm_before.{}",
        "norm2": "layernorm_after.{}",
        "inner": "intermediate.dense.{}",
        "outer": "output.dense.{}",
    },
)
dinov2_huggingface: Family = _Transformer(
    _HUGGINGFACE,
    "encoder.layer.{}.",
    {
        **_HUGGINGFACE_ATTENTION,
        "norm1": "norm1.{}",
        "scale1": "layer_scale1.lambda1",
        "norm2": "norm2.{}",
        "inner": "mlp.fc1.{}",
        "outer": "mlp.fc2.{}",
        "scale2": "layer_scale2.lambda1",
    },
)


def to_torch(arrays: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Name parameters and statistics as a family does, in PyTorch's layout."""
    tensors = {}
    for path, array in arrays.items():
        names = family(path)
        for name, part in zip(names, _parts(path, np.asarray(array), len(names)), strict=True):
            tensors[name] = np.ascontiguousarray(part)
    return tensors


def from_torch(
    tensors: Mapping[str, np.ndarray],
    family: Family,
    shapes: Mapping[str, tuple[int, ...]],
    unused: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Find the arrays of parameters and statistics among PyTorch's tensors.

    Args:
      tensors: by their names.
      family: the names.
      shapes: the shapes of our arrays by path.
      unused: how the names of tensors that are left out begin.

    Returns:
      The arrays by path, float32. Tensors that are missing, that nothing needs, that have another
      shape or that are not finite are refused together, in one line.
    """
    missing, other, wrong = [], [], []
    given = {name: x for name, x in tensors.items() if not _is_unused(name, unused)}
    arrays = {}
    for path, shape in shapes.items():
        names = family(path)
        parts = _parts(path, np.broadcast_to(np.float32(0), shape), len(names))
        stacked = []
        for name, part in zip(names, parts, strict=True):
            tensor = given.pop(name, None)
            if tensor is None:
                missing.append(name)
            elif tensor.shape != part.shape:
                other.append(f"{name} {tensor.shape} for {part.shape}")
            else:
                stacked.append(np.asarray(tensor, np.float32))
                if not np.isfinite(stacked[-1]).all():
                    wrong.append(name)
        if stacked and len(stacked) == len(names):
            tensor = np.concatenate(stacked) if len(stacked) > 1 else stacked[0]
            arrays[path] = _from_layout(path, tensor)
    problems = {"missing": missing, "not needed": [*given], "of another shape": other}
    problems["with NaN or infinite numbers"] = wrong
    if any(problems.values()):
        listed = [f"{len(x)} {what} ({_listed(x)})" for what, x in problems.items() if x]
        raise RequestError(f"its tensors do not fit: {'; '.join(listed)}")
    return arrays


def _parts(path: str, array: np.ndarray, count: int) -> list[np.ndarray]:
    """Bring an array to PyTorch's layout, in equal parts of its outputs."""
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":  # (height, width, inputs, outputs) or (inputs, outputs)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    elif leaf == "embedding":
        array = array[None]
    return np.split(array, count) if count else []


def _from_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
        tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    elif leaf == "embedding":
        tensor = tensor[0]
    return np.ascontiguousarray(tensor)


def _is_unused(name: str, unused: tuple[str, ...]) -> bool:
    return name.startswith(unused) or name.endswith("num_batches_tracked")


def _listed(names: Collection[str]) -> str:
    """Name all; those that differ by their numbers share a pattern that stands for just them.

    >>> _listed(["norm.bias", *(f"blocks.{i}.fc1.bias" for i in range(12)), "blocks.14.fc1.bias"])
    'norm.bias, blocks.{0-11,14}.fc1.bias'
    """
    patterns: dict[tuple[str, ...], list[list[tuple[int, ...]]]] = {}
    for name in names:
        parts = re.split(r"(\d+)(?=\.|$)", name)  # every second one is a number
        patterns.setdefault(tuple(parts[::2]), []).append([(int(x),) for x in parts[1::2]])
    listed = []
    for texts, boxes in patterns.items():
        for slot in range(len(texts) - 1):
            # Those that agree in all other places become one.
            merged: dict[Any, list[tuple[int, ...]]] = {}
            for box in boxes:
                merged.setdefault((*box[:slot], *box[slot + 1 :]), []).append(box[slot])
            boxes = [[*key[:slot], sum(x, ()), *key[slot:]] for key, x in merged.items()]
        for box in boxes:
            numbers = [*map(_numbers, box), ""]
            listed.append("".join(x for pair in zip(texts, numbers, strict=True) for x in pair))
    return ", ".join(listed)


def _numbers(numbers: Collection[int]) -> str:
    """Write numbers as {1-3,5}."""
    runs: list[list[int]] = []
    for x in sorted(numbers):
        if runs and x == runs[-1][1] + 1:
            runs[-1][1] = x
        else:
            runs.append([x, x])
    written = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return written if len(numbers) == 1 else f"{{{written}}}"
