"""open_clip's CLIPs with a ConvNeXt: a trunk of timm, open_clip's head, and its text tower."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.convnext import (
    FIRST_CONVOLUTION,
    hidden_rules,
    infer_tower,
    refuse_choices,
    timm_name,
    transposed,
    trunk_rules,
    why_not_timm,
    with_settings,
)
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.open_clip import (
    PREPROCESSING,
    SETTINGS_FILE,
    TEXT_SIZES,
    capped_logit_scale,
    compare_sizes,
    models_settings,
    refuse_options,
    text_settings,
    with_text_heads,
)
from maft_jax.convert.openai import IGNORED, infer_text_tower, text_rules
from maft_jax.convert.rules import Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.towers.convnext import HEADS, ConvNextConfig

_OPTIONS = {
    "timm_model_pretrained",
    "timm_model_name",
    "timm_proj",
    "timm_drop",
    "timm_drop_path",
    "image_size",
}
"""Of a vision_cfg: read elsewhere, or of training only."""
PROJ = {"linear": "visual.head.proj.weight", "mlp": "visual.head.mlp.fc2.weight"}
"""The last matrix of each head."""


def infer_open_clip(source: WeightsSource, choices: Choices, head: str) -> ClipConfig:
    """The architecture of tensors under open_clip's names, with what settings beside them say.

    Raises:
        ValueError: a tensor is missing, settings contradict it, or choices have no meaning.
    """
    refuse_choices(source, choices)
    vision = infer_tower(source, "visual.trunk.", PROJ[head], head)
    vision = dataclasses.replace(vision, logit_scale=capped_logit_scale(source))
    text = infer_text_tower(source, vision.embed_dim)
    text = dataclasses.replace(text, activation="gelu")
    if SETTINGS_FILE not in source.settings:
        return ClipConfig(vision, text)
    model, where = models_settings(source)
    text_options, options = model["text_cfg"], model["vision_cfg"]
    refuse_options(text_options, f"{where}: text_cfg")
    if model.get("quick_gelu", False):  # which timm's trunks take no notice of
        text = dataclasses.replace(text, activation="quick_gelu")
    text = with_text_heads(text, text_options, where)
    compare_sizes(text, model, "text_cfg", TEXT_SIZES, where)
    where = f"{where}: vision_cfg"
    _refuse_vision_options(options, where)
    size, name = options.get("image_size", 224), options.get("timm_model_name")
    return ClipConfig(with_settings(vision, name, size, where), text)


def _refuse_vision_options(options: Mapping, where: str) -> None:
    for name, value in options.items():
        pooled_by_mean = name == "timm_pool" and value in ("", "avg")
        if name not in _OPTIONS and not pooled_by_mean and value not in (None, False, {}):
            raise ValueError(
                f"{where} has {name}={value!r}, which cannot be represented; expected a ConvNeXt "
                "whose map is averaged"
            )


def _make_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision = config.vision
    return {
        "model_cfg": {
            "embed_dim": vision.embed_dim,
            "quick_gelu": config.text.activation == "quick_gelu",
            "vision_cfg": {
                "timm_model_name": timm_name(vision),
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": vision.head,
                "timm_drop": 0.0,
                "timm_drop_path": 0.1,
                "image_size": vision.image_size,
            },
            "text_cfg": text_settings(config.text),
        },
        "preprocess_cfg": PREPROCESSING,
    }


def _why_not(config: ClipConfig, head: str) -> str | None:
    if config.text is None:
        return "there is no text tower; merge these weights with one that has"
    if config.text.activation == "gelu_tanh":
        return "its text tower computes quick_gelu or gelu, not gelu_tanh"
    return why_not_timm(config.vision, head)


def _open_clip(head: str) -> Format:
    hidden = "visual.head.mlp.fc1"

    def recognise(names: Collection[str]) -> bool:
        needed = f"visual.trunk.{FIRST_CONVOLUTION}" in names and "token_embedding.weight" in names
        return needed and (f"{hidden}.weight" in names) == (head == "mlp")

    return Format(
        name="open_clip",
        description="open_clip's CLIP with a ConvNeXt of timm",
        recognise=recognise,
        infer_config=lambda source, choices: infer_open_clip(source, choices, head),
        rules=[
            Rule("logit_scale", "logit_scale"),
            *trunk_rules("visual.trunk."),
            *(hidden_rules(hidden) if head == "mlp" else []),
            transposed(PROJ[head], "visual/proj"),
            *text_rules(),
        ],
        ignored=IGNORED,
        settings_file=SETTINGS_FILE,
        folder_tensors="open_clip_model.safetensors",
        make_settings=_make_settings,
        why_not=lambda config: _why_not(config, head),
        tower=ConvNextConfig,
    )


OPEN_CLIP_CONVNEXT_FORMATS = tuple(_open_clip(head) for head in HEADS)
"""A layout for each head."""
