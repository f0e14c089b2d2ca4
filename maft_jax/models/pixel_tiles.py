"""Pixels of an image tile by tile, with the values that masks have there.

Masks are resampled to an image's own size by a few taps per axis, whatever sizes they have, so that
what is computed from hundreds of them exists for one tile of pixels at a time.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from maft_jax.models.dynamic_resize import Taps, composed_taps, dynamic_taps, resample
from maft_jax.models.preprocess import mask_probability

TILES = {"cpu": (16, 64)}
OTHER_TILE = (64, 512)
"""Rows and columns of pixels whose scores exist at the same time, by kind of device.

For 847 classes that is 3 MB on a CPU, which its caches hold, and 110 MB elsewhere, where every
tile costs the time to start its kernels.
"""

Size = Int[Array, " 2"]
MaskArray = UInt8[Array, "n mask_h mask_w"] | Float[Array, "n mask_h mask_w"]


def tile_size() -> tuple[int, int]:
    """Rows and columns of a tile on the devices in use."""
    return TILES.get(jax.default_backend(), OTHER_TILE)


def stored_mask_taps(
    mask_size: Size, image_size: Size, label_size: Size, out_size: tuple[int, int], first_row=0
) -> list[Taps]:
    """From stored masks to native pixels, for rows and for columns.

    Their corners lie on the corner pixels of the image of `image_size`, to which they are upsampled
    (align_corners=True); from there bilinear to `label_size`.
    """
    taps = []
    for axis, pixels in enumerate(_pixels(out_size, first_row)):
        to_native = dynamic_taps(pixels, image_size[axis], label_size[axis], align_corners=False)
        to_image = composed_taps(to_native, mask_size[axis], image_size[axis], align_corners=True)
        taps.append(to_image)
    return taps


def mask_logit_taps(
    logits_size: tuple[int, int],
    padded_size: Size,
    image_size: Size,
    label_size: Size,
    out_size: tuple[int, int],
    first_row=0,
) -> list[Taps]:
    """From a network's mask logits to native pixels, for rows and for columns.

    They are enlarged to the padded image and cropped to `image_size`; from there they go to
    `label_size`: both bilinear and half-pixel.
    """
    taps = []
    for axis, pixels in enumerate(_pixels(out_size, first_row)):
        to_native = dynamic_taps(pixels, image_size[axis], label_size[axis], align_corners=False)
        taps.append(
            composed_taps(to_native, logits_size[axis], padded_size[axis], align_corners=False)
        )
    return taps


def _pixels(out_size, first_row):
    """Rows and columns of whole tiles that hold an array of this size."""
    starts = zip((first_row, 0), out_size, tile_size(), strict=True)
    return [first + jnp.arange(round_up(side, tile)) for first, side, tile in starts]


def map_tiles(function, masks, taps, size):
    """Stacks function(tile, inside) over rows and columns of tiles.

    A tile, [tile_h tile_w n], has the masks' values; `inside` says which of its pixels lie within
    `size`. Proposals come last, so that gathering a pixel gathers contiguous numbers. Tiles that
    lie outside of `size` become zeros without being computed.
    """
    masks = jnp.transpose(masks, (1, 2, 0))
    tile_h, tile_w = tile_size()
    tile = jax.ShapeDtypeStruct((tile_h, tile_w, masks.shape[2]), jnp.float32)
    results = jax.eval_shape(function, tile, jax.ShapeDtypeStruct((tile_h, tile_w), jnp.bool_))

    def zeros(*shape):
        return tuple(jnp.zeros((*shape, *leaf.shape), leaf.dtype) for leaf in results)

    def map_row(row):
        row_start, row_taps = row

        def compute():
            rows = _resample_rows(masks, row_taps)

            def map_column(column):
                start, taps = column
                place = jnp.stack([row_start, start])
                return lax.cond(
                    start < size[1],
                    lambda: function(
                        resample(rows, taps, axis=1), inside_image(size - place, (tile_h, tile_w))
                    ),
                    zeros,
                )

            return lax.map(map_column, _tiles(taps[1], tile_w))

        return lax.cond(row_start < size[0], compute, lambda: zeros(len(taps[1].indices) // tile_w))

    return lax.map(map_row, _tiles(taps[0], tile_h))


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


def untile(tiles, size: tuple[int, int]) -> Array:
    """[tile rows, tile columns, h, w] to [height, width], cropped to `size`."""
    rows, columns, height, width = tiles.shape
    whole = jnp.swapaxes(tiles, 1, 2).reshape(rows * height, columns * width)
    return whole[: size[0], : size[1]]


def inside_image(label_size: Size, size: tuple[int, int]) -> Bool[Array, "h w"]:
    """Which pixels of an array of this height and width are those of the image."""
    rows, columns = (jnp.arange(size[axis]) < label_size[axis] for axis in (0, 1))
    return rows[:, None] & columns


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple
