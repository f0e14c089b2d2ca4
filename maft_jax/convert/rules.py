"""Two-way conversion between flat foreign tensors and our nested parameters, by rules.

One rule describes one kind of tensor, in both directions. Every foreign name must be matched by
exactly one rule or be ignored for a reason, and every parameter of ours must be filled, with the
shape that the architecture demands. All of that is checked before any tensor is read.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from maft_jax.convert.stored_tensor import CONVERTIBLE_DTYPES, StoredTensor, in_memory
from maft_jax.runtime import tree_rules

_NUMBER = re.compile(r"(?:\{\}|\d)+")


@dataclasses.dataclass(frozen=True)
class Rule:
    """`foreign` and `ours` are names in which "{}" stands for a layer number.

    A tuple of several foreign names: their tensors together are one of ours. The empty tuple: the
    foreign layout has no such tensor, and ours is the constant that `to_ours` gives.
    """

    foreign: str | tuple[str, ...]
    ours: str
    to_ours: Callable[..., np.ndarray] = lambda shape, x: x
    """Called with the shape of ours and the foreign tensors in their order."""
    to_foreign: Callable = lambda x: x
    """The inverse: one array, or a tuple of them if `foreign` is one."""
    stacked: bool = False
    """One foreign tensor, without "{}" in its name, holds all layers along its first axis."""
    if_absent: Callable[[tuple[int, ...]], np.ndarray] | None = None
    """Foreign tensors may be absent; ours is then this, of its shape, and is not written then."""
    also_reads: tuple[str, ...] = ()
    """Foreign tensors of other rules that `to_ours` is given besides, behind its own."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.foreign,) if isinstance(self.foreign, str) else self.foreign

    def parts(self, value: np.ndarray) -> tuple[np.ndarray, ...]:
        """What `value`, one of ours, is in the foreign layout, in the order of `names`."""
        if not self.names:
            return ()
        parts = self.to_foreign(value)
        return (parts,) if isinstance(self.foreign, str) else tuple(parts)


@dataclasses.dataclass(frozen=True)
class Ignored:
    """A foreign name (a regular expression for all of it) without a counterpart, and why."""

    foreign: str
    reason: str


def stored_as_ours(
    tensors: Mapping[str, StoredTensor],
    expected: Mapping,
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
    *,
    source: str,
) -> dict[str, StoredTensor]:
    """Every parameter of `expected` by its path, in the source's dtype; nothing is read yet.

    Args:
        expected: nested tree whose leaves have `.shape`.
        source: where the tensors came from, for errors.

    Raises:
        ValueError: names unknown or missing, shapes that differ, or dtypes other than
            CONVERTIBLE_DTYPES; all of them are listed. Or the table itself is ambiguous.
    """
    wanted = {path: tuple(leaf.shape) for path, leaf in tree_rules.flatten(expected).items()}
    leaves, consumed, missing = {}, set(), []
    wrong_shape, wrong_dtype = {}, {}
    index = _by_our_names(rules)
    matches = {path: _rule_for(path, index) for path in wanted}
    layers = collections.Counter(rule for rule, _ in matches.values())
    kept = {}
    for path, shape in wanted.items():
        rule, numbers = matches[path]
        names = [name.format(*numbers) for name in rule.names]
        also = [name.format(*numbers) for name in rule.also_reads]
        consumed.update(names)
        absent = [name for name in [*names, *also] if name not in tensors]
        if rule.if_absent and absent == names:
            leaves[path] = _constant(rule.if_absent, shape)
            continue
        missing += [name for name in absent if name not in missing]
        if absent:
            continue
        stacking = (layers[rule],) if rule.stacked else ()
        for name, part in zip(names, rule.parts(_zeros(shape)), strict=True):
            if tensors[name].shape != (demanded := (*stacking, *part.shape)):
                wrong_shape[name] = f"{name} {tensors[name].shape} instead of {demanded}"
            if tensors[name].dtype not in CONVERTIBLE_DTYPES:
                wrong_dtype[name] = f"{name} {tensors[name].dtype}"
        if rule.stacked:  # read once, not once per layer
            parts = [kept.setdefault(name, _read_once(tensors[name])) for name in names]
            leaves[path] = _joined(rule, parts, shape, int(numbers[0]))
        else:
            leaves[path] = _joined(rule, [tensors[n] for n in [*names, *also]], shape, None)
    unknown = _unknown(tensors, consumed, rules, ignored)
    _refuse(
        source,
        unknown=unknown,
        missing=missing,
        of_wrong_shape=list(wrong_shape.values()),
        of_wrong_dtype=list(wrong_dtype.values()),
    )
    return leaves


def stored_as_foreign(
    leaves: Mapping[str, StoredTensor], rules: Sequence[Rule]
) -> dict[str, StoredTensor]:
    """The inverse of stored_as_ours.

    Raises:
        ValueError: a parameter has no rule, or differs from what the foreign layout takes for
            granted.
    """
    tensors, layers, unknown, unfit = {}, {}, [], []
    index = _by_our_names(rules)
    for path, leaf in leaves.items():
        try:
            rule, numbers = _rule_for(path, index)
        except KeyError:
            unknown.append(path)
            continue
        if not rule.names and not np.array_equal(leaf.read(), rule.to_ours(leaf.shape)):
            unfit.append(path)
        if rule.if_absent and np.array_equal(leaf.read(), rule.if_absent(leaf.shape)):
            continue
        for position, part in enumerate(rule.parts(_zeros(leaf.shape))):
            name = rule.names[position].format(*numbers)
            read = functools.partial(_read_part, rule, path, leaf, position)
            part = StoredTensor(part.shape, leaf.dtype, read)
            if rule.stacked:
                layers.setdefault(name, {})[int(numbers[0])] = part
            else:
                tensors[name] = part
    _refuse("our parameters", unknown=unknown, without_a_place_in_this_format=unfit)
    return tensors | {name: _stacked(parts) for name, parts in layers.items()}


