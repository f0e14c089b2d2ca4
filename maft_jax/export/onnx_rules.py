"""Which ONNX nodes compute what a primitive of JAX does.

A rule is given the graph, the equation and its inputs, and returns the name of its output, or a
list of several. What is not here is refused by name; a tower that needs more needs a rule more.
"""

import math
from collections.abc import Callable

import numpy as np
from jax.extend.core import JaxprEqn

from maft_jax.export.onnx_graph import Graph, Value, is_known, onnx_type, same_sizes

Rule = Callable[[Graph, JaxprEqn, list[Value]], str | list[str]]

_END = np.iinfo(np.int64).max

_ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "and": "And",
    "div": "Div",
    "eq": "Equal",
    "exp": "Exp",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def _elementwise(kind: str) -> Rule:
    def rule(graph, eqn, inputs):
        return graph.node(kind, *_broadcast(graph, eqn, inputs))

    return rule


def _reduction(kind: str) -> Rule:
    def rule(graph, eqn, inputs):
        axes = np.array(eqn.params["axes"], np.int64)
        return graph.node(kind, graph.ref(inputs[0]), axes, keepdims=0)

    return rule


def _rsqrt(graph, eqn, inputs):
    return graph.node("Reciprocal", graph.node("Sqrt", graph.ref(inputs[0])))


def _erfc(graph, eqn, inputs):
    one = np.ones((), eqn.outvars[0].aval.dtype)
    return graph.node("Sub", one, graph.node("Erf", graph.ref(inputs[0])))


def _log1p(graph, eqn, inputs):
    one = np.ones((), eqn.outvars[0].aval.dtype)
    return graph.node("Log", graph.node("Add", graph.ref(inputs[0]), one))


def _ne(graph, eqn, inputs):
    return graph.node("Not", graph.node("Equal", *_broadcast(graph, eqn, inputs)))


def _integer_pow(graph, eqn, inputs):
    exponent = np.array(eqn.params["y"], eqn.outvars[0].aval.dtype)
    return graph.node("Pow", graph.ref(inputs[0]), exponent)


def _select(graph, eqn, inputs):
    which, otherwise, chosen = _broadcast(graph, eqn, inputs)
    return graph.node("Where", which, chosen, otherwise)


def _clamp(graph, eqn, inputs):
    low, value, high = (graph.ref(each) for each in inputs)
    return graph.node("Min", graph.node("Max", value, low), high)


def _convert(graph, eqn, inputs):
    return graph.node("Cast", graph.ref(inputs[0]), to=onnx_type(eqn.params["new_dtype"]))


def _reshape(graph, eqn, inputs):
    return graph.reshaped(graph.ref(inputs[0]), eqn.outvars[0].aval.shape)


def _transpose(graph, eqn, inputs):
    return graph.transposed(graph.ref(inputs[0]), eqn.params["permutation"])


def _concatenate(graph, eqn, inputs):
    return graph.node("Concat", *map(graph.ref, inputs), axis=eqn.params["dimension"])


def _stack(graph, eqn, inputs):
    axis = eqn.params["axis"]
    sizes = list(inputs[0].shape)
    sizes.insert(axis, 1)
    parts = [graph.reshaped(graph.ref(each), sizes) for each in inputs]
    return graph.node("Concat", *parts, axis=axis)


def _unstack(graph, eqn, inputs):
    stacked, axis = graph.ref(inputs[0]), eqn.params["axis"]
    places = range(len(eqn.outvars))
    return [graph.node("Gather", stacked, np.array(i, np.int64), axis=axis) for i in places]


def _slice(graph, eqn, inputs):
    params, whole = eqn.params, inputs[0].shape
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(starts)
    parts = []
    for axis, (start, limit, stride) in enumerate(zip(starts, limits, strides, strict=True)):
        to_end = same_sizes((limit,), (whole[axis],))
        if not (to_end and same_sizes((start, stride), (0, 1))):
            parts.append((start, _END if to_end else limit, axis, stride))
    if not parts:
        return graph.ref(inputs[0])
    columns = [graph.shape(part) for part in zip(*parts, strict=True)]
    return graph.node("Slice", graph.ref(inputs[0]), *columns)


def _dim_as_value(graph, eqn, inputs):
    number = graph.reshaped(graph.size(eqn.params["dim"]), ())
    return graph.node("Cast", number, to=onnx_type(eqn.outvars[0].aval.dtype))


def _pad(graph, eqn, inputs):
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or inner for low, high, inner in config):
        raise ValueError(f"pad by {config}: expected no negative and no inner padding")
    if not any(low or high for low, high, _ in config):
        return graph.ref(inputs[0])
    sides = np.array([[low, high] for low, high, _ in config], np.int64).T.ravel()
    return graph.node("Pad", graph.ref(inputs[0]), sides, graph.ref(inputs[1]))


def _argmax(graph, eqn, inputs):
    [axis] = eqn.params["axes"]
    found = graph.node("ArgMax", graph.ref(inputs[0]), axis=axis, keepdims=0)
    return graph.node("Cast", found, to=onnx_type(eqn.params["index_dtype"]))


