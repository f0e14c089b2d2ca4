"""open_clip's SigLIP and SigLIP 2: CustomTextCLIP around an image tower of timm.

Neither tensors nor open_clip_config.json tell the heads and the GELU of the image tower: the name
of timm's model does. timm computes the exact GELU in most sizes, for weights that were trained with
its approximation by tanh; the format's word is kept, and activation states another.
"""

import functools
import logging
import re
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.open_clip import SETTINGS_FILE, models_settings, text_settings
from maft_jax.convert.openai import block_rules, count_layers
from maft_jax.convert.rules import Rule
from maft_jax.convert.siglip import (
    image_grid,
    matrix,
    merged_matrix,
    mlp_width,
    same_values,
    shape_of,
    siglip_config,
    similarity_rules,
    transposed,
)
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig

logger = logging.getLogger(__name__)

_TRUNK = "visual.trunk."
_BLOCK = f"{_TRUNK}blocks.{{}}."
_POOL = f"{_TRUNK}attn_pool."
_PUBLISHED_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
_PUBLISHED_WIDTHS = {"base": 768, "large": 1024, "so400m": 1152, "giantopt": 1536}
_EXACT = re.compile(r"base_patch16|large_patch16_siglip_(256|384)|so400m_patch14")
"""Of timm's names of SigLIPs, those that it gives the exact GELU."""
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


def _bias(shape, *parts):
    return np.concatenate(parts).reshape(shape)


def _split_matrix(x):
    whole = matrix(x)
    return whole[: x.shape[0]], whole[x.shape[0] :]


def _split_bias(x):
    return x[0].reshape(-1), x[1:].reshape(-1)


def _linear(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", f"{ours}/kernel", transposed, matrix),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
    ]


def _norm(foreign: str, ours: str) -> list[Rule]:
    return [Rule(f"{foreign}.weight", f"{ours}/scale"), Rule(f"{foreign}.bias", f"{ours}/bias")]


def _out(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", f"{ours}/kernel", transposed, merged_matrix),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
    ]


RULES = [
    *similarity_rules("logit_scale", "logit_bias", ()),
    Rule(
        f"{_TRUNK}patch_embed.proj.weight",
        "visual/patch_kernel",
        lambda shape, x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    ),
    Rule(f"{_TRUNK}patch_embed.proj.bias", "visual/patch_bias"),
    Rule(f"{_TRUNK}pos_embed", "visual/position_embedding", same_values, lambda x: x[None]),
    *_norm(f"{_BLOCK}norm1", "visual/blocks_{}/ln_1"),
    Rule(f"{_BLOCK}attn.qkv.weight", "visual/blocks_{}/attn/in_proj/kernel", transposed, matrix),
    Rule(
        f"{_BLOCK}attn.qkv.bias",
        "visual/blocks_{}/attn/in_proj/bias",
        same_values,
        lambda x: x.reshape(-1),
    ),
    *_out(f"{_BLOCK}attn.proj", "visual/blocks_{}/attn/out_proj"),
    *_norm(f"{_BLOCK}norm2", "visual/blocks_{}/ln_2"),
    *_linear(f"{_BLOCK}mlp.fc1", "visual/blocks_{}/mlp/c_fc"),
    *_linear(f"{_BLOCK}mlp.fc2", "visual/blocks_{}/mlp/c_proj"),
    *_norm(f"{_TRUNK}norm", "visual/ln_post"),
    Rule(f"{_POOL}latent", "visual/head/probe", same_values, lambda x: x[None, None]),
    Rule(
        (f"{_POOL}q.weight", f"{_POOL}kv.weight"),
        "visual/head/attn/in_proj/kernel",
        lambda shape, *parts: np.concatenate(parts).T.reshape(shape),
        _split_matrix,
    ),
    Rule(
        (f"{_POOL}q.bias", f"{_POOL}kv.bias"), "visual/head/attn/in_proj/bias", _bias, _split_bias
    ),
    *_out(f"{_POOL}proj", "visual/head/attn/out_proj"),
    *_norm(f"{_POOL}norm", "visual/head/ln_2"),
    *_linear(f"{_POOL}mlp.fc1", "visual/head/mlp/c_fc"),
    *_linear(f"{_POOL}mlp.fc2", "visual/head/mlp/c_proj"),
    Rule("text.token_embedding.weight", "text/token_embedding"),
    Rule("text.positional_embedding", "text/position_embedding"),
    *block_rules("text.", "text"),
    *_norm("text.ln_final", "text/ln_final"),
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
    if choices.head_width is None and _published_size(name, vision.width) is None:
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
    width, _, patch_size, _ = shape_of(source, f"{_TRUNK}patch_embed.proj.weight", 4)
    side = image_grid(source, shape_of(source, f"{_TRUNK}pos_embed", 3)[1])
    (hidden,) = shape_of(source, f"{_BLOCK.format(0)}mlp.fc1.bias", 1)
    return SigLipVisionConfig(
        width=width,
        layers=count_layers(source.shapes, f"{_TRUNK}blocks."),
        patch_size=patch_size,
        image_size=side * patch_size,
        head_width=_divided(width, _heads(name, width, text_settings), "vision_cfg"),
        mlp_width=mlp_width(width, hidden),
        activation=timm_activation(name),
    )


def _heads(name: str, width: int, text_settings: Mapping) -> object:
    """Of the image tower: as published for its name, else as many as the text tower has.

    In every published SigLIP both towers have equally many.
    """
    size = _published_size(name, width)
    return text_settings.get("heads", 8) if size is None else _PUBLISHED_HEADS[size]


def _published_size(name: str, width: int) -> str | None:
    size = next((x for x in _PUBLISHED_WIDTHS if f"_{x}_" in name), None)
    return size if size is not None and _PUBLISHED_WIDTHS[size] == width else None


def timm_activation(name: str) -> str:
    """What timm computes in its model of this name."""
    return "gelu" if _EXACT.search(name) else "gelu_tanh"


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


def _timm_name(vision: SigLipVisionConfig) -> str:
    sizes = {width: size for size, width in _PUBLISHED_WIDTHS.items()}
    size = sizes.get(vision.width, "so400m")
    patch = vision.patch_size if vision.width in sizes else 16
    name = f"vit_{size}_patch{patch}_siglip_{vision.image_size}"
    if vision.width not in sizes and vision.activation == "gelu":
        return name.replace("so400m", "base")  # of no published size, so that it tells the GELU
    return name


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
                "timm_model_name": _timm_name(vision),
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
    name = _timm_name(vision)
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
    return f"{_POOL}latent" in names and "text.token_embedding.weight" in names


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
