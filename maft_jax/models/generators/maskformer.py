"""MaskFormer: a feature pyramid, and DETR's decoder on the coarsest map."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.encoder import Parameters
from maft_jax.models.generators.decoder_layers import DecoderLayer
from maft_jax.models.generators.fpn_pixel_decoder import FpnPixelDecoder
from maft_jax.models.generators.masked_decoder import DecoderConfig
from maft_jax.models.generators.predictions import Predictions, mask_products
from maft_jax.models.generators.projections import Perceptron, check_groups, convolution, linear
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.sine_positions import sine_positions
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.layers import LayerNorm
from maft_jax.runtime.mesh_axes import ShardingRule


@dataclasses.dataclass(frozen=True)
class MaskFormerConfig:
    """What a MaskFormer is, besides its weights."""

    num_classes: int
    """Of its own vocabulary, without "no object"."""
    backbone: ResNetConfig | SwinConfig = dataclasses.field(default_factory=ResNetConfig)
    fpn_width: int = 256
    mask_width: int = 256
    decoder: DecoderConfig = dataclasses.field(default_factory=lambda: DecoderConfig(layers=6))

    def __post_init__(self):
        check_groups("pixel decoder", self.fpn_width)

    @property
    def projects_memory(self) -> bool:
        """Whether the coarsest map goes through a convolution before the decoder reads it."""
        return self.backbone.widths[-1] != self.decoder.width

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """None: nothing is split over `model`, and fsdp splits what is large enough."""
        return ()

    def make_module(self, dtype: DTypeLike = jnp.float32) -> "MaskFormer":
        """The network, whose products are computed in `dtype`."""
        return MaskFormer(self, jnp.dtype(dtype))

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters."""
        return _init(self, key)

    def describe(self) -> str:
        return (
            f"MaskFormer: {self.backbone.describe()}, {self.decoder.queries} queries, "
            f"{self.decoder.layers} decoder layers"
        )


class DetrDecoder(nn.Module):
    """Queries that start at zero read one map; self-attention goes first."""

    config: DecoderConfig
    projects_memory: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, coarsest: Float[Array, "b h w _"]) -> list[Float[Array, "b q d"]]:
        """Normalised queries after every layer."""
        config = self.config
        if self.projects_memory:
            coarsest = convolution(config.width, 1, self.dtype, name="input_proj")(coarsest)
        memory = coarsest.reshape(len(coarsest), -1, config.width)
        sine = sine_positions(*coarsest.shape[1:3], config.width).reshape(-1, config.width)
        size = (config.queries, config.width)
        positions = self.param("query_embed", nn.initializers.normal(1.0), size)
        norm = LayerNorm(self.dtype, name="decoder_norm")
        x, outputs = jnp.zeros((len(memory), *size), self.dtype), []
        for index in range(config.layers):
            layer = DecoderLayer(
                config.heads, config.mlp_width, self.dtype, self_first=True, name=f"layers_{index}"
            )
            x = layer(x, positions.astype(self.dtype), memory, jnp.asarray(sine, self.dtype))
            outputs.append(norm(x))
        return outputs


class MaskFormer(nn.Module):
    """Normalised images to masks and classes."""

    config: MaskFormerConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.backbone = config.backbone.make_module(self.dtype)
        self.pixel_decoder = FpnPixelDecoder(config.fpn_width, config.mask_width, self.dtype)
        self.decoder = DetrDecoder(config.decoder, config.projects_memory, self.dtype)
        width = config.decoder.width
        self.mask_embed = Perceptron((width, width, config.mask_width), self.dtype)
        self.class_embed = linear(config.num_classes + 1, jnp.float32)

    def __call__(
        self, images: Float[Array, "b h w 3"], text: None = None, *, every_layer: bool = False
    ) -> Predictions:
        """Predictions of the last layer, or of all layers.

        Args:
            images: normalised, and zero where they are padded.
            text: none; this generator reads no class names.
        """
        maps = self.backbone(images)
        mask_features = self.pixel_decoder(maps)
        outputs = self.decoder(maps[-1])
        queries = jnp.stack(outputs) if every_layer else outputs[-1]
        masks = mask_products(self.mask_embed(queries), mask_features, self.dtype)
        return Predictions(masks, self.class_embed(queries))


@functools.partial(jax.jit, static_argnums=0)
def _init(config: MaskFormerConfig, key):
    return MaskFormer(config).init(key, jnp.zeros((1, 64, 64, 3)))["params"]
