"""From pixels and stored proposals to what the encoder reads."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from maft_jax.array_types import Images, Masks
from maft_jax.models.resize import resize

PIXEL_MEAN = np.array([122.7709383, 116.7460125, 104.09373615], np.float32)
PIXEL_STD = np.array([68.5005327, 66.6321579, 70.3231630], np.float32)

MASK_THRESHOLD = 0.5
"""A proposal reads a patch where its mask, resized to the patch grid, is at least this."""


def clip_input(images: Images, size: tuple[int, int]) -> Float[Array, "b h2 w2 3"]:
    """Normalises uint8 pixels (floats are taken as normalised) and resizes, aspect not kept."""
    if images.dtype == jnp.uint8:
        images = (images.astype(jnp.float32) - PIXEL_MEAN) / PIXEL_STD
    return resize(images.astype(jnp.float32), size, axes=(1, 2))


def mask_probability(masks: Masks) -> Float[Array, "b n mask_h mask_w"]:
    """Masks of any kind as float32 probabilities."""
    if masks.dtype == jnp.uint8:
        return masks.astype(jnp.float32) / 255.0
    return masks.astype(jnp.float32)


def patch_mask(masks: Masks, grid: tuple[int, int]) -> Bool[Array, "b n t"]:
    """Which patches each proposal reads, patches in row-major order."""
    resized = resize(mask_probability(masks), grid, axes=(2, 3))
    return (resized >= MASK_THRESHOLD).reshape(*resized.shape[:2], -1)
