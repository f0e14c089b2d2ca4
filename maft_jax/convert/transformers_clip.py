"""Hugging Face transformers' CLIPModel and CLIPVisionModelWithProjection."""

from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource
from maft_jax.convert.openai import why_not_image_tower, with_activation
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.transformers_processor import processor_files
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig

SETTINGS_FILE = "config.json"

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
_END_OF_TEXT = 49407
_LEGACY_END_OF_TEXT = 2
"""In configurations from before transformers 4.31 it stands for "the largest id of the row"."""

# What transformers takes for a setting that config.json leaves out.
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": _END_OF_TEXT,
}


def _transposed(shape, x):
    return x.T


def _transpose(x):
    return x.T


def layer_rules(foreign: str, ours: str) -> list[Rule]:
    """The sixteen tensors of a transformer layer; query, key and value are apart."""
    f, o = f"{foreign}encoder.layers.{{}}.", f"{ours}/blocks_{{}}/"
    attention = f + "self_attn."

    def qkv(kind):
        return tuple(f"{attention}{part}_proj.{kind}" for part in "qkv")

    return [
        Rule(f + "layer_norm1.weight", o + "ln_1/scale"),
        Rule(f + "layer_norm1.bias", o + "ln_1/bias"),
        Rule(
            qkv("weight"),
            o + "attn/in_proj/kernel",
            lambda shape, *parts: np.stack([x.T for x in parts], axis=1).reshape(shape),
            lambda x: tuple(x[:, part].reshape(x.shape[0], -1).T for part in range(3)),
        ),
        Rule(
            qkv("bias"),
            o + "attn/in_proj/bias",
            lambda shape, *parts: np.stack(parts).reshape(shape),
            lambda x: tuple(x[part].reshape(-1) for part in range(3)),
        ),
        Rule(
            attention + "out_proj.weight",
            o + "attn/out_proj/kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(-1, x.shape[2]).T,
        ),
        Rule(attention + "out_proj.bias", o + "attn/out_proj/bias"),
        Rule(f + "layer_norm2.weight", o + "ln_2/scale"),
        Rule(f + "layer_norm2.bias", o + "ln_2/bias"),
        Rule(f + "mlp.fc1.weight", o + "mlp/c_fc/kernel", _transposed, _transpose),
        Rule(f + "mlp.fc1.bias", o + "mlp/c_fc/bias"),
        Rule(f + "mlp.fc2.weight", o + "mlp/c_proj/kernel", _transposed, _transpose),
        Rule(f + "mlp.fc2.bias", o + "mlp/c_proj/bias"),
    ]


RULES = [
    Rule("logit_scale", "logit_scale"),
    Rule("vision_model.embeddings.class_embedding", "visual/class_embedding"),
    Rule("vision_model.embeddings.position_embedding.weight", "visual/position_embedding"),
    Rule(
        "vision_model.embeddings.patch_embedding.weight",
        "visual/patch_kernel",
        lambda shape, x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    ),
    Rule("vision_model.pre_layrnorm.weight", "visual/ln_pre/scale"),  # sic
    Rule("vision_model.pre_layrnorm.bias", "visual/ln_pre/bias"),
    Rule("vision_model.post_layernorm.weight", "visual/ln_post/scale"),
    Rule("vision_model.post_layernorm.bias", "visual/ln_post/bias"),
    Rule("visual_projection.weight", "visual/proj", _transposed, _transpose),
    *layer_rules("vision_model.", "visual"),
    Rule("text_model.embeddings.token_embedding.weight", "text/token_embedding"),
    Rule("text_model.embeddings.position_embedding.weight", "text/position_embedding"),
    Rule("text_model.final_layer_norm.weight", "text/ln_final/scale"),
    Rule("text_model.final_layer_norm.bias", "text/ln_final/bias"),
    Rule("text_projection.weight", "text/proj", _transposed, _transpose),
    *layer_rules("text_model.", "text"),
]

IGNORED = [
    Ignored(
        r"(text|vision)_model\.embeddings\.position_ids",
        "0, 1, 2, ..., which old versions of transformers stored",
    ),
]


