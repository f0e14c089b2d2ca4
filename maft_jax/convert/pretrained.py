"""CLIP weights by name: a file in OpenAI's layout, or random ones for trying things out."""

import hashlib
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax import tree_rules
from maft_jax.convert.openai import from_openai
from maft_jax.convert.state_dict_io import load_state_dict
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters

RANDOM_PREFIX = "random:"


def load_pretrained(source: str) -> tuple[ClipConfig, dict]:
    """Architecture and float32 parameters, on the host.

    Args:
        source: path of a weights file, or "random:SIZE" with a name of CLIP_SIZES.

    Raises:
        ValueError: the file is absent, damaged or of another architecture; the size is unknown.
    """
    if not source.startswith(RANDOM_PREFIX):
        return from_openai(load_state_dict(source), source=source)
    size = source.removeprefix(RANDOM_PREFIX)
    if size not in CLIP_SIZES:
        raise ValueError(f"{source}: unknown size {size!r}; expected one of {list(CLIP_SIZES)}")
    config = CLIP_SIZES[size]
    return config, jax.tree.map(np.asarray, random_parameters(config))


def fingerprint(parameters: Mapping) -> str:
    """Digest of names, shapes and values, the same whatever file the values came from."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree_rules.flatten(parameters).items()):
        leaf = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(memoryview(leaf).cast("B"))
    return digest.hexdigest()[:16]
