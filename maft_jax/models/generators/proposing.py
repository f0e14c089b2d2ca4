"""From the logits of a network to masks at any pixels of its input, and to scores."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Float64, Int

_STRIDE = 4


def pixel_weights(
    pixels: Float64[np.ndarray, " p"],
    padded_side: int,
    shape: tuple[int, int],
    *,
    align_corners: bool,
) -> Float32[np.ndarray, "rows logits"]:
    """Bilinear weights of mask logits at pixels of the padded input, along one axis.

    With `align_corners` the corner points of the logits lie on the corner pixels of the padded
    input, else each in the middle of its four by four pixels. Pixels beyond the padded input, and
    rows and logits of `shape` beyond those there are, have no weights.

    On the host, in double precision, since products of sizes do not fit float32.
    """
    num_logits = -(-padded_side // _STRIDE)
    if align_corners:
        place = pixels * (num_logits - 1) / max(padded_side - 1, 1)
    else:
        place = (pixels + 0.5) * num_logits / padded_side - 0.5
    place = np.clip(place, 0, num_logits - 1)[:, None]
    weights = np.zeros(shape, np.float32)
    within = weights[: len(pixels), :num_logits]
    within[:] = np.maximum(0, 1 - np.abs(np.arange(num_logits) - place))
    within[pixels > padded_side - 0.5] = 0
    return weights


def masks_at(
    mask_logits: Float[Array, "b n h w"],
    rows: Float[Array, "b out_h h"],
    columns: Float[Array, "b out_w w"],
) -> Float[Array, "b n out_h out_w"]:
    """Probabilities at the pixels that `pixel_weights` are of; 0 where a pixel has no weights."""
    exact = lax.Precision.HIGHEST
    sampled = jnp.einsum("bHh,bnhw,bWw->bnHW", rows, mask_logits, columns, precision=exact)
    weighed = (rows.sum(2)[:, :, None] * columns.sum(2)[:, None])[:, None] > 0
    return jnp.where(weighed, jax.nn.sigmoid(sampled), 0.0)


def proposal_scores(
    mask_logits: Float[Array, "b n h w"],
    class_logits: Float[Array, "b n c"],
    sizes: Int[Array, "b 2"],
) -> Float[Array, "b n"]:
    """The official score of instances, at stride 4, where a cell's centre lies in the image."""
    rows, columns = (
        (jnp.arange(side) + 0.5) * _STRIDE < sizes[:, axis, None]
        for axis, side in enumerate(mask_logits.shape[2:])
    )
    inside = (mask_logits > 0) & (rows[:, :, None] & columns[:, None, :])[:, None]
    total = jnp.sum(jax.nn.sigmoid(mask_logits) * inside, axis=(2, 3))
    quality = total / (jnp.sum(inside, axis=(2, 3)) + 1e-6)
    return jax.nn.softmax(class_logits)[..., :-1].max(-1) * quality
