"""Parameters by path: first-match regular expressions for freezing and decay, and a fingerprint.

A path is the keys of a nested dictionary joined by "/", for example
`blocks_0/attn/in_proj/kernel`. A rule matches with `re.search`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util


def flatten(tree: Mapping) -> dict[str, Any]:
    """Nested dictionary -> {path: leaf}, in the tree's own order."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """{path: leaf} -> nested dictionary."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def map_with_path(function: Callable[[str, Any], Any], tree: Mapping) -> dict:
    """Applies `function(path, leaf)` to every leaf of a nested dictionary."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def matches_any(rules: Sequence[str], path: str) -> bool:
    """Whether one of the rules matches somewhere in the path."""
    return any(re.search(rule, path) for rule in rules)


def select(rules: Sequence[str], tree: Mapping, *, where: str) -> dict:
    """The subtree of leaves that some rule matches.

    `where` names the configuration field in errors.

    Raises:
        ValueError: a rule is no regular expression, or matches nothing: both are typing errors.
    """
    leaves = flatten(tree)
    for rule in rules:
        if not any(re.search(compiled(rule, where), path) for path in leaves):
            raise ValueError(
                f"{where}: the rule {rule!r} matches no parameter; paths look like "
                f"{list(leaves)[:4]}"
            )
    chosen = {path: leaf for path, leaf in leaves.items() if matches_any(rules, path)}
    if not chosen:
        raise ValueError(f"{where}: no rules, so no parameters; expected at least one rule")
    return unflatten(chosen)


def compiled(rule: str, where: str) -> re.Pattern:
    """The rule as a pattern, or a ValueError that names the field it came from."""
    try:
        return re.compile(rule)
    except re.error as error:
        raise ValueError(f"{where}: {rule!r} is not a regular expression: {error}") from error


def fingerprint(parameters: Mapping) -> str:
    """Digest of names, shapes and values, the same whatever file the values came from."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(parameters).items()):
        leaf = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(memoryview(leaf).cast("B"))
    return digest.hexdigest()[:16]
