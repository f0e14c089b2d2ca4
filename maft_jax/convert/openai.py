"""OpenAI's CLIP layout: names, shapes, and the architecture that they imply."""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from maft_jax.convert import rules
from maft_jax.convert.foreign_format import Choices, Format, WeightsSource, shape_of
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.models.clip import ClipConfig
from maft_jax.models.layers import HEAD_WIDTH
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig

PUBLISHED_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Image towers H, g, bigG and e of open_clip; every other published width has heads of 64."""


def _transposed(shape, x):
    return x.T


def _transpose(x):
    return x.T


def block_rules(foreign: str, ours: str) -> list[Rule]:
    """The twelve tensors of a transformer block; torch keeps matrices as [out, in]."""
    f, o = f"{foreign}transformer.resblocks.{{}}.", f"{ours}/blocks_{{}}/"
    return [
        Rule(f + "ln_1.weight", o + "ln_1/scale"),
        Rule(f + "ln_1.bias", o + "ln_1/bias"),
        Rule(
            f + "attn.in_proj_weight",
            o + "attn/in_proj/kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(x.shape[0], -1).T,
        ),
        Rule(
            f + "attn.in_proj_bias",
            o + "attn/in_proj/bias",
            lambda shape, x: x.reshape(shape),
            lambda x: x.reshape(-1),
        ),
        Rule(
            f + "attn.out_proj.weight",
            o + "attn/out_proj/kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(-1, x.shape[2]).T,
        ),
        Rule(f + "attn.out_proj.bias", o + "attn/out_proj/bias"),
        Rule(f + "ln_2.weight", o + "ln_2/scale"),
        Rule(f + "ln_2.bias", o + "ln_2/bias"),
        Rule(f + "mlp.c_fc.weight", o + "mlp/c_fc/kernel", _transposed, _transpose),
        Rule(f + "mlp.c_fc.bias", o + "mlp/c_fc/bias"),
        Rule(f + "mlp.c_proj.weight", o + "mlp/c_proj/kernel", _transposed, _transpose),
        Rule(f + "mlp.c_proj.bias", o + "mlp/c_proj/bias"),
    ]


def vision_rules(prefix: str = "visual.") -> list[Rule]:
    """The image tower under a prefix."""
    return [
        Rule(prefix + "class_embedding", "visual/class_embedding"),
        Rule(prefix + "positional_embedding", "visual/position_embedding"),
        Rule(prefix + "proj", "visual/proj"),
        Rule(
            prefix + "conv1.weight",
            "visual/patch_kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(prefix + "ln_pre.weight", "visual/ln_pre/scale"),
        Rule(prefix + "ln_pre.bias", "visual/ln_pre/bias"),
        Rule(prefix + "ln_post.weight", "visual/ln_post/scale"),
        Rule(prefix + "ln_post.bias", "visual/ln_post/bias"),
        *block_rules(prefix, "visual"),
    ]


def text_rules(prefix: str = "") -> list[Rule]:
    """The text tower under a prefix."""
    return [
        Rule(prefix + "token_embedding.weight", "text/token_embedding"),
        Rule(prefix + "positional_embedding", "text/position_embedding"),
        Rule(prefix + "text_projection", "text/proj"),
        Rule(prefix + "ln_final.weight", "text/ln_final/scale"),
        Rule(prefix + "ln_final.bias", "text/ln_final/bias"),
        *block_rules(prefix, "text"),
    ]


RULES = [Rule("logit_scale", "logit_scale"), *vision_rules(), *text_rules()]

IGNORED = [
    Ignored("input_resolution|context_length|vocab_size", "sizes, which the tensors imply"),
    Ignored("attn_mask", "the causal mask of the text tower, which is always the same"),
]


def infer_towers(
    source: WeightsSource,
    *,
    vision: str = "visual.",
    text: str = "",
    head_width: int | None = None,
) -> ClipConfig:
    """The architecture that the shapes imply, with QuickGELU.

    Args:
        vision, text: prefixes of the two towers' names.
        head_width: of the image tower; by default that of the published models of its width.

    Raises:
        ValueError: this is not a ViT CLIP in OpenAI's layout; the message says what is absent.
    """
    shapes = source.shapes
    if any(name.startswith(f"{vision}layer1.") for name in shapes):
        raise ValueError(
            f"{source.path}: a CLIP with a ResNet image tower; expected a ViT, such as ViT-B/16"
        )
    width, _, patch_size, _ = shape_of(source, f"{vision}conv1.weight", 4)
    grid = math.isqrt(max(shape_of(source, f"{vision}positional_embedding", 2)[0] - 1, 0))
    embed_dim = shape_of(source, f"{vision}proj", 2)[1]
    text_tower = infer_text_tower(source, embed_dim, text)
    if head_width is None:
        head_width = PUBLISHED_HEAD_WIDTHS.get(width, HEAD_WIDTH)
    sizes = (("image", width, head_width), ("text", text_tower.width, HEAD_WIDTH))
    for tower, size, head in sizes:
        if size % head:
            raise ValueError(
                f"{source.path}: {tower} tower of width {size}; expected a multiple of {head}, the "
                "width of an attention head of CLIP. Tensors do not tell it: if it is another, "
                "state it (head_width) or put open_clip_config.json beside the file"
            )
    return ClipConfig(
        VisionConfig(
            width=width,
            layers=count_layers(shapes, f"{vision}transformer.resblocks."),
            patch_size=patch_size,
            image_size=grid * patch_size,
            embed_dim=embed_dim,
            head_width=head_width,
            mlp_width=_mlp_width(shapes, vision, width),
        ),
        text_tower,
    )


def infer_text_tower(source: WeightsSource, embed_dim: int, text: str = "") -> TextConfig:
    """The text tower that the shapes imply, with QuickGELU and heads of 64.

    Raises:
        ValueError: a tensor that tells a size is absent.
    """
    shapes = source.shapes
    vocab_size, width = shape_of(source, f"{text}token_embedding.weight", 2)
    return TextConfig(
        width=width,
        layers=count_layers(shapes, f"{text}transformer.resblocks."),
        vocab_size=vocab_size,
        context_length=shape_of(source, f"{text}positional_embedding", 2)[0],
        embed_dim=embed_dim,
        mlp_width=_mlp_width(shapes, text, width),
    )


def _mlp_width(shapes: Mapping[str, tuple[int, ...]], tower: str, width: int) -> int | None:
    """None for four times the width, and for tensors that the rules will refuse."""
    bias = shapes.get(f"{tower}transformer.resblocks.0.mlp.c_fc.bias", ())
    return None if bias in ((), (4 * width,)) else bias[0]


def count_layers(names: Collection[str], prefix: str) -> int:
    """One more than the largest number that follows the prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {int(match[1]) for name in names if (match := pattern.match(name))}
    return max(numbers, default=-1) + 1


