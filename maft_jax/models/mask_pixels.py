"""Which mask of an image has each pixel, and the pixels inside of each mask, at the image's size.

Nothing is as large as all masks at all pixels: what exists of them is one tile at a time, and of
masks as such one bit of each pixel.
"""

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

from maft_jax.models.array_types import Leaf
from maft_jax.models.pixel_tiles import (
    inside_image,
    map_tiles,
    mask_logit_taps,
    stored_mask_taps,
    untile,
)
from maft_jax.models.preprocess import MASK_THRESHOLD

NOBODY = -1
"""The owner of a pixel that has none."""


@flax.struct.dataclass
class PlacedMasks:
    """Masks of images, and where they lie in them."""

    values: Leaf
    """[*b, n, mask_h, mask_w] uint8 with 255 = inside, or floats."""
    source_size: Leaf
    """[*b, 2] int32: of stored masks the part of `values` that is theirs; of logits the padded
    image's."""
    image_size: Leaf
    """[*b, 2] int32: of the image that was read."""
    label_size: Leaf
    """[*b, 2] int32: of the original image, to which masks are resampled."""
    kind: Literal["stored", "logits"] = flax.struct.field(pytree_node=False)
    """Stored masks are probabilities whose corners lie on the image's; of logits, which lie on the
    padded image in half-pixel places, the sigmoid is taken at the original size."""


@flax.struct.dataclass
class PixelOwners:
    """The mask to which each pixel belongs, and pixels counted by mask."""

    owner: Int32[Array, "*b h w"]
    """The lowest of those whose weight times value is highest there, if its value is at least 1/2;
    NOBODY otherwise, outside of the image, and where no mask of positive weight covers at all."""
    owned: Int32[Array, "*b n"]
    """Pixels where it is highest, whatever its value."""
    inside: Int32[Array, "*b n"]
    """Pixels where its value is at least 1/2."""
    both: Int32[Array, "*b n"]


@flax.struct.dataclass
class MaskInteriors:
    """Pixels where masks exceed 1/2."""

    bits: UInt8[Array, "*b h w bytes"]
    """One bit for each mask, the lowest of a byte first."""
    num_pixels: Int32[Array, "*b n"]
    value_sum: Float32[Array, "*b n"]
    """Of the mask's values there."""


def own_pixels(
    weights: Float[Array, " n"],
    masks: PlacedMasks,
    first_row: int | Int[Array, ""] = 0,
    *,
    out_size: tuple[int, int],
) -> PixelOwners:
    """Gives the pixels of one image, from a row on, to masks; those without weight get none.

    Args:
        out_size: height and width of the result, which lies in its top left corner.
    """

    def own(values, inside_tile):
        scores = weights * values
        best = jnp.max(scores, axis=-1, keepdims=True)
        numbers = lax.broadcasted_iota(jnp.int32, scores.shape, 2)
        # Not argmax, which XLA computes one element at a time on a CPU.
        first = jnp.min(jnp.where(scores == best, numbers, len(weights)), axis=-1, keepdims=True)
        there = inside_tile[..., None]
        owned = (numbers == first) & (best > 0) & there
        inside = (values >= MASK_THRESHOLD) & there
        both = owned & inside
        owner = jnp.max(jnp.where(both, numbers, NOBODY), axis=-1)
        return owner, *(jnp.sum(of, axis=(0, 1), dtype=jnp.int32) for of in (owned, inside, both))

    tiles, left = _map_masks(own, masks, first_row, out_size)
    owner = jnp.where(inside_image(left, out_size), untile(tiles[0], out_size), NOBODY)
    return PixelOwners(owner, *(jnp.sum(counts, axis=(0, 1)) for counts in tiles[1:]))


def mask_interiors(
    masks: PlacedMasks, first_row: int | Int[Array, ""] = 0, *, out_size: tuple[int, int]
) -> MaskInteriors:
    """The pixels of one image, from a row on, that lie inside of each mask.

    Args:
        out_size: height and width of the result, which lies in its top left corner.
    """

    def interior(values, inside_tile):
        inside = (values > MASK_THRESHOLD) & inside_tile[..., None]
        return (
            jnp.packbits(inside, axis=-1, bitorder="little"),
            jnp.sum(inside, axis=(0, 1), dtype=jnp.int32),
            jnp.sum(jnp.where(inside, values, 0.0), axis=(0, 1)),
        )

    (bits, *sums), _ = _map_masks(interior, masks, first_row, out_size)
    bits = jax.vmap(lambda tiles: untile(tiles, out_size), in_axes=4, out_axes=2)(bits)
    return MaskInteriors(bits, *(jnp.sum(of, axis=(0, 1)) for of in sums))


def _map_masks(function, masks, first_row, out_size):
    """`function` of the masks' probabilities tile by tile, and how much of the image is left."""
    sizes = masks.source_size, masks.image_size, masks.label_size, out_size, first_row
    if masks.kind == "logits":
        taps = mask_logit_taps(masks.values.shape[1:], *sizes)
    else:
        taps = stored_mask_taps(*sizes)

    def of_probabilities(values, inside):
        return function(jax.nn.sigmoid(values) if masks.kind == "logits" else values, inside)

    left = masks.label_size - jnp.array([first_row, 0])
    return map_tiles(of_probabilities, masks.values, taps, left), left
