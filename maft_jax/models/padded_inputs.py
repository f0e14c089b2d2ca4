"""What the encoder reads of images and masks that lie, each of its own size, in padded arrays.

Sizes are (height, width) as arguments of the compiled program: one program serves all images that
fit the arrays. The functions take one image; `jax.lax.map` or `jax.vmap` makes batches of it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from maft_jax.models.dynamic_resize import Taps, composed_taps, dynamic_taps, resample
from maft_jax.models.preprocess import mask_probability

Size = Int[Array, " 2"]


def encoder_image(
    x: Float[Array, "h w 3"],
    image_size: Size,
    padded_size: Size,
    size: tuple[int, int],
) -> Float[Array, "h2 w2 3"]:
    """Pads a normalised image with zeros to padded_size, and resizes that to `size`."""
    for axis in (1, 0):
        x = resample(x, _padded_taps(size[axis], image_size[axis], padded_size[axis]), axis)
    return x


def patch_grid_masks(
    masks: UInt8[Array, "n h w"] | Float[Array, "n h w"] | Bool[Array, "n h w"],
    mask_size: Size,
    covered_size: Size,
    padded_size: Size,
    grid: tuple[int, int],
) -> Float[Array, "n grid_h grid_w"]:
    """Masks as the official pipeline brings them to the patches; see coarse_masks_on_grid.

    The corners of the masks lie on the corner pixels of what they cover, the image or some of its
    padding, too; the rest is outside of all.
    """
    x = mask_probability(masks[None])[0]
    for axis in (1, 0):
        taps = _padded_taps(grid[axis], covered_size[axis], padded_size[axis])
        taps = composed_taps(taps, mask_size[axis], covered_size[axis], align_corners=True)
        x = resample(x, taps, axis + 1)
    return x


def patch_grid_regions(
    label_map: Int32[Array, "h w"],
    classes: Int32[Array, " r"],
    label_size: Size,
    image_size: Size,
    padded_size: Size,
    grid: tuple[int, int],
) -> Float[Array, "r grid_h grid_w"]:
    """The pixels of classes as masks on the patches; empty for what is no class, below 0.

    Resized as the image was (bilinear, half-pixel) from a label map of `label_size`; the padding is
    outside of all.
    """
    rows, columns = (
        composed_taps(
            _padded_taps(grid[axis], image_size[axis], padded_size[axis]),
            label_size[axis],
            image_size[axis],
            align_corners=False,
        )
        for axis in (0, 1)
    )
    labels = label_map[rows.indices[:, :, None, None], columns.indices]
    is_class = (labels == classes[:, None, None, None, None]) & (labels >= 0)
    weights = rows.weights[:, :, None, None] * columns.weights
    return jnp.sum(jnp.where(is_class, weights, 0), axis=(2, 4))


def _padded_taps(target: int, image_size, padded_size) -> Taps:
    """From the padded image to `target` samples; padding has no weight, since it is zero."""
    taps = dynamic_taps(jnp.arange(target), padded_size, target, align_corners=False)
    inside = taps.indices < image_size
    return Taps(jnp.minimum(taps.indices, image_size - 1), taps.weights * inside)
