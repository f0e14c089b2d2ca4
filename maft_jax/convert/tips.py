"""TIPS and TIPSv2: scenic's .npz, PyTorch's .npz, and the folders of the Hugging Face hub.

Of the two .npz layouts a model has two files, NAME_vision.npz and NAME_text.npz: naming either
reads both. A layout tells the arithmetic too: scenic's weights are computed with tanh GELU, as they
were trained, and PyTorch's with GELU; epsilon of the text tower's LayerNorm is 1e-6 and 1e-5.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, heads_beside, shape_of
from maft_jax.convert.openai import count_layers
from maft_jax.convert.prefixes import with_or_without_params
from maft_jax.convert.rules import Rule
from maft_jax.convert.tips_tables import scenic_rules, temperature_rule, torch_rules
from maft_jax.convert.transformers_clip import SETTINGS_FILE
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.tips_text import TipsTextConfig
from maft_jax.models.towers.tips import PUBLISHED_LOGIT_SCALE, TipsConfig

_SCENIC, _TORCH = ("gelu_tanh", 1e-6), ("gelu", 1e-5)
"""Activation of the image tower's MLPs, and epsilon of the text tower's LayerNorm."""
_HEAD_WIDTHS = {384: 64, 768: 64, 1024: 64, 1152: 72, 1536: 64}
"""Of the published towers, by their width; image and text towers are alike."""
_PARTS = {"_vision": "_text", "_text": "_vision"}
_OF_TEXT = re.compile(r"(token_emb|transformer|text_encoder_norm|ln_final|temperature)")
_TEMPERATURES = ("temperature", "temperature_contrastive", "contrastive_loss_temperature")


def _infer_scenic(source: WeightsSource, choices: Choices) -> ClipConfig:
    tokens, blocks = "encoder/ToTokenSequence_0/", "transformer/encoderblock_"
    query = "MultiHeadDotProductAttention_0/query/kernel"
    gate = f"encoder/{blocks}0/FFNSwiGluFused_0/Dense_0/bias"
    gated = gate in source.tensors
    hidden = gate if gated else f"encoder/{blocks}0/MlpBlock_0/Dense_0/bias"
    patches = shape_of(source, f"{tokens}embedding/kernel", 4)
    table = shape_of(source, f"{tokens}posembed_input", 4)
    head_width = shape_of(source, f"encoder/{blocks}0/{query}", 3)[2]
    if choices.head_width not in (None, head_width):
        raise ValueError(
            f"{source.path}: head_width={choices.head_width}: its tensors have heads of "
            f"{head_width}; leave it out"
        )
    temperature, convention = _temperature(source), _convention(choices, _SCENIC)
    vision = TipsConfig(
        width=patches[3],
        layers=_count(source, f"encoder/{blocks}"),
        patch_size=patches[0],
        image_size=_square_side(source, table[1], table[2]) * patches[0],
        mlp_width=shape_of(source, hidden, 1)[0],
        head_width=head_width,
        activation=convention[0],
        gated=gated,
        logit_scale=1 / temperature,
    )
    if "token_emb/emb_var" not in source.tensors:
        return ClipConfig(vision, None)
    embedding = shape_of(source, "token_emb/emb_var", 2)
    text = TipsTextConfig(
        width=embedding[1],
        layers=_count(source, blocks),
        vocab_size=embedding[0],
        mlp_width=shape_of(source, f"{blocks}0/MlpBlock_0/Dense_0/bias", 1)[0],
        head_width=shape_of(source, f"{blocks}0/{query}", 3)[2],
        norm_epsilon=convention[1],
    )
    return ClipConfig(vision, text)


def _count(source: WeightsSource, prefix: str) -> int:
    numbers = re.compile(re.escape(prefix) + r"(\d+)/")
    return max((int(m[1]) for name in source.tensors if (m := numbers.match(name))), default=-1) + 1


def _square_side(source: WeightsSource, rows: int, columns: int) -> int:
    if rows != columns:
        raise ValueError(
            f"{source.path}: positions of {rows}x{columns} patches; expected those of a square"
        )
    return rows


def _infer_torch(
    source: WeightsSource,
    choices: Choices,
    image: str = "",
    text: str = "",
    temperature: float | None = None,
) -> ClipConfig:
    patches = shape_of(source, f"{image}patch_embed.proj.weight", 4)
    gate, convention = f"{image}blocks.0.mlp.w12.bias", _convention(choices, _TORCH)
    gated = gate in source.tensors
    hidden = shape_of(source, gate if gated else f"{image}blocks.0.mlp.fc1.bias", 1)[0]
    rows = shape_of(source, f"{image}pos_embed", 3)[1] - 1
    stated = heads_beside(source, "num_heads", patches[0], SETTINGS_FILE)
    side = math.isqrt(max(rows, 0))
    vision = TipsConfig(
        width=patches[0],
        layers=count_layers(source.tensors, f"{image}blocks."),
        patch_size=patches[2],
        image_size=_square_side(source, side, rows // max(side, 1)) * patches[2],
        mlp_width=hidden // 2 if gated else hidden,
        head_width=_head_width(source, patches[0], choices.head_width or stated),
        activation=convention[0],
        gated=gated,
        logit_scale=1 / (_temperature(source) if temperature is None else temperature),
    )
    if f"{text}token_embedding.weight" not in source.tensors:
        return ClipConfig(vision, None)
    embedding = shape_of(source, f"{text}token_embedding.weight", 2)
    hidden = shape_of(source, f"{text}transformer.resblocks.0.mlp.c_fc.bias", 1)[0]
    stated = heads_beside(source, "text_num_heads", embedding[1], SETTINGS_FILE)
    tower = TipsTextConfig(
        width=embedding[1],
        layers=count_layers(source.tensors, f"{text}transformer.resblocks."),
        vocab_size=embedding[0],
        mlp_width=hidden,
        head_width=_head_width(source, embedding[1], stated or choices.head_width),
        norm_epsilon=convention[1],
    )
    return ClipConfig(vision, tower)


def _convention(choices: Choices, of_layout: tuple[str, float]) -> tuple[str, float]:
    """What the layout means, unless the caller states the other one by its activation."""
    conventions = dict([_SCENIC, _TORCH])
    if choices.activation is None:
        return of_layout
    if choices.activation not in conventions:
        raise ValueError(
            f"activation={choices.activation}: TIPS is computed with gelu_tanh in Flax and with "
            "gelu in PyTorch; state one of these or none"
        )
    return choices.activation, conventions[choices.activation]


def _as_stated(config: ClipConfig, choices: Choices) -> ClipConfig:
    """Of our own metadata, like _infer_scenic and _infer_torch of what tensors tell."""
    vision, text = config.vision, config.text
    if choices.activation is not None:
        activation, epsilon = _convention(choices, _SCENIC)
        vision = dataclasses.replace(vision, activation=activation)
        text = text and dataclasses.replace(text, norm_epsilon=epsilon)
    if choices.head_width is not None:
        vision = dataclasses.replace(vision, head_width=choices.head_width)
    return dataclasses.replace(config, vision=vision, text=text)


def _head_width(source: WeightsSource, width: int, stated: int | None) -> int:
    head_width = stated or _HEAD_WIDTHS.get(width)
    if head_width is None or width % head_width:
        raise ValueError(
            f"{source.path}: a tower of width {width}, whose tensors do not tell how wide its "
            "heads are: state a divisor (head_width), or num_heads and text_num_heads in a "
            f"{SETTINGS_FILE} beside the file; got {head_width}"
        )
    return head_width


def _temperature(source: WeightsSource) -> float:
    """The divisor of similarities, else the published one."""
    for name in _TEMPERATURES:
        if name in source.tensors:
            value = float(source.tensors[name].read())
            if not 0 < value < math.inf:
                raise ValueError(f"{source.path}: {name}: expected a positive number, got {value}")
            return value
    return 1 / PUBLISHED_LOGIT_SCALE


def _infer_hub(source: WeightsSource, choices: Choices) -> ClipConfig:
    if SETTINGS_FILE not in source.settings:
        return _infer_torch(source, choices, "vision_encoder.", "text_encoder.")
    where = f"{source.path}: {SETTINGS_FILE} beside it"
    settings = source.settings[SETTINGS_FILE]()
    parts = [settings.get(f"{part}_config") for part in ("vision", "text")]
    if settings.get("model_type") != "tipsv2" or not all(isinstance(x, Mapping) for x in parts):
        raise ValueError(
            f"{where}: expected model_type tipsv2 with vision_config and text_config, as "
            f"transformers writes it; got model_type {settings.get('model_type')!r:.40}"
        )
    temperature = settings.get("temperature_init_value", 1 / PUBLISHED_LOGIT_SCALE)
    if type(temperature) not in (int, float) or not 0 < temperature < math.inf:
        raise ValueError(
            f"{where}: temperature_init_value: expected a positive number, got {temperature!r:.40}"
        )
    stated = [_stated_head_width(x, source, where) for x in parts]
    config = _infer_torch(
        source,
        dataclasses.replace(choices, head_width=choices.head_width or stated[0]),
        "vision_encoder.",
        "text_encoder.",
        float(temperature),
    )
    if config.text is None:
        return config
    text = dataclasses.replace(config.text, head_width=stated[1])
    return dataclasses.replace(config, text=text)


def _hub_rules(config: ClipConfig) -> list[Rule]:
    """Its tensors, and the temperature, which the settings have."""
    temperature = np.asarray(np.log(config.vision.logit_scale), np.float32)
    return [
        *torch_rules(config, "vision_encoder.", "text_encoder."),
        Rule((), "logit_scale", lambda shape: temperature),
    ]


def _stated_head_width(settings: Mapping, source: WeightsSource, where: str) -> int:
    width, heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    if not all(type(x) is int and x > 0 for x in (width, heads)) or width % heads:
        raise ValueError(
            f"{where}: expected hidden_size and num_attention_heads that divides it, got "
            f"{width!r:.40} and {heads!r:.40}"
        )
    return width // heads


def _make_hub_settings(config: ClipConfig) -> dict:
    def tower(part, name: str) -> dict:
        return {
            "model_type": f"tipsv2_{name}_model",
            "hidden_size": part.width,
            "num_hidden_layers": part.layers,
            "num_attention_heads": part.width // part.head_width,
        }

    vision, text = config.vision, config.text
    # SwiGLU is two thirds as wide as said, in steps of eight
    hidden = 3 * vision.mlp_width // 2 if vision.gated else vision.mlp_width
    ratio = hidden / vision.width
    if int(vision.width * ratio) != hidden:  # half a unit against rounding
        ratio = (hidden + 0.5) / vision.width
    return {
        "architectures": ["Tipsv2Model"],
        "model_type": "tipsv2",
        "temperature_init_value": 1 / vision.logit_scale,
        "vision_config": {
            **tower(vision, "vision"),
            "mlp_ratio": ratio,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "use_swiglu_ffn": vision.gated,
            "num_register_tokens": 1,
        },
        "text_config": {
            **tower(text, "text"),
            "intermediate_size": text.mlp_width,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
        },
    }


def _why_not(config: ClipConfig, convention: tuple[str, float]) -> str | None:
    found = config.vision.activation, config.text.norm_epsilon if config.text else convention[1]
    if found == convention:
        return None
    return (
        f"it is computed with {convention[0]} and an epsilon of the text of {convention[1]}, and "
        f"these weights were read for {found[0]} and {found[1]}; read them with "
        f"activation={convention[0]}"
    )


def _why_not_hub(config: ClipConfig) -> str | None:
    if config.text is None:
        return "there is no text tower; merge these weights with one that has"
    if config.vision.gated and config.vision.mlp_width % 8:
        return f"its SwiGLU is a multiple of eight wide, not {config.vision.mlp_width}"
    return _why_not(config, _TORCH)


def companion_of(file: pathlib.Path) -> pathlib.Path | None:
    """The file with the other tower, of NAME_vision.npz and NAME_text.npz."""
    for part, other in _PARTS.items():
        if file.suffix == ".npz" and file.stem.endswith(part):
            return file.with_name(f"{file.stem.removesuffix(part)}{other}{file.suffix}")
    return None


def holds_a_part(names: Collection[str]) -> bool:
    """Whether tensors of these names are one tower of TIPS alone, in one of the .npz layouts."""
    names = {*names, *with_or_without_params(names)}
    text = {"token_emb/emb_var", "token_embedding.weight"} & names
    image = any(recognise(names) for recognise in (_recognise_scenic, _recognise_torch))
    return bool(text) != image


def split_files(path: pathlib.Path, names: Collection[str]) -> Mapping[pathlib.Path, list[str]]:
    """Which tensors go into which file: of NAME_vision.npz and NAME_text.npz each has its tower."""
    companion = companion_of(path)
    of_text = [name for name in names if _OF_TEXT.match(name)]
    if companion is None or not of_text:
        return {path: list(names)}
    of_image = [name for name in names if name not in of_text]
    return {
        path: of_text if path.stem.endswith("_text") else of_image,
        companion: of_image if path.stem.endswith("_text") else of_text,
    }


def _recognise_scenic(names: Collection[str]) -> bool:
    return "encoder/ToTokenSequence_0/cls" in names


def _recognise_torch(names: Collection[str]) -> bool:
    return {"register_tokens", "patch_embed.proj.weight", "mask_token"} <= set(names)


_TOWERS = {"tower": TipsConfig, "text_tower": TipsTextConfig, "as_stated": _as_stated}
_FILES = {"suffixes": (".npz", ".safetensors"), "split_files": split_files, **_TOWERS}

TIPS_SCENIC = Format(
    name="tips",
    description="TIPS as scenic keeps it: NAME_vision.npz and NAME_text.npz",
    recognise=_recognise_scenic,
    infer_config=_infer_scenic,
    rules_for=scenic_rules,
    why_not=lambda config: _why_not(config, _SCENIC),
    **_FILES,
)
TIPS_TORCH = Format(
    name="tips_torch",
    description="TIPS as its PyTorch code keeps it: NAME_vision.npz and NAME_text.npz",
    recognise=_recognise_torch,
    infer_config=_infer_torch,
    rules_for=lambda config: [*torch_rules(config), temperature_rule("temperature")],
    why_not=lambda config: _why_not(config, _TORCH),
    **_FILES,
)
TIPS_HUB = Format(
    name="tips_hub",
    description="TIPSv2 as a folder of the hub, which transformers reads (Tipsv2Model)",
    recognise=lambda names: "vision_encoder.register_tokens" in names,
    infer_config=_infer_hub,
    rules_for=_hub_rules,
    suffixes=(),
    settings_file=SETTINGS_FILE,
    folder_tensors="model.safetensors",
    make_settings=lambda config, dtype: _make_hub_settings(config),
    why_not=_why_not_hub,
    **_TOWERS,
)
TIPS_FORMATS = [TIPS_SCENIC, TIPS_TORCH, TIPS_HUB]
