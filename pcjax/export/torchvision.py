"""A convolutional student as the tensors that torchvision's models load."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pcjax._checks import RequestError
from pcjax.models import torch_names
from pcjax.models.torch_names import Family

# Our names, torchvision's, and those of the tensors.
ARCHITECTURES: dict[str, tuple[str, Family]] = {
    **{name: (name, torch_names.resnet) for name in ("resnet18", "resnet34", "resnet50")},
    "mobilenetv2_imagenet": ("mobilenet_v2", torch_names.mobilenetv2),
    "shufflenetv2_imagenet": ("shufflenet_v2_x", torch_names.shufflenetv2),
}
INPUT, CHANNELS = "stem/conv/kernel", 3  # (height, width, channels, outputs)


def torchvision_tensors(
    name: str, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return a student's weights under torchvision's names, in PyTorch's layout.

    The last linear layer of torchvision's model computes the features where the student has such a
    layer (its option `features`), else the class scores. A student without both has no tensors for
    it: put `torch.nn.Identity()` there, and load the rest.

    Args:
      name: the student's architecture, of `pcjax.models.MODELS`.
      options: of the architecture.
      arrays: parameters and statistics by path, "stem/conv/kernel".

    Returns:
      The tensors by name, float32; the batches that batch normalisation has counted are 0.
    """
    _, family = _architecture(name, arrays)
    kept = {path: np.asarray(array) for path, array in arrays.items()}
    if "embed/kernel" in kept:
        kept = {path: x for path, x in kept.items() if not path.startswith("classify/")}
    tensors = torch_names.to_torch(kept, family)
    counts = [key for key in tensors if key.endswith("running_mean")]
    for key in counts:
        tensors[key.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def torchvision_model(
    name: str, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> str:
    """Return the Python expression that builds the model which loads these tensors.

    >>> kernel = {"stem/conv/kernel": np.zeros((3, 3, 3, 16)), "embed/bias": np.zeros(64)}
    >>> torchvision_model("mobilenetv2_imagenet", {"width": 0.5}, kernel)
    'torchvision.models.mobilenet_v2(num_classes=64, width_mult=0.5)'
    """
    function, _ = _architecture(name, arrays)
    width = options.get("width")
    if name == "shufflenetv2_imagenet":
        function += str(float(1 if width is None else width)).replace(".", "_")
    arguments = []
    for layer in ("embed/bias", "classify/bias"):
        if layer in arrays:
            arguments = [f"num_classes={len(arrays[layer])}"]
            break
    if name == "mobilenetv2_imagenet" and width is not None:
        arguments.append(f"width_mult={width}")
    return f"torchvision.models.{function}({', '.join(arguments)})"


def _architecture(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, Family]:
    if name not in ARCHITECTURES:
        raise RequestError(
            f"torchvision has no {name}, only {', '.join(ARCHITECTURES)}; choose another format, "
            "or train one of these students."
        )
    channels = np.shape(arrays[INPUT])[2]
    if channels != CHANNELS:
        raise RequestError(
            f"torchvision's {name} reads images of {CHANNELS} channels, and this student reads "
            f"{channels}; choose another format."
        )
    return ARCHITECTURES[name]
