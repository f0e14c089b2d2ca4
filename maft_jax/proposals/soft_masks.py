"""Binary masks to the soft, quarter-resolution masks that proposals are stored as."""

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from input_pipeline.examples import proposal_grid_size


def soften_masks(
    masks: Bool[np.ndarray, "n mask_h mask_w"], image_size: tuple[int, int]
) -> UInt8[np.ndarray, "n grid_h grid_w"]:
    """Share of each mask around every grid point of the proposals, 255 = all of it.

    `image_size` is (height, width). The masks cover the image at a resolution of their own. The
    neighbourhood fades linearly to zero at the next grid point, so that masks which partition the
    image still add up to 255, but for rounding.
    """
    grid_h, grid_w = proposal_grid_size(*image_size)
    rows = _grid_weights(masks.shape[1], image_size[0], grid_h)
    columns = _grid_weights(masks.shape[2], image_size[1], grid_w)
    soft = np.empty((len(masks), grid_h, grid_w), np.uint8)
    for mask, out in zip(masks, soft, strict=True):
        out[:] = np.round(255 * (rows @ mask.astype(np.float32) @ columns.T))
    return soft


def _grid_weights(mask_size: int, image_size: int, grid_size: int) -> Float32[np.ndarray, "g m"]:
    """Weight of every mask pixel in every grid point along one axis; rows sum to one."""
    last = max(grid_size - 1, 1)
    image_pixel = np.arange(grid_size) * (image_size - 1) / last
    center = (image_pixel + 0.5) * mask_size / image_size - 0.5
    reach = max(1.0, (image_size - 1) / last * mask_size / image_size)
    distance = np.abs(np.arange(mask_size) - center[:, None])
    weights = np.maximum(0.0, 1.0 - distance / reach)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
