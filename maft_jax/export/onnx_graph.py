"""An ONNX graph while it is built: nodes, constants, and sizes that are known when it runs."""

import ast
import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18
"""The first in which all reductions take their axes as an input."""

Size = Any
"""A number, or jax's symbolic expression of names."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """What a variable of the traced program is in the graph."""

    shape: tuple[Size, ...]
    """As the program has it."""
    array: np.ndarray | None = None
    """Of what does not depend on inputs."""
    name: str | None = None
    """Of what does."""
    small: bool = False
    """Its own axes may be 1 where `shape` is more: a broadcast that elementwise nodes do anyway."""


class Graph:
    """Nodes in the order in which they run."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._small_constants: dict[tuple, str] = {}
        self._axes: dict[str, tuple[str, int]] = {}
        self._sizes: dict[str, str] = {}

    def node(self, kind: str, *inputs: str | np.ndarray, **attributes) -> str:
        """The name of the first output of a new node; arrays among its inputs become constants."""
        output = f"{kind}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant, which equal small ones share."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if array.size <= 64 and key in self._small_constants:
            return self._small_constants[key]
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        if array.size <= 64:
            self._small_constants[key] = name
        return name

    def name_axes(self, name: str, shape: Sequence[int | str]) -> None:
        """Says where the sizes that have names can be read: an input and its shape."""
        for axis, side in enumerate(shape):
            if isinstance(side, str):
                self._axes.setdefault(side, (name, axis))

    def shape(self, sizes: Sequence[Size], *, inferred: bool = False) -> str | np.ndarray:
        """A vector of sizes.

        Args:
            inferred: for Reshape, which finds one size by itself.
        """
        if is_known(sizes):
            return np.array(sizes, np.int64)
        unknown = [side for side in sizes if not _is_known(side)]
        if inferred and len(unknown) == 1:
            return np.array([side if _is_known(side) else -1 for side in sizes], np.int64)
        parts = [
            np.array([side], np.int64) if _is_known(side) else self.size(side) for side in sizes
        ]
        return self.node("Concat", *parts, axis=0)

    def size(self, size: Size) -> str:
        """A symbolic size as a vector of one number."""
        text = str(size)
        if text not in self._sizes:
            self._sizes[text] = self._evaluate(ast.parse(text, mode="eval").body)
        return self._sizes[text]

    def _evaluate(self, tree: ast.expr) -> str | np.ndarray:
        kinds = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
        match tree:
            case ast.Name(name):
                if name not in self._sizes:
                    array, axis = self._axes[name]
                    self._sizes[name] = self.node("Shape", array, start=axis, end=axis + 1)
                return self._sizes[name]
            case ast.Constant(int(number)):
                return np.array([number], np.int64)
            case ast.UnaryOp(ast.USub(), operand):
                return self.node("Neg", self._evaluate(operand))
            case ast.BinOp(left, kind, right) if type(kind) in kinds:
                return self.node(kinds[type(kind)], self._evaluate(left), self._evaluate(right))
        raise ValueError(f"size {ast.unparse(tree)}: expected sums and products of names alone")

    def reshaped(self, name: str, sizes: Sequence[Size]) -> str:
        """A node that gives another shape to as many values."""
        return self.node("Reshape", name, self.shape(sizes, inferred=True))

    def transposed(self, name: str, order: Sequence[int]) -> str:
        """The axes in this order; no node where they are."""
        if list(order) == sorted(order):
            return name
        return self.node("Transpose", name, perm=list(order))

    def ref(self, value: Value) -> str:
        """The name of a value in its whole shape."""
        name = self.loose(value)
        return self.node("Expand", name, self.shape(value.shape)) if value.small else name

    def loose(self, value: Value) -> str:
        """The name of a value, perhaps with axes of 1 that elementwise nodes repeat."""
        return self.constant(value.array) if value.name is None else value.name


def _is_known(size: Size) -> bool:
    return isinstance(size, int | np.integer)


def is_known(shape: Sequence[Size]) -> bool:
    """Whether all of its sizes are numbers."""
    return all(map(_is_known, shape))


def onnx_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def same_sizes(one: Sequence[Size], other: Sequence[Size]) -> bool:
    """Whether two shapes are equal, whatever the symbolic sizes will be."""
    return len(one) == len(other) and all(map(operator.eq, one, other))
