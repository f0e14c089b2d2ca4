"""Image towers of SigLIP and TIPS alone, as timm publishes them: its VisionTransformer.

Tensors do not tell heads, nor, of SigLIP, which GELU timm computes: config.json beside them says it
by the name of timm's model, and by its arguments where these are not those of the name.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, as_stated, shape_of
from maft_jax.convert.openai import count_layers
from maft_jax.convert.siglip import image_grid
from maft_jax.convert.timm_siglip import (
    PUBLISHED_HEADS,
    PUBLISHED_WIDTHS,
    siglip_name,
    siglip_tower,
    timm_activation,
    trunk_rules,
)
from maft_jax.convert.tips_tables import timm_rules
from maft_jax.convert.transformers_clip import SETTINGS_FILE
from maft_jax.models.clip import ClipConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig
from maft_jax.models.towers.tips import TipsConfig

_GELUS = ("gelu", "gelu_tanh")
_SIGLIP_NAMES = {
    f"vit_{tower}_siglip_{pixels}"
    for tower, sizes in {
        "base_patch32": (256,),
        "base_patch16": (224, 256, 384, 512),
        "large_patch16": (256, 384, 512),
        "so400m_patch14": (224, 378, 384),
        "so400m_patch16": (256, 384, 512),
        "giantopt_patch16": (256, 384),
    }.items()
    for pixels in sizes
}
"""Of timm's models; of other sizes any of them is told all that differs."""
_TIPS_SIZES = {"base": (768, 12), "large": (1024, 16), "so400m": (1152, 16), "giant": (1536, 24)}
"""Widths and heads of the published towers."""
_SIGLIP_PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
_TIPS_PIXELS = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def _told(source: WeightsSource, kind: str) -> tuple[str | None, Mapping]:
    """The name of timm's model and its arguments, if config.json beside the tensors has them.

    Raises:
        ValueError: the name is of another kind.
    """
    if SETTINGS_FILE not in source.settings:
        return None, {}
    settings = source.settings[SETTINGS_FILE]()
    name, arguments = settings.get("architecture"), settings.get("model_args") or {}
    if not isinstance(name, str) or kind not in name or not isinstance(arguments, Mapping):
        raise ValueError(
            f"{source.path}: {SETTINGS_FILE} beside it: architecture: expected a model of timm "
            f"with {kind} in its name, got {name!r:.80}"
        )
    return name, arguments


def _head_width(source: WeightsSource, width: int, heads: object, choices: Choices) -> int:
    """Of so many heads, unless the caller states their width."""
    if choices.head_width is not None:
        heads = choices.head_width and width / choices.head_width
    if type(heads) not in (int, float) or heads < 1 or heads != int(heads) or width % heads:
        raise ValueError(
            f"{source.path}: an image tower of width {width}, whose tensors do not tell how wide "
            "its heads are: state a divisor (head_width), or num_heads of model_args in "
            f"{SETTINGS_FILE}, as timm writes it; got {choices.head_width or heads!r:.40}"
        )
    return width // int(heads)


def _gelu(source: WeightsSource, arguments: Mapping, of_name: str) -> str:
    """What the arguments say, or else the model's name."""
    activation = arguments.get("act_layer", of_name)
    if activation not in _GELUS:
        raise ValueError(
            f"{source.path}: {SETTINGS_FILE} beside it: act_layer: expected one of {_GELUS}, got "
            f"{activation!r:.40}"
        )
    return activation


def _infer_siglip(source: WeightsSource, choices: Choices) -> ClipConfig:
    name, arguments = _told(source, "_siglip_")
    width = shape_of(source, "patch_embed.proj.weight", 4)[0]
    published = {PUBLISHED_WIDTHS[size]: heads for size, heads in PUBLISHED_HEADS.items()}
    heads = arguments.get("num_heads", published.get(width))
    vision = siglip_tower(source, "", _head_width(source, width, heads, choices))
    activation = _gelu(source, arguments, timm_activation(name or siglip_name(vision)))
    vision = dataclasses.replace(vision, activation=activation)
    return as_stated(ClipConfig(vision, None), Choices(choices.activation))


