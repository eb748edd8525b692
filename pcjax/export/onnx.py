"""A model of texts as an ONNX file: token ids and their mask in, features out.

A model of ours has few operations: one function of this file writes each architecture.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcjax import __version__, _checks, _io
from pcjax._checks import RequestError
from pcjax.export.folders import static_table, tokenizer_json
from pcjax.models import bert
from pcjax.models.text import SMALLEST_NORM, TEXT_MODELS, TextModel

# Of the year 2022: older runtimes refuse the versions that the package writes by default.
OPSET, IR_VERSION = 18, 8
TOKENS = ("batch", "tokens")
IDS, MASK = "input_ids", "attention_mask"
FEATURES, STATES = "sentence_embedding", "last_hidden_state"
Shape = Sequence[int | str]


class Graph:
    """An ONNX graph under construction; every value has a name.

    graph = Graph("double")
    x = graph.input("x", np.float32, ("batch", 2))
    graph.output("y", graph.add("Add", [x, x]), np.float32, ("batch", 2))
    model = graph.model()

    Args:
      name: of the graph.
      int8: whether weights are stored in eight bits.
    """

    def __init__(self, name: str, *, int8: bool = False):
        self._onnx = _package()
        self._name, self._int8 = name, int8
        self._nodes, self._inputs, self._outputs = [], [], []
        self._constants: dict[str, Any] = {}
        self._names: dict[Any, str] = {}  # of equal constants and operations, which are kept once

    def input(self, name: str, dtype: Any, shape: Shape) -> str:
        """Declare an input; a name in its shape is a size that varies."""
        self._inputs.append(self._declared(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: Shape) -> None:
        """Declare a value as an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))
        self._outputs.append(self._declared(name, dtype, shape))

    def constant(self, array: Any) -> str:
        """Store an array in the file."""
        array = np.asarray(array)
        name = self._names.setdefault(_io.array_digest(array), f"constant_{len(self._constants)}")
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def weight(self, array: np.ndarray, axis: int) -> str:
        """Store a weight; in eight bits, each index of `axis` has a scale of its own."""
        if not self._int8:
            return self.constant(array)
        quantised, scale = _quantised(array, axis)
        stored = [self.constant(quantised), self.constant(scale)]
        return self.add("DequantizeLinear", stored, axis=axis)

    def rows(self, table: np.ndarray, ids: str) -> str:
        """Read rows of a table that is stored as `weight` stores it."""
        if not self._int8:
            return self.add("Gather", [self.constant(table), ids], axis=0)
        quantised, scale = _quantised(table, 0)
        # DequantizeLinear would compute the whole table in every call.
        read = self.add("Gather", [self.constant(quantised), ids], axis=0)
        scales = self.add("Gather", [self.constant(scale[:, None]), ids], axis=0)
        return self.add("Mul", [self.add("Cast", [read], to=_type(np.float32)), scales])

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add an operation with one result."""
        key = (op, *inputs, repr(attributes))
        if key not in self._names:
            name = self._names[key] = f"{op}_{len(self._nodes)}"
            node = self._onnx.helper.make_node(op, inputs, [name], name=name, **attributes)
            self._nodes.append(node)
        return self._names[key]

    def model(self, about: Mapping[str, str] | None = None) -> Any:
        """Return the checked model.

        Args:
          about: facts for the file's metadata.
        """
        helper = self._onnx.helper
        used, nodes = {output.name for output in self._outputs}, []
        for node in reversed(self._nodes):
            if not used.isdisjoint(node.output):
                nodes.append(node)
                used.update(node.input)
        constants = [x for name, x in self._constants.items() if name in used]
        graph = helper.make_graph(nodes[::-1], self._name, self._inputs, self._outputs, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="pcjax",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(about or {}))
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _declared(self, name: str, dtype: Any, shape: Shape) -> Any:
        helper = self._onnx.helper
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
        )


def _quantised(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of 255 multiples of a scale, and the scale of each index of `axis`."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(array / scale).astype(np.int8), scale.reshape(-1)


def write_onnx(path: pathlib.Path, model: TextModel, *, int8: bool = False) -> None:
    """Write the model to `path`, and its tokenizer to tokenizer.json in the same folder.

    Args:
      path: the ONNX file. Its inputs are int64 "input_ids" and "attention_mask", (batch, tokens);
        its outputs "sentence_embedding", and "last_hidden_state" of a transformer.
      model: the model.
      int8: whether the tables and the linear layers' weights are stored in eight bits.
    """
    _checks.require_name("model of texts", model.name, TEXT_MODELS)
    graph = Graph(model.name, int8=int8)
    ids, mask = (graph.input(name, np.int64, TOKENS) for name in (IDS, MASK))
    features, width = (_static if model.name == "static" else _bert)(graph, model, ids, mask)
    graph.output(FEATURES, features, np.float32, ("batch", width))
    content = graph.model().SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    _io.write_text(path.parent / "tokenizer.json", tokenizer_json(model))
    with _io.atomic_path(path) as unfinished:
        unfinished.write_bytes(content)


def _package() -> Any:
    """Return the package onnx."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise RequestError(
            'an export to ONNX needs the package onnx: `pip install "pcjax[onnx]"`'
        ) from error
    return onnx


def _static(graph: Graph, model: TextModel, ids: str, mask: str) -> tuple[str, int]:
    table = static_table(model)
    unknown = graph.constant(np.int64(model.options["unknown"]))
    known = graph.add("Not", [graph.add("Equal", [ids, unknown])])
    counted = graph.add("And", [known, graph.add("Cast", [mask], to=_type(np.bool_))])
    rows = graph.rows(table, ids)
    features = _mean(graph, rows, graph.add("Cast", [counted], to=_type(np.float32)))
    return _normalised(graph, features, model), table.shape[1]