def _dot_general(graph, eqn, inputs):
    """Axes are brought to batch, rows, contracted and batch, contracted, columns for MatMul."""
    (contracted, batch) = eqn.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(each.shape)) if axis not in (*contracted[i], *batch[i])]
        for i, each in enumerate(inputs)
    ]
    shapes = [each.shape for each in inputs]
    left, right = (_ordered(graph, each) for each in inputs)
    left = left([*batch[0], *free[0], *contracted[0]])
    right = right([*batch[1], *contracted[1], *free[1]])
    of_batch = [shapes[0][axis] for axis in batch[0]]
    rows, columns = ([shapes[i][axis] for axis in free[i]] for i in (0, 1))
    depth = [shapes[0][axis] for axis in contracted[0]]
    flat_rows = rows if not batch[0] and rows else [math.prod(rows)]
    if len(depth) != 1 or flat_rows != rows:
        left = graph.reshaped(left, [*of_batch, *flat_rows, math.prod(depth)])
    if len(depth) != 1 or len(columns) != 1:
        right = graph.reshaped(right, [*of_batch, math.prod(depth), math.prod(columns)])
    product = graph.node("MatMul", left, right)
    if flat_rows != rows or len(columns) != 1:
        product = graph.reshaped(product, [*of_batch, *rows, *columns])
    return product


def _ordered(graph: Graph, value: Value) -> Callable[[list[int]], str]:
    """What gives a value its axes in an order; of constants once and for all."""
    if value.array is not None and not value.small:
        return lambda order: graph.constant(np.transpose(value.array, order))
    return lambda order: graph.transposed(graph.ref(value), order)


def _gather(graph, eqn, inputs):
    """Of slices along one axis, x[:, i], x[i], and x[k, i[k]]; along some, x[:, i:j, k:l]."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = inputs
    whole, out = operand.shape, eqn.outvars[0].aval.shape
    axes, batch = numbers.start_index_map, numbers.operand_batching_dims
    others = [i for i in range(len(whole)) if i not in (*axes, *batch)]
    if not same_sizes([sizes[i] for i in others], [whole[i] for i in others]):
        raise ValueError(f"gather of {sizes} of {whole}: expected whole slices along its axes")
    if not (batch or numbers.collapsed_slice_dims or indices.shape[:-1]):  # one, from a start on
        start = _int64(graph, indices)
        end = graph.node("Add", start, graph.shape([sizes[axis] for axis in axes]))
        places = np.array(axes, np.int64)
        return graph.reshaped(graph.node("Slice", graph.ref(operand), start, end, places), out)
    if len(axes) != 1 or not (batch or numbers.collapsed_slice_dims):
        raise ValueError(f"gather of {numbers}: expected indices into one axis")
    [axis] = axes
    if batch:
        if (batch, numbers.start_indices_batching_dims, axis) != ((0,), (0,), 1):
            raise ValueError(f"gather of {numbers}: expected its batch first")
        picked = graph.node("GatherND", graph.ref(operand), _int64(graph, indices), batch_dims=1)
        return graph.reshaped(picked, out)
    of_indices = indices.shape[:-1]
    at = graph.reshaped(_int64(graph, indices), of_indices)
    taken = graph.node("Gather", graph.ref(operand), at, axis=axis)
    # ONNX has the axes of the indices where the one axis was, JAX where offset_dims leaves room
    of_slices = iter([i for i in range(len(out)) if not axis <= i < axis + len(of_indices)])
    of_places = iter(range(axis, axis + len(of_indices)))
    offsets = numbers.offset_dims
    order = [next(of_slices if place in offsets else of_places) for place in range(len(out))]
    return graph.transposed(taken, order)


def _convolution(graph, eqn, inputs):
    params = eqn.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise ValueError("convolution: expected no groups of batches and no transposed one")
    image = graph.transposed(graph.ref(inputs[0]), numbers.lhs_spec)
    kernel = _ordered(graph, inputs[1])(list(numbers.rhs_spec))
    result = graph.node(
        "Conv",
        image,
        kernel,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        group=params["feature_group_count"],
    )
    return graph.transposed(result, np.argsort(numbers.out_spec).tolist())


def _int64(graph: Graph, value: Value) -> str:
    if value.array is not None:
        return graph.constant(value.array.astype(np.int64))
    return graph.node("Cast", graph.ref(value), to=onnx_type(np.int64))


def _broadcast(graph: Graph, eqn, inputs: list[Value]) -> list[str]:
    """Inputs of an elementwise node, which one in the output's whole shape lets be small."""
    out = eqn.outvars[0].aval.shape
    if any(same_sizes(each.shape, out) and not each.small for each in inputs):
        return [graph.loose(each) for each in inputs]
    return [graph.ref(each) for each in inputs]


RULES: dict[str, Rule] = {
    **{name: _elementwise(kind) for name, kind in _ELEMENTWISE.items()},
    **{name: _reduction(kind) for name, kind in _REDUCTIONS.items()},
    "argmax": _argmax,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "convert_element_type": _convert,
    "dim_as_value": _dim_as_value,
    "dot_general": _dot_general,
    "erfc": _erfc,
    "expand_dims": _reshape,
    "gather": _gather,
    "integer_pow": _integer_pow,
    "log1p": _log1p,
    "ne": _ne,
    "pad": _pad,
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "slice": _slice,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": _unstack,
}
"""By the name of the primitive."""


def known_shape(eqn: JaxprEqn) -> bool:
    """Whether the outputs of an equation have sizes that are numbers."""
    return all(is_known(each.aval.shape) for each in eqn.outvars)
