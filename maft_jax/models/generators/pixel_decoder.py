"""Mask2Former's pixel decoder: deformable attention over three levels, then one step of an FPN."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.generators.decoder_layers import check_heads
from maft_jax.models.generators.deformable_attention import (
    DeformableAttention,
    LevelSizes,
    cell_centres,
)
from maft_jax.models.generators.projections import (
    NormedConvolution,
    check_groups,
    convolution,
    linear,
)
from maft_jax.models.generators.sine_positions import sine_positions
from maft_jax.models.layers import LayerNorm
from maft_jax.models.resize import resize


@dataclasses.dataclass(frozen=True)
class PixelDecoderConfig:
    """Sizes of the deformable pixel decoder."""

    width: int = 256
    mask_width: int = 256
    """Channels of the map at stride 4 that masks are products with."""
    layers: int = 6
    mlp_width: int = 1024
    heads: int = 8
    points: int = 4

    def __post_init__(self):
        check_heads("pixel decoder", self.width, self.heads)
        check_groups("pixel decoder", self.width)


class DeformableEncoderLayer(nn.Module):
    """x = LN(x + attention), x = LN(x + mlp(x)); positions are added to queries alone."""

    config: PixelDecoderConfig
    dtype: DTypeLike
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Float[Array, "t d"],
        references: Float[Array | np.ndarray, "t 2"],
        level_sizes: LevelSizes,
    ) -> Float[Array, "b t d"]:
        config = self.config
        attention = DeformableAttention(
            config.heads, config.points, self.dtype, self.mesh, name="self_attn"
        )
        attended = attention(x + positions, references, x, level_sizes)
        x = LayerNorm(self.dtype, name="norm1")(x + attended)
        hidden = jax.nn.relu(linear(config.mlp_width, self.dtype, name="linear1")(x))
        return LayerNorm(self.dtype, name="norm2")(
            x + linear(config.width, self.dtype, name="linear2")(hidden)
        )


class DeformablePixelDecoder(nn.Module):
    """A backbone's maps at strides 4, 8, 16 and 32 to mask features and levels."""

    config: PixelDecoderConfig
    dtype: DTypeLike
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]]
    ) -> tuple[Float[Array, "b h w e"], list[Float[Array, "b _ _ d"]]]:
        """Mask features at stride 4, and the levels of strides 32, 16 and 8."""
        width = self.config.width
        finest, *coarser = maps
        levels = [
            NormedConvolution(width, 1, self.dtype, bias=True, name=f"input_proj_{index}")(level)
            for index, level in enumerate(reversed(coarser))
        ]
        level_sizes = tuple(level.shape[1:3] for level in levels)
        embedding = self.param("level_embed", nn.initializers.normal(1.0), (len(levels), width))
        positions = jnp.concatenate(
            [
                sine_positions(*size, width).reshape(-1, width) + embedding[index]
                for index, size in enumerate(level_sizes)
            ]
        ).astype(self.dtype)
        x = jnp.concatenate([level.reshape(len(level), -1, width) for level in levels], axis=1)
        references = cell_centres(level_sizes)
        for index in range(self.config.layers):
            layer = DeformableEncoderLayer(
                self.config, self.dtype, self.mesh, name=f"layers_{index}"
            )
            x = layer(x, positions, references, level_sizes)
        ends = np.cumsum([height * columns for height, columns in level_sizes])[:-1]
        levels = [
            part.reshape(len(part), *size, width)
            for part, size in zip(jnp.split(x, ends, axis=1), level_sizes, strict=True)
        ]
        lateral = NormedConvolution(width, 1, self.dtype, name="lateral")(finest)
        above = resize(levels[-1], lateral.shape[1:3], axes=(1, 2)).astype(self.dtype)
        fused = NormedConvolution(width, 3, self.dtype, relu=True, name="fusion")(lateral + above)
        features = convolution(self.config.mask_width, 1, self.dtype, name="mask_features")(fused)
        return features, levels
