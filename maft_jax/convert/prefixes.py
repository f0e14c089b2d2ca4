"""What trainers and wrappers put before the names of a state dict, found by looking below it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

_Value = TypeVar("_Value")

_TORCH_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Modules that torch.compile and the like put around others, a whole CLIP or parts of it."""

FIRST = ("", "state_dict.", "model.", "module.", "state_dict.module.", "model.module.")
"""Prefixes that win over all others, in this order: what was read with them stays what it was."""


def without_torch_wrappers(tensors: Mapping[str, _Value]) -> Mapping[str, _Value]:
    """The tensors without the names of torch's own wrappers, wherever in a name they stand."""
    named = {name: _without_wrappers(name) for name in tensors}
    if len(set(named.values())) < len(named):  # both are there, with and without
        return tensors
    return {new: tensors[name] for name, new in named.items()}


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _TORCH_WRAPPERS)


_FLAX = "params/"
"""Before all names of some .npz: tables of big_vision have it, those of TIPS have not."""


def with_or_without_params(names: Iterable[str]) -> dict[str, str]:
    """{name: given name} with Flax's params/ where it is not, or without it where it is."""
    given = list(names)
    if any(name.startswith(_FLAX) for name in given):
        return {name.removeprefix(_FLAX): name for name in given if name.startswith(_FLAX)}
    return {_FLAX + name: name for name in given}


def find_prefixes(
    names: Iterable[str], recognise: Callable[[Collection[str]], bool]
) -> dict[str, dict[str, str]]:
    """{prefix: {name below it: whole name}} of the prefixes below which something is recognised.

    One of FIRST is the only one; of others that lie in each other, the shortest counts.
    """
    below: dict[str, dict[str, str]] = {"": {}}
    for name in names:
        end = 0
        while True:
            below.setdefault(name[:end], {})[name[end:]] = name
            end = name.find(".", end) + 1
            if not end:
                break
    for prefix in FIRST:
        if prefix in below and recognise(below[prefix]):
            return {prefix: below[prefix]}
    if recognise(renamed := with_or_without_params(below[""])):
        return {_FLAX: renamed}
    found: dict[str, dict[str, str]] = {}
    for prefix in sorted(below, key=len):
        if not prefix.startswith(tuple(found)) and recognise(below[prefix]):
            found[prefix] = below[prefix]
    return found
