"""What the compiler's cost analysis leaves out: it counts the body of a loop once.

The repetitions are counted here, by XLA's own conventions: two FLOPs per multiplication and
addition of a matrix product or convolution, one per element of other arithmetic; the bytes of an
instruction are those of its operands and its result, slices counted by what they touch.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping

import numpy as np

from maft_jax.planning.hlo_text import Computation, Instruction, Module

_NO_WORK = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
}
_ELEMENTWISE = {
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "negate",
    "abs",
    "compare",
    "select",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs, and bytes that are read and written."""

    flops: float = 0.0
    num_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.num_bytes + other.num_bytes)

    def __mul__(self, times: int) -> "Cost":
        return Cost(times * self.flops, times * self.num_bytes)


def cost_of_repetitions(module: Module) -> Cost:
    """Of all loops' second and later iterations."""
    return _cost_of_runs(module, {name: times - 1 for name, times in _executed(module).items()})


def cost_of_program(module: Module) -> Cost:
    """Of everything that runs; kernels of libraries count with the bytes of their arrays alone."""
    return _cost_of_runs(module, _executed(module))


def _cost_of_runs(module: Module, runs: Mapping[str, int]) -> Cost:
    total = Cost()
    for name, times in runs.items():
        if times > 0:
            total += computation_cost(module, name) * times
    return total


def _executed(module: Module) -> dict[str, int]:
    """How often each computation of the control flow runs; bodies of fusions are not among them."""
    counts: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        counts[name] = counts.get(name, 0) + times
        for instruction in module.computations[name].values():
            if instruction.opcode == "while":
                visit(
                    instruction.attribute("body").lstrip("%"),
                    times * module.trip_count(instruction),
                )
            elif instruction.opcode in ("call", "conditional"):
                for called in instruction.called:
                    visit(called, times)

    visit(module.entry, 1)
    return counts


def computation_cost(module: Module, name: str) -> Cost:
    """Of running a computation once, without the loops and calls in it."""
    computation = module.computations[name]
    total = Cost()
    for instruction in computation.values():
        if instruction.opcode not in _NO_WORK:
            touched = _bytes_touched(module, computation, instruction)
            total += Cost(_flops(module, computation, instruction), touched)
    return total


def _flops(module: Module, computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        return float(sum(_flops(module, inner, one) for one in inner.values()))
    if instruction.opcode == "custom-call":
        return _kernel_estimate(instruction).get("flops", 0.0)
    if not instruction.shapes:
        return 0.0
    size = instruction.shapes[0].size
    if instruction.opcode == "dot":
        return 2.0 * size * _contracted(computation, instruction)
    if instruction.opcode == "convolution":
        return 2.0 * _convolution_products(computation, instruction)
    if instruction.opcode == "reduce":
        return float(computation[instruction.operands[0]].shapes[0].size)
    return float(size) if instruction.opcode in _ELEMENTWISE else 0.0


def _contracted(computation: Computation, dot: Instruction) -> int:
    left = computation[dot.operands[0]].shapes[0].dimensions
    axes = map(int, re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or ""))
    return math.prod(left[axis] for axis in axes)


def _convolution_products(computation: Computation, convolution: Instruction) -> float:
    """Multiplications that fall on elements of the image, not on padding or between dilated ones.

    On TPUs matrix products are convolutions, batch dimensions becoming windows that are mostly
    padding.
    """
    image, kernel = (computation[name].shapes[0].dimensions for name in convolution.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    result = dict(zip(labels[3], convolution.shapes[0].dimensions, strict=True))
    kernel_sizes = dict(zip(labels[2], kernel, strict=True))
    image_sizes = dict(zip(labels[1], image, strict=True))
    window = _window(convolution)
    products = result["b"] * kernel_sizes["i"] * kernel_sizes["o"]
    products /= int(convolution.attribute("batch_group_count") or 1)
    for axis in range(len(image) - 2):
        name = str(axis)
        products *= _valid_positions(image_sizes[name], result[name], window, axis)
    return products


def _window(convolution: Instruction) -> dict[str, list[str]]:
    """{"size": ["3", "3"], "pad": ["1_1", "0_0"], ...} of window={size=3x3 pad=1_1x0_0 ...}."""
    text = (convolution.attribute("window") or "{}").strip("{}")
    return {
        name: value.split("x") for name, value in (part.split("=") for part in text.split() if part)
    }


def _valid_positions(image: int, result: int, window: dict[str, list[str]], axis: int) -> int:
    """Pairs of a position in the result and one in the kernel that meet an element."""

    def of(name: str) -> int:
        return int(window[name][axis]) if name in window else 1

    padding = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    start = np.arange(result)[:, None] * of("stride") - padding
    position = start + np.arange(of("size"))[None, :] * of("rhs_dilate")
    spread = (image - 1) * of("lhs_dilate") + 1
    valid = (position >= 0) & (position < spread) & (position % of("lhs_dilate") == 0)
    return int(valid.sum())


def _kernel_estimate(instruction: Instruction) -> dict[str, float]:
    """What a Pallas kernel says that it costs."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', instruction.attributes)
    return {name: float(value) for name, value in json.loads(found[1]).items()} if found else {}


def _bytes_touched(module: Module, computation: Computation, instruction: Instruction) -> float:
    estimate = _kernel_estimate(instruction)
    if "bytes_accessed" in estimate:
        return estimate["bytes_accessed"]
    if instruction.opcode == "dynamic-slice":
        return 2.0 * instruction.num_bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * computation[instruction.operands[1]].num_bytes
    read = sum(computation[name].num_bytes for name in instruction.operands)
    written = instruction.num_bytes
    if "__cublas" in (instruction.attribute("custom_call_target") or ""):
        written = instruction.shapes[0].num_bytes  # the rest is room to work in
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called[0]]
        parameters = [one for one in inner.values() if one.opcode == "parameter"]
        read = sum(_read_of_parameter(inner, parameter) for parameter in parameters)
        written = sum(_written(inner, root) for root in _roots(inner))
    return float(read + written)


def _read_of_parameter(inner: Computation, parameter: Instruction) -> float:
    users = [one for one in inner.values() if parameter.name in one.operands]
    if users and all(
        one.opcode in ("dynamic-slice", "dynamic-update-slice")
        and one.operands[0] == parameter.name
        for one in users
    ):
        return float(sum(one.num_bytes for one in users if one.opcode == "dynamic-slice"))
    return parameter.num_bytes


def _roots(inner: Computation) -> list[Instruction]:
    root = next(one for one in inner.values() if one.is_root)
    return [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _written(inner: Computation, root: Instruction) -> float:
    while root.opcode == "bitcast":
        root = inner[root.operands[0]]
    if root.opcode == "dynamic-update-slice":
        return inner[root.operands[1]].num_bytes
    return root.num_bytes
