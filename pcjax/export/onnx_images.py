"""A model of images, or of flat features, as an ONNX file."""

import pathlib

import numpy as np

from pcjax import _io
from pcjax.export.functions import Function
from pcjax.export.onnx import Graph
from pcjax.export.onnx_trace import BATCH, add_function
from pcjax.export.safetensors import Exported, Inputs

PIXELS, OTHER = "pixel_values", "inputs"  # names of the input, of images and of flat features
CHANNELS_FIRST = (0, 3, 1, 2)


def write_onnx_images(
    path: pathlib.Path, model: Exported, function: Function, *, int8: bool = False
) -> None:
    """Write a model to an ONNX file, its normalisation and pooling inside.

    The input "pixel_values" is float32, (batch, channels, height, width), on the scale of 0 to 1;
    flat features are "inputs", (batch, d), as they are stored. The outputs are those of the
    function: "embedding" and, with a classifier, "logits".

    Args:
      path: the file.
      model: its inputs and facts.
      function: `pcjax.export.functions.of_scaled`, or another one of such examples.
      int8: whether the weights of convolutions and linear layers are stored in eight bits.
    """
    shape = model.inputs.shape
    images = len(shape) == 3
    order = CHANNELS_FIRST if images else tuple(range(1 + len(shape)))
    name, sizes = PIXELS if images else OTHER, (BATCH, *shape)
    graph = Graph("student", int8=int8)
    graph.input(name, np.float32, [sizes[axis] for axis in order])
    for output, (value, dimensions) in add_function(graph, function, name, shape, order).items():
        graph.output(output, value, np.float32, dimensions)
    about = {
        "pcjax": str(model.about["version"]),
        "config": str(model.about["config"]),
        "input": described_input(model.inputs),
        "weights": "int8" if int8 else "float32",
    }
    content = graph.model(about).SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _io.atomic_path(path) as unfinished:
        unfinished.write_bytes(content)


def described_input(inputs: Inputs) -> str:
    """Describe the input of the ONNX file in one line."""
    images = len(inputs.shape) == 3
    layout = "(batch, channels, height, width)" if images else "(batch, d)"
    scale = "pixels divided by 255" if inputs.dtype == "uint8" else "as they are stored"
    return f"{PIXELS if images else OTHER}: float32 {layout}, {scale}; the normalisation is inside"
