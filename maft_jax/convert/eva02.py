"""EVA-02 CLIP: open_clip's layout, whose image tower is timm's, and that of EVA's authors.

Tensors do not tell how many heads there are: published towers have heads of 64, of others
open_clip_config.json beside the file (vision_cfg.head_width, text_cfg.heads) or the caller says it.
"""

import math
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert import open_clip
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, heads_beside, shape_of
from maft_jax.convert.openai import count_layers, text_rules
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.convert.transformers_clip import SETTINGS_FILE
from maft_jax.models.clip import ClipConfig
from maft_jax.models.layers import HEAD_WIDTH
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.eva02 import FIRST_MASK_LOGIT_SCALE, Eva02Config

_PUBLISHED_WIDTHS = (768, 1024)
_TIMM_NAMES = {
    (768, 16, 224): "eva02_base_patch16_clip_224",
    (1024, 14, 224): "eva02_large_patch14_clip_224",
    (1024, 14, 336): "eva02_large_patch14_clip_336",
}
"""Of the published towers, by width, patch and image size."""

IGNORED = [
    Ignored(r".*\brope\..*", "angles of rotary positions, which follow from the grid"),
    Ignored(r"text\.attn_mask", "the causal mask of the text tower, which is always the same"),
]

_OF_TIMM = {
    "attn.q_proj.bias": "attn/in_proj/q_bias",
    "attn.v_proj.bias": "attn/in_proj/v_bias",
    "attn.norm": "attn/out_proj/ln_heads",
    "mlp.norm": "mlp/ln_hidden",
    "mlp.fc2": "mlp/c_proj",
}
_OF_AUTHORS = {
    "attn.q_bias": "attn/in_proj/q_bias",
    "attn.v_bias": "attn/in_proj/v_bias",
    "attn.inner_attn_ln": "attn/out_proj/ln_heads",
    "mlp.ffn_ln": "mlp/ln_hidden",
    "mlp.w3": "mlp/c_proj",
}
"""What the two layouts call differently, and what it is here."""


def _transposed(shape, x):
    return x.T


def _module(foreign: str, ours: str) -> list[Rule]:
    """Weight and bias of a LayerNorm or of a matrix, which torch keeps as [out, in]."""
    if ours.rsplit("/", 1)[-1].startswith("ln_"):
        weight = Rule(f"{foreign}.weight", f"{ours}/scale")
    else:
        weight = Rule(f"{foreign}.weight", f"{ours}/kernel", _transposed, lambda x: x.T)
    return [weight, Rule(f"{foreign}.bias", f"{ours}/bias")]


def _gated_rules(gate: str, value: str, ours: str) -> list[Rule]:
    return [
        Rule(
            (f"{gate}.weight", f"{value}.weight"),
            f"{ours}/kernel",
            lambda shape, *parts: np.stack([x.T for x in parts], axis=1),
            lambda x: (x[:, 0].T, x[:, 1].T),
        ),
        Rule(
            (f"{gate}.bias", f"{value}.bias"),
            f"{ours}/bias",
            lambda shape, *parts: np.stack(parts),
            lambda x: tuple(x),
        ),
    ]


def _block_rules(foreign: str, names: Mapping[str, str], gated: tuple[str, str]) -> list[Rule]:
    ours = "visual/blocks_{}/"
    rules = [
        Rule(
            tuple(f"{foreign}attn.{part}_proj.weight" for part in "qkv"),
            f"{ours}attn/in_proj/kernel",
            lambda shape, *parts: np.stack([x.T for x in parts], axis=1).reshape(shape),
            lambda x: tuple(x[:, part].reshape(len(x), -1).T for part in range(3)),
        ),
        Rule(
            f"{foreign}attn.proj.weight",
            f"{ours}attn/out_proj/kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(-1, x.shape[2]).T,
        ),
        Rule(f"{foreign}attn.proj.bias", f"{ours}attn/out_proj/bias"),
        Rule(
            f"{foreign}mask_logit_scale",
            f"{ours}mask_logit_scale",
            if_absent=lambda shape: np.full(shape, FIRST_MASK_LOGIT_SCALE, np.float32),
        ),
        *_module(f"{foreign}norm1", f"{ours}ln_1"),
        *_module(f"{foreign}norm2", f"{ours}ln_2"),
        *_gated_rules(*(f"{foreign}mlp.{name}" for name in gated), f"{ours}mlp/c_gated"),
    ]
    for name, path in names.items():
        if path.endswith("_bias"):
            to_heads = {"to_ours": lambda shape, x: x.reshape(shape), "to_foreign": np.ravel}
            rules.append(Rule(foreign + name, ours + path, **to_heads))
        else:
            rules += _module(foreign + name, ours + path)
    return rules


