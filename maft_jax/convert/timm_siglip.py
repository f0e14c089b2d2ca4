"""SigLIP's image tower as timm has it, alone or as the trunk of open_clip's model."""

import re

import numpy as np

from maft_jax.convert.foreign_format import WeightsSource, shape_of
from maft_jax.convert.openai import count_layers
from maft_jax.convert.rules import Rule
from maft_jax.convert.siglip import (
    image_grid,
    matrix,
    merged_matrix,
    mlp_width,
    same_values,
    transposed,
)
from maft_jax.models.towers.siglip import SigLipVisionConfig

PUBLISHED_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
PUBLISHED_WIDTHS = {"base": 768, "large": 1024, "so400m": 1152, "giantopt": 1536}
_EXACT = re.compile(r"base_patch16|large_patch16_siglip_(256|384)|so400m_patch14")
"""Of timm's names of SigLIPs, those that it gives the exact GELU."""


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


def norm_rules(foreign: str, ours: str) -> list[Rule]:
    return [Rule(f"{foreign}.weight", f"{ours}/scale"), Rule(f"{foreign}.bias", f"{ours}/bias")]


def _out(foreign: str, ours: str) -> list[Rule]:
    return [
        Rule(f"{foreign}.weight", f"{ours}/kernel", transposed, merged_matrix),
        Rule(f"{foreign}.bias", f"{ours}/bias"),
    ]


def trunk_rules(trunk: str) -> list[Rule]:
    """Of the whole tower, whose names begin so."""
    block, pool = f"{trunk}blocks.{{}}.", f"{trunk}attn_pool."
    return [
        Rule(
            f"{trunk}patch_embed.proj.weight",
            "visual/patch_kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(f"{trunk}patch_embed.proj.bias", "visual/patch_bias"),
        Rule(f"{trunk}pos_embed", "visual/position_embedding", same_values, lambda x: x[None]),
        *norm_rules(f"{block}norm1", "visual/blocks_{}/ln_1"),
        Rule(f"{block}attn.qkv.weight", "visual/blocks_{}/attn/in_proj/kernel", transposed, matrix),
        Rule(
            f"{block}attn.qkv.bias",
            "visual/blocks_{}/attn/in_proj/bias",
            same_values,
            lambda x: x.reshape(-1),
        ),
        *_out(f"{block}attn.proj", "visual/blocks_{}/attn/out_proj"),
        *norm_rules(f"{block}norm2", "visual/blocks_{}/ln_2"),
        *_linear(f"{block}mlp.fc1", "visual/blocks_{}/mlp/c_fc"),
        *_linear(f"{block}mlp.fc2", "visual/blocks_{}/mlp/c_proj"),
        *norm_rules(f"{trunk}norm", "visual/ln_post"),
        Rule(f"{pool}latent", "visual/head/probe", same_values, lambda x: x[None, None]),
        Rule(
            (f"{pool}q.weight", f"{pool}kv.weight"),
            "visual/head/attn/in_proj/kernel",
            lambda shape, *parts: np.concatenate(parts).T.reshape(shape),
            _split_matrix,
        ),
        Rule(
            (f"{pool}q.bias", f"{pool}kv.bias"), "visual/head/attn/in_proj/bias", _bias, _split_bias
        ),
        *_out(f"{pool}proj", "visual/head/attn/out_proj"),
        *norm_rules(f"{pool}norm", "visual/head/ln_2"),
        *_linear(f"{pool}mlp.fc1", "visual/head/mlp/c_fc"),
        *_linear(f"{pool}mlp.fc2", "visual/head/mlp/c_proj"),
    ]


def siglip_tower(source: WeightsSource, trunk: str, head_width: int) -> SigLipVisionConfig:
    """What its tensors tell, with heads of this width."""
    width, _, patch_size, _ = shape_of(source, f"{trunk}patch_embed.proj.weight", 4)
    side = image_grid(source, shape_of(source, f"{trunk}pos_embed", 3)[1])
    (hidden,) = shape_of(source, f"{trunk}blocks.0.mlp.fc1.bias", 1)
    return SigLipVisionConfig(
        width=width,
        layers=count_layers(source.shapes, f"{trunk}blocks."),
        patch_size=patch_size,
        image_size=side * patch_size,
        head_width=head_width,
        mlp_width=mlp_width(width, hidden),
    )


def published_size(name: str, width: int) -> str | None:
    """Which of PUBLISHED_WIDTHS timm's model of this name is, if it has this width."""
    size = next((x for x in PUBLISHED_WIDTHS if f"_{x}_" in name), None)
    return size if size is not None and PUBLISHED_WIDTHS[size] == width else None


def timm_activation(name: str) -> str:
    """What timm computes in its model of this name."""
    return "gelu" if _EXACT.search(name) else "gelu_tanh"


def siglip_name(vision: SigLipVisionConfig) -> str:
    """timm's model of this size; of other sizes one that computes the same GELU."""
    sizes = {width: size for size, width in PUBLISHED_WIDTHS.items()}
    size = sizes.get(vision.width, "so400m")
    patch = vision.patch_size if vision.width in sizes else 16
    name = f"vit_{size}_patch{patch}_siglip_{vision.image_size}"
    if vision.width not in sizes and vision.activation == "gelu":
        return name.replace("so400m", "base")  # of no published size, so that it tells the GELU
    return name