def _bert(graph: Graph, model: TextModel, ids: str, mask: str) -> tuple[str, int]:
    weights, options = bert.to_huggingface(model.arrays), model.options

    def linear(x: str, name: str) -> str:
        return _linear(graph, x, weights[f"{name}.weight"].T, weights[f"{name}.bias"])

    def norm(x: str, name: str) -> str:
        scale, bias = (graph.constant(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return graph.add("LayerNormalization", [x, scale, bias], epsilon=options["epsilon"])

    x = norm(_embedded(graph, weights, ids), "embeddings.LayerNorm")
    present = graph.add("Cast", [mask], to=_type(np.bool_))
    present = graph.add("Unsqueeze", [present, graph.constant(np.array([1, 2]))])
    for number in range(options["layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            linear(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value")
        )
        mixed = _attention(graph, (query, key, value), present, options)
        mixed = linear(mixed, f"{layer}.attention.output.dense")
        x = norm(graph.add("Add", [x, mixed]), f"{layer}.attention.output.LayerNorm")
        inner = _activated(graph, linear(x, f"{layer}.intermediate.dense"), options["activation"])
        inner = linear(inner, f"{layer}.output.dense")
        x = norm(graph.add("Add", [x, inner]), f"{layer}.output.LayerNorm")
    graph.output(STATES, x, np.float32, (*TOKENS, options["width"]))
    if options["pooling"] == "cls":
        features = graph.add("Gather", [x, graph.constant(np.int64(0))], axis=1)
    else:
        features = _mean(graph, x, graph.add("Cast", [mask], to=_type(np.float32)))
    if options["features"] is not None:
        kernel, bias = model.arrays["embed/kernel"], model.arrays["embed/bias"]
        features = _linear(graph, features, kernel, bias)
    return _normalised(graph, features, model), options["features"] or options["width"]


def _embedded(graph: Graph, weights: Mapping[str, np.ndarray], ids: str) -> str:
    words, positions, types = (
        weights[f"embeddings.{kind}_embeddings.weight"]
        for kind in ("word", "position", "token_type")
    )
    length = graph.add("Shape", [ids], start=1, end=2)
    zero = graph.constant(np.zeros(1, np.int64))
    # All tokens are of type 0.
    position = graph.add("Slice", [graph.constant(positions + types[0]), zero, length, zero])
    return graph.add("Add", [graph.rows(words, ids), position])


def _attention(
    graph: Graph, projected: Sequence[str], present: str, options: Mapping[str, Any]
) -> str:
    """Mix the values of the present tokens, head by head."""
    width, heads = options["width"], options["heads"]
    split = graph.constant(np.array([0, 0, heads, width // heads]))
    # (n, tokens, heads, d) to (n, heads, tokens, d); the keys' last two are exchanged.
    orders = ((0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3))
    query, key, value = (
        graph.add("Transpose", [graph.add("Reshape", [x, split])], perm=order)
        for x, order in zip(projected, orders, strict=True)
    )
    scale = graph.constant(np.float32((width // heads) ** -0.5))
    scores = graph.add("MatMul", [graph.add("Mul", [query, scale]), key])
    lowest = graph.constant(np.finfo(np.float32).min)
    scores = graph.add("Where", [present, scores, lowest])
    mixed = graph.add("MatMul", [graph.add("Softmax", [scores], axis=-1), value])
    merged = graph.add("Transpose", [mixed], perm=orders[0])
    return graph.add("Reshape", [merged, graph.constant(np.array([0, 0, width]))])


def _activated(graph: Graph, x: str, activation: str) -> str:
    """Apply a function of `pcjax.models.bert.ACTIVATIONS`."""
    if activation == "relu":
        return graph.add("Relu", [x])

    def scaled(value: str, factor: float) -> str:
        return graph.add("Mul", [value, graph.constant(np.float32(factor))])

    if activation == "gelu":  # x/2 (1 + erf(x / sqrt(2)))
        bent = graph.add("Erf", [scaled(x, math.sqrt(0.5))])
    else:  # x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
        cube = graph.add("Mul", [graph.add("Mul", [x, x]), x])
        inner = graph.add("Add", [x, scaled(cube, 0.044715)])
        bent = graph.add("Tanh", [scaled(inner, math.sqrt(2 / math.pi))])
    share = graph.add("Add", [bent, graph.constant(np.float32(1))])
    return scaled(graph.add("Mul", [x, share]), 0.5)


def _type(dtype: Any) -> int:
    return int(_package().helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _linear(graph: Graph, x: str, kernel: np.ndarray, bias: np.ndarray) -> str:
    product = graph.add("MatMul", [x, graph.weight(kernel, axis=1)])
    return graph.add("Add", [product, graph.constant(bias)])


def _mean(graph: Graph, rows: str, counted: str) -> str:
    """Return the mean of the rows (n, tokens, d) that count; 0 where none does."""
    weights = graph.add("Unsqueeze", [counted, graph.constant(np.array([2]))])
    weighted = graph.add("Mul", [rows, weights])
    axes = graph.constant(np.array([1]))
    total = graph.add("ReduceSum", [weighted, axes], keepdims=0)
    count = graph.add("ReduceSum", [weights, axes], keepdims=0)
    count = graph.add("Max", [count, graph.constant(np.float32(1))])
    return graph.add("Div", [total, count])


def _normalised(graph: Graph, features: str, model: TextModel) -> str:
    if not model.options["normalise"]:
        return features
    norm = graph.add("ReduceL2", [features, graph.constant(np.array([1]))], keepdims=1)
    norm = graph.add("Max", [norm, graph.constant(np.float32(SMALLEST_NORM))])
    return graph.add("Div", [features, norm])
