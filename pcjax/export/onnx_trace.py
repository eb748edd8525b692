"""JAX's trace of a model as operations of ONNX.

Each operation of the trace becomes one of ONNX, so that every architecture is covered. Constants
are computed at once. Constant factors and summands behind a convolution or a linear layer become
part of its weights, as batch normalisation does. ONNX has the channels of images before their rows;
an array keeps the order in which it was computed, and is transposed only where an operation needs
another order.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from pcjax.export.functions import Function
from pcjax.export.onnx import Graph
from pcjax.export.onnx_values import (
    BATCH,
    Operand,
    Order,
    Product,
    Shape,
    Value,
    Writer,
    reshaped_order,
    sizes_of_one,
    static,
    unknown,
)


def add_function(
    graph: Graph, function: Function, name: str, shape: tuple[int, ...], order: Order
) -> dict[str, tuple[str, Shape]]:
    """Add a function of a batch to a graph.

    Args:
      graph: the graph.
      function: from float32 (n, *shape), for every n, to arrays (n, ...) by name.
      name: of the input in the graph.
      shape: of one example.
      order: the axes of the batch in the order in which the graph's input has them.

    Returns:
      The name in the graph and the shape of every output.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    example = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    traced, described = jax.make_jaxpr(function, return_shape=True)(example)
    writer, constants = Writer(graph, name), [np.asarray(x) for x in traced.consts]
    outputs = _run(writer, traced.jaxpr, constants, [Value(name, (BATCH, *shape), order)])
    named = jax.tree.unflatten(jax.tree.structure(described), outputs)
    return {
        output: (writer.name(writer.canonical(value)), value.shape)
        for output, value in named.items()
    }


BINARY = {
    "add": ("Add", np.add),
    "sub": ("Sub", np.subtract),
    "mul": ("Mul", np.multiply),
    "div": ("Div", np.divide),
    "max": ("Max", np.maximum),
    "min": ("Min", np.minimum),
}
UNARY = {
    "abs": ("Abs",),
    "erf": ("Erf",),
    "exp": ("Exp",),
    "log": ("Log",),
    "logistic": ("Sigmoid",),
    "neg": ("Neg",),
    "rsqrt": ("Sqrt", "Reciprocal"),
    "sqrt": ("Sqrt",),
    "tanh": ("Tanh",),
}
SAME = ("copy", "convert_element_type", "stop_gradient")


def _run(
    w: Writer, jaxpr: Any, constants: Sequence[Operand], arguments: Sequence[Operand]
) -> list[Operand]:
    """Translate a trace; return its outputs."""
    read = [v for eqn in jaxpr.eqns for v in eqn.invars] + list(jaxpr.outvars)
    uses = collections.Counter(v for v in read if not isinstance(v, core.Literal))
    values: dict[Any, Operand] = {}

    def keep(variables: Sequence[Any], operands: Sequence[Operand]) -> None:
        for variable, operand in zip(variables, operands, strict=True):
            if isinstance(operand, Value) and uses[variable] > 1:
                operand = w.written(operand)
            values[variable] = operand

    def value_of(variable: Any) -> Operand:
        if not isinstance(variable, core.Literal):
            return values[variable]
        aval: Any = variable.aval
        return np.asarray(variable.val, aval.dtype)

    keep([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments])
    for eqn in jaxpr.eqns:
        keep(eqn.outvars, _translate(w, eqn, [value_of(v) for v in eqn.invars]))
    return [value_of(v) for v in jaxpr.outvars]


