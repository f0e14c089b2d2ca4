"""OpenAI's CLIP layout: names, shapes, and the architecture that they imply."""

import math
import re
from collections.abc import Mapping

import jax
import numpy as np

from maft_jax.convert import rules
from maft_jax.convert.rules import Ignored, Rule
from maft_jax.models.clip import ClipConfig, random_parameters
from maft_jax.models.clip_text import TextConfig
from maft_jax.models.clip_vit import VisionConfig
from maft_jax.models.layers import HEAD_WIDTH


def _transpose(x):
    return x.T


def _block_rules(foreign: str, ours: str) -> list[Rule]:
    """The twelve tensors of a transformer block; torch keeps matrices as [out, in]."""
    f, o = f"{foreign}transformer.resblocks.{{}}.", f"{ours}/blocks_{{}}/"
    return [
        Rule(f + "ln_1.weight", o + "ln_1/scale"),
        Rule(f + "ln_1.bias", o + "ln_1/bias"),
        Rule(
            f + "attn.in_proj_weight",
            o + "attn/in_proj/kernel",
            lambda x: x.T.reshape(x.shape[1], 3, -1, HEAD_WIDTH),
            lambda x: x.reshape(x.shape[0], -1).T,
        ),
        Rule(
            f + "attn.in_proj_bias",
            o + "attn/in_proj/bias",
            lambda x: x.reshape(3, -1, HEAD_WIDTH),
            lambda x: x.reshape(-1),
        ),
        Rule(
            f + "attn.out_proj.weight",
            o + "attn/out_proj/kernel",
            lambda x: x.T.reshape(-1, HEAD_WIDTH, x.shape[0]),
            lambda x: x.reshape(-1, x.shape[2]).T,
        ),
        Rule(f + "attn.out_proj.bias", o + "attn/out_proj/bias"),
        Rule(f + "ln_2.weight", o + "ln_2/scale"),
        Rule(f + "ln_2.bias", o + "ln_2/bias"),
        Rule(f + "mlp.c_fc.weight", o + "mlp/c_fc/kernel", _transpose, _transpose),
        Rule(f + "mlp.c_fc.bias", o + "mlp/c_fc/bias"),
        Rule(f + "mlp.c_proj.weight", o + "mlp/c_proj/kernel", _transpose, _transpose),
        Rule(f + "mlp.c_proj.bias", o + "mlp/c_proj/bias"),
    ]


RULES = [
    Rule("logit_scale", "logit_scale"),
    Rule("visual.class_embedding", "visual/class_embedding"),
    Rule("visual.positional_embedding", "visual/position_embedding"),
    Rule("visual.proj", "visual/proj"),
    Rule(
        "visual.conv1.weight",
        "visual/patch_kernel",
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    ),
    Rule("visual.ln_pre.weight", "visual/ln_pre/scale"),
    Rule("visual.ln_pre.bias", "visual/ln_pre/bias"),
    Rule("visual.ln_post.weight", "visual/ln_post/scale"),
    Rule("visual.ln_post.bias", "visual/ln_post/bias"),
    *_block_rules("visual.", "visual"),
    Rule("token_embedding.weight", "text/token_embedding"),
    Rule("positional_embedding", "text/position_embedding"),
    Rule("text_projection", "text/proj"),
    Rule("ln_final.weight", "text/ln_final/scale"),
    Rule("ln_final.bias", "text/ln_final/bias"),
    *_block_rules("", "text"),
]

IGNORED = [
    Ignored("input_resolution|context_length|vocab_size", "sizes, which the tensors imply"),
]


def infer_config(state_dict: Mapping[str, np.ndarray], *, source: str) -> ClipConfig:
    """The architecture that the tensors imply.

    Raises:
        ValueError: this is not a ViT CLIP in OpenAI's layout; the message says what is absent.
    """
    if any(name.startswith("visual.layer1.") for name in state_dict):
        raise ValueError(
            f"{source}: a CLIP with a ResNet image tower; expected a ViT (for example ViT-B/16)"
        )
    needed = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "token_embedding.weight": 2,
        "positional_embedding": 2,
    }
    for name, rank in needed.items():
        if name not in state_dict or np.ndim(state_dict[name]) != rank:
            found = np.shape(state_dict[name]) if name in state_dict else "absent"
            raise ValueError(
                f"{source}: expected CLIP weights in OpenAI's layout with a tensor {name!r} of "
                f"{rank} dimensions; it is {found}. The file has {len(state_dict)} tensors, such "
                f"as {sorted(state_dict)[:3]}"
            )
    width, _, patch_size, _ = np.shape(state_dict["visual.conv1.weight"])
    grid = math.isqrt(len(state_dict["visual.positional_embedding"]) - 1)
    vocab_size, text_width = np.shape(state_dict["token_embedding.weight"])
    embed_dim = np.shape(state_dict["visual.proj"])[1]
    for tower, tower_width in (("image", width), ("text", text_width)):
        if tower_width % HEAD_WIDTH:
            raise ValueError(
                f"{source}: {tower} tower of width {tower_width}; expected a multiple of "
                f"{HEAD_WIDTH}, the width of an attention head of CLIP"
            )
    return ClipConfig(
        VisionConfig(
            width=width,
            layers=_count_layers(state_dict, "visual.transformer"),
            patch_size=patch_size,
            image_size=grid * patch_size,
            embed_dim=embed_dim,
        ),
        TextConfig(
            width=text_width,
            layers=_count_layers(state_dict, "transformer"),
            vocab_size=vocab_size,
            context_length=len(state_dict["positional_embedding"]),
            embed_dim=embed_dim,
        ),
    )


def from_openai(state_dict: Mapping[str, np.ndarray], *, source: str) -> tuple[ClipConfig, dict]:
    """Architecture and float32 parameters {"visual", "text", "logit_scale"}.

    Raises:
        ValueError: unknown, missing or misshapen tensors, all listed, with `source`.
    """
    config = infer_config(state_dict, source=source)
    expected = jax.eval_shape(lambda: random_parameters(config))
    return config, rules.to_ours(state_dict, expected, RULES, IGNORED, source=source)


def to_openai(parameters: Mapping) -> dict[str, np.ndarray]:
    """Float32 tensors under OpenAI's names."""
    return rules.to_foreign(parameters, RULES)


def _count_layers(state_dict: Mapping, tower: str) -> int:
    pattern = re.compile(re.escape(tower) + r"\.resblocks\.(\d+)\.")
    numbers = {int(match[1]) for name in state_dict if (match := pattern.match(name))}
    return max(numbers, default=-1) + 1
