"""CLIP weights by name: a file of any known format, the package's own, or random ones."""

import hashlib
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax import tree_rules
from maft_jax.convert.formats import ClipWeights, read_weights
from maft_jax.models.clip import CLIP_SIZES, ClipConfig, random_parameters

RANDOM_PREFIX = "random:"
BUILT_IN = {
    "built-in:shapes_world": pathlib.Path(__file__).parent.parent / "shapes_world/clip.safetensors"
}
"""Weights that come with the package; maft_jax.cli.train_tiny_clip made them."""


def load_pretrained(
    source: str,
    *,
    activation: str | None = None,
    head_width: int | None = None,
    needs_text: bool = True,
) -> tuple[ClipConfig, dict]:
    """Architecture and float32 parameters, on the host; see open_pretrained."""
    weights = open_pretrained(
        source, activation=activation, head_width=head_width, needs_text=needs_text
    )
    return weights.config, weights.parameters()


def open_pretrained(
    source: str,
    *,
    activation: str | None = None,
    head_width: int | None = None,
    needs_text: bool = True,
) -> ClipWeights:
    """Weights whose values are not read yet, with how they were tuned where that was noted.

    Args:
        source: path of weights in a format of convert.formats, a name of BUILT_IN, or
            "random:SIZE" with a name of CLIP_SIZES.
        activation, head_width: what the weights do not tell; see formats.read_weights.
        needs_text: whether an image tower alone is refused.

    Raises:
        ValueError: the file is absent, damaged or of another architecture; the size is unknown.
    """
    if not source.startswith(RANDOM_PREFIX):
        path = BUILT_IN.get(source, source)
        weights = read_weights(path, activation=activation, head_width=head_width)
        if needs_text and weights.config.text is None:
            raise ValueError(
                f"{source}: an image tower without a text tower, which embeds the class names; "
                "expected a whole CLIP"
            )
        return weights
    size = source.removeprefix(RANDOM_PREFIX)
    if size not in CLIP_SIZES:
        raise ValueError(f"{source}: unknown size {size!r}; expected one of {list(CLIP_SIZES)}")
    if activation is not None or head_width is not None:
        raise ValueError(f"{source}: random weights are of a known architecture; state none")
    config = CLIP_SIZES[size]
    return ClipWeights.of(config, jax.tree.map(np.asarray, random_parameters(config)))


def fingerprint(parameters: Mapping) -> str:
    """Digest of names, shapes and values, the same whatever file the values came from."""
    digest = hashlib.sha256()
    for path, leaf in sorted(tree_rules.flatten(parameters).items()):
        leaf = np.ascontiguousarray(leaf, np.float32)
        digest.update(f"{path}{leaf.shape}".encode())
        digest.update(memoryview(leaf).cast("B"))
    return digest.hexdigest()[:16]