def _translate(w: Writer, eqn: Any, inputs: list[Operand]) -> list[Operand]:
    """Translate one operation of a trace."""
    name, params = eqn.primitive.name, eqn.params
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None:
        constants = [np.asarray(x) for x in getattr(inner, "consts", ())]
        return _run(w, getattr(inner, "jaxpr", inner), constants, inputs)
    result = [static(v.aval.shape) for v in eqn.outvars]
    if name in BINARY:
        return [_binary(w, name, *inputs)]
    if name == "broadcast_in_dim":
        return [_broadcast(w, inputs[0], result[0], params["broadcast_dimensions"])]
    constant = all(isinstance(x, np.ndarray) for x in inputs)
    if name in SAME and not constant:
        _require_float32(eqn)
        return inputs
    if name in UNARY and not constant:
        return [_unary(w, UNARY[name], inputs[0])]
    inputs = [w.repeat(x, static(v.aval.shape)) for x, v in zip(inputs, eqn.invars, strict=True)]
    if name in ("reshape", "squeeze", "expand_dims"):
        return [_reshape(w, inputs[0], result[0])]
    if constant:
        if name == "rsqrt":  # JAX would compile one for every batch normalisation
            return [np.reciprocal(np.sqrt(np.asarray(inputs[0])))]
        if name == "dim_as_value" or any(BATCH in shape for shape in result):
            raise unknown("with the size of the batch")
        outputs = eqn.primitive.bind(*inputs, **params)
        several = outputs if eqn.primitive.multiple_results else [outputs]
        return [np.asarray(x) for x in several]
    if name not in OTHERS:
        raise unknown(name)
    outputs = OTHERS[name](w, params, result[0], *inputs)
    return outputs if isinstance(outputs, list) else [outputs]


# Operations whose result has the shape of their operands.


def _binary(w: Writer, name: str, x: Operand, y: Operand) -> Operand:
    op, function = BINARY[name]
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.asarray(function(x, y))  # NumPy makes scalars of arrays without axes
    if isinstance(y, np.ndarray):
        changed = _by_constant(w, name, x, y)
    elif isinstance(x, np.ndarray):  # "from": constant - y; "over": constant / y
        changed = _by_constant(w, {"sub": "from", "div": "over"}.get(name, name), y, x)
    else:
        changed = None
    if changed is not None:
        return changed
    written = [v if isinstance(v, np.ndarray) else w.written(v) for v in (x, y)]
    orders = [v.order for v in written if isinstance(v, Value)]
    order = orders[0] if len(set(orders)) == 1 else tuple(range(len(orders[0])))
    names = [
        w.constant(v, order) if isinstance(v, np.ndarray) else w.name(w.ordered(v, order))
        for v in written
    ]
    shapes = [v.shape or (1,) * len(order) for v in written]
    shape = tuple(b if a == 1 else a for a, b in zip(*shapes, strict=True))
    return Value(w.graph.add(op, names), shape, order)


def _by_constant(w: Writer, name: str, x: Any, constant: np.ndarray) -> Value | None:
    """Return x with a constant that is kept for later; None where it must be written now."""
    if name in ("max", "min"):
        return None if constant.ndim else _clipped(w, name, x, constant)
    sizes = constant.shape or (1,) * len(x.shape)
    larger = any(size not in (1, own) for size, own in zip(sizes, x.shape, strict=True))
    if name == "over" or larger:
        return None
    c, scale, shift = constant.astype(np.float64), x.scale, x.shift
    if name == "from":
        minus = _by_constant(w, "mul", x, np.array(-1.0))
        return minus and _by_constant(w, "add", minus, constant)
    if name in ("add", "sub"):
        c = c if name == "add" else -c
        shift = c if shift is None else shift + c
    else:
        c = c if name == "mul" else 1 / c
        scale = c if scale is None else scale * c
        shift = None if shift is None else shift * c
    scale, shift = (c if c is None else np.asarray(c) for c in (scale, shift))
    return dataclasses.replace(x, scale=scale, shift=shift)


def _clipped(w: Writer, name: str, x: Value, bound: np.ndarray) -> Value:
    graph, value = w.graph, w.written(x)
    source = w.name(value)
    bound = bound.astype(np.float32)
    if name == "max" and bound == 0:
        result = graph.add("Relu", [source])
        w.relus[result] = source
    elif name == "min" and source in w.relus:  # ReLU6
        bounds = [graph.constant(np.float32(0)), graph.constant(bound)]
        result = graph.add("Clip", [w.relus[source], *bounds])
    else:
        op = BINARY[name][0]
        result = graph.add(op, [source, graph.constant(bound)])
    return dataclasses.replace(value, source=result)


def _unary(w: Writer, ops: Sequence[str], x: Any) -> Value:
    value = w.written(x)
    for op in ops:
        value = dataclasses.replace(value, source=w.graph.add(op, [w.name(value)]))
    return value


def _square(w: Writer, params: Any, shape: Shape, x: Value) -> Operand:
    value = w.written(x)
    return _binary(w, "mul", value, value)


