"""big_vision's .npz layout: image towers with a class token (pool_type="tok").

Its Vision Transformer differs from CLIP's: tanh GELU, LayerNorm of epsilon 1e-6, biases of the
patch convolution and of the head, no LayerNorm after the embedding, no position for the class
token, images in [-1, 1]. VisionConfig has a field for each, so towers of one kind cannot be written
as the other. The text tower has no causal mask and is read at its last token, with other
tokenizers: TextConfig cannot describe it, and it is left out.
"""

import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, shape_of
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.towers.clip_vit import VisionConfig

IMAGE = "params/img/"
ENCODER = f"{IMAGE}Transformer/"
ARCHITECTURE = {
    "activation": "gelu_tanh",
    "norm_epsilon": 1e-6,
    "has_ln_pre": False,
    "has_patch_bias": True,
    "pixel_range": "minus_one_to_one",
}
"""Fields of VisionConfig that tensors do not tell and that are the same in every such tower."""

TRAINER_STATE = Ignored(r"(opt|chrono)/.*|opt|chrono", "the trainer's own state")
IGNORED = [
    Ignored(
        r"params/txt/.*",
        "big_vision's text tower, which ours cannot represent: no causal mask, read at its last "
        "token, another tokenizer",
    ),
    Ignored(r"params/[tb]", "temperature and bias between image and text; without text, no use"),
    TRAINER_STATE,
]


def encoder_rules(encoder: str, tower: str, norm: str, stacked: bool) -> list[Rule]:
    """Of an encoder: its blocks, stacked or not, and the last LayerNorm, `norm` of ours."""
    theirs = f"{encoder}encoderblock/" if stacked else f"{encoder}encoderblock_{{}}/"
    norms = {"LayerNorm_0": "ln_1", "LayerNorm_1": "ln_2"}
    return [
        *attention_and_mlp_rules(theirs, f"{tower}/blocks_{{}}/", norms, stacked),
        Rule(f"{encoder}encoder_norm/scale", f"{tower}/{norm}/scale"),
        Rule(f"{encoder}encoder_norm/bias", f"{tower}/{norm}/bias"),
    ]


def attention_and_mlp_rules(
    theirs: str, ours: str, norms: Mapping[str, str], stacked: bool = False
) -> list[Rule]:
    """Of a block or a pooling head, whose query, key and value are one of ours."""
    attention = f"{theirs}MultiHeadDotProductAttention_0/"
    qkv = [f"{attention}{part}" for part in ("query", "key", "value")]

    def rule(foreign, path, *functions):
        return Rule(foreign, ours + path, *functions, stacked=stacked)

    names = {
        **{f"{theirs}{foreign}/": f"{path}/" for foreign, path in norms.items()},
        f"{theirs}MlpBlock_0/Dense_0/": "mlp/c_fc/",
        f"{theirs}MlpBlock_0/Dense_1/": "mlp/c_proj/",
        f"{attention}out/": "attn/out_proj/",
    }
    same = [
        rule(f"{foreign}{kind}", f"{path}{kind}")
        for foreign, path in names.items()
        for kind in (("scale" if path.startswith("ln") else "kernel"), "bias")
    ]
    return [
        *same,
        rule(
            tuple(f"{part}/kernel" for part in qkv),
            "attn/in_proj/kernel",
            lambda shape, *parts: np.stack(parts, axis=1),
            lambda x: tuple(x[:, part] for part in range(3)),
        ),
        rule(
            tuple(f"{part}/bias" for part in qkv),
            "attn/in_proj/bias",
            lambda shape, *parts: np.stack(parts),
            lambda x: tuple(x),
        ),
    ]


def _patch_positions(x: np.ndarray) -> np.ndarray:
    if np.any(x[0]):
        raise ValueError("the class token has a position, for which big_vision has no place")
    return x[None, 1:]


def _tower_rules(stacked: bool, head: bool) -> list[Rule]:
    if head:
        projection = [
            Rule(f"{IMAGE}head/kernel", "visual/proj"),
            Rule(f"{IMAGE}head/bias", "visual/proj_bias"),
        ]
    else:
        projection = [Rule((), "visual/proj", lambda shape: np.eye(*shape, dtype=np.float32))]
    return [
        Rule(f"{IMAGE}embedding/kernel", "visual/patch_kernel"),
        Rule(f"{IMAGE}embedding/bias", "visual/patch_bias"),
        Rule(
            f"{IMAGE}cls",
            "visual/class_embedding",
            lambda shape, x: x.reshape(shape),
            lambda x: x[None, None],
        ),
        Rule(
            f"{IMAGE}pos_embedding",
            "visual/position_embedding",
            lambda shape, x: np.concatenate([np.zeros_like(x[0, :1]), x[0]]),
            _patch_positions,
        ),
        *encoder_rules(ENCODER, "visual", "ln_post", stacked),
        *projection,
    ]


