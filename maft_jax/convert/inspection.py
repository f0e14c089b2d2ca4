"""What a file of weights holds, as text: its tensors, its architecture, its fingerprints."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from maft_jax.convert.formats import ClipWeights, layout_of
from maft_jax.convert.stored_tensor import StoredTensor
from maft_jax.models.clip import ClipConfig
from maft_jax.runtime.tree_rules import fingerprint

_NUMBER = re.compile(r"(?<=[._/])\d+(?=[._/])")


def describe_tensors(tensors: Mapping[str, StoredTensor]) -> str:
    """One line per kind of tensor: how many layers have it, shape, dtype, bytes; and the sums."""
    kinds: dict[tuple, list[StoredTensor]] = {}
    for name, tensor in tensors.items():
        key = (_NUMBER.sub("{}", name), tensor.shape, str(tensor.dtype))
        kinds.setdefault(key, []).append(tensor)
    rows = [
        (name, f"{len(found)} x", str(list(shape)), dtype, _bytes(found))
        for (name, shape, dtype), found in kinds.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)] if rows else []
    lines = [
        f"{name:<{widths[0]}}  {count:>{widths[1]}} {shape:<{widths[2]}}  {dtype:<{widths[3]}}  "
        f"{size:>{widths[4]}}"
        for name, count, shape, dtype, size in rows
    ]
    return "\n".join([*lines, _totals(tensors.values())])


def describe_weights(weights: ClipWeights) -> str:
    """Format, architecture, what is left out and why, dtypes, and fingerprints."""
    name = weights.format_name
    format = None if name is None else layout_of(name, weights.config)
    lines = [
        f"format        {f'{format.name}: {format.description}' if format else 'training run'}",
        *_describe_architecture(weights.config),
        f"parameters    {_totals(weights.tensors.values())}",
    ]
    by_reason: dict[str, list[str]] = {}
    for name, reason in weights.ignored.items():
        by_reason.setdefault(reason, []).append(name)
    lines += [
        f"left out      {len(names)} tensors such as {names[0]}: {reason}"
        for reason, names in by_reason.items()
    ]
    visual = {
        path.removeprefix("visual/"): tensor
        for path, tensor in weights.tensors.items()
        if path.startswith("visual/")
    }
    lines += [
        f"fingerprint   {_fingerprint(weights.tensors)}",
        f"  of the image tower, which checkpoints of training store: {_fingerprint(visual)}",
    ]
    return "\n".join(lines)


def _describe_architecture(config: ClipConfig) -> list[str]:
    lines = []
    for name, tower in (("image tower", config.vision), ("text tower", config.text)):
        fields = dataclasses.asdict(tower) if tower else {}
        settings = ", ".join(f"{key} {value}" for key, value in fields.items())
        lines.append(f"{name:<13} {settings or 'none'}")
    return lines


def _totals(tensors: Iterable[StoredTensor]) -> str:
    tensors = list(tensors)
    count = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors)
    dtypes = " and ".join(sorted({str(tensor.dtype) for tensor in tensors}))
    return f"{len(tensors)} tensors of {dtypes}, {count:,} numbers, {_bytes(tensors)}"


def _bytes(tensors: Iterable[StoredTensor]) -> str:
    return f"{sum(tensor.nbytes for tensor in tensors):,} bytes"


class _ReadWhenNeeded:
    """Lets a digest hold one tensor in memory at a time."""

    def __init__(self, tensor: StoredTensor):
        self._tensor = tensor

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self._tensor.read(), dtype)


def _fingerprint(tensors: Mapping[str, StoredTensor]) -> str:
    return fingerprint({path: _ReadWhenNeeded(tensor) for path, tensor in tensors.items()})
