"""Two-way tables of TIPS's layouts: scenic's, and PyTorch's and timm's, with a factor a branch.

The factors are multiplied into the last matrix of their branch, and the position of the first class
token is added to it; they are written as ones and zeros, and so is mask_token, which nothing reads.
"""

import math

import numpy as np

from maft_jax.convert.openai import block_rules
from maft_jax.convert.rules import Rule
from maft_jax.models.clip import ClipConfig


def _same_values(shape, x):
    return x.reshape(shape)


def _transposed(shape, x):
    return x.T.reshape(shape)


def temperature_rule(name: str) -> Rule:
    return Rule(
        name,
        "logit_scale",
        lambda shape, x: np.asarray(-np.log(x.astype(np.float64)), np.float32),
        lambda x: np.asarray(np.exp(-x.astype(np.float64)), np.float32),
    )


def _scenic_block(theirs: str, tower: str, gated: bool) -> list[Rule]:
    ours, attention = f"{tower}/blocks_{{}}/", f"{theirs}MultiHeadDotProductAttention_0/"
    mlp = f"{theirs}{'FFNSwiGluFused_0' if gated else 'MlpBlock_0'}/Dense_"
    same = {
        f"{theirs}LayerNorm_0/scale": "ln_1/scale",
        f"{theirs}LayerNorm_0/bias": "ln_1/bias",
        f"{theirs}LayerNorm_1/scale": "ln_2/scale",
        f"{theirs}LayerNorm_1/bias": "ln_2/bias",
        f"{attention}out/kernel": "attn/out_proj/kernel",
        f"{attention}out/bias": "attn/out_proj/bias",
        f"{mlp}{2 if gated else 1}/kernel": "mlp/c_proj/kernel",
        f"{mlp}{2 if gated else 1}/bias": "mlp/c_proj/bias",
    }
    if not gated:
        same |= {f"{mlp}0/kernel": "mlp/c_fc/kernel", f"{mlp}0/bias": "mlp/c_fc/bias"}
    qkv = [f"{attention}{part}" for part in ("query", "key", "value")]
    return [
        *(Rule(foreign, ours + path) for foreign, path in same.items()),
        *_stacked(qkv, f"{ours}attn/in_proj"),
        *(_stacked([f"{mlp}0", f"{mlp}1"], f"{ours}mlp/c_gated") if gated else []),
    ]


def _stacked(names: list[str], ours: str) -> list[Rule]:
    """Kernels and biases of theirs that are one of ours."""
    return [
        Rule(
            tuple(f"{name}/kernel" for name in names),
            f"{ours}/kernel",
            lambda shape, *parts: np.stack(parts, axis=1),
            lambda x: tuple(np.moveaxis(x, 1, 0)),
        ),
        Rule(
            tuple(f"{name}/bias" for name in names),
            f"{ours}/bias",
            lambda shape, *parts: np.stack(parts),
            lambda x: tuple(x),
        ),
    ]


def _square(x: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(x))
    return x.reshape(1, side, side, -1)


def scenic_rules(config: ClipConfig) -> list[Rule]:
    tokens, blocks = "encoder/ToTokenSequence_0/", "transformer/encoderblock_{}/"
    return [
        Rule(f"{tokens}embedding/kernel", "visual/patch_kernel"),
        Rule(f"{tokens}embedding/bias", "visual/patch_bias"),
        Rule(f"{tokens}cls", "visual/class_embedding", _same_values, lambda x: x[None]),
        Rule(f"{tokens}posembed_input", "visual/position_embedding", _same_values, _square),
        *_scenic_block(f"encoder/{blocks}", "visual", config.vision.gated),
        Rule("encoder/encoder_norm/scale", "visual/ln_post/scale"),
        Rule("encoder/encoder_norm/bias", "visual/ln_post/bias"),
        Rule("token_emb/emb_var", "text/token_embedding"),
        *_scenic_block(blocks, "text", gated=False),
        Rule("text_encoder_norm/scale", "text/ln_final/scale"),
        Rule("text_encoder_norm/bias", "text/ln_final/bias"),
        temperature_rule("temperature_contrastive"),
    ]