def _refuse_other_poolings(source: WeightsSource) -> None:
    shapes = source.shapes
    reason = None
    if any(name.startswith(f"{IMAGE}MAPHead_0/") for name in shapes):
        reason = (
            "it pools with an attention head (MAPHead, pool_type='map'), as SigLIP does, which has "
            "a text tower beside it"
        )
    elif any(name.startswith(f"{IMAGE}pre_logits/") for name in shapes):
        reason = "it has a tanh layer before its head (rep_size)"
    elif f"{IMAGE}cls" not in shapes:
        reason = "it has no class token (pool_type='gap' or '0')"
    elif f"{IMAGE}pos_embedding" not in shapes:
        reason = "it has no learned position embedding (posemb='sincos2d')"
    if reason:
        raise ValueError(
            f"{source.path}: a big_vision image tower that maft_jax cannot represent: {reason}; "
            "expected a ViT with pool_type='tok' and posemb='learn', whose class token proposals "
            "are copies of"
        )


def _infer_config(source: WeightsSource, choices: Choices) -> ClipConfig:
    _refuse_other_poolings(source)
    shapes = source.shapes
    stacked = any(name.startswith(f"{ENCODER}encoderblock/") for name in shapes)
    block = f"{ENCODER}encoderblock/" if stacked else f"{ENCODER}encoderblock_0/"
    query = f"{block}MultiHeadDotProductAttention_0/query/kernel"
    mlp = f"{block}MlpBlock_0/Dense_0/bias"
    patch_size, _, _, width = shape_of(source, f"{IMAGE}embedding/kernel", 4)
    rows = shape_of(source, f"{IMAGE}pos_embedding", 3)[1]
    queries, hidden = shape_of(source, query, 3 + stacked), shape_of(source, mlp, 1 + stacked)
    grid = math.isqrt(rows)
    if grid * grid != rows:
        raise ValueError(
            f"{source.path}: {IMAGE}pos_embedding has {rows} rows; expected those of a square grid"
        )
    layers = queries[0] if stacked else count_blocks(shapes, ENCODER)
    head = shapes.get(f"{IMAGE}head/kernel")
    vision = VisionConfig(
        width=width,
        layers=layers,
        patch_size=patch_size,
        image_size=grid * patch_size,
        embed_dim=width if head is None else head[-1],
        head_width=queries[-1],
        mlp_width=None if hidden[-1] == 4 * width else hidden[-1],
        has_proj_bias=head is not None,
        **(ARCHITECTURE | ({"activation": choices.activation} if choices.activation else {})),
    )
    return ClipConfig(vision, None)


def count_blocks(names: Collection[str], encoder: str) -> int:
    """Of the per-block layout."""
    block = re.compile(re.escape(f"{encoder}encoderblock_") + r"(\d+)/")
    return max((int(match[1]) for name in names if (match := block.match(name))), default=-1) + 1


def _why_not(config: ClipConfig, head: bool) -> str | None:
    """Why a tower is none that big_vision's code computes."""
    vision = config.vision
    needed = ARCHITECTURE | {"has_proj_bias": head}
    differing = [
        f"{name}={getattr(vision, name)!r}, there {value!r}"
        for name, value in needed.items()
        if getattr(vision, name) != value
    ]
    if not head and vision.embed_dim != vision.width:
        differing.append(f"embed_dim={vision.embed_dim}, there the width, {vision.width}")
    if config.text is not None:
        differing.append("a causal text tower, there one without mask")
    return "; ".join(differing) or None


def has_both_siglip_towers(names: Collection[str]) -> bool:
    """Whether these are tensors of a SigLIP, whose layouts are others."""
    return f"{IMAGE}MAPHead_0/probe" in names and "params/txt/Embed_0/embedding" in names


def _format(stacked: bool, head: bool) -> Format:
    block = "encoderblock/" if stacked else "encoderblock_0/"

    def recognise(names: Collection[str]) -> bool:
        found = any(name.startswith(f"{ENCODER}{block}") for name in names)
        return (
            found and not has_both_siglip_towers(names) and (f"{IMAGE}head/kernel" in names) == head
        )

    parts = ["big_vision", *(["stacked"] if stacked else []), *([] if head else ["headless"])]
    return Format(
        name="_".join(parts),
        description=(
            f"big_vision ViT with a class token, {'stacked' if stacked else 'per-block'} layers, "
            f"{'with' if head else 'without'} a head; image tower alone"
        ),
        recognise=recognise,
        infer_config=_infer_config,
        rules=_tower_rules(stacked, head),
        ignored=IGNORED,
        suffixes=(".npz",),
        why_not=lambda config: _why_not(config, head),
    )


BIG_VISION_FORMATS = [_format(stacked, head) for stacked in (False, True) for head in (True, False)]
