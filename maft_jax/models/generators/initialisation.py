"""What training a Mask2Former or FreeSeg from nothing begins with, as official code draws it."""

import re
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax.models.generators.mask2former import Mask2FormerConfig
from maft_jax.runtime import tree_rules

_AS_MODULES_BEGIN = r"/(sampling_offsets|attention_weights)/"
"""Zeros, and points in eight directions."""
_TORCH_DEFAULTS = r"^(decoder/mask_embed|class_embed)/|layers_\d+/linear[12]/bias$"
"""Heads, and the biases of linear maps."""
_PIXEL_CONVOLUTIONS = r"^pixel_decoder/(lateral/conv|fusion/conv|mask_features)/kernel$"


def initial_parameters(config: Mask2FormerConfig, seed: int) -> dict:
    """Random parameters, on the host; the backbone's are He's, or of a Swin normal with 0.02.

    Norms, embeddings and biases that are not named here begin as the modules do.
    """
    random = np.random.default_rng(seed)
    leaves = tree_rules.flatten(jax.device_get(config.init(jax.random.key(seed))))
    return tree_rules.unflatten(
        {path: _drawn(path, leaf, leaves, random) for path, leaf in sorted(leaves.items())}
    )


def _drawn(
    path: str, leaf: np.ndarray, leaves: Mapping[str, np.ndarray], random: np.random.Generator
) -> np.ndarray:
    if re.search(_AS_MODULES_BEGIN, path):
        return leaf
    if re.search(_TORCH_DEFAULTS, path):
        fan_in, _ = _fans(path, leaves[re.sub("bias$", "kernel", path)].shape)
        return _uniform(random, leaf.shape, fan_in**-0.5)
    if not path.endswith("kernel"):
        return leaf
    fan_in, fan_out = _fans(path, leaf.shape)
    if path.startswith("backbone/"):
        deviation = (2 / fan_out) ** 0.5 if leaf.ndim == 4 else 0.02
        return random.normal(0, deviation, leaf.shape).astype(np.float32)
    if re.search(_PIXEL_CONVOLUTIONS, path):
        return _uniform(random, leaf.shape, (3 / fan_in) ** 0.5)
    return _uniform(random, leaf.shape, (6 / (fan_in + fan_out)) ** 0.5)  # Xavier's


def _fans(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel, of which heads and packed projections have several axes."""
    if len(shape) == 4:
        pixels = shape[0] * shape[1]
        return pixels * shape[2], pixels * shape[3]
    split = 2 if path.endswith("out_kernel") else 1
    return int(np.prod(shape[:split])), int(np.prod(shape[split:]))


def _uniform(random: np.random.Generator, shape: tuple[int, ...], bound: float) -> np.ndarray:
    return random.uniform(-bound, bound, shape).astype(np.float32)
