"""TIPS's text tower: fixed sinusoids, all tokens see each other, their mean is the embedding."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maft_jax.models.attention import XlaAttention
from maft_jax.models.attention_pattern import AttentionSegment
from maft_jax.models.layers import HEAD_WIDTH, BlockConfig, LayerNorm, make_blocks
from maft_jax.models.text import tokenizer as clip_tokenizer
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile, as_rows

PADDING = 0
"""The id of what is no token; scenic and PyTorch tell padding by it too."""

_NEVER = -1e30
"""Added to scores of padding. No infinity: a row of padding alone would be NaN."""
_SMALLEST_COUNT = 1e-8
_WAVELENGTHS = 10_000.0
_ASCII_LOWER = str.maketrans({chr(c): chr(c).lower() for c in range(ord("A"), ord("Z") + 1)})

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TipsTextConfig:
    """The text tower's architecture; see BlockConfig for what is not explained here."""

    width: int
    layers: int
    vocab_size: int
    mlp_width: int
    context_length: int = 64
    head_width: int = HEAD_WIDTH
    norm_epsilon: float = 1e-6
    """1e-6 as in Flax; PyTorch has 1e-5."""
    tokenizer: TokenizerFile | None = None
    """None where nobody said; random towers of CLIP's vocabulary need none."""

    def __post_init__(self):
        _ = self.block
        if self.width % 2 or self.width < 4:
            raise ValueError(
                f"a text tower of width {self.width}; expected an even number from 4 on, half of "
                "it for sines"
            )

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(self.width, self.head_width, self.mlp_width, "relu", self.norm_epsilon)

    def with_tokenizer(self, file: TokenizerFile) -> "TipsTextConfig":
        """The same tower, which reads texts by this vocabulary.

        Raises:
            ValueError: it has another number of pieces than the token embedding has rows, or uses
                the id of padding for unknown pieces.
        """
        vocabulary = file.vocabulary
        if vocabulary.size != self.vocab_size:
            raise ValueError(
                f"{file.path}: a tokenizer of {vocabulary.size} pieces; expected one of "
                f"{self.vocab_size}, the rows of the text tower's token embedding"
            )
        if vocabulary.unknown == PADDING:
            raise ValueError(
                f"{file.path}: a tokenizer that writes {PADDING} for what is unknown, which is "
                "TIPS's padding; expected TIPS's own tokenizer.model"
            )
        return dataclasses.replace(self, tokenizer=file)

    def init(self, key: jax.Array) -> Mapping:
        return _init(self, key)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of texts whose ASCII letters are lower case, then padding; of long ones the first.

        As TensorFlow, with which TIPS was trained, lower-cases; transformers lowers all letters.
        """
        if self.tokenizer is None and self.vocab_size == clip_tokenizer.VOCABULARY_SIZE:
            return clip_tokenizer.tokenize(texts, self.context_length)
        if self.tokenizer is None:
            raise ValueError(
                f"the text tower's tokenizer is missing: expected tokenizer.model of "
                f"{self.vocab_size} pieces beside the weights (the published one is "
                "tips_data/v1_0/checkpoints/tokenizer.model in Google's storage, and lies in every "
                "folder google/tipsv2-* of the hub); put it there, or say where it is "
                "(config.model.tokenizer, --tokenizer, tokenizer= in Python)"
            )
        encoded = self.tokenizer.vocabulary.encode([text.translate(_ASCII_LOWER) for text in texts])
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) > self.context_length:
                logger.warning(
                    "%r has %d pieces, of which TIPS reads the first %d",
                    text,
                    len(ids),
                    self.context_length,
                )
        return as_rows(encoded, self.context_length, end=None, padding=PADDING)

    def encode(
        self, parameters: Mapping, tokens: Int[Array | np.ndarray, "b length"]
    ) -> Float[Array, "b e"]:
        return _encode(self, parameters, tokens)


class TipsTextTransformer(nn.Module):
    """Transformer without an end of text, in which what is padding is told row by row."""

    config: TipsTextConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.token_embedding = self.param(
            "token_embedding",
            nn.initializers.normal(config.width**-0.5),
            (config.vocab_size, config.width),
        )
        self.blocks = make_blocks(config.layers, config.block, self.dtype, XlaAttention())
        self.ln_final = LayerNorm(jnp.float32, config.norm_epsilon)

    def __call__(self, tokens: Int[Array | np.ndarray, "b length"]) -> Float[Array, "b e"]:
        """L2-normalised embedding; zero for a row without tokens."""
        features = self.mean_of_tokens(tokens)
        norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
        return features / jnp.maximum(norm, _SMALLEST_COUNT)

    def mean_of_tokens(self, tokens: Int[Array | np.ndarray, "b length"]) -> Float[Array, "b e"]:
        """The embedding as the tower gives it."""
        config, (batch, length) = self.config, tokens.shape
        present = tokens != PADDING
        x = self.token_embedding[tokens] * config.width**0.5 + _sinusoids(length, config.width)
        x = x.astype(self.dtype)
        added = jnp.where(present, 0.0, _NEVER)[:, None, None]
        added = jnp.broadcast_to(added, (batch, config.block.heads, length, length))
        pattern = (AttentionSegment(range(length), range(length), masked=True),)
        for block in self.blocks:
            x = block(x, pattern, added)
        weights = present[..., None].astype(jnp.float32)
        return jnp.sum(self.ln_final(x) * weights, axis=1) / (weights.sum(1) + _SMALLEST_COUNT)


def _sinusoids(length: int, width: int) -> Float[np.ndarray, "length d"]:
    """Sines, then cosines, of positions from 0 on."""
    half = width // 2
    frequencies = _WAVELENGTHS ** (-np.arange(half) / (half - 1))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: TipsTextConfig, key):
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    return TipsTextTransformer(config).init(key, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: TipsTextConfig, parameters, tokens):
    return TipsTextTransformer(config).apply({"params": parameters}, tokens)
