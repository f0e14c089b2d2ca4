"""open_clip's SigLIP and SigLIP 2: CustomTextCLIP around an image tower of timm.

Neither tensors nor open_clip_config.json tell the heads and the GELU of the image tower: the name
of timm's model does. timm computes the exact GELU in most sizes, for weights that were trained with
its approximation by tanh; the format's word is kept, and activation states another.
"""

import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, shape_of
from maft_jax.convert.open_clip import SETTINGS_FILE, models_settings, text_settings
from maft_jax.convert.openai import block_rules, count_layers
from maft_jax.convert.rules import Rule
from maft_jax.convert.siglip import (
    matrix,
    mlp_width,
    siglip_config,
    similarity_rules,
    transposed,
)
from maft_jax.convert.timm_siglip import (
    PUBLISHED_HEADS,
    norm_rules,
    published_size,
    siglip_name,
    siglip_tower,
    timm_activation,
    trunk_rules,
)
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig

logger = logging.getLogger(__name__)

_TRUNK = "visual.trunk."
_PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_TEXT_SIZES = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
_TEXT_OPTIONS = {
    "no_causal_mask": (True,),
    "pool_type": ("last",),
    "proj_bias": (True, False),
    "proj_type": ("linear", "none"),
    "embed_cls": (False, None),
}
_WITHOUT_EFFECT = {"hf_tokenizer_name", "tokenizer_kwargs", "pad_id", "eos_id"}


RULES = [
    *similarity_rules("logit_scale", "logit_bias", ()),
    *trunk_rules(_TRUNK),
    Rule("text.token_embedding.weight", "text/token_embedding"),
    Rule("text.positional_embedding", "text/position_embedding"),
    *block_rules("text.", "text"),
    *norm_rules("text.ln_final", "text/ln_final"),
    Rule("text.text_projection.weight", "text/proj", transposed, matrix),
    Rule("text.text_projection.bias", "text/proj_bias"),
]


def _infer(source: WeightsSource, choices: Choices) -> ClipConfig:
    if SETTINGS_FILE not in source.settings:
        raise ValueError(
            f"{source.path}: weights of open_clip's SigLIP without {SETTINGS_FILE} beside them, "
            "which tells heads and activations; put it there"
        )
    model, where = models_settings(source, _PREPROCESSING)
    try:
        vision = _vision_config(source, model["vision_cfg"], model["text_cfg"])
        text = _text_config(source, model["text_cfg"], vision.width)
    except ValueError as error:
        if str(error).startswith(source.path):
            raise
        raise ValueError(f"{where}: {error}") from error
    name = model["vision_cfg"]["timm_model_name"]
    if choices.head_width is None and published_size(name, vision.width) is None:
        _say_heads_are_guessed(source.path, vision.block.heads)
    return siglip_config(source, choices, vision, text, ("logit_scale", "logit_bias"))


@functools.cache
def _say_heads_are_guessed(path: str, heads: int) -> None:
    """Once for each file."""
    logger.warning(
        "%s does not tell how many heads its image tower has: taken for %d, as many as the text "
        "tower has. State their width with config.model.head_width, --head_width, or head_width= "
        "in Python",
        path,
        heads,
    )


def _vision_config(
    source: WeightsSource, settings: Mapping, text_settings: Mapping
) -> SigLipVisionConfig:
    name = settings.get("timm_model_name")
    if not isinstance(name, str) or "_siglip" not in name:
        raise ValueError(f"vision_cfg: expected timm_model_name of a SigLIP, got {name!r:.80}")
    for option, expected in (("timm_pool", "map"), ("timm_proj", "none")):
        if settings.get(option) not in (expected, ""):
            raise ValueError(
                f"vision_cfg has {option}={settings.get(option)!r:.40}; expected {expected!r}"
            )
    width = shape_of(source, f"{_TRUNK}patch_embed.proj.weight", 4)[0]
    head_width = _divided(width, _heads(name, width, text_settings), "vision_cfg")
    tower = siglip_tower(source, _TRUNK, head_width)
    return dataclasses.replace(tower, activation=timm_activation(name))


def _heads(name: str, width: int, text_settings: Mapping) -> object:
    """Of the image tower: as published for its name, else as many as the text tower has.

    In every published SigLIP both towers have equally many.
    """
    size = published_size(name, width)
    return text_settings.get("heads", 8) if size is None else PUBLISHED_HEADS[size]


def _divided(width: int, heads: object, where: str) -> int:
    if type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(f"{where}: {heads!r:.40} heads; expected a divisor of the width, {width}")
    return width // heads


