"""Swin as a backbone: attention inside of windows, which every other block shifts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.generators.projections import linear
from maft_jax.models.layers import LayerNorm
from maft_jax.models.precision import matmul_precision

_PATCH = 4
_WIDEST_WINDOW = 64
"""Published ones are 7, 8, 12 or 24; attention takes the fourth power of it in memory."""
_BLOCKED = -100.0
"""Added to the attention between regions that the shift has brought together."""


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes; the maps of the stages have strides 4, 8, 16 and 32. By default Swin-T."""

    width: int = 96
    """Of the first stage; each further one has twice the width of the one before."""
    blocks: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    norm_epsilon: float = 1e-5

    def __post_init__(self):
        if len(self.blocks) != len(self.heads) or any(
            width % heads for width, heads in zip(self.widths, self.heads, strict=False)
        ):
            raise ValueError(
                f"a Swin of widths {self.widths} and heads {self.heads}; expected a number of "
                "heads for every stage, which divides its width"
            )
        if not 1 <= self.window <= _WIDEST_WINDOW:
            raise ValueError(
                f"a Swin with windows of {self.window}; expected 1 to {_WIDEST_WINDOW}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width << stage for stage in range(len(self.blocks)))

    def make_module(self, dtype: DTypeLike) -> "Swin":
        return Swin(self, dtype)

    def describe(self) -> str:
        return f"Swin of width {self.width}, {sum(self.blocks)} blocks, windows of {self.window}"


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, whose relative positions have a bias."""

    heads: int
    window: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b windows t d"], blocked: Float[np.ndarray, "windows t t"] | None
    ) -> Float[Array, "b windows t d"]:
        width = x.shape[-1]
        shape = (*x.shape[:3], 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(
            linear(3 * width, self.dtype, name="qkv")(x).reshape(shape), 3, 0
        )
        rows = (2 * self.window - 1) ** 2
        table = self.param("bias_table", nn.initializers.normal(0.02), (rows, self.heads))
        bias = jnp.moveaxis(table[_relative_positions(self.window)], -1, 0)
        if blocked is not None:
            bias = bias + blocked[:, None]
        product = functools.partial(jnp.einsum, precision=matmul_precision(self.dtype))
        scaled = query * (width // self.heads) ** -0.5
        scores = product("bwqah,bwkah->bwaqk", scaled, key).astype(jnp.float32)
        attention = jax.nn.softmax(scores + bias).astype(self.dtype)
        attended = product("bwaqk,bwkah->bwqah", attention, value)
        return linear(width, self.dtype, name="proj")(attended.reshape(x.shape))


class SwinBlock(nn.Module):
    """x + attention(LN(x)), then x + mlp(LN(x)); an odd block's windows are shifted by a half."""

    config: SwinConfig
    heads: int
    shifted: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w d"], factors: Float[Array, "2 b"] | None = None
    ) -> Float[Array, "b h w d"]:
        """`factors` are what both branches of each image are multiplied by."""
        width, window = x.shape[-1], self.config.window
        height, columns = x.shape[1:3]
        normal = LayerNorm(self.dtype, self.config.norm_epsilon, name="norm1")(x)
        normal = _padded(normal, window)  # tokens of the padding are keys like all others
        padded = normal.shape[1:3]
        shift = window // 2 if self.shifted else 0
        windows = rearrange(
            jnp.roll(normal, (-shift, -shift), axis=(1, 2)),
            "b (i p) (j q) d -> b (i j) (p q) d",
            p=window,
            q=window,
        )
        blocked = _blocked_pairs(padded, window, shift) if shift else None
        windows = WindowAttention(self.heads, window, self.dtype, name="attn")(windows, blocked)
        attended = rearrange(
            windows,
            "b (i j) (p q) d -> b (i p) (j q) d",
            i=padded[0] // window,
            p=window,
        )
        attended = jnp.roll(attended, (shift, shift), axis=(1, 2))[:, :height, :columns]
        of_attention, of_mlp = (None, None) if factors is None else factors
        x = x + _times(attended, of_attention)
        hidden = LayerNorm(self.dtype, self.config.norm_epsilon, name="norm2")(x)
        hidden = linear(int(self.config.mlp_ratio * width), self.dtype, name="fc1")(hidden)
        hidden = jax.nn.gelu(hidden, approximate=False)
        return x + _times(linear(width, self.dtype, name="fc2")(hidden), of_mlp)


class Swin(nn.Module):
    """Normalised images to the maps of all stages, each through a LayerNorm of its own."""

    config: SwinConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        factors: Float[Array, "block 2 b"] | None = None,
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """`factors` of all blocks are stochastic depth's, in training."""
        config = self.config
        of_blocks = iter([None] * sum(config.blocks) if factors is None else factors)
        norm = functools.partial(LayerNorm, self.dtype, config.norm_epsilon)
        patches = rearrange(
            _padded(images.astype(self.dtype), _PATCH),
            "b (h p) (w q) c -> b h w (p q c)",
            p=_PATCH,
            q=_PATCH,
        )
        x = norm(name="patch_norm")(linear(config.width, self.dtype, name="patch")(patches))
        maps = []
        for stage, width in enumerate(config.widths):
            if stage:
                merged = norm(name=f"merge_norm_{stage}")(_two_by_two(x))
                x = linear(width, self.dtype, bias=False, name=f"merge_{stage}")(merged)
            for block in range(config.blocks[stage]):
                x = SwinBlock(
                    config,
                    config.heads[stage],
                    block % 2 == 1,
                    self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, next(of_blocks))
            maps.append(norm(name=f"norm_{stage}")(x))
        return tuple(maps)


def _times(
    x: Float[Array, "b h w d"], factor: Float[Array, " b"] | None
) -> Float[Array, "b h w d"]:
    return x if factor is None else x * factor.astype(x.dtype)[:, None, None, None]


def _padded(x: Float[Array, "b h w d"], multiple: int) -> Float[Array, "b h2 w2 d"]:
    """Zeros below and to the right, up to multiples."""
    rows, columns = (-side % multiple for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _two_by_two(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 _"]:
    """Four neighbours side by side, one column after the other."""
    return rearrange(_padded(x, 2), "b (h p) (w q) d -> b h w (q p d)", p=2, q=2)


@functools.lru_cache(maxsize=8)
def _relative_positions(window: int) -> np.ndarray:
    """Row of the bias table for every query and key of a window."""
    token = np.arange(window * window)
    row, column = token // window, token % window
    dy, dx = row[:, None] - row, column[:, None] - column
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


@functools.lru_cache(maxsize=64)
def _blocked_pairs(size: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """What is added to the attention in shifted windows, [windows, t, t].

    A window at the end of the rolled map holds tokens of both of its ends.
    """
    rows, columns = (np.digitize(np.arange(side), [side - window, side - shift]) for side in size)
    region = 3 * rows[:, None] + columns
    region = rearrange(region, "(i p) (j q) -> (i j) (p q)", p=window, q=window)
    different = region[:, :, None] != region[:, None]
    return np.where(different, np.float32(_BLOCKED), np.float32(0))