def _rules(trunk: str, names: Mapping[str, str], gated: tuple[str, str]) -> list[Rule]:
    return [
        Rule("logit_scale", "logit_scale"),
        Rule(
            f"{trunk}cls_token",
            "visual/class_embedding",
            lambda shape, x: x.reshape(shape),
            lambda x: x[None, None],
        ),
        Rule(
            f"{trunk}pos_embed",
            "visual/position_embedding",
            lambda shape, x: x.reshape(shape),
            lambda x: x[None],
        ),
        Rule(
            f"{trunk}patch_embed.proj.weight",
            "visual/patch_kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(f"{trunk}patch_embed.proj.bias", "visual/patch_bias"),
        *_block_rules(f"{trunk}blocks.{{}}.", names, gated),
        *_module(f"{trunk}norm", "visual/ln_post"),
        Rule(f"{trunk}head.weight", "visual/proj", _transposed, lambda x: x.T),
        Rule(f"{trunk}head.bias", "visual/proj_bias"),
        *text_rules("text."),
    ]


def _infer(source: WeightsSource, choices: Choices, trunk: str, gate: str) -> ClipConfig:
    if choices.activation not in (None, "gelu"):
        raise ValueError(
            f"{source.path}: activation={choices.activation}: EVA-02's image tower has SwiGLU and "
            "its text tower gelu; state none"
        )
    settings = _settings(source)
    shapes = source.shapes
    patches, positions, hidden, head = (
        shape_of(source, name, rank)
        for name, rank in (
            (f"{trunk}patch_embed.proj.weight", 4),
            (f"{trunk}pos_embed", 3),
            (f"{trunk}blocks.0.mlp.{gate}.weight", 2),
            (f"{trunk}head.weight", 2),
        )
    )
    tokens, context = (
        shape_of(source, f"text.{name}", 2)
        for name in ("token_embedding.weight", "positional_embedding")
    )
    grid = math.isqrt(max(positions[1] - 1, 0))
    vision = Eva02Config(
        width=patches[0],
        layers=count_layers(shapes, f"{trunk}blocks."),
        patch_size=patches[2],
        image_size=grid * patches[2],
        embed_dim=head[0],
        mlp_width=hidden[0],
        head_width=_head_width(source, choices, settings, patches[0]),
        logit_scale=open_clip.capped_logit_scale(source),
    )
    hidden = shapes.get("text.transformer.resblocks.0.mlp.c_fc.bias", (4 * tokens[1],))[0]
    text = TextConfig(
        width=tokens[1],
        layers=count_layers(shapes, "text.transformer.resblocks."),
        vocab_size=tokens[0],
        context_length=context[0],
        embed_dim=head[0],
        head_width=_text_head_width(source, settings, tokens[1]),
        mlp_width=None if hidden == 4 * tokens[1] else hidden,
        activation="gelu",
    )
    return ClipConfig(vision, text)


def _settings(source: WeightsSource) -> Mapping:
    """model_cfg of open_clip_config.json, if it lies beside the file.

    Raises:
        ValueError: it is of another kind of model.
    """
    if open_clip.SETTINGS_FILE not in source.settings:
        return {}
    model, where = open_clip.models_settings(source)
    name = model["vision_cfg"].get("timm_model_name")
    wanted = {"timm_pool": "token", "timm_proj": None}
    if not isinstance(name, str) or not name.startswith("eva02_"):
        raise ValueError(f"{where}: timm_model_name: expected one that begins eva02_, got {name!r}")
    for key, value in wanted.items():
        if (found := model["vision_cfg"].get(key) or None) != value:
            raise ValueError(f"{where}: vision_cfg: {key}: expected {value!r}, got {found!r:.40}")
    return model


def _head_width(source, choices: Choices, settings: Mapping, width: int) -> int:
    stated = choices.head_width or settings.get("vision_cfg", {}).get("head_width")
    stated = stated or heads_beside(source, "num_heads", width, SETTINGS_FILE)
    if stated is None and width in _PUBLISHED_WIDTHS:
        return HEAD_WIDTH
    if type(stated) is not int or stated < 1 or width % stated:
        raise ValueError(
            f"{source.path}: an EVA-02 of width {width}, whose tensors do not tell how wide its "
            "heads are: state a divisor (head_width), vision_cfg.head_width in "
            f"{open_clip.SETTINGS_FILE} or num_heads in {SETTINGS_FILE} beside the file; got "
            f"{stated!r:.40}"
        )
    return stated


def _text_head_width(source, settings: Mapping, width: int) -> int:
    if beside := heads_beside(source, "text_num_heads", width, SETTINGS_FILE):
        return beside
    heads = settings.get("text_cfg", {}).get("heads", max(width // HEAD_WIDTH, 1))
    if type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(
            f"{source.path}: a text tower of width {width}; expected text_cfg.heads in "
            f"{open_clip.SETTINGS_FILE} beside the file to divide it, got {heads!r:.40}"
        )
    return width // heads


def timm_name(vision: Eva02Config) -> str:
    """The published model of this size, else one whose name says the patch size alone."""
    nominal = {14: "eva02_large_patch14_clip_224", 16: "eva02_base_patch16_clip_224"}
    size = (vision.width, vision.patch_size, vision.image_size)
    return _TIMM_NAMES.get(size, nominal.get(vision.patch_size, nominal[14]))


def _make_settings(config: ClipConfig) -> dict:
    vision, text = config.vision, config.text
    return {
        "model_cfg": {
            "embed_dim": vision.embed_dim,
            "vision_cfg": {
                "image_size": vision.image_size,
                "head_width": vision.head_width,
                "timm_model_name": timm_name(vision),
                "timm_model_pretrained": False,
                "timm_pool": "token",
                "timm_proj": None,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.width // text.head_width,
                "layers": text.layers,
            },
            "custom_text": True,
        },
        "preprocess_cfg": open_clip.PREPROCESSING,
    }


def _why_not(config: ClipConfig) -> str | None:
    text = config.text
    if text is None:
        return "there is no text tower; merge these weights with one that has"
    if text.activation != "gelu" or text.mlp_width not in (None, 4 * text.width):
        return "its text tower computes gelu, in MLPs four times as wide as the tower"
    return None


EVA02_OPEN_CLIP = Format(
    name="open_clip",
    description="open_clip's EVA02: timm's names of the image tower, the text tower in a module",
    recognise=lambda names: "visual.trunk.blocks.0.mlp.fc1_g.weight" in names,
    infer_config=lambda source, choices: _infer(source, choices, "visual.trunk.", "fc1_g"),
    rules=_rules("visual.trunk.", _OF_TIMM, ("fc1_g", "fc1_x")),
    ignored=IGNORED,
    settings_file=open_clip.SETTINGS_FILE,
    folder_tensors="open_clip_model.safetensors",
    make_settings=lambda config, dtype: _make_settings(config),
    why_not=_why_not,
    tower=Eva02Config,
)


def _recognise_authors(names: Collection[str]) -> bool:
    return {"visual.blocks.0.mlp.w1.weight", "visual.blocks.0.attn.q_proj.weight"} <= set(names)


EVA02_AUTHORS = Format(
    name="eva_clip",
    description="EVA-02 CLIP as its authors and MaskCLIP++ name it",
    recognise=_recognise_authors,
    infer_config=lambda source, choices: _infer(source, choices, "visual.", "w1"),
    rules=_rules("visual.", _OF_AUTHORS, ("w1", "w2")),
    ignored=IGNORED,
    settings_file=open_clip.SETTINGS_FILE,
    why_not=_why_not,
    tower=Eva02Config,
)

EVA02_FORMATS = [EVA02_OPEN_CLIP, EVA02_AUTHORS]
