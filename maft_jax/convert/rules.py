"""Two-way conversion between a flat foreign state dict and our nested parameters, by rules.

One rule describes one kind of tensor. Every foreign name must be matched by exactly one rule, and
every parameter of ours must be filled, with the shape that the architecture demands.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maft_jax import tree_rules

Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """`foreign` and `ours` are names in which "{}" stands for a layer number."""

    foreign: str
    ours: str
    to_ours: Transform = lambda x: x
    to_foreign: Transform = lambda x: x


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A foreign name (a regular expression for all of it) without a counterpart, and why."""

    foreign: str
    reason: str


def to_ours(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping,
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
    *,
    source: str,
) -> dict:
    """Converts to a nested tree of float32 arrays with the structure and shapes of `expected`.

    Args:
        expected: nested tree whose leaves have `.shape`.
        source: where the tensors came from, for errors.

    Raises:
        ValueError: names unknown or missing, or shapes that differ; all of them are listed.
    """
    wanted = tree_rules.flatten(expected)
    leaves, unknown, wrong_shape = {}, [], []
    for name, tensor in state_dict.items():
        if any(re.fullmatch(rule.foreign, name) for rule in ignored):
            continue
        path, rule = _translate(name, rules, "foreign", "ours")
        if path not in wanted:
            unknown.append(name)
            continue
        leaves[path] = _transformed(rule.to_ours, tensor, wanted[path].shape)
        if leaves[path] is None:
            wrong_shape.append(f"{name} {np.shape(tensor)}")
    missing = [
        _translate(path, rules, "ours", "foreign")[0] for path in wanted if path not in leaves
    ]
    _refuse(source, unknown=unknown, missing=missing, of_wrong_shape=wrong_shape)
    return tree_rules.unflatten({path: leaves[path] for path in wanted})


def _transformed(transform: Transform, tensor: np.ndarray, shape: tuple) -> np.ndarray | None:
    """A copy, never a view of the file, which may change while a run goes on."""
    try:
        leaf = np.array(transform(np.asarray(tensor)), np.float32, order="C")
    except ValueError:  # a reshape or a transpose that this shape does not allow
        return None
    return leaf if leaf.shape == tuple(shape) else None


def to_foreign(tree: Mapping, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Converts a nested tree of ours to a flat foreign state dict of contiguous float32 arrays.

    Raises:
        ValueError: a parameter has no rule.
    """
    tensors, unknown = {}, []
    for path, leaf in tree_rules.flatten(tree).items():
        name, rule = _translate(path, rules, "ours", "foreign")
        if name is None:
            unknown.append(path)
        else:
            tensors[name] = np.array(rule.to_foreign(np.asarray(leaf, np.float32)), order="C")
    _refuse("our parameters", unknown=unknown)
    return tensors


def _translate(name: str, rules: Sequence[Rule], source: str, target: str):
    for rule in rules:
        pattern = re.escape(getattr(rule, source)).replace(r"\{\}", r"(\d+)")
        if match := re.fullmatch(pattern, name):
            return getattr(rule, target).format(*match.groups()), rule
    return None, None


def _refuse(source: str, **problems: Sequence[str]) -> None:
    found = {kind.replace("_", " "): names for kind, names in problems.items() if names}
    if found:
        described = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in found.items()
        )
        raise ValueError(f"{source}: cannot convert the weights: {described}")
