"""What both kinds of decoders are made of: post-norm layers of two attentions and an MLP."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models.generators.projections import linear
from maft_jax.models.layers import LayerNorm, fan_in_init
from maft_jax.models.precision import matmul_precision


def check_heads(what: str, width: int, heads: int) -> None:
    """Raises ValueError where heads do not divide a width that sine positions can have."""
    if width % (2 * heads) or width < 1:
        raise ValueError(
            f"a {what} of width {width} with {heads} heads; expected heads of an even width"
        )


class MultiheadAttention(nn.Module):
    """Attention whose queries, keys and values come from different tokens, as PyTorch's."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "b q d"],
        keys: Float[Array, "b k d"],
        values: Float[Array, "b k d"],
        allowed: Bool[Array, "b q k"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Every head reads what `allowed` lets it, by default all keys."""
        width = queries.shape[-1]
        kernel = self.param("in_kernel", fan_in_init(width), (width, 3, width))
        bias = self.param("in_bias", nn.initializers.zeros, (3, width))
        product = functools.partial(jnp.einsum, precision=matmul_precision(self.dtype))
        query, key, value = (
            (
                product(
                    "btd,de->bte", tokens.astype(self.dtype), kernel[:, part].astype(self.dtype)
                )
                + bias[part].astype(self.dtype)
            ).reshape(*tokens.shape[:2], self.heads, -1)
            for part, tokens in enumerate((queries, keys, values))
        )
        scaled = query * (width // self.heads) ** -0.5
        scores = product("bqah,bkah->baqk", scaled, key).astype(jnp.float32)
        if allowed is not None:
            scores = jnp.where(allowed[:, None], scores, -jnp.inf)
        attention = jax.nn.softmax(scores).astype(self.dtype)
        attended = product("baqk,bkah->bqah", attention, value)
        merged = attended.reshape(queries.shape)
        return linear(width, self.dtype, name="out_proj")(merged)


class DecoderLayer(nn.Module):
    """Cross-attention, self-attention and an MLP, each x = LN(x + f(x)); or self first."""

    heads: int
    mlp_width: int
    dtype: DTypeLike
    self_first: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b q d"],
        positions: Float[Array, "q d"],
        memory: Float[Array, "b t d"],
        memory_positions: Float[Array, "t d"],
        allowed: Bool[Array, "b q t"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Positions are added to queries and keys, never to values."""
        width = x.shape[-1]
        cross = MultiheadAttention(self.heads, self.dtype, name="cross_attn")
        itself = MultiheadAttention(self.heads, self.dtype, name="self_attn")
        norm = functools.partial(LayerNorm, self.dtype)
        norms = {"cross": norm(name="cross_norm"), "self": norm(name="self_norm")}
        for kind in ("self", "cross") if self.self_first else ("cross", "self"):
            queries = x + positions
            if kind == "cross":
                attended = cross(queries, memory + memory_positions, memory, allowed)
            else:
                attended = itself(queries, queries, x)
            x = norms[kind](x + attended)
        hidden = jax.nn.relu(linear(self.mlp_width, self.dtype, name="linear1")(x))
        x = x + linear(width, self.dtype, name="linear2")(hidden)
        return norm(name="mlp_norm")(x)
