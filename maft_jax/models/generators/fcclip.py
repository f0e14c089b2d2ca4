"""FC-CLIP's generator, which is MAFT+'s too: Mask2Former's parts on the maps of CLIP's own tower.

It has no backbone and no classes: it reads the maps of a ConvNeXt CLIP, and the rows of class names
that the tower's text tower makes. Its class head compares queries with the rows.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.encoder import Parameters
from maft_jax.models.generators.masked_decoder import DecoderConfig, MaskedAttentionDecoder
from maft_jax.models.generators.pixel_decoder import DeformablePixelDecoder, PixelDecoderConfig
from maft_jax.models.generators.predictions import Predictions, mask_products
from maft_jax.models.generators.projections import Perceptron, linear
from maft_jax.models.layers import LayerNorm
from maft_jax.models.mask_pooling import pool
from maft_jax.models.precision import matmul_precision
from maft_jax.runtime.mesh_axes import ShardingRule

_LARGEST_SCALE = 100.0
_FIRST_SCALE = np.log(1 / 0.07)


@dataclasses.dataclass(frozen=True)
class FcClipConfig:
    """What a generator of this kind is, besides its weights.

    Raises:
        ValueError: parts that read each other have other widths.
    """

    map_widths: tuple[int, ...] = (192, 384, 768, 1536)
    """Channels of the tower's maps at strides 4, 8, 16 and 32."""
    embed_dim: int = 768
    """Width of the rows of class names."""
    pixel_decoder: PixelDecoderConfig = dataclasses.field(default_factory=PixelDecoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=lambda: DecoderConfig(queries=250))

    def __post_init__(self):
        widths = self.decoder.width, self.pixel_decoder.width, self.pixel_decoder.mask_width
        if len(set(widths)) > 1:
            raise ValueError(
                f"widths of decoder, pixel decoder and mask features {widths}; expected the same, "
                "since the class head adds pooled mask features to queries"
            )
        if len(self.map_widths) != 4:
            raise ValueError(f"maps of widths {self.map_widths}; expected four, strides 4 to 32")

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """None: nothing is split over `model`, and fsdp splits what is large enough."""
        return ()

    def make_module(self, dtype: DTypeLike = jnp.float32) -> "FcClip":
        """The network, whose products are computed in `dtype`."""
        return FcClip(self, jnp.dtype(dtype))

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters."""
        return _init(self, key)

    def describe(self) -> str:
        return (
            f"FC-CLIP's generator on maps of {'-'.join(map(str, self.map_widths))} channels: "
            f"{self.decoder.queries} queries, {self.decoder.layers} decoder layers"
        )


class FcClip(nn.Module):
    """A tower's maps and rows of class names to masks and classes."""

    config: FcClipConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.pixel_decoder = DeformablePixelDecoder(config.pixel_decoder, self.dtype)
        self.decoder = MaskedAttentionDecoder(
            config.decoder, config.pixel_decoder.mask_width, self.dtype
        )
        self.class_head = ClassHead(config.decoder.width, config.embed_dim, self.dtype)

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _ _ _"]],
        text: Float[Array, "c *names e"],
        *,
        every_layer: bool = False,
    ) -> Predictions:
        """Predictions of the last layer, or of the learned queries and of all layers.

        Args:
            maps: of an image that is padded to multiples of 32, at strides 4, 8, 16 and 32.
            text: unit rows of the class names; [c, names, e] where classes have several.
        """
        mask_features, levels = self.pixel_decoder(maps)
        predictions = self.decoder(levels, mask_features)
        if not every_layer:
            return self._predictions(*predictions[-1], mask_features, text)
        layers = [self._predictions(*layer, mask_features, text) for layer in predictions]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    def _predictions(self, queries, mask_embeddings, mask_features, text) -> Predictions:
        masks = mask_products(mask_embeddings, mask_features, self.dtype)
        embeddings = self.class_head(queries, masks, mask_features)
        return Predictions(masks, self.class_head.logits(embeddings, text), embeddings)


class ClassHead(nn.Module):
    """Queries, with what the mask features are inside of their masks, to embeddings like text's."""

    width: int
    embed_dim: int
    dtype: DTypeLike

    def setup(self):
        self.norm = LayerNorm(self.dtype)
        self.proj = linear(self.width, self.dtype)
        widths = (self.width, self.width, self.embed_dim)
        self.class_embed = Perceptron(widths, self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(_FIRST_SCALE), ())
        init = nn.initializers.normal(1.0)
        self.void = self.param("void_embedding", init, (self.embed_dim,))

    def __call__(
        self,
        queries: Float[Array, "b q d"],
        masks: Float[Array, "b q h w"],
        mask_features: Float[Array, "b h w d"],
    ) -> Float[Array, "b q e"]:
        """Of the mean over the cells whose mask logit is positive; zeros where there is none."""
        inside = (masks > 0).reshape(*masks.shape[:2], -1).astype(jnp.float32)
        cells = mask_features.reshape(len(mask_features), -1, mask_features.shape[-1])
        pooled = pool(cells, inside).astype(self.dtype)
        return self.class_embed(queries + self.proj(self.norm(pooled)))

    def logits(
        self, embeddings: Float[Array, "b q e"], text: Float[Array, "c *names e"]
    ) -> Float[Array, "b q c1"]:
        """Scaled cosines: of a class the largest of its names', then that of "no object"."""
        void = self.void / jnp.linalg.norm(self.void)
        rows = jnp.concatenate([text.reshape(-1, text.shape[-1]).astype(jnp.float32), void[None]])
        embeddings = embeddings.astype(jnp.float32)
        unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
        scale = jnp.minimum(jnp.exp(self.logit_scale), _LARGEST_SCALE)
        exact = matmul_precision(jnp.float32)
        logits = scale * jnp.einsum("...e,re->...r", unit, rows, precision=exact)
        of_names = logits[..., :-1].reshape(*logits.shape[:-1], len(text), -1)
        return jnp.concatenate([of_names.max(axis=-1), logits[..., -1:]], axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: FcClipConfig, key):
    maps = [
        jnp.zeros((1, 16 >> level, 16 >> level, width))
        for level, width in enumerate(config.map_widths)
    ]
    text = jnp.ones((1, config.embed_dim))
    return FcClip(config).init(key, maps, text)["params"]
