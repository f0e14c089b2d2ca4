"""The collectives of a compiled program: their bytes, and between which devices they go."""

import dataclasses
import math
import re

import numpy as np

from maft_jax.planning.hlo_text import Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN_SLICES = "send between slices"
"""What the compiler makes of the part of an all-reduce that leaves a slice."""

_FUSED_REDUCE_SCATTER = "all-reduce-scatter"
"""Name of the computations in which the TPU compiler keeps a reduce-scatter as an all-reduce."""


_MESH = r"mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? \{([^}]*)\}"
_MESH_GROUPS = re.compile(rf"replica_groups=({_MESH})")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of every device."""

    kind: str
    """Of KINDS, or BETWEEN_SLICES."""
    payload_bytes: float
    """Of the whole array, once: what is reduced, or what a gather makes; what a device sends."""
    elements: int
    """Numbers in it."""
    groups: tuple[tuple[int, ...], ...]
    """Partitions that take part together; empty for BETWEEN_SLICES."""
    times: int
    """How often a step runs it."""
    op_name: str


def find_collectives(module: Module) -> list[Collective]:
    """Each once, whether it is one instruction or a start and a done, alone or inside fusions.

    What appears in several computations, as fusions hold copies, has one channel; clones in one
    computation may share a channel, too, and all of them run.
    """
    repetitions = module.repetitions()
    found: dict[tuple, dict[str, list[Collective]]] = {}
    for computation, instruction in module.instructions():
        if not repetitions[computation]:
            continue
        one = _collective(module, computation, instruction, repetitions[computation])
        if one is not None:
            channel = instruction.attribute("channel_id") or f"{computation}/{instruction.name}"
            places = found.setdefault((one.kind, channel), {})
            places.setdefault(computation, []).append(one)
    return [one for places in found.values() for one in max(places.values(), key=_elements)]


def _elements(collectives: list[Collective]) -> int:
    return sum(one.elements * one.times for one in collectives)


def _collective(
    module: Module, computation: str, instruction: Instruction, times: int
) -> Collective | None:
    """What an instruction exchanges, or None if nothing leaves a device."""
    opcode = instruction.opcode.removesuffix("-start")
    between_slices = opcode == "send" and "megascale" in instruction.attributes
    if not (opcode in KINDS or between_slices):
        return None
    kind = BETWEEN_SLICES if between_slices else opcode
    if opcode == "all-reduce" and computation.startswith(_FUSED_REDUCE_SCATTER):
        kind = "reduce-scatter"
    operands = instruction.operands[:1] if between_slices else instruction.operands
    arrays = [module.computations[computation][name] for name in operands]
    sent = float(sum(array.num_bytes for array in arrays))
    elements = sum(array.size for array in arrays)
    groups = () if between_slices else _groups(instruction, module.num_partitions)
    if not between_slices and max(map(len, groups), default=0) < 2:
        return None
    if kind == "all-gather":
        sent, elements = sent * len(groups[0]), elements * len(groups[0])
    return Collective(kind, sent, elements, groups, times, instruction.op_name)


def _groups(instruction: Instruction, num_partitions: int) -> tuple[tuple[int, ...], ...]:
    if instruction.opcode.startswith("collective-permute"):
        pairs = _braced(instruction.attribute("source_target_pairs") or "")
        return tuple(pair for pair in pairs if pair[0] != pair[1])
    mesh = _MESH_GROUPS.search(instruction.attributes)  # has a comma that ends no attribute
    text = mesh[1] if mesh else instruction.attribute("replica_groups") or "{}"
    return parse_replica_groups(text, num_partitions)


def parse_replica_groups(text: str, num_partitions: int) -> tuple[tuple[int, ...], ...]:
    """Groups of partitions from any of the forms that XLA prints.

    {{0,1},{2,3}}, [2,4]<=[4,2]T(1,0), or mesh['a'=2,'b'=4] {'b'}; {} is one group of all.

    Raises:
        ValueError: it is none of them.
    """
    text = text.strip()
    if text in ("", "{}"):
        return (tuple(range(num_partitions)),)
    if text.startswith("{"):
        return tuple(_braced(text))
    if listed := re.fullmatch(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _rows(_iota(listed[2]).reshape(_numbers(listed[1])))
    mesh = re.fullmatch(_MESH, text)
    axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1])) if mesh else {}
    names = re.findall(r"'([^']+)'", mesh[3]) if mesh else []
    if not axes or not names or ":" in mesh[3]:
        raise ValueError(f"replica_groups={text!r}: a form that is not known here")
    sizes = [int(size) for size in axes.values()]
    order = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(sizes))
    last = [list(axes).index(name) for name in names]
    first = [index for index in range(len(sizes)) if index not in last]
    size = math.prod(sizes[index] for index in last)
    return _rows(order.reshape(sizes).transpose(first + last).reshape(-1, size))


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0): the numbers from 0 on in this shape, transposed, flat."""
    shape, _, permutation = text.partition("T")
    array = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (array.transpose(_numbers(permutation)) if permutation else array).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _braced(text: str) -> list[tuple[int, ...]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", text)]


def _rows(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, group)) for group in groups)
