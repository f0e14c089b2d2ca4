"""big_vision's SigLIP (one tensor a layer) and SigLIP 2 (layers stacked) as .npz."""

from collections.abc import Collection

import numpy as np

from maft_jax.convert.big_vision import (
    ENCODER,
    IMAGE,
    TRAINER_STATE,
    attention_and_mlp_rules,
    count_blocks,
    encoder_rules,
    has_both_siglip_towers,
)
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, shape_of
from maft_jax.convert.rules import Rule
from maft_jax.convert.siglip import (
    image_grid,
    mlp_width,
    same_values,
    siglip_config,
    similarity_rules,
)
from maft_jax.models.clip import ClipConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.towers.siglip import SigLipVisionConfig

_TEXT = "params/txt/"
_TEXT_ENCODER = f"{_TEXT}Encoder_0/"
_HEAD = f"{IMAGE}MAPHead_0/"


_POSITIONS = f"{_TEXT}pos_embedding"
_MORE_POSITIONS = f"{_TEXT_ENCODER}pos_embedding"
"""Of some older text towers, added to the others."""


def _sum_of_positions(shape, first, second):
    return (first.astype(np.float32) + second.astype(np.float32)).reshape(shape)


def _rules(stacked: bool, has_more_positions: bool) -> list[Rule]:
    if has_more_positions:
        positions = Rule(
            (_POSITIONS, _MORE_POSITIONS),
            "text/position_embedding",
            _sum_of_positions,
            lambda x: (x[None], np.zeros_like(x[None])),
        )
    else:
        positions = _with_batch_axis(_POSITIONS, "text/position_embedding")
    return [
        *similarity_rules("params/t", "params/b", (1,)),
        Rule(f"{IMAGE}embedding/kernel", "visual/patch_kernel"),
        Rule(f"{IMAGE}embedding/bias", "visual/patch_bias"),
        _with_batch_axis(f"{IMAGE}pos_embedding", "visual/position_embedding"),
        *encoder_rules(ENCODER, "visual", "ln_post", stacked),
        Rule(f"{_HEAD}probe", "visual/head/probe", same_values, lambda x: x[None, None]),
        *attention_and_mlp_rules(_HEAD, "visual/head/", {"LayerNorm_0": "ln_2"}),
        Rule(f"{_TEXT}Embed_0/embedding", "text/token_embedding"),
        positions,
        *encoder_rules(_TEXT_ENCODER, "text", "ln_final", stacked),
        Rule(f"{_TEXT}head/kernel", "text/proj"),
        Rule(f"{_TEXT}head/bias", "text/proj_bias"),
    ]


def _with_batch_axis(foreign: str, ours: str) -> Rule:
    return Rule(foreign, ours, same_values, lambda x: x[None])


def _infer(source: WeightsSource, choices: Choices, stacked: bool) -> ClipConfig:
    if len(source.shapes.get(f"{IMAGE}embedding/kernel", ())) == 2:
        raise ValueError(
            f"{source.path}: a SigLIP 2 of big_vision's NaFlex kind, which reads each image as a "
            "sequence of patches of its own length: no grid of a fixed size, on which masks could "
            "be read. Expected SigLIP or SigLIP 2 at a fixed size, such as siglip2_b16_512"
        )
    patch_size, _, _, width = shape_of(source, f"{IMAGE}embedding/kernel", 4)
    side = image_grid(source, shape_of(source, f"{IMAGE}pos_embedding", 3)[1])
    vocab_size, text_width = shape_of(source, f"{_TEXT}Embed_0/embedding", 2)
    vision = SigLipVisionConfig(
        **_encoder(source, ENCODER, width, stacked),
        patch_size=patch_size,
        image_size=side * patch_size,
    )
    text = SigLipTextConfig(
        **_encoder(source, _TEXT_ENCODER, text_width, stacked),
        vocab_size=vocab_size,
        context_length=shape_of(source, _POSITIONS, 3)[1],
        embed_dim=width,
        has_head=f"{_TEXT}head/kernel" in source.tensors,
    )
    return siglip_config(source, choices, vision, text, ("params/t", "params/b"))


def _encoder(source: WeightsSource, encoder: str, width: int, stacked: bool) -> dict:
    block = f"{encoder}encoderblock/" if stacked else f"{encoder}encoderblock_0/"
    query = shape_of(source, f"{block}MultiHeadDotProductAttention_0/query/kernel", 3 + stacked)
    hidden = shape_of(source, f"{block}MlpBlock_0/Dense_0/bias", 1 + stacked)
    return {
        "width": width,
        "layers": query[0] if stacked else count_blocks(source.shapes, encoder),
        "head_width": query[-1],
        "mlp_width": mlp_width(width, hidden[-1]),
    }


def _why_not(config: ClipConfig) -> str | None:
    if config.text is None:
        return "there is no text tower; merge these weights with one that has"
    for tower in (config.vision, config.text):
        if (tower.activation, tower.norm_epsilon) != ("gelu_tanh", 1e-6):
            return (
                "it computes gelu_tanh and LayerNorms of epsilon 1e-6, and these weights expect "
                f"{tower.activation} and {tower.norm_epsilon}"
            )
    return None


def _format(stacked: bool, has_more_positions: bool) -> Format:
    block = "encoderblock/" if stacked else "encoderblock_0/"

    def recognise(names: Collection[str]) -> bool:
        layers = any(name.startswith(f"{ENCODER}{block}") for name in names)
        both = layers and has_both_siglip_towers(names)
        return both and (_MORE_POSITIONS in names) == has_more_positions

    return Format(
        name="big_vision_stacked" if stacked else "big_vision",
        description=f"big_vision's SigLIP, {'stacked' if stacked else 'per-block'} layers",
        recognise=recognise,
        infer_config=lambda source, choices: _infer(source, choices, stacked),
        rules=_rules(stacked, has_more_positions),
        ignored=[TRAINER_STATE],
        suffixes=(".npz",),
        why_not=_why_not,
        tower=SigLipVisionConfig,
        text_tower=SigLipTextConfig,
    )


BIG_VISION_SIGLIP_FORMATS = [
    _format(stacked, has_more_positions)
    for has_more_positions in (False, True)
    for stacked in (False, True)
]
