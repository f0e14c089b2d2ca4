"""MaskCLIP++'s consistency alignment: a module between similarities and the loss, in training.

It can hardly reorder classes, so that the tower learns regions and keeps its vocabulary. It is not
used afterwards.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models.generators.decoder_layers import MultiheadAttention
from maft_jax.models.generators.projections import linear
from maft_jax.models.layers import LayerNorm

HIDDEN_WIDTH = 768
HEADS = 8


class LinearAlignment(nn.Module):
    """One affine map of the logits of a class's prompts, the same for all classes and masks.

    It begins as their mean, where the authors' begins at random, perhaps with another sign.
    """

    hidden_width: int = HIDDEN_WIDTH

    @nn.compact
    def __call__(self, logits: Float[Array, "*rows c prompts"]) -> Float[Array, "*rows c"]:
        mean = nn.initializers.constant(1 / logits.shape[-1])
        hidden = linear(self.hidden_width, jnp.float32, name="proj_in", kernel_init=mean)(logits)
        mean = nn.initializers.constant(1 / self.hidden_width)
        return linear(1, jnp.float32, name="proj_out", kernel_init=mean)(hidden)[..., 0]


class PseudoTextAlignment(nn.Module):
    """Class rows that have looked at the image's cells: LN(t + attention(t, z, z)), in float32.

    Scores are products with unit embeddings of masks, without a factor. The official attention
    drops a tenth of its weights in training; here it drops none.
    """

    heads: int = HEADS

    @nn.compact
    def __call__(
        self, text: Float[Array, "rows e"], cells: Float[Array, "b grid_h grid_w e"]
    ) -> Float[Array, "b rows e"]:
        """`cells` are embeddings of single cells, of unit length."""
        batch, *_, features = cells.shape
        rows = jnp.broadcast_to(text, (batch, *text.shape))
        memory = linear(features, jnp.float32, bias=False, name="proj_cells")(
            cells.reshape(batch, -1, features)
        )
        attention = MultiheadAttention(self.heads, jnp.float32, name="cross_attn")
        return LayerNorm(jnp.float32, name="ln_text")(rows + attention(rows, memory, memory))
