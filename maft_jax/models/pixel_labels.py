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
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, UInt8

from maft_jax.models.dynamic_resize import Taps, composed_taps, dynamic_taps, resample
from maft_jax.models.preprocess import MASK_THRESHOLD, mask_probability

IGNORE = -1
"""The label outside of an image."""

TILES = {"cpu": (16, 64)}
OTHER_TILE = (64, 512)
"""Rows and columns of pixels whose scores exist at the same time, by kind of device.

For 847 classes that is 3 MB on a CPU, which its caches hold, and 110 MB elsewhere, where every
tile costs the time to start its kernels.
"""

Size = Int[Array, " 2"]
MaskArray = UInt8[Array, "n mask_h mask_w"] | Float[Array, "n mask_h mask_w"]


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

    def label_tile(tile):
        scores = _scores(probabilities, tile)
        best = jnp.max(scores, axis=0)
        # Not argmax, which XLA computes one element at a time on a CPU.
        classes = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        winner = jnp.min(jnp.where(scores == best, classes, len(scores) - 1), axis=0)
        return winner, best, _scores(weight, tile)[0]

    taps = _label_taps(mask_size, image_size, label_size, out_size, first_row)
    left = label_size - jnp.array([first_row, 0])
    tiles = _map_tiles(label_tile, masks, taps, left)
    winner, best, total = (_untile(tile, out_size) for tile in tiles)
    inside = _inside(left, out_size)
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
    taps = _label_taps(mask_size, image_size, label_size, out_size)
    [scores] = _map_tiles(lambda tile: (_scores(probabilities, tile),), masks, taps, label_size)
    scores = jax.vmap(lambda tiles: _untile(tiles, out_size), in_axes=2)(scores)
    return jnp.where(_inside(label_size, out_size), scores, 0.0)


def covers_pixels(
    masks: MaskArray, mask_size: Size, image_size: Size, max_size: tuple[int, int]
) -> Bool[Array, " n"]:
    """Which masks exceed 0.5 at any pixel of an image, which has at most `max_size` pixels."""
    taps = []
    for axis in (0, 1):
        # What lies past the image's end repeats its last pixel.
        pixels = jnp.arange(_round_up(max_size[axis], _tile()[axis]))
        pixels = jnp.minimum(pixels, image_size[axis] - 1)
        taps.append(dynamic_taps(pixels, mask_size[axis], image_size[axis], align_corners=True))
    [largest] = _map_tiles(lambda tile: (jnp.max(tile, axis=(0, 1)),), masks, taps, image_size)
    return jnp.max(largest, axis=(0, 1)) > MASK_THRESHOLD


def _tile() -> tuple[int, int]:
    return TILES.get(jax.default_backend(), OTHER_TILE)


def _scores(probabilities, tile):
    return jnp.einsum("nc,hwn->chw", probabilities, tile, precision=lax.Precision.HIGHEST)


def _label_taps(mask_size, image_size, label_size, out_size, first_row=0) -> list[Taps]:
    """From the masks to native pixels, for rows and for columns."""
    taps = []
    for axis, first in ((0, first_row), (1, 0)):
        pixels = first + jnp.arange(_round_up(out_size[axis], _tile()[axis]))
        to_native = dynamic_taps(pixels, image_size[axis], label_size[axis], align_corners=False)
        to_image = composed_taps(to_native, mask_size[axis], image_size[axis], align_corners=True)
        taps.append(to_image)
    return taps


def _map_tiles(function, masks, taps, size):
    """Stacks function(masks of a tile, [tile_h tile_w n]) over rows and columns of tiles.

    Proposals come last, so that gathering a pixel gathers contiguous numbers. Tiles that lie
    outside of `size` become zeros without being computed.
    """
    masks = jnp.transpose(masks, (1, 2, 0))
    tile = jax.ShapeDtypeStruct((*_tile(), masks.shape[2]), jnp.float32)
    results = jax.eval_shape(function, tile)

    def zeros(*shape):
        return tuple(jnp.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in results)

    def map_row(row):
        start, row_taps = row

        def compute():
            rows = _resample_rows(masks, row_taps)
            return lax.map(lambda column: map_column(rows, column), _tiles(taps[1], _tile()[1]))

        return lax.cond(start < size[0], compute, lambda: zeros(len(taps[1].indices) // _tile()[1]))

    def map_column(rows, column):
        start, column_taps = column
        return lax.cond(
            start < size[1],
            lambda: function(resample(rows, column_taps, axis=1)),
            zeros,
        )

    return lax.map(map_row, _tiles(taps[0], _tile()[0]))


def _resample_rows(masks, taps):
    return sum(
        mask_probability(jnp.take(masks, taps.indices[:, tap], axis=0)[None])[0]
        * taps.weights[:, tap, None, None]
        for tap in range(taps.indices.shape[1])
    )


def _tiles(taps: Taps, length: int):
    """(start, Taps) of every tile along one axis."""
    count = len(taps.indices) // length
    split = Taps(*(array.reshape(count, length, -1) for array in taps))
    return jnp.arange(count) * length, split


def _untile(tiles, size: tuple[int, int]):
    """[tile rows, tile columns, h, w] to [height, width], cropped to `size`."""
    rows, columns, height, width = tiles.shape
    whole = jnp.swapaxes(tiles, 1, 2).reshape(rows * height, columns * width)
    return whole[: size[0], : size[1]]


def _inside(label_size: Size, size: tuple[int, int]):
    rows, columns = (jnp.arange(size[axis]) < label_size[axis] for axis in (0, 1))
    return rows[:, None] & columns


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