def with_activation(config: ClipConfig, activation: str | None) -> ClipConfig:
    """The same architecture with this activation in both towers; None changes nothing."""
    if activation is None:
        return config
    text = config.text and dataclasses.replace(config.text, activation=activation)
    return ClipConfig(dataclasses.replace(config.vision, activation=activation), text)


def to_openai(parameters: Mapping) -> dict[str, np.ndarray]:
    """Float32 tensors under OpenAI's names."""
    return rules.to_foreign(parameters, RULES)


def _infer(source: WeightsSource, choices: Choices) -> ClipConfig:
    config = infer_towers(source, head_width=choices.head_width)
    if choices.activation is None and config.vision.head_width != HEAD_WIDTH:
        raise ValueError(
            f"{source.path}: an image tower of width {config.vision.width}, which OpenAI never "
            "published, and tensors do not tell the activation: state it (activation, quick_gelu "
            "or gelu) or put open_clip_config.json beside the file"
        )
    return with_activation(config, choices.activation)


def why_not_openai(config: ClipConfig) -> str | None:
    """Why OpenAI's code would compute something else with these weights, or None."""
    if reason := why_not_clip(config):
        return reason
    for tower in (config.vision, config.text):
        if tower.activation != "quick_gelu":
            return f"it computes quick_gelu and these weights expect {tower.activation}"
        if tower.head_width != HEAD_WIDTH or tower.mlp_width not in (None, 4 * tower.width):
            return "its heads are 64 wide and its MLPs four times the width of the tower"
    return None


def why_not_clip(config: ClipConfig) -> str | None:
    """Why this is no CLIP of two towers with CLIP's blocks, or None."""
    if config.text is None:
        return "there is no text tower; merge these weights with one that has"
    return why_not_image_tower(config)


def why_not_image_tower(config: ClipConfig) -> str | None:
    """Why the image tower is not one of CLIP's, or None."""
    vision = config.vision
    if vision.norm_epsilon != 1e-5:
        return f"its LayerNorm has epsilon 1e-5, that of these weights {vision.norm_epsilon}"
    if not vision.has_ln_pre or vision.has_patch_bias or vision.has_proj_bias:
        return "its image tower has a LayerNorm before the blocks and neither bias around them"
    return None


OPENAI = Format(
    name="openai",
    description="OpenAI CLIP: TorchScript archive (read only), state dict (.pt), .safetensors",
    recognise=lambda names: "visual.conv1.weight" in names and "token_embedding.weight" in names,
    infer_config=_infer,
    rules=RULES,
    ignored=IGNORED,
    why_not=why_not_openai,
)
