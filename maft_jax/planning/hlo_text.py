"""Reads the text of a compiled XLA program: computations, instructions, how often they run."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

BYTES = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
"""Of an element; what is missing, such as token, holds no data."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Element type and dimensions of one array."""

    dtype: str
    dimensions: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)

    @property
    def num_bytes(self) -> float:
        """Without the padding of tiles."""
        return float(self.size * BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    """Of its result; several if that is a tuple."""
    operands: tuple[str, ...]
    literal: str
    """What stands in the parentheses after the opcode: operands, or a constant's value."""
    attributes: str
    is_root: bool

    @property
    def num_bytes(self) -> float:
        return float(sum(shape.num_bytes for shape in self.shapes))

    @property
    def size(self) -> int:
        """Elements of all of them."""
        return sum(shape.size for shape in self.shapes)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it refers to."""
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)

    def attribute(self, name: str) -> str | None:
        """Value of name=..., up to the next comma at its level."""
        found = re.search(rf"(?<![\w.]){name}=", self.attributes)
        if not found:
            return None
        start = found.end()
        return self.attributes[start : _end_of_value(self.attributes, start)]

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]
"""Instructions by name, in their order."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program; `computations` by name."""

    computations: Mapping[str, Computation]
    entry: str
    num_partitions: int

    def instructions(self) -> Iterator[tuple[str, Instruction]]:
        """All, each with its computation's name."""
        for name, computation in self.computations.items():
            for instruction in computation.values():
                yield name, instruction

    def repetitions(self) -> dict[str, int]:
        """How often each computation runs, 0 for what nothing calls; both branches count once."""
        counts = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name].values():
                inner = times * (
                    self.trip_count(instruction) if instruction.opcode == "while" else 1
                )
                for called in instruction.called:
                    visit(called, inner)

        visit(self.entry, 1)
        return counts

    def trip_count(self, loop: Instruction) -> int:
        """Of a while loop: as noted in it, or the constant that its counter stays below; else 1."""
        noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if noted:
            return int(noted[1])
        condition = self.computations[loop.attribute("condition").lstrip("%")]
        root = next(i for i in condition.values() if i.is_root)
        if root.opcode == "compare" and root.attribute("direction") == "LT":
            limit = condition[root.operands[1]]
            if limit.opcode == "constant" and limit.literal.isdigit():
                return int(limit.literal)
        return 1


def parse_module(text: str) -> Module:
    """Of what `compiled.as_text()` returns.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if current is None:
            if header := _HEADER.match(line):
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry is None:
        raise ValueError("expected the text of a compiled XLA program, found no ENTRY computation")
    partitions = re.search(r"\bnum_partitions=(\d+)", text.partition("\n")[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        ArrayShape(dtype, tuple(map(int, dimensions.split(","))) if dimensions else ())
        for dtype, dimensions in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", rest[:end]))
    )
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    literal = rest[opening + 1 : closing]
    return Instruction(
        name,
        rest[end:opening].strip(),
        shapes,
        tuple(re.findall(r"%([\w.\-]+)", literal)),
        literal,
        rest[closing + 1 :],
        is_root,
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for found in re.finditer(r"[()]", text[opening:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return opening + found.start()
    raise ValueError(f"no closing parenthesis in {text[opening : opening + 80]!r}")


def _end_of_value(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "{[(":
            depth += 1
        elif text[index] in "}])":
            depth -= 1
        elif text[index] == "," and not depth:
            return index
    return len(text)
