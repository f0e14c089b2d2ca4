"""Masks read at points between their pixels, and where a mask is uncertain."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def sample_masks(
    masks: Float[Array, "*masks h w"] | Bool[Array, "*masks h w"],
    points: Float[Array, "*masks p 2"],
) -> Float[Array, "*masks p"]:
    """Bilinear values at (x, y), shares of width and height; outside of a mask there are zeros."""
    height, width = masks.shape[-2:]
    flat = masks.reshape(*masks.shape[:-2], height * width)
    x, y = (points[..., axis] * side - 0.5 for axis, side in enumerate((width, height)))
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros(points.shape[:-1], jnp.float32)
    for column, share_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, share_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = jnp.where(inside, row * width + column, 0).astype(jnp.int32)
            values = jnp.take_along_axis(flat, pixel, axis=-1)
            total += jnp.where(inside, share_x * share_y, 0) * values
    return total


def select_points(
    mask_logits: Float[Array, "*masks h w"],
    candidates: Float[Array, "*masks many 2"],
    fresh: Float[Array, "*masks few 2"],
    num_uncertain: int,
) -> Float[Array, "*masks p 2"]:
    """The candidates with the logits nearest to zero, and then the fresh points."""
    logits = sample_masks(lax.stop_gradient(mask_logits), candidates)
    _, nearest = jax.lax.top_k(-jnp.abs(logits), num_uncertain)
    chosen = jnp.take_along_axis(candidates, nearest[..., None], axis=-2)
    return jnp.concatenate([chosen, fresh], axis=-2)
