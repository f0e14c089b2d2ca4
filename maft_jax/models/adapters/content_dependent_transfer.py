"""MAFT+'s content-dependent transfer: class rows that have looked at the image."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models.array_types import Masks
from maft_jax.models.encoder import ImageEncoder, class_logits
from maft_jax.models.generators.decoder_layers import MultiheadAttention
from maft_jax.models.generators.projections import linear
from maft_jax.models.generators.sine_positions import sine_positions
from maft_jax.models.layers import LayerNorm

Kind = Literal["semantic", "panoptic"]
Memory = Literal["scrambled", "in_order"]
HEADS = 8


class ContentDependentTransfer(nn.Module):
    """One cross-attention of class rows to the embeddings of cells, in float32.

    `semantic` models have the norm after the sum, LN(t + change); `panoptic` ones t + LN(change),
    which begins as the identity. The rows that result are not of unit length, on purpose.
    """

    kind: Kind = "semantic"
    heads: int = HEADS

    @nn.compact
    def __call__(
        self, text: Float[Array, "rows e"], cells: Float[Array, "b grid_h grid_w e"]
    ) -> Float[Array, "b rows e"]:
        """Rows do not see each other, so any of them may be left out."""
        batch, height, width, features = cells.shape
        rows = jnp.broadcast_to(text, (batch, *text.shape))
        memory = cells.reshape(batch, -1, features)
        keys = memory + sine_positions(height, width, features).reshape(-1, features)
        attended = MultiheadAttention(self.heads, jnp.float32, name="cross_attn")(
            rows, keys, memory
        )
        init = nn.initializers.zeros if self.kind == "panoptic" else nn.initializers.lecun_normal()
        change = linear(features, jnp.float32, name="mlp", kernel_init=init)(attended)
        norm = LayerNorm(jnp.float32, name="ln_text")
        return norm(rows + change) if self.kind == "semantic" else rows + norm(change)


def scrambled_cells(maps: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
    """The map as MAFT+ reads it, and as its released weights need it.

    Its channel-major array [d, h, w] is cut into h w pieces of d numbers, which are no cells.
    """
    size = maps.shape[1:]
    return rearrange(maps, "b h w d -> b d h w").reshape(-1, *size)


@dataclasses.dataclass(frozen=True)
class TransferReader:
    """The mask_reader.MaskReader of a tower that pools, whose class rows each image adapts."""

    kind: Kind = "semantic"
    memory: Memory = "scrambled"
    """How the map is read; `scrambled_cells` says why."""
    mask_scale = 1
    mask_threshold = None
    adapts_text = True

    def memory_of(
        self, encoder: ImageEncoder, visual: Mapping, maps: Float[Array, "b h w d"]
    ) -> Float[Array, "b h w e"]:
        """What class rows look at."""
        return encoder.embed(visual, scrambled_cells(maps) if self.memory == "scrambled" else maps)

    def read(
        self,
        encoder: ImageEncoder,
        visual: Mapping,
        modules: Mapping,
        pixels: Float[Array, "b h w 3"],
        masks: Masks,
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b grid_h grid_w e"]]:
        maps = encoder.feature_map(visual, pixels)
        embeddings = encoder.pool_proposals(visual, maps, pixels.shape[1:3], masks)
        return embeddings, self.memory_of(encoder, visual, maps)

    def logits(
        self,
        encoder: ImageEncoder,
        modules: Mapping,
        read: tuple[Float[Array, "b n e"], Float[Array, "b grid_h grid_w e"]],
        text: Float[Array, "c *names e"],
    ) -> Float[Array, "b n c"]:
        embeddings, cells = read
        transfer = ContentDependentTransfer(self.kind)
        rows = transfer.apply({"params": modules}, text.reshape(-1, text.shape[-1]), cells)
        rows = rows.reshape(rows.shape[0], *text.shape)
        return jax.vmap(functools.partial(class_logits, encoder))(embeddings, rows)
