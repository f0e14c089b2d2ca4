"""Mask2Former, and FreeSeg, which is Mask2Former that reads class names."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.encoder import Parameters
from maft_jax.models.generators.masked_decoder import DecoderConfig, MaskedAttentionDecoder
from maft_jax.models.generators.pixel_decoder import DeformablePixelDecoder, PixelDecoderConfig
from maft_jax.models.generators.predictions import Predictions, cosine_logits, mask_products
from maft_jax.models.generators.projections import Perceptron, linear
from maft_jax.models.generators.resnet import ResNetConfig
from maft_jax.models.generators.swin import SwinConfig
from maft_jax.models.generators.text_interaction import TextConfig, TextInteraction
from maft_jax.runtime.mesh_axes import ShardingRule


@dataclasses.dataclass(frozen=True)
class Mask2FormerConfig:
    """What a generator of this kind is, besides its weights.

    Raises:
        ValueError: it has both classes of its own and a reader of class names, or neither.
    """

    backbone: ResNetConfig | SwinConfig = dataclasses.field(default_factory=ResNetConfig)
    pixel_decoder: PixelDecoderConfig = dataclasses.field(default_factory=PixelDecoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    num_classes: int | None = None
    """Of its own vocabulary, without "no object"."""
    text: TextConfig | None = None
    """FreeSeg: masks and classes depend on the class names that come with every call."""

    def __post_init__(self):
        if (self.num_classes is None) == (self.text is None):
            raise ValueError(
                f"a generator of {self.num_classes} classes with the text reader {self.text}; "
                "expected one of the two"
            )
        if self.decoder.width != self.pixel_decoder.width:
            raise ValueError(
                f"a decoder of width {self.decoder.width} on a pixel decoder of width "
                f"{self.pixel_decoder.width}; expected the same"
            )
        if self.text and self.pixel_decoder.mask_width != self.pixel_decoder.width:
            raise ValueError(
                f"mask features of width {self.pixel_decoder.mask_width} and levels of width "
                f"{self.pixel_decoder.width}; expected the same, since one interaction reads both"
            )

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """None: nothing is split over `model`, and fsdp splits what is large enough."""
        return ()

    def make_module(
        self, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
    ) -> "Mask2Former":
        """The network, whose products are computed in `dtype`.

        Args:
            mesh: over which jit spreads the images; needed on several TPUs, but within shard_map.
        """
        return Mask2Former(self, jnp.dtype(dtype), mesh)

    def init(self, key: jax.Array) -> Parameters:
        """Random parameters."""
        return _init(self, key)

    def describe(self) -> str:
        name = f"FreeSeg (text of width {self.text.width})" if self.text else "Mask2Former"
        return (
            f"{name}: {self.backbone.describe()}, {self.decoder.queries} queries, "
            f"{self.decoder.layers} decoder layers"
        )


class Mask2Former(nn.Module):
    """Normalised images to masks and classes."""

    config: Mask2FormerConfig
    dtype: DTypeLike = jnp.float32
    mesh: Mesh | None = None

    def setup(self):
        config = self.config
        self.backbone = config.backbone.make_module(self.dtype)
        self.pixel_decoder = DeformablePixelDecoder(config.pixel_decoder, self.dtype, self.mesh)
        self.decoder = MaskedAttentionDecoder(
            config.decoder, config.pixel_decoder.mask_width, self.dtype
        )
        if config.text is None:
            self.class_embed = linear(config.num_classes + 1, jnp.float32)
        else:
            text = config.text
            self.interaction = TextInteraction(text, self.dtype)
            self.class_embed = Perceptron((text.class_mlp_width, text.width), self.dtype)
            init = nn.initializers.normal(text.width**-0.5)
            self.non_object = self.param("non_object_embedding", init, (text.width,))

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        text: Float[Array, "c e"] | None = None,
        *,
        every_layer: bool = False,
        branch_factors: Float[Array, "block 2 b"] | None = None,
    ) -> Predictions:
        """Predictions of the last layer, or of the learned queries and of all layers.

        Args:
            images: normalised, and zero where they are padded.
            text: unit rows of the class names, for a generator that reads them.
            branch_factors: of stochastic depth, for a backbone that has it.

        Raises:
            ValueError: text was expected and did not come, or the other way round.
        """
        factors = () if branch_factors is None else (branch_factors,)
        mask_features, levels, rows = self.read_maps(self.backbone(images, *factors), text)
        predictions = self.decoder(levels, mask_features)
        if every_layer:
            queries, embeddings = (jnp.stack(parts) for parts in zip(*predictions, strict=True))
        else:
            queries, embeddings = predictions[-1]
        masks = mask_products(embeddings, mask_features, self.dtype)
        classes = self.class_embed(queries)
        if rows is None:
            return Predictions(masks, classes)
        return Predictions(masks, cosine_logits(classes, rows), classes)

    def read_maps(self, maps, text):
        """Mask features, levels, and the vocabulary's rows with "no object" last, or None."""
        if (text is None) != (self.config.text is None):
            raise ValueError(
                f"{self.config.describe()}: "
                + (
                    "got rows of text, which it does not read"
                    if text is not None
                    else "expected the rows of the class names, which it reads, and got none"
                )
            )
        mask_features, levels = self.pixel_decoder(maps)
        if text is None:
            return mask_features, levels, None
        non_object = self.non_object / jnp.linalg.norm(self.non_object)
        rows = jnp.concatenate([text.astype(jnp.float32), non_object[None]])
        *levels, mask_features = self.interaction([*levels, mask_features], rows)
        return mask_features, levels, rows


@functools.partial(jax.jit, static_argnums=0)
def _init(config: Mask2FormerConfig, key):
    text = None if config.text is None else jnp.ones((1, config.text.width))
    return Mask2Former(config).init(key, jnp.zeros((1, 64, 64, 3)), text)["params"]
