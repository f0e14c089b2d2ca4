"""Weights as dictionaries of arrays, through the rules and files of maft_jax.convert."""

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from maft_jax.convert.foreign_format import WeightsSource
from maft_jax.convert.openai import IGNORED, RULES, infer_towers, with_activation
from maft_jax.convert.rules import Ignored, Rule, materialised, stored_as_ours
from maft_jax.convert.state_dict_io import open_state_dict, write_state_dict
from maft_jax.convert.stored_tensor import in_memory
from maft_jax.models.clip import ClipConfig, random_parameters


def to_ours(
    state_dict: Mapping[str, np.ndarray],
    expected: Mapping,
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
    *,
    source: str,
) -> dict:
    """stored_as_ours for arrays: a nested tree of float32 copies of them."""
    stored = stored_as_ours(in_memory(state_dict), expected, rules, ignored, source=source)
    return materialised(stored)


def infer_config(
    state_dict: Mapping[str, np.ndarray],
    *,
    source: str,
    activation: str | None = None,
    head_width: int | None = None,
) -> ClipConfig:
    """The architecture that the tensors imply; see infer_towers."""
    opened = WeightsSource(source, in_memory(state_dict))
    return with_activation(infer_towers(opened, head_width=head_width), activation)


def from_openai(
    state_dict: Mapping[str, np.ndarray],
    *,
    source: str,
    activation: str | None = None,
    head_width: int | None = None,
) -> tuple[ClipConfig, dict]:
    """Architecture and float32 parameters {"visual", "text", "logit_scale"}.

    Args:
        activation: a key of models.layers.ACTIVATIONS; OpenAI's is quick_gelu, the default.
        head_width: of the image tower's attention; by default as published for its width.

    Raises:
        ValueError: unknown, missing or misshapen tensors, all listed, with `source`.
    """
    choices = {"activation": activation, "head_width": head_width}
    config = infer_config(state_dict, source=source, **choices)
    expected = jax.eval_shape(lambda: random_parameters(config))
    return config, to_ours(state_dict, expected, RULES, IGNORED, source=source)


def load_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """open_state_dict with every tensor read."""
    return {name: tensor.read() for name, tensor in open_state_dict(path)[0].items()}


def save_state_dict(tensors: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """write_state_dict for arrays."""
    write_state_dict(in_memory(tensors), path)