def materialised(leaves: Mapping[str, StoredTensor]) -> dict:
    """The nested tree, read: float32 copies, never views of a file, which may change."""
    return tree_rules.unflatten(
        {path: np.array(leaf.read(), np.float32, order="C") for path, leaf in leaves.items()}
    )


def to_foreign(tree: Mapping, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """stored_as_foreign for arrays: a flat dict of contiguous float32 arrays."""
    leaves = in_memory(tree_rules.flatten(tree))
    leaves = {path: leaf.cast(np.float32) for path, leaf in leaves.items()}
    tensors = stored_as_foreign(leaves, rules)
    return {name: np.array(tensor.read(), order="C") for name, tensor in tensors.items()}


def ignored_names(names: Sequence[str], ignored: Sequence[Ignored]) -> dict[str, str]:
    """{name: reason} of the names that are left out."""
    return {
        name: rule.reason
        for name in names
        for rule in ignored
        if _pattern_of(rule.foreign).fullmatch(name)
    }


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Stands in for a tensor of this shape without taking memory."""
    return np.broadcast_to(np.float32(0), shape)


class _Index:
    """Rules by one of their names, so that a name is compared with those alone that may match.

    These are the ones that differ from it in numbers only.
    """

    def __init__(self, named: Iterable[tuple[str, Rule]]):
        self._alike = collections.defaultdict(list)
        for name, rule in named:
            self._alike[_without_numbers(name)].append((name, rule))

    def find(self, name: str) -> list[tuple[Rule, re.Match]]:
        alike = self._alike.get(_without_numbers(name), ())
        return [(rule, match) for n, rule in alike if (match := _pattern(n).fullmatch(name))]


def _by_our_names(rules: Sequence[Rule]) -> _Index:
    return _Index((rule.ours, rule) for rule in rules)


def _without_numbers(name: str) -> str:
    return _NUMBER.sub("{}", name)


def _rule_for(path: str, index: _Index) -> tuple[Rule, tuple[str, ...]]:
    """The rule of one of our parameters and the layer numbers in its path."""
    found = index.find(path)
    if not found:
        raise KeyError(path)
    if len(found) > 1:
        raise ValueError(
            f"rule table: our parameter {path!r} is matched by {len(found)} rules, those of "
            f"{[rule.foreign for rule, _ in found]}; expected one"
        )
    return found[0][0], found[0][1].groups()


def _unknown(tensors, consumed, rules, ignored) -> list[str]:
    """Names that belong nowhere; a name that belongs to two places is an error of the table."""
    unknown = []
    index = _Index((name, rule) for rule in rules for name in rule.names)
    for name in tensors:
        found = [rule.ours for rule, _ in index.find(name)]
        skipped = [rule.foreign for rule in ignored if _pattern_of(rule.foreign).fullmatch(name)]
        if len(found) + len(skipped) > 1:
            raise ValueError(
                f"rule table: the tensor {name!r} is matched by {len(found)} rules {found} and "
                f"ignored by {skipped}; expected one match in all"
            )
        if name not in consumed and not skipped:
            unknown.append(name)
    return unknown


def _joined(
    rule: Rule, parts: list[StoredTensor], shape: tuple[int, ...], layer: int | None
) -> StoredTensor:
    dtypes = {part.dtype for part in parts}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
    return StoredTensor(shape, dtype, functools.partial(_join, rule, parts, shape, layer))


def _join(
    rule: Rule, parts: list[StoredTensor], shape: tuple[int, ...], layer: int | None
) -> np.ndarray:
    values = [part.read() for part in parts]
    if layer is not None:
        values = [value[layer] for value in values]
    return np.asarray(rule.to_ours(shape, *values))


def _constant(make: Callable, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(shape, np.dtype(np.float32), lambda: make(shape))


def _read_once(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor(tensor.shape, tensor.dtype, functools.cache(tensor.read))


def _read_part(rule: Rule, path: str, leaf: StoredTensor, position: int) -> np.ndarray:
    try:
        return rule.parts(leaf.read())[position]
    except ValueError as error:
        raise ValueError(f"our parameter {path!r}: {error}") from error


def _stacked(parts: Mapping[int, StoredTensor]) -> StoredTensor:
    ordered = [parts[number] for number in sorted(parts)]
    shape, dtype = (len(ordered), *ordered[0].shape), ordered[0].dtype
    return StoredTensor(shape, dtype, lambda: np.stack([part.read() for part in ordered]))


@functools.cache
def _pattern(name: str) -> re.Pattern:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))


@functools.cache
def _pattern_of(expression: str) -> re.Pattern:
    return re.compile(expression)


def _refuse(source: str, **problems: Sequence[str]) -> None:
    found = {kind.replace("_", " "): names for kind, names in problems.items() if names}
    if found:
        described = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in found.items()
        )
        if "of wrong dtype" in found:
            described += f" (expected one of {', '.join(map(str, CONVERTIBLE_DTYPES))})"
        raise ValueError(f"{source}: cannot convert the weights: {described}")
