"""A tower that pools proposals from the last map of the image, which is computed once for all."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maft_jax.models.array_types import Images, Masks
from maft_jax.models.encoder import Parameters
from maft_jax.models.mask_pooling import RULES, SOFT_EPSILON, DrawsMasks, pool
from maft_jax.models.preprocess import mask_probability, normalised
from maft_jax.models.resize import bilinear_matrix
from maft_jax.models.towers.tower_encoder import PoolingEncoder

CELL = 32
"""Pixels per side of a cell of the last map."""


@dataclasses.dataclass(frozen=True)
class ConvNextEncoder(PoolingEncoder):
    """The models.encoder.ImageEncoder of a ConvNeXt.

    A proposal is the mean of the map over its mask, which then goes where the mean over the whole
    map goes in CLIP: through LayerNorm and head. So any number of proposals costs next to nothing.
    For proposals an image is padded with zeros to whole cells, right and below, as FC-CLIP does;
    the embedding of a whole image is that of its own pixels, as CLIP was trained.
    """

    tower: Any
    """A ConvNext."""
    mask_pooling: str = "hard"
    """A key of mask_pooling.RULES."""
    logit_scale: float = 100.0

    @property
    def cell(self) -> int:
        return CELL

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        return normalised(images)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Of the image padded to whole cells."""
        if min(size) < CELL:
            raise ValueError(
                f"image of {size[0]}x{size[1]} pixels: expected at least one cell of "
                f"{CELL}x{CELL}; resize the image first"
            )
        return -(-size[0] // CELL), -(-size[1] // CELL)

    def encode_images(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b e"]:
        self.grid(pixels.shape[1:3])
        return _unit(self.tower.apply({"params": parameters}, pixels))

    def encode_proposals(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> Float[Array, "b n e"]:
        """Masks cover the image; those as large as its grid lie on the cells of the padded one."""
        return self.pool_proposals(
            parameters, self.feature_map(parameters, pixels), pixels.shape[1:3], masks
        )

    def encode_both(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"], masks: Masks
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b e"]]:
        maps, size = self.feature_map(parameters, pixels), pixels.shape[1:3]
        proposals = self.pool_proposals(parameters, maps, size, masks)
        if size[0] % CELL or size[1] % CELL:  # where padding changes the map of the whole image
            return proposals, self.encode_images(parameters, pixels)
        mean = jnp.mean(maps.astype(jnp.float32), axis=(1, 2))
        return proposals, _unit(self.embed(parameters, mean))

    def encode_drawn(
        self,
        parameters: Parameters,
        pixels: Float[Array, "b h w 3"],
        masks: Masks,
        draw: DrawsMasks,
        mask_scale: int,
    ) -> Float[Array, "b n e"]:
        """See MapEncoder: the mean of the embeddings of the maps.

        Masks cover the image; those as large as `draw` reads them lie on the padded one.
        """
        maps = self.feature_map(parameters, pixels)
        size = tuple(mask_scale * side for side in maps.shape[1:3])
        masks = _of_padded(masks, pixels.shape[1:3], maps.shape[1:3], size)
        weights = draw(self.embed(parameters, maps), masks)
        batch, num_proposals, num_maps, num_cells = weights.shape
        flat = weights.reshape(batch, num_proposals * num_maps, num_cells)
        embeddings = self.embed(parameters, pool(_cells(maps), flat))
        embeddings = embeddings.reshape(batch, num_proposals, num_maps, embeddings.shape[-1])
        return _unit(jnp.mean(embeddings, axis=2))

    def feature_map(
        self, parameters: Parameters, pixels: Float[Array, "b h w 3"]
    ) -> Float[Array, "b grid_h grid_w d"]:
        """See models.encoder.MapEncoder: of the padded images, before any norm."""
        size = pixels.shape[1:3]
        rows, columns = self.grid(size)
        padding = (0, rows * CELL - size[0]), (0, columns * CELL - size[1])
        pixels = jnp.pad(pixels, ((0, 0), *padding, (0, 0)))
        return self.tower.apply({"params": parameters}, pixels, method="feature_map")

    def embed(
        self, parameters: Parameters, pooled: Float[Array, "*rows d"]
    ) -> Float[Array, "*rows e"]:
        return self.tower.apply({"params": parameters}, pooled, method="embed")

    def pool_proposals(
        self,
        parameters: Parameters,
        maps: Float[Array, "b grid_h grid_w d"],
        size: tuple[int, int],
        masks: Masks,
    ) -> Float[Array, "b n e"]:
        grid = maps.shape[1:3]
        weights = RULES[self.mask_pooling](_of_padded(masks, size, grid, grid), grid)
        epsilon = SOFT_EPSILON if self.mask_pooling == "soft" else 0.0
        pooled = pool(_cells(maps), weights, epsilon=epsilon)
        return _unit(self.embed(parameters, pooled))


def _cells(maps):
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _unit(embeddings):
    """L2-normalised; zeros, which only random weights give, stay zeros."""
    squares = jnp.sum(embeddings * embeddings, axis=-1, keepdims=True)
    return embeddings / jnp.sqrt(jnp.maximum(squares, 1e-24))


def _of_padded(masks, size: tuple[int, int], grid: tuple[int, int], wanted: tuple[int, int]):
    """Masks of an image of this size as masks of the padded one, outside of which there is none.

    They are resized to `wanted` rows and columns where that is needed.
    """
    padded = tuple(side * CELL for side in grid)
    if masks.shape[2:] == wanted or padded == size:
        return masks
    rows, columns = (
        bilinear_matrix(whole, cells, align_corners=False)[:, :image]
        @ bilinear_matrix(stored, image, align_corners=False)
        for stored, image, whole, cells in zip(masks.shape[2:], size, padded, wanted, strict=True)
    )
    exact = lax.Precision.HIGHEST
    masks = jnp.einsum("bnhw,Ww->bnhW", mask_probability(masks), columns, precision=exact)
    return jnp.einsum("bnhw,Hh->bnHw", masks, rows, precision=exact)
