"""The masked-attention decoder: queries read one level after the other, where their masks are."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models.generators.decoder_layers import DecoderLayer, check_heads
from maft_jax.models.generators.predictions import mask_products
from maft_jax.models.generators.projections import Perceptron
from maft_jax.models.generators.sine_positions import sine_positions
from maft_jax.models.layers import LayerNorm
from maft_jax.models.resize import resize


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder of queries."""

    width: int = 256
    queries: int = 100
    layers: int = 9
    """10 in FreeSeg and MAFT."""
    mlp_width: int = 2048
    heads: int = 8

    def __post_init__(self):
        check_heads("decoder", self.width, self.heads)


class MaskedAttentionDecoder(nn.Module):
    """Levels and mask features to every layer's queries and their mask embeddings."""

    config: DecoderConfig
    mask_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        levels: Sequence[Float[Array, "b _ _ d"]],
        mask_features: Float[Array, "b h w e"],
    ) -> list[tuple[Float[Array, "b q d"], Float[Array, "b q e"]]]:
        """Normalised queries and mask embeddings, before the first layer and after every one.

        Where a mask is on a level is its product with the mask features resized to that level: the
        resized product of both, since resizing and the sum over channels commute.
        """
        config = self.config
        init = nn.initializers.normal(1.0)
        size = (config.queries, config.width)
        start = self.param("query_feat", init, size).astype(self.dtype)
        positions = self.param("query_embed", init, size).astype(self.dtype)
        embedding = self.param("level_embed", init, (len(levels), config.width))
        memories = [
            level.reshape(len(level), -1, config.width) + embedding[index].astype(self.dtype)
            for index, level in enumerate(levels)
        ]
        sines = [
            jnp.asarray(sine_positions(*level.shape[1:3], config.width), self.dtype)
            for level in levels
        ]
        small = [
            lax.stop_gradient(resize(mask_features, level.shape[1:3], axes=(1, 2)))
            for level in levels
        ]
        norm = LayerNorm(self.dtype, name="decoder_norm")
        perceptron = Perceptron(
            (config.width, config.width, self.mask_width), self.dtype, name="mask_embed"
        )
        x = jnp.broadcast_to(start, (len(levels[0]), *size))
        normal = norm(x)
        predictions = [(normal, perceptron(normal))]
        for index in range(config.layers):
            level = index % len(levels)
            allowed = _inside(lax.stop_gradient(predictions[-1][1]), small[level], self.dtype)
            layer = DecoderLayer(config.heads, config.mlp_width, self.dtype, name=f"layers_{index}")
            sine = sines[level].reshape(-1, config.width)
            x = layer(x, positions, memories[level], sine, allowed)
            normal = norm(x)
            predictions.append((normal, perceptron(normal)))
        return predictions


def _inside(
    embeddings: Float[Array, "b q e"], features: Float[Array, "b h w e"], dtype: DTypeLike
) -> Bool[Array, "b q t"]:
    """Where masks are at least one half; everywhere for a mask that is nowhere."""
    logits = mask_products(embeddings, features, dtype)
    inside = logits.reshape(*logits.shape[:2], -1) >= 0
    return inside | ~inside.any(axis=-1, keepdims=True)
