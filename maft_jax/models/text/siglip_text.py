"""SigLIP's text tower: no mask at all, rows of full length, read at the last position."""

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
from maft_jax.models.attention_pattern import full_attention
from maft_jax.models.layers import HEAD_WIDTH, BlockConfig, LayerNorm, fan_in_init, make_blocks
from maft_jax.models.precision import matmul_precision
from maft_jax.models.text import tokenizer as clip_tokenizer
from maft_jax.models.text.clip_text import make_embedding_tables
from maft_jax.models.text.sentencepiece_tokenizer import TokenizerFile, as_rows, canonical

_T5_UNKNOWN, _GEMMA_UNKNOWN = 2, 3
_PADDING = {_T5_UNKNOWN: 1, _GEMMA_UNKNOWN: 0}
"""By the id of unknown pieces: T5's vocabularies, of SigLIP, pad with the end, Gemma's with 0."""
_SOURCES = {
    32_000: "gs://t5-data/vocabs/cc_en.32000/sentencepiece.model",
    250_000: "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
    256_000: "gs://big_vision/gemma_tokenizer.model",
}
"""Where the published vocabularies lie, by their number of pieces."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SigLipTextConfig:
    """The text tower's architecture; see BlockConfig for what is not explained here."""

    width: int
    layers: int
    vocab_size: int
    context_length: int
    embed_dim: int
    head_width: int = HEAD_WIDTH
    mlp_width: int | None = None
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    has_head: bool = True
    """Whether a linear layer follows the last position."""
    tokenizer: TokenizerFile | None = None
    """None where nobody said; towers with as many rows as CLIP's vocabulary read texts by that."""

    def __post_init__(self):
        _ = self.block  # refuses what cannot be
        if not self.has_head and self.embed_dim != self.width:
            raise ValueError(
                f"a text tower of width {self.width} without a head; expected embeddings of as "
                f"many numbers, not {self.embed_dim}"
            )

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width, self.head_width, self.mlp_width, self.activation, self.norm_epsilon
        )

    def with_tokenizer(self, file: TokenizerFile) -> "SigLipTextConfig":
        """The same tower, which reads texts by this vocabulary.

        Raises:
            ValueError: it has another number of pieces than the token embedding has rows, or its
                rules are none of SigLIP's.
        """
        vocabulary = file.vocabulary
        if vocabulary.size != self.vocab_size:
            raise ValueError(
                f"{file.path}: a tokenizer of {vocabulary.size} pieces; expected one of "
                f"{self.vocab_size}, the rows of the text tower's token embedding"
                f"{_published(self.vocab_size)}"
            )
        if vocabulary.end is None or vocabulary.unknown not in _PADDING:
            raise ValueError(
                f"{file.path}: a tokenizer with the piece {vocabulary.unknown} for what is unknown "
                f"and {vocabulary.end} for the end; expected T5's, with 2 and 1 (SigLIP), or "
                "Gemma's, with 3 and 1 (SigLIP 2)"
            )
        return dataclasses.replace(self, tokenizer=file)

    @property
    def has_gemma_vocabulary(self) -> bool:
        """Whether texts are read as SigLIP 2 reads them."""
        return self.tokenizer is not None and (self.tokenizer.vocabulary.unknown == _GEMMA_UNKNOWN)

    @property
    def padding(self) -> int:
        """Id of what fills a row."""
        return _PADDING[self.tokenizer.vocabulary.unknown]

    def init(self, key: jax.Array) -> Mapping:
        return _init(self, key)

    def tokenize(self, texts: Sequence[str]) -> Int[np.ndarray, "texts length"]:
        """Ids of the cleaned texts, the end, padding; of what is too long the beginning.

        Hyphens become spaces, as underscores do, before anything else: the names of COCO-Stuff,
        such as wall-other, would become one word. Then texts are canonical, as big_vision and
        open_clip classify with either SigLIP.
        """
        if self.tokenizer is None and self.vocab_size == clip_tokenizer.VOCABULARY_SIZE:
            return clip_tokenizer.tokenize(texts, self.context_length)
        if self.tokenizer is None:
            raise ValueError(
                "the text tower's tokenizer is missing: expected spiece.model, tokenizer.model or "
                f"tokenizer.json of {self.vocab_size} pieces beside the weights"
                f"{_published(self.vocab_size)}; put it there, or say where it is "
                "(config.model.tokenizer, --tokenizer, tokenizer= in Python)"
            )
        vocabulary = self.tokenizer.vocabulary
        encoded = vocabulary.encode([canonical(text.replace("-", " ")) for text in texts])
        for text, ids in zip(texts, encoded, strict=True):
            if len(ids) >= self.context_length:
                logger.warning(
                    "%r has %d pieces, of which SigLIP reads the first %d",
                    text,
                    len(ids),
                    self.context_length - 1,
                )
        return as_rows(
            encoded,
            self.context_length,
            end=vocabulary.end,
            padding=self.padding,
        )

    def encode(
        self, parameters: Mapping, tokens: Int[Array | np.ndarray, "b length"]
    ) -> Float[Array, "b e"]:
        """Raises ValueError for rows that are shorter: padding is a part of what is read."""
        if tokens.shape[1] != self.context_length:
            raise ValueError(
                f"rows of {tokens.shape[1]} tokens; SigLIP reads all of {self.context_length}"
            )
        return _encode(self, parameters, tokens)


def _published(vocab_size: int) -> str:
    source = _SOURCES.get(vocab_size)
    return f" (the published one is {source})" if source else ""


class SigLipTextTransformer(nn.Module):
    """Transformer in which all positions see each other, read at the last."""

    config: SigLipTextConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.token_embedding, self.position_embedding = make_embedding_tables(self)
        self.blocks = make_blocks(config.layers, config.block, self.dtype, XlaAttention())
        self.ln_final = LayerNorm(jnp.float32, config.norm_epsilon)
        if config.has_head:
            shape = (config.width, config.embed_dim)
            self.proj = self.param("proj", fan_in_init(config.width), shape)
            self.proj_bias = self.param("proj_bias", nn.initializers.zeros, (config.embed_dim,))

    def __call__(self, tokens: Int[Array | np.ndarray, "b length"]) -> Float[Array, "b e"]:
        """L2-normalised embedding."""
        x = (self.token_embedding[tokens] + self.position_embedding).astype(self.dtype)
        pattern = full_attention(tokens.shape[1])
        for block in self.blocks:
            x = block(x, pattern)
        features = self.ln_final(x[:, -1])
        if self.config.has_head:
            exact = matmul_precision(jnp.float32)
            features = jnp.dot(features, self.proj, precision=exact) + self.proj_bias
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: SigLipTextConfig, key):
    tokens = jnp.zeros((1, config.context_length), jnp.int32)
    return SigLipTextTransformer(config).init(key, tokens)["params"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(config: SigLipTextConfig, parameters, tokens):
    return SigLipTextTransformer(config).apply({"params": parameters}, tokens)