def _text_config(source: WeightsSource, settings: Mapping, embed_dim: int) -> SigLipTextConfig:
    norm, activation = _refuse_options(settings)
    vocab_size, width = shape_of(source, "text.token_embedding.weight", 2)
    (hidden,) = shape_of(source, "text.transformer.resblocks.0.mlp.c_fc.bias", 1)
    return SigLipTextConfig(
        width=width,
        layers=count_layers(source.shapes, "text.transformer.resblocks."),
        vocab_size=vocab_size,
        context_length=shape_of(source, "text.positional_embedding", 2)[0],
        embed_dim=embed_dim,
        head_width=_divided(width, settings.get("heads", 8), "text_cfg"),
        mlp_width=mlp_width(width, hidden),
        activation="gelu_tanh" if activation == "tanh" else "gelu",
        norm_epsilon=norm,
        has_head="text.text_projection.weight" in source.tensors,
    )


def _refuse_options(settings: Mapping) -> tuple[float, str | None]:
    """Epsilon and approximation of the text tower, whose other options are SigLIP's."""
    for name, allowed in _TEXT_OPTIONS.items():
        needed = name in ("no_causal_mask", "pool_type")
        if (name in settings or needed) and settings.get(name) not in allowed:
            raise ValueError(f"text_cfg has {name}={settings.get(name)!r:.40}; expected {allowed}")
    known = _TEXT_SIZES | _TEXT_OPTIONS.keys() | _WITHOUT_EFFECT | {"norm_kwargs", "act_kwargs"}
    for name, value in settings.items():
        if name not in known and value not in (None, False, {}):
            raise ValueError(f"text_cfg has {name}={value!r:.40}, which cannot be represented")
    norm, act = (settings.get(name) or {} for name in ("norm_kwargs", "act_kwargs"))
    if not isinstance(norm, Mapping) or not isinstance(act, Mapping):
        raise ValueError(f"text_cfg has norm_kwargs={norm!r:.40}, act_kwargs={act!r:.40}")
    unknown = {*norm} - {"eps"} | {*act} - {"approximate"}
    epsilon, approximate = norm.get("eps", 1e-5), act.get("approximate")
    if unknown or type(epsilon) is not float or approximate not in (None, "none", "tanh"):
        raise ValueError(
            f"text_cfg has norm_kwargs={norm}, act_kwargs={act}; expected a number eps, and "
            "approximate as tanh or none"
        )
    return epsilon, approximate


def _make_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision, text = config.vision, config.text
    tanh = text.activation == "gelu_tanh"
    return {
        "model_cfg": {
            "embed_dim": vision.embed_dim,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {
                "image_size": vision.image_size,
                "timm_model_name": siglip_name(vision),
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            },
            "text_cfg": {
                **text_settings(text),
                "tokenizer_kwargs": {"clean": "canonicalize"},
                "no_causal_mask": True,
                **({"proj_bias": True} if text.has_head else {"proj_type": "none"}),
                "pool_type": "last",
                "norm_kwargs": {"eps": text.norm_epsilon},
                "act_kwargs": {"approximate": "tanh"} if tanh else {},
            },
        },
        "preprocess_cfg": {
            **_PREPROCESSING,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def _why_not(config: ClipConfig) -> str | None:
    vision, text = config.vision, config.text
    if text is None:
        return "there is no text tower; merge these weights with one that has"
    if vision.norm_epsilon != 1e-6:
        return f"its LayerNorm has epsilon 1e-6, that of these weights {vision.norm_epsilon}"
    name = siglip_name(vision)
    if timm_activation(name) != vision.activation:
        return f"it computes {timm_activation(name)} in {name}, and these weights expect " + (
            vision.activation
        )
    if _heads(name, vision.width, {"heads": text.block.heads}) != vision.block.heads:
        return "its image tower has as many heads as its text tower, or as published for its width"
    if text.activation not in ("gelu", "gelu_tanh"):
        return f"its text tower computes a GELU, and these weights expect {text.activation}"
    return None


def recognise(names: Collection[str]) -> bool:
    """Whether these are tensors of a SigLIP in open_clip."""
    return f"{_TRUNK}attn_pool.latent" in names and "text.token_embedding.weight" in names


OPEN_CLIP_SIGLIP = Format(
    name="open_clip",
    description="open_clip's SigLIP and SigLIP 2: an image tower of timm with attention pooling",
    recognise=recognise,
    infer_config=_infer,
    rules=RULES,
    settings_file=SETTINGS_FILE,
    folder_tensors="open_clip_model.safetensors",
    make_settings=_make_settings,
    why_not=_why_not,
    tower=SigLipVisionConfig,
    text_tower=SigLipTextConfig,
)
