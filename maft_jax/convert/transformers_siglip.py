"""Hugging Face transformers' SiglipModel, which holds SigLIP and, at a fixed size, SigLIP 2."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, as_stated
from maft_jax.convert.rules import Rule
from maft_jax.convert.siglip import (
    matrix,
    merged_matrix,
    same_values,
    siglip_config,
    similarity_rules,
    transposed,
)
from maft_jax.convert.transformers_clip import (
    ACTIVATIONS,
    IGNORED,
    SETTINGS_FILE,
    check_numbers,
    head_width,
    layer_rules,
    merged,
    mlp_width,
    tower_part,
    tower_settings,
)
from maft_jax.convert.transformers_processor import siglip_processor_files
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig

_VISION = "vision_model."
_PATCH_BIAS = "embeddings.patch_embedding.bias"
_ALONE = "siglip_vision_model"

# What transformers takes for a setting that config.json leaves out.
_BOTH_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VISION_DEFAULTS = _BOTH_DEFAULTS | {"num_channels": 3, "image_size": 224, "patch_size": 16}
_TEXT_DEFAULTS = _BOTH_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}


def _image_rules(vision: str) -> list[Rule]:
    """Of the tower whose names begin so."""
    return [
        Rule(
            f"{vision}embeddings.patch_embedding.weight",
            "visual/patch_kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(f"{vision}{_PATCH_BIAS}", "visual/patch_bias"),
        Rule(f"{vision}embeddings.position_embedding.weight", "visual/position_embedding"),
        *layer_rules(vision, "visual"),
        Rule(f"{vision}post_layernorm.weight", "visual/ln_post/scale"),
        Rule(f"{vision}post_layernorm.bias", "visual/ln_post/bias"),
        Rule(f"{vision}head.probe", "visual/head/probe", same_values, lambda x: x[None, None]),
        Rule(
            f"{vision}head.attention.in_proj_weight",
            "visual/head/attn/in_proj/kernel",
            transposed,
            matrix,
        ),
        Rule(
            f"{vision}head.attention.in_proj_bias",
            "visual/head/attn/in_proj/bias",
            same_values,
            lambda x: x.reshape(-1),
        ),
        Rule(
            f"{vision}head.attention.out_proj.weight",
            "visual/head/attn/out_proj/kernel",
            transposed,
            merged_matrix,
        ),
        Rule(f"{vision}head.attention.out_proj.bias", "visual/head/attn/out_proj/bias"),
        Rule(f"{vision}head.layernorm.weight", "visual/head/ln_2/scale"),
        Rule(f"{vision}head.layernorm.bias", "visual/head/ln_2/bias"),
        Rule(f"{vision}head.mlp.fc1.weight", "visual/head/mlp/c_fc/kernel", transposed, matrix),
        Rule(f"{vision}head.mlp.fc1.bias", "visual/head/mlp/c_fc/bias"),
        Rule(f"{vision}head.mlp.fc2.weight", "visual/head/mlp/c_proj/kernel", transposed, matrix),
        Rule(f"{vision}head.mlp.fc2.bias", "visual/head/mlp/c_proj/bias"),
    ]


RULES = [
    *similarity_rules("logit_scale", "logit_bias", (1,)),
    *_image_rules(_VISION),
    Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    Rule("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
    *layer_rules("text_model.", "text"),
    Rule("text_model.final_layer_norm.weight", "text/ln_final/scale"),
    Rule("text_model.final_layer_norm.bias", "text/ln_final/bias"),
    Rule("text_model.head.weight", "text/proj", transposed, matrix),
    Rule("text_model.head.bias", "text/proj_bias"),
]


def _infer(source: WeightsSource, choices: Choices) -> ClipConfig:
    if SETTINGS_FILE not in source.settings:
        raise ValueError(
            f"{source.path}: weights of transformers' SigLIP without {SETTINGS_FILE} beside them, "
            "which tells their heads; give the folder that save_pretrained wrote"
        )
    settings, where = source.settings[SETTINGS_FILE](), f"{source.path}: {SETTINGS_FILE}"
    is_alone = settings.get("model_type") == _ALONE
    if is_alone:
        settings = {"model_type": "siglip", "vision_config": settings}
    _refuse_others(settings, where)
    vision = merged(_VISION_DEFAULTS, tower_part(settings, "vision_config", where))
    text = merged(_TEXT_DEFAULTS, stated := tower_part(settings, "text_config", where))
    embed_dim = stated.get("projection_size") or text["hidden_size"]
    try:
        if is_alone:
            return as_stated(ClipConfig(_vision_config(vision), None), choices)
        if embed_dim != vision["hidden_size"]:
            raise ValueError(
                f"text embeddings of {embed_dim!r:.40} numbers; expected {vision['hidden_size']}, "
                "the width of the image tower"
            )
        return siglip_config(
            source,
            choices,
            _vision_config(vision),
            _text_config(text, embed_dim),
            ("logit_scale", "logit_bias"),
        )
    except (TypeError, ValueError) as error:
        if str(error).startswith(source.path):
            raise
        raise ValueError(f"{where}: {error}") from error


def _refuse_others(settings: Mapping, where: str) -> None:
    kind = settings.get("model_type")
    if kind == "siglip2":
        raise ValueError(
            f"{where}: model_type 'siglip2' is NaFlex, which reads each image as a sequence of "
            "patches of its own length: no grid of a fixed size, on which masks could be read. "
            "Expected SigLIP or SigLIP 2 at a fixed size, such as siglip2-base-patch16-512, whose "
            "model_type is 'siglip'"
        )
    if kind != "siglip":
        raise ValueError(
            f"{where}: model_type {kind!r:.80}; expected 'siglip' (SiglipModel, with both towers) "
            f"or {_ALONE!r} (SiglipVisionModel)"
        )
    if tower_part(settings, "vision_config", where).get("vision_use_head") is False:
        raise ValueError(
            f"{where}: vision_use_head is False; expected the attention head, which pools proposals"
        )


def _vision_config(settings: Mapping) -> SigLipVisionConfig:
    check_numbers(settings)
    if settings["num_channels"] != 3:
        raise ValueError(f"num_channels is {settings['num_channels']}; expected 3")
    patch = settings["patch_size"]
    return SigLipVisionConfig(
        **_tower(settings), patch_size=patch, image_size=settings["image_size"] // patch * patch
    )


def _text_config(settings: Mapping, embed_dim: int) -> SigLipTextConfig:
    check_numbers(settings)
    return SigLipTextConfig(
        **_tower(settings),
        vocab_size=settings["vocab_size"],
        context_length=settings["max_position_embeddings"],
        embed_dim=embed_dim,
    )


def _tower(settings: Mapping) -> dict:
    return {
        "width": settings["hidden_size"],
        "layers": settings["num_hidden_layers"],
        "head_width": head_width(settings),
        "mlp_width": mlp_width(settings),
        "activation": ACTIVATIONS[settings["hidden_act"]],
        "norm_epsilon": settings["layer_norm_eps"],
    }


def make_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    """config.json of a SiglipModel, or of a SiglipVisionModel where there is no text tower."""
    vision, text = config.vision, config.text
    image = {
        "model_type": _ALONE,
        **tower_settings(vision),
        "num_channels": 3,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    if text is None:
        return {"architectures": ["SiglipVisionModel"], "dtype": dtype.name, **image}
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": dtype.name,
        "vision_config": image,
        "text_config": {
            "model_type": "siglip_text_model",
            **tower_settings(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "projection_size": text.embed_dim,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0 if text.has_gemma_vocabulary else 1,
        },
    }


def _why_not(config: ClipConfig) -> str | None:
    if config.text is not None and not config.text.has_head:
        return "its text tower ends in a linear layer, which these weights do not have"
    return None


def recognise(names: Collection[str]) -> bool:
    """Whether these are tensors of SiglipModel, or of Siglip2Model, which has the same names."""
    return f"{_VISION}{_PATCH_BIAS}" in names


TRANSFORMERS_SIGLIP = Format(
    name="transformers",
    description="Hugging Face SiglipModel (SigLIP, SigLIP 2 at a fixed size): a folder, or a file",
    recognise=recognise,
    infer_config=_infer,
    rules=RULES,
    ignored=IGNORED,
    suffixes=(".safetensors", ".pt"),
    settings_file=SETTINGS_FILE,
    folder_tensors="model.safetensors",
    make_settings=make_settings,
    make_more_files=siglip_processor_files,
    why_not=_why_not,
    tower=SigLipVisionConfig,
    text_tower=SigLipTextConfig,
)
TRANSFORMERS_SIGLIP_VISION = dataclasses.replace(
    TRANSFORMERS_SIGLIP,
    description="Hugging Face SiglipVisionModel as transformers 5 writes it: without a prefix",
    recognise=lambda names: {_PATCH_BIAS, "head.probe"} <= set(names),
    rules=_image_rules(""),
    why_not=lambda config: "it is read alone: written, names have the prefix of both towers",
)
TRANSFORMERS_SIGLIP_FORMATS = (TRANSFORMERS_SIGLIP, TRANSFORMERS_SIGLIP_VISION)
