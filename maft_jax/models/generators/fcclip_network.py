"""FC-CLIP's and MAFT+'s networks as one: CLIP's ConvNeXt runs once, for masks and for classes."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from maft_jax.models.adapters.content_dependent_transfer import (
    ContentDependentTransfer,
    Kind,
    scrambled_cells,
)
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapter, MaskAdapterConfig
from maft_jax.models.generators.fcclip import FcClip, FcClipConfig
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.mask_pooling import mask_of_logits, pool
from maft_jax.models.mask_reader import cut
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.towers.convnext import ConvNext, ConvNextConfig

_MASKS_AT_A_TIME = 10
"""That the adapter draws maps of: each takes some 20 MB of an image of 896 x 896 pixels."""


@dataclass(frozen=True)
class FcClipNetwork:
    """The tower and the generator as static objects that get their parameters with every call."""

    tower: ConvNext
    generator: FcClip
    logit_scale: float
    """Factor of the tower's own similarities."""
    transfer: ContentDependentTransfer | None = None
    """MAFT+'s."""
    adapter: MaskAdapter | None = None
    """Mask-Adapter's, which reads cells as the transfer does where there are both."""
    mask_threshold: float = AdapterReader.mask_threshold
    """At what probability masks are cut that the adapter reads."""

    def __call__(
        self,
        parameters: Mapping,
        pixels: UInt8[Array, "b input_h input_w 3"],
        sizes: Int[Array, "b 2"],
        text: Float[Array, "c *names e"],
    ) -> tuple[Float[Array, "b n h w"], Float[Array, "b n c1"], Float[Array, "b n c"]]:
        """Mask logits at stride 4; the generator's class logits, "no object" last; and the tower's.

        Args:
            parameters: {"visual", "generator"}, with "transfer" and "adapter" where there are such.
            pixels: sides are multiples of 32; images of `sizes` lie in the upper left corners.
            text: unit rows of the class names.
        """
        visual = {"params": parameters["visual"]}
        images = normalised(pixels, sizes, PIXEL_MEAN, PIXEL_STD)
        maps = self.tower.apply(visual, images, method="feature_maps")[1:]
        predicted = self.generator.apply({"params": parameters["generator"]}, maps, text)
        last = maps[-1]
        cells = self._cells(visual, last)
        weights = self._weights(parameters, cells, predicted.mask_logits)
        batch, num_proposals, num_maps, num_cells = weights.shape
        pooled = pool(last.reshape(batch, num_cells, -1), weights.reshape(batch, -1, num_cells))
        embeddings = self.tower.apply(visual, pooled, method="embed")
        embeddings = embeddings.reshape(batch, num_proposals, num_maps, -1).mean(axis=2)
        rows = text[None]
        if self.transfer is not None:
            flat = text.reshape(-1, text.shape[-1])
            adapted = self.transfer.apply({"params": parameters["transfer"]}, flat, cells)
            rows = adapted.reshape(len(last), *text.shape)
        logits = _cosines(embeddings, rows) * self.logit_scale
        return predicted.mask_logits, predicted.class_logits, logits

    def _cells(
        self, visual: Mapping, last: Float[Array, "b grid_h grid_w d"]
    ) -> Float[Array, "b grid_h grid_w e"]:
        """Embeddings that transfer and adapter read."""
        read = last if self.transfer is None else scrambled_cells(last)
        return self.tower.apply(visual, read, method="embed")

    def _weights(
        self,
        parameters: Mapping,
        cells: Float[Array, "b grid_h grid_w e"],
        mask_logits: Float[Array, "b n h w"],
    ) -> Float[Array, "b n maps t"]:
        """Of the cells: where the mask is, or as the adapter draws it, one proposal at a time."""
        if self.adapter is None:
            inside = mask_of_logits(mask_logits, cells.shape[1:3])
            return inside.reshape(*inside.shape[:2], 1, -1).astype(jnp.float32)
        masks = cut(jax.nn.sigmoid(mask_logits), self.mask_threshold)

        def draw(mask):
            return self.adapter.apply({"params": parameters["adapter"]}, cells, mask[:, None])[:, 0]

        drawn = jax.lax.map(draw, jnp.swapaxes(masks, 0, 1), batch_size=_MASKS_AT_A_TIME)
        return jnp.swapaxes(drawn, 0, 1)


def _cosines(embeddings: Float[Array, "b n e"], text: Float[Array, "rows c *names e"]):
    """Products with rows as they are; of a class with several names the largest."""
    unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    rows = jnp.broadcast_to(text, (len(embeddings), *text.shape[1:]))
    rows = rows.reshape(len(embeddings), -1, text.shape[-1])
    products = jnp.einsum("bne,bre->bnr", unit, rows, precision=jax.lax.Precision.HIGHEST)
    return products.reshape(*products.shape[:-1], text.shape[1], -1).max(axis=-1)


def make_network(
    vision: ConvNextConfig,
    generator: FcClipConfig,
    dtype: DTypeLike,
    kind: Kind | None = None,
    adapter: MaskAdapterConfig | None = None,
    mask_threshold: float = AdapterReader.mask_threshold,
) -> FcClipNetwork:
    """The networks, with products in `dtype`; `kind` is that of MAFT+'s transfer."""
    dtype = jnp.dtype(dtype)
    transfer = None if kind is None else ContentDependentTransfer(kind)
    tower = ConvNext(vision, dtype)
    drawing = None if adapter is None else MaskAdapter(adapter)
    generator = generator.make_module(dtype)
    return FcClipNetwork(tower, generator, vision.logit_scale, transfer, drawing, mask_threshold)
