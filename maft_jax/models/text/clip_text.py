"""CLIP's text tower."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maft_jax.models.attention import XlaAttention
from maft_jax.models.attention_pattern import AttentionSegment
from maft_jax.models.layers import HEAD_WIDTH, BlockConfig, LayerNorm, fan_in_init, make_blocks
from maft_jax.models.precision import matmul_precision
from maft_jax.models.text.tokenizer import tokenize

_LENGTHS = (16, 32, 48)
"""Positions that texts are computed at, if they fit; all of the context if not."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text tower's architecture; see BlockConfig for the fields with defaults."""

    width: int
    layers: int
    vocab_size: int
    context_length: int
    embed_dim: int
    head_width: int = HEAD_WIDTH
    mlp_width: int | None = None
    activation: str = "quick_gelu"

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.head_width, self.mlp_width, self.activation)

    def init(self, key: jax.Array) -> Mapping:
        return _init(self, key)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        return tokenize(texts, self.context_length)

    def encode(
        self, parameters: Mapping, tokens: Int[Array | np.ndarray, "b length"]
    ) -> Float[Array, "b e"]:
        return _encode(self, parameters, _without_padding(tokens))


def make_embedding_tables(module: nn.Module) -> tuple[Array, Array]:
    """Of tokens and of positions: parameters of a text tower that is being set up."""
    config = module.config
    return (
        module.param(
            "token_embedding", nn.initializers.normal(0.02), (config.vocab_size, config.width)
        ),
        module.param(
            "position_embedding",
            nn.initializers.normal(0.01),
            (config.context_length, config.width),
        ),
    )


class TextTransformer(nn.Module):
    """Causal transformer whose output is read at the end-of-text token."""

    config: TextConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.token_embedding, self.position_embedding = make_embedding_tables(self)
        self.blocks = make_blocks(config.layers, config.block, self.dtype, XlaAttention())
        self.ln_final = LayerNorm(jnp.float32)
        self.proj = self.param("proj", fan_in_init(config.width), (config.width, config.embed_dim))

    def __call__(self, tokens: Int[Array | np.ndarray, "b length"]) -> Float[Array, "b e"]:
        """L2-normalised embedding; the end-of-text token is the largest id of each row."""
        length = tokens.shape[1]
        x = (self.token_embedding[tokens] + self.position_embedding[:length]).astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        pattern = (AttentionSegment(range(length), range(length), masked=True),)
        for block in self.blocks:
            x = block(x, pattern, causal)
        end = jnp.take_along_axis(x, jnp.argmax(tokens, axis=1)[:, None, None], axis=1)
        features = jnp.einsum(
            "btd,de->be", self.ln_final(end), self.proj, precision=matmul_precision(jnp.float32)
        )
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def _without_padding(tokens: Int[Array | np.ndarray, "b length"]):
    """The columns up to the longest text; nothing at its end sees what comes after it.

    There are few lengths, for a program is compiled for each.
    """
    if not isinstance(tokens, np.ndarray):  # in a program, where the values are not known
        return tokens
    longest = int(tokens.argmax(axis=1).max()) + 1
    return tokens[:, : min(length for length in (*_LENGTHS, tokens.shape[1]) if length >= longest)]


@functools.partial(jax.jit, static_argnums=0)
def _init(config: TextConfig, key):
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    return TextTransformer(config).init(key, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: TextConfig, parameters, tokens):
    return TextTransformer(config, jnp.float32).apply({"params": parameters}, tokens)