def _infer_tips(source: WeightsSource, choices: Choices) -> ClipConfig:
    _, arguments = _told(source, "_tipsv2")
    if choices.activation not in (None, "gelu", "gelu_tanh"):
        raise ValueError(
            f"activation={choices.activation}: TIPS is computed with gelu_tanh in Flax and with "
            "gelu in PyTorch; state one of these or none"
        )
    registers = shape_of(source, "reg_token", 3)[1]
    if registers != 1:
        raise ValueError(
            f"{source.path}: a ViT of timm with {registers} registers, as DINOv2 has; expected "
            "TIPS's, which has one, its second class token"
        )
    width, _, patch_size, _ = shape_of(source, "patch_embed.proj.weight", 4)
    hidden, last = (shape_of(source, f"blocks.0.mlp.{name}.weight", 2) for name in ("fc1", "fc2"))
    heads = arguments.get("num_heads", dict(_TIPS_SIZES.values()).get(width))
    is_gated = hidden[0] != last[1]
    stated = choices.activation or ("gelu" if is_gated else _gelu(source, arguments, "gelu"))
    vision = TipsConfig(
        width=width,
        layers=count_layers(source.shapes, "blocks."),
        patch_size=patch_size,
        image_size=image_grid(source, shape_of(source, "pos_embed", 3)[1]) * patch_size,
        mlp_width=last[1],
        head_width=_head_width(source, width, heads, choices),
        activation=stated,
        gated=is_gated,
    )
    return ClipConfig(vision, None)


def _arguments(vision: SigLipVisionConfig | TipsConfig, hidden: int) -> dict:
    """What every size of timm's VisionTransformer is told, `hidden` being that of its fc1."""
    return {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.width,
        "depth": vision.layers,
        "num_heads": vision.width // vision.head_width,
        "mlp_ratio": (hidden + 0.5) / vision.width,  # of which timm takes the whole part
    }


def _settings(name: str, vision, arguments: Mapping, pixels: Mapping) -> dict:
    size = vision.image_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": vision.width,
        "model_args": dict(arguments),
        "pretrained_cfg": {**pixels, "input_size": [3, size, size], "num_classes": 0},
    }


def _siglip_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision = config.vision
    arguments = _arguments(vision, vision.mlp_width or 4 * vision.width)
    arguments["act_layer"] = vision.activation
    name = siglip_name(vision)
    name = name if name in _SIGLIP_NAMES else "vit_base_patch16_siglip_224"
    return _settings(name, vision, arguments, _SIGLIP_PIXELS)


def _tips_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision = config.vision
    sizes = {width: name for name, (width, _) in _TIPS_SIZES.items()}
    name = "giant" if vision.gated else sizes.get(vision.width, "base")
    arguments = _arguments(vision, (2 if vision.gated else 1) * vision.mlp_width)
    return _settings(f"vit_{name}_patch14_reg1_tipsv2", vision, arguments, _TIPS_PIXELS)


def _why_not(config: ClipConfig) -> str | None:
    vision = config.vision
    if config.text is not None:
        return "it is an image tower alone, and these weights have a text tower"
    if vision.norm_epsilon != 1e-6:
        return f"its LayerNorm has epsilon 1e-6, that of these weights {vision.norm_epsilon}"
    if isinstance(vision, TipsConfig) and not vision.gated and vision.activation != "gelu":
        return f"it computes gelu, and these weights expect {vision.activation}"
    return None if vision.activation in _GELUS else f"it computes a GELU, not {vision.activation}"


def _recognise_siglip(names: Collection[str]) -> bool:
    return {"attn_pool.latent", "patch_embed.proj.weight"} <= set(names)


def _recognise_tips(names: Collection[str]) -> bool:
    needed = {"reg_token", "cls_token", "blocks.0.ls1.gamma", "blocks.0.mlp.fc1.weight"}
    return needed <= set(names)


TIMM_SIGLIP = Format(
    name="timm",
    description="timm's SigLIP, the image tower alone",
    recognise=_recognise_siglip,
    infer_config=_infer_siglip,
    rules=trunk_rules(""),
    settings_file=SETTINGS_FILE,
    folder_tensors="model.safetensors",
    make_settings=_siglip_settings,
    why_not=_why_not,
    tower=SigLipVisionConfig,
)
TIMM_TIPS = Format(
    name="timm",
    description="timm's TIPSv2, the image tower alone",
    recognise=_recognise_tips,
    infer_config=_infer_tips,
    rules_for=timm_rules,
    settings_file=SETTINGS_FILE,
    folder_tensors="model.safetensors",
    make_settings=_tips_settings,
    why_not=_why_not,
    tower=TipsConfig,
)
TIMM_VIT_FORMATS = (TIMM_SIGLIP, TIMM_TIPS)