def _integer_pow(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    value = w.written(x)
    exponent = w.graph.constant(np.float32(params["y"]))
    name = w.graph.add("Pow", [w.name(value), exponent])
    return dataclasses.replace(value, source=name)


def _erfc(w: Writer, params: Any, shape: Shape, x: Value) -> Operand:
    return _binary(w, "sub", np.array(1, np.float32), _unary(w, ("Erf",), x))


# Operations that move numbers.


def _reshape(w: Writer, operand: Operand, shape: Shape) -> Operand:
    if isinstance(operand, np.ndarray):
        return operand.reshape(sizes_of_one(shape))
    if operand.shape == shape:
        return operand
    value = w.written(operand)
    order = reshaped_order(value, shape)
    if order is None:
        value, order = w.canonical(value), tuple(range(len(shape)))
    before, after = (
        [sizes[axis] for axis in axes]
        for sizes, axes in ((value.shape, value.order), (shape, order))
    )
    if before == after:
        return dataclasses.replace(value, shape=shape, order=order)
    sizes = w.whole([-1 if size == BATCH else size for size in after])
    return Value(w.graph.add("Reshape", [w.name(value), sizes]), shape, order)


def _broadcast(w: Writer, x: Operand, shape: Shape, axes: Sequence[int]) -> Operand:
    """Give an array more axes of size 1; they are repeated where an operation needs it."""
    sizes: list[int | str] = [1] * len(shape)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return _reshape(w, x, tuple(sizes))


def _transpose(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    value, permutation = w.written(x), params["permutation"]
    sizes = tuple(value.shape[axis] for axis in permutation)
    order = tuple(permutation.index(axis) for axis in value.order)
    return Value(value.source, sizes, order)


def _concatenate(w: Writer, params: Any, shape: Shape, *operands: Operand) -> Value:
    axis, names = params["dimension"], []
    orders = {v.order for v in operands if isinstance(v, Value)}
    order = orders.pop() if len(orders) == 1 else tuple(range(len(shape)))
    for operand in operands:
        sizes = (*shape[:axis], operand.shape[axis], *shape[axis + 1 :])
        repeated: Any = w.repeat(w.ordered(operand, order), sizes)
        names.append(w.name(repeated))
    return Value(w.graph.add("Concat", names, axis=order.index(axis)), shape, order)


def _stack(w: Writer, params: Any, shape: Shape, *operands: Operand) -> Value:
    axis = params["axis"]
    sizes = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [_reshape(w, operand, sizes) for operand in operands]
    return _concatenate(w, {"dimension": axis}, shape, *parts)


def _part(w: Writer, x: Value, starts: Sequence[int], shape: Shape, steps: Sequence[int]) -> Value:
    """Take from `starts` on, by `steps`, as much as `shape` says."""
    value = w.written(x)
    axes = [i for i, size in enumerate(value.shape) if size != shape[i]]
    if not axes:
        return value
    ends = [starts[i] + (int(shape[i]) - 1) * steps[i] + 1 for i in axes]
    own = [value.order.index(i) for i in axes]
    numbers = ([starts[i] for i in axes], ends, own, [steps[i] for i in axes])
    name = w.graph.add("Slice", [w.name(value), *map(w.whole, numbers)])
    return Value(name, shape, value.order)


def _slice(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    steps = params["strides"] or (1,) * len(shape)
    return _part(w, x, params["start_indices"], shape, steps)


def _split(w: Writer, params: Any, shape: Shape, x: Value) -> list[Value]:
    axis, start, parts = params["axis"], 0, []
    value = w.written(x)
    for size in map(int, params["sizes"]):
        sizes = (*value.shape[:axis], size, *value.shape[axis + 1 :])
        starts = [start if i == axis else 0 for i in range(len(sizes))]
        parts.append(_part(w, value, starts, sizes, (1,) * len(sizes)))
        start += size
    return parts


def _gather(w: Writer, params: Any, shape: Shape, x: Value, indices: Operand) -> Operand:
    """Translate x[:, 0] and x[:, 3:], which JAX may write as a gathering of one part."""
    numbers = params["dimension_numbers"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1:
        raise unknown("gather")
    sizes = static(params["slice_sizes"])
    starts = [0] * len(sizes)
    for axis, index in zip(numbers.start_index_map, indices, strict=True):
        starts[axis] = int(index)
    return _reshape(w, _part(w, x, starts, sizes, (1,) * len(sizes)), shape)


# Sums, maxima and products.


def _reduced(w: Writer, op: str, x: Value, axes: Sequence[int], shape: Shape) -> Value:
    value = w.written(x)
    left = [axis for axis in value.order if axis not in axes]
    order = tuple(sorted(left).index(axis) for axis in left)
    own = w.whole(sorted(value.order.index(axis) for axis in axes))
    return Value(w.graph.add(op, [w.name(value), own], keepdims=0), shape, order)


def _reduce_sum(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    counts = [x.shape[axis] for axis in params["axes"]]
    if BATCH in counts:
        raise unknown("a sum over the batch")
    # JAX computes a mean as a sum, then divides: that divisor cancels the scale given here.
    value = _reduced(w, "ReduceMean", x, params["axes"], shape)
    return dataclasses.replace(value, scale=np.array(math.prod(map(int, counts)), np.float64))


def _reduce_max(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    return _reduced(w, "ReduceMax", x, params["axes"], shape)


def _reduce_window_max(w: Writer, params: Any, shape: Shape, x: Value) -> Value:
    rank = len(shape)
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    outside = [i for i in range(rank) if (sizes[i], strides[i], *padding[i]) == (1, 1, 0, 0)]
    inside = [i for i in range(rank) if i not in outside]
    dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
    if dilated or len(outside) != 2:
        raise unknown("reduce_window_max")
    order = (*outside, *inside)
    name = w.graph.add(
        "MaxPool",
        [w.name(w.ordered(x, order))],
        kernel_shape=[sizes[i] for i in inside],
        strides=[strides[i] for i in inside],
        pads=[padding[i][side] for side in (0, 1) for i in inside],
    )
    return Value(name, shape, order)


def _conv_general_dilated(
    w: Writer, params: Any, shape: Shape, x: Operand, kernel: Operand
) -> Value:
    plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
    if not plain or not isinstance(kernel, np.ndarray):
        raise unknown("conv_general_dilated")
    numbers, padding = params["dimension_numbers"], params["padding"]
    weight = kernel.transpose(numbers.rhs_spec)
    attributes = {
        "kernel_shape": list(weight.shape[2:]),
        "strides": list(params["window_strides"]),
        "pads": [pair[side] for side in (0, 1) for pair in padding],
        "dilations": list(params["rhs_dilation"]),
        "group": params["feature_group_count"],
    }
    name, order = w.name(w.ordered(x, numbers.lhs_spec)), tuple(numbers.out_spec)
    product = Product("Conv", name, weight, 0, order[1], attributes)
    return Value(product, shape, order)


def _dot_general(w: Writer, params: Any, shape: Shape, x: Operand, y: Operand) -> Value:
    (summed, batch) = params["dimension_numbers"]
    orders, free = [], []
    for operand, own, rows in zip((x, y), summed, batch, strict=True):
        free.append([i for i in range(len(operand.shape)) if i not in (*own, *rows)])
        orders.append((*rows, *free[-1], *own))
    order = tuple(range(len(shape)))
    if len(summed[0]) != 1 or len(free[1]) != 1 or (batch[0] and len(free[0]) != 1):
        raise unknown("dot_general")
    turned = (*orders[1][:-2], orders[1][-1], orders[1][-2])  # what is summed comes first
    name = w.name(w.ordered(x, orders[0]))
    if isinstance(y, np.ndarray) and not batch[1]:
        product = Product("MatMul", name, y.transpose(turned), 1, order[-1], {})
        return Value(product, shape, order)
    other = w.name(w.ordered(y, turned))
    return Value(w.graph.add("MatMul", [name, other]), shape, order)


def _require_float32(eqn: Any) -> None:
    dtype = eqn.outvars[0].aval.dtype
    if dtype != jnp.float32:
        raise unknown(f"in {dtype}")


# An operation of JAX, and its function of (writer, parameters, shape of the result, operands).
OTHERS: dict[str, Callable[..., Any]] = {
    "concatenate": _concatenate,
    "conv_general_dilated": _conv_general_dilated,
    "dot_general": _dot_general,
    "erfc": _erfc,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "reduce_max": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _reduce_window_max,
    "slice": _slice,
    "split": _split,
    "square": _square,
    "stack": _stack,
    "transpose": _transpose,
}
