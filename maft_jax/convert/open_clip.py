"""open_clip's ViT models: OpenAI's names, or the same with the text tower in a module `text`.

A state dict does not tell the activation (open_clip's own is GELU unless its configuration says
quick_gelu) nor the width of the heads. open_clip_config.json does; it is read from beside the file.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.openai import (
    IGNORED,
    RULES,
    infer_towers,
    text_rules,
    vision_rules,
    why_not_clip,
    with_activation,
)
from maft_jax.convert.rules import Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.preprocess import UNIT_MEAN, UNIT_STD
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.clip_vit import VisionConfig

SETTINGS_FILE = "open_clip_config.json"
TRUNKS_READ = {
    "visual.trunk.stages.0.blocks.0.conv_dw.weight",
    "visual.trunk.attn_pool.latent",
}
"""Tensors of those trunks of timm for which there is another layout; the rest is refused here."""

UNSUPPORTED_TENSORS = {
    r".*\.ls_[12]\.gamma": "LayerScale (ls_init_value)",
    r"visual\.attn_pool.*": "attentional pooling",
    r"visual\.trunk\..*": "an image tower of timm",
    r"visual\.(layer1|attnpool)\..*": "a ResNet image tower",
    r"visual\.conv1\.bias": "a bias of the patch convolution",
    r"text\.(transformer\.(?!resblocks\.)|proj\.).*": "a text tower of transformers",
    r"(text\.)?cls_emb": "a class token in the text tower (CoCa)",
    r"text_decoder\..*": "a text decoder (CoCa)",
    r"(text\.)?text_projection\..*": "a text projection with bias",
    r"logit_bias": "a bias of the logits (SigLIP)",
    r".*\.(ln_attn|attn\.(ln_\w+|logit_scale|head_scale)|mlp\.ln)\b.*": "open_clip's custom blocks",
}
"""Names of tensors that open_clip's options bring, and what they are."""

_SIZES = {
    "layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size",
    "context_length", "vocab_size",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "patch_dropout", "pos_embed_type", "output_tokens", "attn_pooler_queries", "attn_pooler_heads",
    "pad_id", "eos_id", "proj_type", "hf_proj_type", "hf_pooler_type", "hf_model_pretrained",
}  # fmt: skip
_PARTS = ("vision_cfg", "text_cfg")
_LARGEST_SCALE = 100.0
"""Of similarities."""
TEXT_SIZES = ("width", "layers", "context_length", "vocab_size")
_TOLD = (("width", "layers", "patch_size"), TEXT_SIZES)
"""What the settings of each part state that tensors tell."""
PREPROCESSING = {"mean": list(UNIT_MEAN), "std": list(UNIT_STD)}
_SUPPORTED_VALUES = {"pool_type": ("tok", "argmax")}  # every other option must be off


def _infer(source: WeightsSource, choices: Choices, text: str) -> ClipConfig:
    _refuse_unsupported(source, text)
    if SETTINGS_FILE not in source.settings:
        config = infer_towers(source, text=text, head_width=choices.head_width)
        if choices.activation is None:
            raise ValueError(
                f"{source.path}: tensors do not tell the activation of an open_clip model: state "
                f"it (activation, gelu or quick_gelu) or put {SETTINGS_FILE} beside the file"
            )
        return with_activation(config, choices.activation)
    model, where = models_settings(source)
    for part in _PARTS:
        refuse_options(model[part], f"{where}: {part}")
    head_width = choices.head_width or model["vision_cfg"].get("head_width", 64)
    if type(head_width) is not int or head_width < 1:
        raise ValueError(f"{where}: expected a positive integer head_width, got {head_width!r:.40}")
    config = infer_towers(source, text=text, head_width=head_width)
    text_tower = with_text_heads(config.text, model["text_cfg"], where)
    config = dataclasses.replace(config, text=text_tower)
    for part, tower, names in zip(_PARTS, (config.vision, text_tower), _TOLD, strict=True):
        compare_sizes(tower, model, part, names, where)
    stated = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return with_activation(config, choices.activation or stated)


def _refuse_unsupported(source: WeightsSource, text: str) -> None:
    for name in source.tensors:
        for pattern, what in UNSUPPORTED_TENSORS.items():
            if re.fullmatch(pattern, name):
                raise ValueError(
                    f"{source.path}: an open_clip model with {what} (tensor {name!r}); expected "
                    "a ViT with class token, ln_pre, and CLIP's own text tower"
                )
    for name, what in (
        ("visual.ln_pre.weight", "without ln_pre (no_ln_pre)"),
        (f"{text}text_projection", "without text projection (proj_type none)"),
    ):
        if name not in source.tensors:
            raise ValueError(f"{source.path}: an open_clip model {what}: {name!r} is missing")


def models_settings(
    source: WeightsSource, preprocessing: Mapping[str, list[float]] | None = None
) -> tuple[Mapping, str]:
    """The part of the settings beside a file that is of the model, and where they are, for errors.

    Args:
        preprocessing: mean and std with which the tower reads pixels in [0, 1]; by default CLIP's.

    Raises:
        ValueError: it has no such part, or says that pixels are normalised otherwise.
    """
    settings = source.settings[SETTINGS_FILE]()
    model = settings.get("model_cfg", settings)
    where = f"{source.path}: {SETTINGS_FILE} beside it"
    if not isinstance(model, Mapping) or not all(isinstance(model.get(p), Mapping) for p in _PARTS):
        raise ValueError(f"{where}: expected model_cfg with vision_cfg and text_cfg")
    stated = settings.get("preprocess_cfg") or {}
    for name, expected in (preprocessing or PREPROCESSING).items():
        found = stated.get(name, expected) if isinstance(stated, Mapping) else stated
        if not _are_close(found, expected):
            raise ValueError(
                f"{where}: preprocess_cfg: {name} is {found!r:.80}; expected {expected}, with "
                "which pixels are normalised for this image tower"
            )
    return model, where


