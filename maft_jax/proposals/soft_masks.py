"""Masks of any kind to the soft, quarter-resolution masks that proposals are stored as."""

import numpy as np
from jaxtyping import UInt8
from scipy.sparse import csr_array

from input_pipeline.examples import proposal_grid_size
from maft_jax.proposals.generator import MaskStack


def soften_masks(
    masks: MaskStack, input_size: tuple[int, int]
) -> UInt8[np.ndarray, "n grid_h grid_w"]:
    """Share of each mask around every grid point of the proposals, 255 = all of it.

    `input_size` is (height, width) of what the generator read. The masks cover it at a resolution
    of their own. The neighbourhood fades linearly to zero at the next grid point, so that masks
    which partition the image still add up to 255, but for rounding.
    """
    grid_h, grid_w = proposal_grid_size(*input_size)
    full = 1.0 if masks.dtype == np.uint8 else 255.0
    rows = _grid_weights(masks.shape[1], input_size[0], grid_h) * np.float32(full)
    columns = _grid_weights(masks.shape[2], input_size[1], grid_w)
    soft = np.empty((len(masks), grid_h, grid_w), np.uint8)
    # Sparse products, since a grid point sees few pixels: three times faster than dense ones, and
    # their sums have one order on every machine.
    for mask, out in zip(masks, soft, strict=True):
        narrow = np.ascontiguousarray((rows @ mask.astype(np.float32)).T)
        out[:] = np.clip(np.rint(columns @ narrow), 0, 255).T
    return soft


def _grid_weights(mask_size: int, image_size: int, grid_size: int) -> csr_array:
    """Weight [g, m] of every mask pixel in every grid point along one axis; rows sum to one."""
    last = max(grid_size - 1, 1)
    image_pixel = np.arange(grid_size) * (image_size - 1) / last
    center = (image_pixel + 0.5) * mask_size / image_size - 0.5
    reach = max(1.0, (image_size - 1) / last * mask_size / image_size)
    distance = np.abs(np.arange(mask_size) - center[:, None])
    weights = np.maximum(0.0, 1.0 - distance / reach)
    return csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