def _scaled(foreign: str, factor: str, ours: str) -> list[Rule]:
    """The last matrix of a branch and its bias, each times the factor of the branch."""
    return [
        Rule(
            f"{foreign}.weight",
            f"{ours}/kernel",
            lambda shape, x, gamma: _times(x, gamma[:, None]).T.reshape(shape),
            lambda x: x.reshape(-1, x.shape[-1]).T,
            also_reads=(factor,),
        ),
        Rule(
            (f"{foreign}.bias", factor),
            f"{ours}/bias",
            lambda shape, x, gamma: _times(x, gamma),
            lambda x: (x, np.ones_like(x)),
        ),
    ]


def _times(x: np.ndarray, gamma: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32) * gamma).astype(x.dtype)


def _wide(foreign: str, ours: str) -> list[Rule]:
    """A matrix whose outputs are several axes of ours, and its bias."""
    return [
        Rule(
            f"{foreign}.weight",
            f"{ours}/kernel",
            _transposed,
            lambda x: x.reshape(len(x), -1).T,
        ),
        Rule(f"{foreign}.bias", f"{ours}/bias", _same_values, np.ravel),
    ]


def _norm(foreign: str, ours: str) -> list[Rule]:
    return [Rule(f"{foreign}.weight", f"{ours}/scale"), Rule(f"{foreign}.bias", f"{ours}/bias")]


def _first_class_token(shape, first, second, positions):
    return np.concatenate([first[0] + positions[0, :1], second[0]])


def _with_class_row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    row = np.zeros((1, x.shape[1]), x.dtype)
    return np.concatenate([row, x])[None], row


def torch_rules(config: ClipConfig, image: str = "", text: str = "") -> list[Rule]:
    hidden, last = ("w12", "w3") if config.vision.gated else ("fc1", "fc2")
    return [
        Rule(
            (f"{image}cls_token", f"{image}register_tokens"),
            "visual/class_embedding",
            _first_class_token,
            lambda x: (x[None, :1], x[None, 1:]),
            also_reads=(f"{image}pos_embed",),
        ),
        Rule(
            (f"{image}pos_embed", f"{image}mask_token"),
            "visual/position_embedding",
            lambda shape, positions, unused: positions[0, 1:],
            _with_class_row,
        ),
        *_blocks_and_patches(config, image, hidden, last),
        Rule(f"{text}token_embedding.weight", "text/token_embedding"),
        *block_rules(text, "text"),
        *_norm(f"{text}ln_final", "text/ln_final"),
    ]


def _blocks_and_patches(config: ClipConfig, image: str, hidden: str, last: str) -> list[Rule]:
    """What PyTorch's and timm's towers have in common; `hidden` and `last` are of the MLPs."""
    f, o = f"{image}blocks.{{}}.", "visual/blocks_{}/"
    return [
        Rule(
            f"{image}patch_embed.proj.weight",
            "visual/patch_kernel",
            lambda shape, x: x.transpose(2, 3, 1, 0),
            lambda x: x.transpose(3, 2, 0, 1),
        ),
        Rule(f"{image}patch_embed.proj.bias", "visual/patch_bias"),
        *_norm(f"{f}norm1", f"{o}ln_1"),
        *_norm(f"{f}norm2", f"{o}ln_2"),
        *_wide(f"{f}attn.qkv", f"{o}attn/in_proj"),
        *_scaled(f"{f}attn.proj", f"{f}ls1.gamma", f"{o}attn/out_proj"),
        *_wide(f"{f}mlp.{hidden}", f"{o}mlp/{'c_gated' if config.vision.gated else 'c_fc'}"),
        *_scaled(f"{f}mlp.{last}", f"{f}ls2.gamma", f"{o}mlp/c_proj"),
        *_norm(f"{image}norm", "visual/ln_post"),
    ]


def timm_rules(config: ClipConfig) -> list[Rule]:
    return [
        Rule(
            ("cls_token", "reg_token"),
            "visual/class_embedding",
            lambda shape, first, second: np.concatenate([first[0], second[0]]),
            lambda x: (x[None, :1], x[None, 1:]),
        ),
        Rule("pos_embed", "visual/position_embedding", _same_values, lambda x: x[None]),
        *_blocks_and_patches(config, "", "fc1", "fc2"),
    ]
