"""What the layouts of SigLIP share: the scalars of its similarities, and shapes."""

import dataclasses
import math

import numpy as np

from maft_jax.convert.foreign_format import Choices, WeightsSource
from maft_jax.convert.rules import Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig


def transposed(shape, x):
    """To ours of a matrix that torch keeps as [out, in]."""
    return x.T.reshape(shape)


def matrix(x):
    """The inverse, of one whose inputs are a single axis of ours."""
    return x.reshape(x.shape[0], -1).T


def merged_matrix(x):
    """The inverse, of one whose outputs are a single axis of ours."""
    return x.reshape(-1, x.shape[-1]).T


def same_values(shape, x):
    """To ours of a tensor with axes of size 1 more or less."""
    return x.reshape(shape)


def similarity_rules(scale: str, bias: str, shape: tuple[int, ...]) -> list[Rule]:
    """Of both scalars, which the foreign layout keeps in this shape."""
    return [
        Rule(foreign, ours, same_values, lambda x: x.reshape(shape))
        for foreign, ours in ((scale, "logit_scale"), (bias, "logit_bias"))
    ]


def siglip_config(
    source: WeightsSource,
    choices: Choices,
    vision: SigLipVisionConfig,
    text: SigLipTextConfig,
    similarity: tuple[str, str],
) -> ClipConfig:
    """The whole model: with what the caller states, and both scalars.

    Args:
        similarity: names of the logit scale, a logarithm, and of the logit bias.
    """
    if choices.head_width is not None:
        vision = dataclasses.replace(vision, head_width=choices.head_width)
    if choices.activation is not None:
        vision = dataclasses.replace(vision, activation=choices.activation)
        text = dataclasses.replace(text, activation=choices.activation)
    scale, bias = (_scalar(source, name) for name in similarity)
    vision = dataclasses.replace(vision, logit_scale=math.exp(scale), logit_bias=bias)
    return ClipConfig(vision, text, has_logit_bias=True)


def _scalar(source: WeightsSource, name: str) -> float:
    tensor = source.tensors.get(name)
    if tensor is None or math.prod(tensor.shape) != 1:
        raise ValueError(
            f"{source.path}: expected {name!r}, one number of SigLIP's similarities; it is "
            f"{'absent' if tensor is None else tensor.shape}"
        )
    return float(np.asarray(tensor.read(), np.float32).reshape(()))


def image_grid(source: WeightsSource, rows: int) -> int:
    """Rows of a square grid of so many positions.

    Raises:
        ValueError: it is no square.
    """
    side = math.isqrt(rows)
    if side * side != rows or not rows:
        raise ValueError(
            f"{source.path}: {rows} positions of patches; expected those of a square grid"
        )
    return side


def mlp_width(width: int, found: int) -> int | None:
    """Of an architecture: None for four times the tower's width."""
    return None if found == 4 * width else found
