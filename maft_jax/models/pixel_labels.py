"""From class probabilities of proposals to a label for every pixel.

The official order is: masks at the resolution that the generator read, times probabilities, summed
over proposals, resized to the original image, argmax. All but the last are linear, so the
masks alone are brought to the original size, by one resampling per axis, and the scores of
hundreds of classes exist for one tile of pixels at a time: memory does not grow with the image,
and tiles of one shape make the result independent of the array that the image lies in.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from maft_jax.models.dynamic_resize import dynamic_taps
from maft_jax.models.pixel_tiles import (
    MaskArray,
    Size,
    inside_image,
    map_tiles,
    round_up,
    stored_mask_taps,
    tile_size,
    untile,
)
from maft_jax.models.preprocess import MASK_THRESHOLD

IGNORE = -1
"""The label outside of an image."""


@flax.struct.dataclass
class PixelLabels:
    """The best class of every pixel; images lie in the top left corner of the arrays."""

    label_map: Int32[Array, "*b h w"]
    """The lowest of the classes with the highest score; IGNORE outside of the image."""
    score: Float32[Array, "*b h w"]
    """That score: the sum over proposals of mask times probability; 0 where none covers."""
    total: Float32[Array, "*b h w"]
    """The sum of the scores of all classes."""


def label_pixels(
    probabilities: Float[Array, "n c"],
    masks: MaskArray,
    mask_size: Size,
    image_size: Size,
    label_size: Size,
    first_row: int | Int[Array, ""] = 0,
    *,
    out_size: tuple[int, int],
) -> PixelLabels:
    """Labels one image.

    Args:
        masks: their corners lie on the corner pixels of the image of `image_size`, to which they
            are upsampled (align_corners=True); from there bilinear to `label_size`.
        first_row: of the result, for images that are labelled in strips.
        out_size: height and width of the result; without strips at least label_size.
    """
    weight = jnp.sum(probabilities, axis=1, keepdims=True)

    def label_tile(tile, _):
        scores = _scores(probabilities, tile)
        best = jnp.max(scores, axis=0)
        # Not argmax, which XLA computes one element at a time on a CPU.
        classes = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        winner = jnp.min(jnp.where(scores == best, classes, len(scores) - 1), axis=0)
        return winner, best, _scores(weight, tile)[0]

    taps = stored_mask_taps(mask_size, image_size, label_size, out_size, first_row)
    left = label_size - jnp.array([first_row, 0])
    tiles = map_tiles(label_tile, masks, taps, left)
    winner, best, total = (untile(tile, out_size) for tile in tiles)
    inside = inside_image(left, out_size)
    return PixelLabels(
        jnp.where(inside, winner, IGNORE),
        jnp.where(inside, best, 0.0),
        jnp.where(inside, total, 0.0),
    )


def pixel_scores(
    probabilities: Float[Array, "n c"],
    masks: MaskArray,
    mask_size: Size,
    image_size: Size,
    label_size: Size,
    *,
    out_size: tuple[int, int],
) -> Float[Array, "c h w"]:
    """The scores of all classes at all pixels of one image, of which label_pixels takes the best.

    Arguments as there. For few classes and pixels: the array is large.
    """
    taps = stored_mask_taps(mask_size, image_size, label_size, out_size)
    [scores] = map_tiles(lambda tile, _: (_scores(probabilities, tile),), masks, taps, label_size)
    scores = jax.vmap(lambda tiles: untile(tiles, out_size), in_axes=2)(scores)
    return jnp.where(inside_image(label_size, out_size), scores, 0.0)


def covers_pixels(
    masks: MaskArray, mask_size: Size, image_size: Size, max_size: tuple[int, int]
) -> Bool[Array, " n"]:
    """Which masks exceed 0.5 at any pixel of an image, which has at most `max_size` pixels."""
    taps = []
    for axis in (0, 1):
        # What lies past the image's end repeats its last pixel.
        pixels = jnp.arange(round_up(max_size[axis], tile_size()[axis]))
        pixels = jnp.minimum(pixels, image_size[axis] - 1)
        taps.append(dynamic_taps(pixels, mask_size[axis], image_size[axis], align_corners=True))
    [largest] = map_tiles(lambda tile, _: (jnp.max(tile, axis=(0, 1)),), masks, taps, image_size)
    return jnp.max(largest, axis=(0, 1)) > MASK_THRESHOLD


def _scores(probabilities, tile):
    return jnp.einsum("nc,hwn->chw", probabilities, tile, precision=lax.Precision.HIGHEST)
