"""What the rule tables of all generators' layouts are made of: one function per kind of module.

Names of ours are those of `maft_jax/models/generators`; foreign matrices are [out, in], foreign
convolutions [out, in, height, width].
"""

import numpy as np

from maft_jax.convert.rules import Rule


def _matrix(foreign: str, ours: str) -> Rule:
    return Rule(foreign, ours, lambda shape, x: x.T, lambda x: x.T)


def dense(foreign: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A linear map."""
    rules = [_matrix(f"{foreign}.weight", f"{ours}/kernel")]
    return [*rules, Rule(f"{foreign}.bias", f"{ours}/bias")] if bias else rules


def convolution(foreign: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A convolution."""
    kernel = Rule(
        f"{foreign}.weight",
        f"{ours}/kernel",
        lambda shape, x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    )
    return [kernel, Rule(f"{foreign}.bias", f"{ours}/bias")] if bias else [kernel]


def norm(foreign: str, ours: str) -> list[Rule]:
    """A LayerNorm or GroupNorm."""
    return [Rule(f"{foreign}.weight", f"{ours}/scale"), Rule(f"{foreign}.bias", f"{ours}/bias")]


def normed_convolution(
    foreign: str, foreign_norm: str, ours: str, *, bias: bool = False
) -> list[Rule]:
    """A convolution and its GroupNorm."""
    return [
        *convolution(foreign, f"{ours}/conv", bias=bias),
        *norm(foreign_norm, f"{ours}/norm"),
    ]


def frozen_convolution(foreign: str, foreign_norm: str, ours: str) -> list[Rule]:
    """A convolution without bias and the four constants of its BatchNorm."""
    return [
        *convolution(foreign, f"{ours}/conv", bias=False),
        *norm(foreign_norm, f"{ours}/norm"),
        Rule(f"{foreign_norm}.running_mean", f"{ours}/norm/mean"),
        Rule(f"{foreign_norm}.running_var", f"{ours}/norm/var"),
    ]


def patch_embedding(foreign: str, ours: str) -> list[Rule]:
    """A convolution whose stride is its size, which is a product with whole patches here."""

    def to_foreign(kernel):
        side = round((kernel.shape[0] // 3) ** 0.5)
        return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)

    kernel = Rule(
        f"{foreign}.weight",
        f"{ours}/kernel",
        lambda shape, x: x.transpose(2, 3, 1, 0).reshape(shape),
        to_foreign,
    )
    return [kernel, Rule(f"{foreign}.bias", f"{ours}/bias")]


def packed_attention(foreign: str, ours: str) -> list[Rule]:
    """PyTorch's MultiheadAttention: rows of query, key and value in one matrix."""
    return [
        Rule(
            f"{foreign}.in_proj_weight",
            f"{ours}/in_kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(len(x), -1).T,
        ),
        Rule(
            f"{foreign}.in_proj_bias",
            f"{ours}/in_bias",
            lambda shape, x: x.reshape(shape),
            lambda x: x.reshape(-1),
        ),
        *dense(f"{foreign}.out_proj", f"{ours}/out_proj"),
    ]


def attention(foreign: tuple[str, str, str], out: str, ours: str) -> list[Rule]:
    """Attention whose query, key and value are three linear maps."""
    return [
        Rule(
            tuple(f"{name}.weight" for name in foreign),
            f"{ours}/in_kernel",
            lambda shape, *parts: np.stack([part.T for part in parts], axis=1),
            lambda x: tuple(x[:, part].T for part in range(3)),
        ),
        Rule(
            tuple(f"{name}.bias" for name in foreign),
            f"{ours}/in_bias",
            lambda shape, *parts: np.stack(parts),
            lambda x: tuple(x),
        ),
        *dense(out, f"{ours}/out_proj"),
    ]


def joined_projections(foreign: tuple[str, str, str], ours: str) -> list[Rule]:
    """Query, key and value of a window's attention, columns of one matrix of ours."""
    return [
        Rule(
            tuple(f"{name}.weight" for name in foreign),
            f"{ours}/kernel",
            lambda shape, *parts: np.concatenate([part.T for part in parts], axis=1),
            lambda x: tuple(part.T for part in np.split(x, 3, axis=1)),
        ),
        Rule(
            tuple(f"{name}.bias" for name in foreign),
            f"{ours}/bias",
            lambda shape, *parts: np.concatenate(parts),
            lambda x: tuple(np.split(x, 3)),
        ),
    ]


def heads_projection(foreign: str, ours: str) -> list[Rule]:
    """A linear map to heads, [in, head, width of a head]."""
    return [
        Rule(
            f"{foreign}.weight",
            f"{ours}_kernel",
            lambda shape, x: x.T.reshape(shape),
            lambda x: x.reshape(len(x), -1).T,
        ),
        Rule(
            f"{foreign}.bias",
            f"{ours}_bias",
            lambda shape, x: x.reshape(shape),
            lambda x: x.reshape(-1),
        ),
    ]


def deformable_layer(foreign: str, ours: str, names: tuple[str, str, str, str]) -> list[Rule]:
    """A layer of the deformable encoder; `names` are its two norms and two linear maps."""
    norm1, norm2, linear1, linear2 = names
    attention_maps = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [
        *(
            rule
            for name in attention_maps
            for rule in dense(f"{foreign}.self_attn.{name}", f"{ours}/self_attn/{name}")
        ),
        *norm(f"{foreign}.{norm1}", f"{ours}/norm1"),
        *norm(f"{foreign}.{norm2}", f"{ours}/norm2"),
        *dense(f"{foreign}.{linear1}", f"{ours}/linear1"),
        *dense(f"{foreign}.{linear2}", f"{ours}/linear2"),
    ]
