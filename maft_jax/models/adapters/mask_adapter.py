"""Mask-Adapter: a model that draws the maps with which a proposal is pooled."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models.array_types import Masks
from maft_jax.models.encoder import ImageEncoder, class_logits
from maft_jax.models.generators.projections import convolution, linear
from maft_jax.models.layers import LayerNorm
from maft_jax.models.preprocess import mask_probability
from maft_jax.models.resize import resize
from maft_jax.models.towers.convnext import Block

MASK_SCALE = 4
"""Rows, and columns, of the masks that it reads for each one of the map."""
_EPSILON = 1e-6
_BLOCKS = 3


@dataclasses.dataclass(frozen=True)
class MaskAdapterConfig:
    """Sizes; the published ones by default."""

    width: int = 768
    mask_widths: tuple[int, int] = (4, 16)
    """Channels of a mask at half and at a quarter of its side."""
    num_maps: int = 16
    """Of each proposal."""


class MaskAdapter(nn.Module):
    """A mask_pooling.DrawsMasks, once it is bound to its parameters; in float32."""

    config: MaskAdapterConfig = MaskAdapterConfig()

    @nn.compact
    def __call__(
        self, cells: Float[Array, "b grid_h grid_w e"], masks: Masks
    ) -> Float[Array, "b n maps t"]:
        """Weights of cells, whose sum is 1 for every map, of masks of any resolution."""
        maps = self.activation_maps(cells, masks)
        batch, num_proposals, height, width, num_maps = maps.shape
        flat = maps.reshape(batch, num_proposals, height * width, num_maps)
        return jnp.swapaxes(jax.nn.softmax(jax.nn.log_sigmoid(flat), axis=2), 2, 3)

    @nn.compact
    def activation_maps(
        self, cells: Float[Array, "b grid_h grid_w e"], masks: Masks
    ) -> Float[Array, "b n grid_h grid_w maps"]:
        """What the weights are made of."""
        batch, height, width, features = cells.shape
        num_proposals = masks.shape[1]
        size = (MASK_SCALE * height, MASK_SCALE * width)
        x = resize(mask_probability(masks), size, axes=(2, 3))
        x = x.reshape(-1, *x.shape[2:], 1)
        for index, channels in enumerate(self.config.mask_widths):
            x = convolution(channels, 3, jnp.float32, stride=2, name=f"mask_conv_{index}")(x)
            x = LayerNorm(jnp.float32, _EPSILON, name=f"ln_mask_{index}")(x)
            x = jax.nn.gelu(x, approximate=False)
        x = linear(features, jnp.float32, name="mask_proj")(x)
        x = x.reshape(batch, num_proposals, height, width, features) + cells[:, None]
        x = linear(self.config.width, jnp.float32, name="fuse")(x)
        x = x.reshape(-1, height, width, self.config.width)
        for index in range(_BLOCKS):
            x = Block(self.config.width, _EPSILON, jnp.float32, name=f"blocks_{index}")(x)
        x = LayerNorm(jnp.float32, name="ln_maps")(x)
        maps = linear(self.config.num_maps, jnp.float32, name="maps")(x)
        return maps.reshape(batch, num_proposals, height, width, self.config.num_maps)


@dataclasses.dataclass(frozen=True)
class AdapterReader:
    """The mask_reader.MaskReader of a tower that pools, by maps that the adapter draws."""

    config: MaskAdapterConfig = MaskAdapterConfig()
    mask_scale = MASK_SCALE
    mask_threshold = 0.5
    adapts_text = False

    def read(
        self,
        encoder: ImageEncoder,
        visual: Mapping,
        modules: Mapping,
        pixels: Float[Array, "b h w 3"],
        masks: Masks,
    ) -> Float[Array, "b n e"]:
        draw = functools.partial(MaskAdapter(self.config).apply, {"params": modules})
        return encoder.encode_drawn(visual, pixels, masks, draw, MASK_SCALE)

    def logits(
        self,
        encoder: ImageEncoder,
        modules: Mapping,
        read: Float[Array, "b n e"],
        text: Float[Array, "c *names e"],
    ) -> Float[Array, "b n c"]:
        return class_logits(encoder, read, text)
