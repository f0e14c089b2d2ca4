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
from maft_jax.models.generators.fcclip import FcClip, FcClipConfig
from maft_jax.models.generators.image_preparation import normalised
from maft_jax.models.mask_pooling import mask_of_logits, pool
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.towers.convnext import ConvNext, ConvNextConfig


@dataclass(frozen=True)
class FcClipNetwork:
    """The tower and the generator as static objects that get their parameters with every call."""

    tower: ConvNext
    generator: FcClip
    logit_scale: float
    """Factor of the tower's own similarities."""
    transfer: ContentDependentTransfer | None = None
    """MAFT+'s."""

    def __call__(
        self,
        parameters: Mapping,
        pixels: UInt8[Array, "b input_h input_w 3"],
        sizes: Int[Array, "b 2"],
        text: Float[Array, "c *names e"],
    ) -> tuple[Float[Array, "b n h w"], Float[Array, "b n c1"], Float[Array, "b n c"]]:
        """Mask logits at stride 4; the generator's class logits, "no object" last; and the tower's.

        Args:
            parameters: {"visual", "generator"}, and "transfer" where there is one.
            pixels: sides are multiples of 32; images of `sizes` lie in the upper left corners.
            text: unit rows of the class names.
        """
        visual = {"params": parameters["visual"]}
        images = normalised(pixels, sizes, PIXEL_MEAN, PIXEL_STD)
        maps = self.tower.apply(visual, images, method="feature_maps")[1:]
        predicted = self.generator.apply({"params": parameters["generator"]}, maps, text)
        last = maps[-1]
        inside = mask_of_logits(predicted.mask_logits, last.shape[1:3])
        pooled = pool(
            last.reshape(len(last), -1, last.shape[-1]),
            inside.reshape(*inside.shape[:2], -1).astype(jnp.float32),
        )
        embeddings = self.tower.apply(visual, pooled, method="embed")
        rows = text[None]
        if self.transfer is not None:
            cells = self.tower.apply(visual, scrambled_cells(last), method="embed")
            flat = text.reshape(-1, text.shape[-1])
            adapted = self.transfer.apply({"params": parameters["transfer"]}, flat, cells)
            rows = adapted.reshape(len(last), *text.shape)
        logits = _cosines(embeddings, rows) * self.logit_scale
        return predicted.mask_logits, predicted.class_logits, logits


def _cosines(embeddings: Float[Array, "b n e"], text: Float[Array, "rows c *names e"]):
    """Products with rows as they are; of a class with several names the largest."""
    unit = embeddings / jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
    rows = jnp.broadcast_to(text, (len(embeddings), *text.shape[1:]))
    rows = rows.reshape(len(embeddings), -1, text.shape[-1])
    products = jnp.einsum("bne,bre->bnr", unit, rows, precision=jax.lax.Precision.HIGHEST)
    return products.reshape(*products.shape[:-1], text.shape[1], -1).max(axis=-1)


def make_network(
    vision: ConvNextConfig, generator: FcClipConfig, dtype: DTypeLike, kind: Kind | None = None
) -> FcClipNetwork:
    """The networks, with products in `dtype`; `kind` is that of MAFT+'s transfer."""
    dtype = jnp.dtype(dtype)
    transfer = None if kind is None else ContentDependentTransfer(kind)
    tower = ConvNext(vision, dtype)
    return FcClipNetwork(tower, generator.make_module(dtype), vision.logit_scale, transfer)
