"""Images as rows of patches: the convolution whose stride is its size, as one matrix product."""

import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.precision import matmul_precision


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches per column and row of an image; pixels that fill no patch are dropped.

    Raises:
        ValueError: the image is smaller than one patch.
    """
    if min(height, width) < patch_size:
        raise ValueError(
            f"image of {height}x{width} pixels: expected at least one patch of "
            f"{patch_size}x{patch_size}; resize the image first"
        )
    return height // patch_size, width // patch_size


def embed_patches(
    images: Float[Array, "b h w 3"], kernel: Float[Array, "p p 3 d"], dtype: DTypeLike
) -> Float[Array, "b t d"]:
    """Patches in row-major order times the kernel, in `dtype`; a bias is the caller's to add."""
    size = len(kernel)
    rows, columns = patch_grid(*images.shape[1:3], size)
    cropped = images[:, : rows * size, : columns * size].astype(dtype)
    patches = rearrange(cropped, "b (h p) (w q) z -> b (h w) (p q z)", p=size, q=size)
    flat = rearrange(kernel.astype(dtype), "p q z d -> (p q z) d")
    return jnp.dot(patches, flat, precision=matmul_precision(dtype))
