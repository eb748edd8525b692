"""Arrays of JAX's trace of a model, on their way into a graph of ONNX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcjax._checks import RequestError
from pcjax.export.onnx import Graph

BATCH = "batch"  # the size that varies
Shape = tuple[int | str, ...]
Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a matrix product with constant weights, not yet written.

    op: "Conv" or "MatMul".
    x: the input's name.
    weight: the weights.
    outputs: the axis of the weights that counts the output channels.
    channel: the axis of the result that counts them.
    attributes: of the operation.
    """

    op: str
    x: str
    weight: np.ndarray
    outputs: int
    channel: int
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of the trace: source * scale + shift.

    source: the name of a value of the graph, or a product that is written later.
    shape: in JAX's order of axes; 1 also where JAX has repeated an axis of size 1.
    order: JAX's axes in the graph's order.
    scale, shift: constants that broadcast to the shape; None: 1 and 0.
    """

    source: str | Product
    shape: Shape
    order: Order
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None


Operand = Value | np.ndarray


def sizes_of_one(shape: Shape) -> list[int]:
    """Return the shape of a batch of one example."""
    return [1 if isinstance(size, str) else size for size in shape]


class Writer:
    """Write arrays into a graph, as late as possible.

    graph: the graph; `name` is its input.
    relus: the input of every ReLU by its output.
    """

    def __init__(self, graph: Graph, name: str):
        self.graph, self._input = graph, name
        self.relus: dict[str, str] = {}

    def written(self, value: Value) -> Value:
        """Write what is pending of a value."""
        source, scale, shift = value.source, value.scale, value.shift
        if isinstance(source, Product):
            source, folded = self._write_product(source, len(value.shape), scale, shift)
            scale, shift = (None, None) if folded else (scale, shift)
        for op, constant, neutral in (("Mul", scale, 1), ("Add", shift, 0)):
            if constant is not None and not np.allclose(constant, neutral, rtol=0, atol=1e-12):
                stored = self.constant(constant.astype(np.float32), value.order)
                source = self.graph.add(op, [source, stored])
        return Value(source, value.shape, value.order)

    def _write_product(
        self, product: Product, rank: int, scale: np.ndarray | None, shift: np.ndarray | None
    ) -> tuple[str, bool]:
        """Write a product; return its name, and whether scale and shift are inside."""
        graph, weight = self.graph, product.weight
        channels = weight.shape[product.outputs]
        vectors = [_by_channel(x, channels, product.channel, rank) for x in (scale, shift)]
        folded = [v is None for v in vectors] == [x is None for x in (scale, shift)]
        bias = None
        if folded:
            factor, bias = vectors
            if factor is not None:
                sizes = [1] * weight.ndim
                sizes[product.outputs] = channels
                weight = weight * factor.reshape(sizes)
        stored = graph.weight(weight.astype(np.float32), product.outputs)
        last = [] if bias is None else [graph.constant(bias.astype(np.float32))]
        if product.op == "Conv":
            return graph.add("Conv", [product.x, stored, *last], **product.attributes), folded
        name = graph.add(product.op, [product.x, stored])
        return (graph.add("Add", [name, *last]) if last else name), folded

    def constant(self, array: np.ndarray, order: Order) -> str:
        """Store an array that broadcasts to values in this order of axes."""
        if array.ndim:
            array = array.transpose(order)
            first = next((i for i, size in enumerate(array.shape) if size != 1), array.ndim)
            array = array.reshape(array.shape[first:])
        return self.graph.constant(array)

    def ordered(self, operand: Operand, order: Order) -> Value:
        """Write an operand in this order of axes."""
        if isinstance(operand, np.ndarray):
            name = self.graph.constant(operand.transpose(order))
            return Value(name, operand.shape, order)
        value = self.written(operand)
        if value.order == order:
            return value
        permutation = [value.order.index(axis) for axis in order]
        name = self.graph.add("Transpose", [self.name(value)], perm=permutation)
        return Value(name, value.shape, order)

    def canonical(self, operand: Operand) -> Value:
        """Write an operand in JAX's order of axes."""
        return self.ordered(operand, tuple(range(len(operand.shape))))

    @staticmethod
    def name(value: Value) -> str:
        """Return the name of a value that is written."""
        if isinstance(value.source, Product):
            raise TypeError(value.source)
        return value.source

    def repeat(self, operand: Operand, shape: Shape) -> Operand:
        """Repeat the axes of size 1 that JAX has repeated; a constant has one row for a batch."""
        if operand.shape == shape:
            return operand
        if isinstance(operand, np.ndarray):
            return np.broadcast_to(operand, sizes_of_one(shape))
        value = self.written(operand)
        sizes = [1 if shape[axis] == value.shape[axis] else shape[axis] for axis in value.order]
        if BATCH in sizes:
            whole = self.graph.add("Shape", [self._input], start=0, end=1)
            parts = [whole if size == BATCH else self.whole([size]) for size in sizes]
            target = self.graph.add("Concat", parts, axis=0)
        else:
            target = self.whole(sizes)
        return Value(self.graph.add("Expand", [self.name(value), target]), shape, value.order)

    def whole(self, numbers: Any) -> str:
        """Store whole numbers, such as a shape."""
        return self.graph.constant(np.array(numbers, np.int64))


