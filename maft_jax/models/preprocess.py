"""From pixels and stored proposals to what the encoder reads."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models.array_types import Images, Masks
from maft_jax.models.precision import tpu_precision
from maft_jax.models.resize import bilinear_matrix, resize

UNIT_MEAN = (0.48145466, 0.4578275, 0.40821073)
UNIT_STD = (0.26862954, 0.26130258, 0.27577711)
"""What CLIP normalises with, of pixels in [0, 1]."""
PIXEL_MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)
PIXEL_STD = np.array([68.5005327, 66.6321579, 70.3231630], np.float32)

MASK_THRESHOLD = 0.5
"""A proposal reads a patch where its mask, resized to the patch grid, is at least this."""


def clip_input(
    images: Images, size: tuple[int, int], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b h2 w2 3"]:
    """Normalises uint8 pixels (floats are taken as normalised) and resizes, aspect not kept.

    The result is in float32, exact enough for a tower whose products are in `dtype`.
    """
    return resize(normalised(images), size, axes=(1, 2), precision=tpu_precision(dtype))


def normalised(images: Images) -> Float[Array, "b h w 3"]:
    """uint8 pixels as CLIP expects them, in float32; floats are taken as normalised."""
    if images.dtype == jnp.uint8:
        return (images.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    return images.astype(jnp.float32)


def mask_probability(masks: Masks) -> Float[Array, "b n mask_h mask_w"]:
    """Masks of any kind as float32 probabilities."""
    if masks.dtype == jnp.uint8:
        return _divide_by_255(masks.astype(jnp.float32))
    return masks.astype(jnp.float32)


def _divide_by_255(x):
    """x / 255 of an integer 0..255, rounded correctly, which XLA's own division here is not.

    XLA multiplies by a rounded 1/255. Means of uint8 values often lie exactly on the threshold,
    where the last bit decides (test_patch_masks_decide_ties_as_torch). The first product is
    exact, 8 times 17 bits, so the sum is rounded once, with or without fused multiply-add.
    """
    head = np.float32(65793 / 2**24)
    tail = np.float32(1 / 255 - 65793 / 2**24)
    return x * head + x * tail


def coarse_masks_on_grid(
    masks: Masks, image_size: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "b n grid_h grid_w"]:
    """Stored proposals as the official pipeline brings them to the patches.

    Their grid's corners lie on the image's corner pixels. They are upsampled to the image with
    align_corners=True, and from there resized to the patch grid; both are linear, so one small
    matrix per axis does it, and no proposal is ever copied at full resolution.
    """
    masks = mask_probability(masks)
    if masks.shape[2:] == image_size:
        return resize(masks, grid, axes=(2, 3))
    rows, columns = (
        bilinear_matrix(image, patches, align_corners=False)
        @ bilinear_matrix(stored, image, align_corners=True)
        for stored, image, patches in zip(masks.shape[2:], image_size, grid, strict=True)
    )
    exact = lax.Precision.HIGHEST
    masks = jnp.einsum("bnhw,Ww->bnhW", masks, columns, precision=exact)
    return jnp.einsum("bnhw,Hh->bnHw", masks, rows, precision=exact)


def patch_mask(masks: Masks, grid: tuple[int, int]) -> Bool[Array, "b n t"]:
    """Which patches each proposal reads, patches in row-major order."""
    return soft_patch_mask(masks, grid) >= MASK_THRESHOLD


def soft_patch_mask(masks: Masks, grid: tuple[int, int]) -> Float[Array, "b n t"]:
    """How much of each patch is each proposal's (bilinear, half-pixel), in row-major order."""
    resized = resize(mask_probability(masks), grid, axes=(2, 3))
    return resized.reshape(*resized.shape[:2], grid[0] * grid[1])