def _are_close(found: object, expected: list[float]) -> bool:
    if not isinstance(found, list) or len(found) != len(expected):
        return False
    pairs = zip(found, expected, strict=True)
    return all(type(x) in (int, float) and y - 1e-3 < x < y + 1e-3 for x, y in pairs)


def refuse_options(options: Mapping, where: str) -> None:
    """Refuses what CLIP's blocks cannot represent.

    Raises:
        ValueError: names the option.
    """
    for name, value in options.items():
        if name in _SIZES | _WITHOUT_EFFECT or value in _SUPPORTED_VALUES.get(name, ()):
            continue
        if value not in (None, False, {}):
            raise ValueError(
                f"{where} has {name}={value!r}, which cannot be represented; expected a ViT with "
                "class token and CLIP's own text tower and tokenizer"
            )


def with_text_heads(text: TextConfig, options: Mapping, where: str) -> TextConfig:
    """With as many heads as a text_cfg says.

    Raises:
        ValueError: they do not divide the width.
    """
    heads = options.get("heads", 8)
    if not isinstance(heads, int) or heads < 1 or text.width % heads:
        raise ValueError(
            f"{where}: text_cfg has heads={heads!r}; expected a divisor of the text tower's "
            f"width, {text.width}"
        )
    return dataclasses.replace(text, head_width=text.width // heads)


def compare_sizes(tower, model: Mapping, part: str, names: Sequence[str], where: str) -> None:
    """Refuses settings that state other sizes in this part than the tensors have.

    Raises:
        ValueError: names the first.
    """
    for name in names:
        stated, found = model[part].get(name), getattr(tower, name)
        if stated is not None and stated != found:
            raise ValueError(
                f"{where} is of another model: {part} says {name}={stated}, the tensors {found}"
            )


def _make_settings(config: ClipConfig, *, custom_text: bool) -> dict:
    vision = config.vision
    return {
        "model_cfg": {
            "embed_dim": vision.embed_dim,
            "quick_gelu": vision.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layers": vision.layers,
                "width": vision.width,
                "head_width": vision.head_width,
                "mlp_ratio": _mlp_ratio(vision),
            },
            "text_cfg": text_settings(config.text),
            **({"custom_text": True} if custom_text else {}),
        },
        "preprocess_cfg": PREPROCESSING,
    }


def text_settings(text: TextConfig | SigLipTextConfig) -> dict:
    """The text_cfg of this tower."""
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.width // text.head_width,
        "layers": text.layers,
        "mlp_ratio": _mlp_ratio(text),
    }


def _mlp_ratio(tower: VisionConfig | TextConfig | SigLipTextConfig) -> float:
    width = tower.mlp_width or 4 * tower.width
    # open_clip takes int(width * ratio), so half a unit against rounding
    return 4.0 if width == 4 * tower.width else (width + 0.5) / tower.width


def _why_not(config: ClipConfig) -> str | None:
    if reason := why_not_clip(config):
        return reason
    activations = {config.vision.activation, config.text.activation}
    if len(activations) > 1 or "gelu_tanh" in activations:
        return f"both its towers compute quick_gelu or both gelu, not {sorted(activations)}"
    return None


def _recognise_top_level(names: Collection[str]) -> bool:
    trunk = any(n.startswith("visual.trunk.") for n in names) and TRUNKS_READ.isdisjoint(names)
    return ("visual.conv1.weight" in names or trunk) and "token_embedding.weight" in names


def _recognise_custom_text(names: Collection[str]) -> bool:
    both = all(any(n.startswith(part) for n in names) for part in ("visual.", "text."))
    return both and TRUNKS_READ.isdisjoint(names)


def capped_logit_scale(source: WeightsSource) -> float:
    """Factor of similarities that the weights were trained with, at most open_clip's and FC-CLIP's.

    Raises:
        ValueError: there is no such number.
    """
    stored = source.tensors.get("logit_scale")
    if stored is None or stored.shape != ():
        raise ValueError(
            f"{source.path}: expected a number logit_scale, got "
            f"{None if stored is None else stored.shape}"
        )
    scale = np.exp(np.float32(stored.read()))
    return float(np.fmin(scale, np.float32(_LARGEST_SCALE)))


OPEN_CLIP = Format(
    name="open_clip",
    description="open_clip's CLIP: OpenAI's names with GELU or QuickGELU",
    recognise=_recognise_top_level,
    infer_config=lambda source, choices: _infer(source, choices, ""),
    rules=RULES,
    ignored=IGNORED,
    settings_file=SETTINGS_FILE,
    folder_tensors="open_clip_model.safetensors",
    make_settings=lambda config, dtype: _make_settings(config, custom_text=False),
    why_not=_why_not,
)

OPEN_CLIP_CUSTOM_TEXT = Format(
    name="open_clip_custom_text",
    description="open_clip's CustomTextCLIP: the text tower in a module of its own",
    recognise=_recognise_custom_text,
    infer_config=lambda source, choices: _infer(source, choices, "text."),
    rules=[Rule("logit_scale", "logit_scale"), *vision_rules(), *text_rules("text.")],
    ignored=IGNORED,
    settings_file=SETTINGS_FILE,
    folder_tensors="open_clip_model.safetensors",
    make_settings=lambda config, dtype: _make_settings(config, custom_text=True),
    why_not=_why_not,
)