def _by_channel(
    constant: np.ndarray | None, channels: int, channel: int, rank: int
) -> np.ndarray | None:
    """Return a constant as one number for each channel; None where it varies along other axes."""
    if constant is None:
        return None
    sizes = constant.shape or (1,) * rank
    if any(size != 1 for axis, size in enumerate(sizes) if axis != channel):
        return None
    return np.broadcast_to(constant.reshape(-1), (channels,))


def unknown(operation: str) -> RequestError:
    """Return the error for an operation that is not translated."""
    return RequestError(
        f"the student computes {operation} in a way that the export to ONNX does not know: give "
        "--format stablehlo."
    )


def static(shape: Sequence[Any]) -> Shape:
    """Return a shape of whole numbers, with BATCH for the size that varies."""
    result = tuple(int(x) if isinstance(x, (int, np.integer)) else str(x) for x in shape)
    if any(isinstance(size, str) and size != BATCH for size in result):
        raise unknown(f"an array of shape {result}")
    return result


def reshaped_order(value: Value, shape: Shape) -> Order | None:
    """Return the order of the reshaped array where no number has to move; None otherwise.

    The axes are cut into the smallest groups of neighbours that hold as many numbers before as
    after. A group stays where it is, if its axes stand side by side in the graph.
    """
    before = [axis for axis, size in enumerate(value.shape) if size != 1]
    after = [axis for axis, size in enumerate(shape) if size != 1]
    placed = [axis for axis in value.order if axis in before]
    groups: dict[int, list[int]] = {}  # new axes by the place of the first old one
    while before or after:
        old, new = [before.pop(0)], [after.pop(0)]
        while (held := _count(value.shape, old)) != (wanted := _count(shape, new)):
            if isinstance(held, str) or isinstance(wanted, str):
                raise unknown("a reshape of the batch")
            if held < wanted:
                old.append(before.pop(0))
            else:
                new.append(after.pop(0))
        place = placed.index(old[0])
        if placed[place : place + len(old)] != old:
            return None
        groups[place] = new
    order = [axis for place in sorted(groups) for axis in groups[place]]
    for axis in (axis for axis, size in enumerate(shape) if size == 1):
        order.insert(order.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(order)


def _count(shape: Shape, axes: Sequence[int]) -> int | str:
    sizes = [shape[axis] for axis in axes]
    if BATCH in sizes:
        return BATCH if len(sizes) == 1 else f"{BATCH} and more"
    return math.prod(map(int, sizes))