def _infer(source: WeightsSource, choices: Choices) -> ClipConfig:
    if SETTINGS_FILE not in source.settings:
        raise ValueError(
            f"{source.path}: weights of transformers' CLIP without {SETTINGS_FILE} beside them, "
            "which tells heads and activation; give the folder that save_pretrained wrote"
        )
    settings, where = source.settings[SETTINGS_FILE](), f"{source.path}: {SETTINGS_FILE}"
    kind = settings.get("model_type")
    if kind == "clip_vision_model":
        if "visual_projection.weight" not in source.tensors:
            raise ValueError(f"{source.path}: {_WITHOUT_PROJECTION}")
        vision, text, embed_dim = merged(_VISION_DEFAULTS, settings), None, None
    elif kind == "clip":
        vision = merged(_VISION_DEFAULTS, tower_part(settings, "vision_config", where))
        text = merged(_TEXT_DEFAULTS, tower_part(settings, "text_config", where))
        embed_dim = settings.get("projection_dim", 512)
        if not any(name.startswith("text_model.") for name in source.tensors):
            text = None  # CLIPVisionModelWithProjection saved with the whole model's settings
    else:
        raise ValueError(
            f"{where}: model_type {kind!r}; expected 'clip' (CLIPModel) or 'clip_vision_model' "
            "(CLIPVisionModelWithProjection)"
        )
    embed_dim = vision["projection_dim"] if embed_dim is None else embed_dim
    try:
        config = ClipConfig(
            _vision_config(vision, embed_dim, choices),
            None if text is None else _text_config(text, embed_dim),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return with_activation(config, choices.activation)


_WITHOUT_PROJECTION = (
    "transformers' CLIPVisionModel, which has no visual_projection into the space of the texts; "
    "expected CLIPModel, or CLIPVisionModelWithProjection: save one of these with save_pretrained"
)


def explain(names: Collection[str]) -> str | None:
    """What these tensors are, if it is a part of transformers' CLIP that cannot stand alone."""
    if "embeddings.class_embedding" in names:  # since transformers 5 without "vision_model."
        return _WITHOUT_PROJECTION
    if "text_model.embeddings.token_embedding.weight" in names:
        return "transformers' text tower alone; expected CLIPModel, which has both towers"
    return None


def tower_part(settings: Mapping, name: str, where: str) -> Mapping:
    """Of one tower; old files have it twice, and then transformers believes the second."""
    part = settings.get(f"{name}_dict") or settings.get(name) or {}
    if not isinstance(part, Mapping):
        raise ValueError(f"{where}: {name} is {part!r}; expected an object")
    return part


def merged(defaults: Mapping, settings: Mapping) -> dict:
    """The settings of these names, each with its default."""
    return {name: settings.get(name, value) for name, value in defaults.items()}


def _vision_config(settings: Mapping, embed_dim: int, choices: Choices) -> VisionConfig:
    _check_settings(settings)
    if settings["num_channels"] != 3:
        raise ValueError(f"num_channels is {settings['num_channels']}; expected 3")
    patch = settings["patch_size"]
    return VisionConfig(
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        patch_size=patch,
        image_size=settings["image_size"] // patch * patch,
        embed_dim=embed_dim,
        head_width=choices.head_width or head_width(settings),
        mlp_width=mlp_width(settings),
        activation=ACTIVATIONS[settings["hidden_act"]],
    )


def _text_config(settings: Mapping, embed_dim: int) -> TextConfig:
    _check_settings(settings)
    vocab_size, end = settings["vocab_size"], settings["eos_token_id"]
    largest = end in (_LEGACY_END_OF_TEXT, vocab_size - 1)
    if not largest and not (end == _END_OF_TEXT and end < vocab_size):
        raise ValueError(
            f"text_config has eos_token_id {end!r} and vocab_size {vocab_size}; expected the id "
            f"{_END_OF_TEXT} of CLIP's tokenizer, the largest id, or {_LEGACY_END_OF_TEXT}, which "
            "stands for it: the text is read at the largest id"
        )
    return TextConfig(
        width=settings["hidden_size"],
        layers=settings["num_hidden_layers"],
        vocab_size=vocab_size,
        context_length=settings["max_position_embeddings"],
        embed_dim=embed_dim,
        head_width=head_width(settings),
        mlp_width=mlp_width(settings),
        activation=ACTIVATIONS[settings["hidden_act"]],
    )


def check_numbers(settings: Mapping) -> None:
    """Refuses a tower's settings of no sizes, or of an unknown activation."""
    for name, value in settings.items():
        number = isinstance(value, int) and value > 0
        if name not in ("hidden_act", "layer_norm_eps", "eos_token_id") and not number:
            raise ValueError(f"{name} is {value!r}; expected one positive integer")
    if settings["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act is {settings['hidden_act']!r}; expected one of {list(ACTIVATIONS)}"
        )


def _check_settings(settings: Mapping) -> None:
    check_numbers(settings)
    if settings["layer_norm_eps"] != 1e-5:
        raise ValueError(f"layer_norm_eps is {settings['layer_norm_eps']}; expected 1e-05")


def head_width(settings: Mapping) -> int:
    """Of attention; raises ValueError if heads do not divide the width."""
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if width % heads:
        raise ValueError(f"num_attention_heads {heads} does not divide hidden_size {width}")
    return width // heads


def mlp_width(settings: Mapping) -> int | None:
    """Of our architectures: None for four times the width."""
    width = settings["intermediate_size"]
    return None if width == 4 * settings["hidden_size"] else width


def _make_settings(config: ClipConfig, dtype: np.dtype) -> dict:
    vision = tower_settings(config.vision) | {
        "projection_dim": config.vision.embed_dim,
        "num_channels": 3,
        "image_size": config.vision.image_size,
        "patch_size": config.vision.patch_size,
    }
    if config.text is None:
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "dtype": dtype.name,
            **vision,
        }
    end = min(_END_OF_TEXT, config.text.vocab_size - 1)
    text = tower_settings(config.text) | {
        "projection_dim": config.text.embed_dim,
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.context_length,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": 1,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": dtype.name,
        "projection_dim": config.vision.embed_dim,
        "text_config": {"model_type": "clip_text_model", **text},
        "vision_config": {"model_type": "clip_vision_model", **vision},
    }


def tower_settings(tower) -> dict:
    """What either tower's part of config.json says of its layers."""
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "hidden_size": tower.width,
        "intermediate_size": tower.mlp_width or 4 * tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.width // tower.head_width,
        "hidden_act": names[tower.activation],
        "layer_norm_eps": tower.block.norm_epsilon,
    }


def _recognise(names: Collection[str]) -> bool:
    patch_bias = "vision_model.embeddings.patch_embedding.bias"  # of SigLIP
    return any(name.startswith("vision_model.") for name in names) and patch_bias not in names


TRANSFORMERS = Format(
    name="transformers",
    description="Hugging Face CLIPModel or CLIPVisionModelWithProjection: a folder",
    recognise=_recognise,
    infer_config=_infer,
    rules=RULES,
    ignored=IGNORED,
    suffixes=(),
    settings_file=SETTINGS_FILE,
    folder_tensors="model.safetensors",
    make_settings=_make_settings,
    make_more_files=processor_files,
    why_not=why_not_image_tower,
)
