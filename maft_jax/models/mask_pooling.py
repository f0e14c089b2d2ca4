"""Embeddings of proposals out of one map of values: weighted means, for which images run once.

Towers without a class token read proposals so. A rule weighs the cells of the map for each
proposal; published are the two of RULES, and masks that a model draws (DrawsMasks).
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from maft_jax.models.array_types import Masks
from maft_jax.models.preprocess import patch_mask, soft_patch_mask
from maft_jax.models.resize import resize

SOFT_EPSILON = 1e-6
"""Added by MaskCLIP++ to the sum of a soft mask; a hard one that has any cell has at least one."""


def pool(
    values: Float[Array, "b t d"],
    weights: Float[Array, "b n t"],
    importance: Float[Array, "b t a"] | None = None,
    epsilon: float = 0.0,
) -> Float[Array, "b n d"]:
    """sum_t m_nt w_t v_t / (epsilon + sum_t m_nt w_t), in float32; zeros where a mask is empty.

    Args:
        weights: m, not negative.
        importance: w, positive; one of each head, whose values are an equal part of the width.
            With w = exp(q . k_t) it is the attention of a query that all proposals share, each of
            which sees the cells of its mask alone. None: 1, the mean over the mask.
    """
    batch, num_cells, width = values.shape
    values = values.astype(jnp.float32)
    if importance is None:
        importance = jnp.ones((batch, num_cells, 1), jnp.float32)
    heads = importance.shape[-1]
    values = values.reshape(batch, num_cells, heads, -1) * importance[..., None]
    exact = lax.Precision.HIGHEST
    sums = jnp.einsum("bnt,btah->bnah", weights, values, precision=exact)
    total = jnp.einsum("bnt,bta->bna", weights, importance, precision=exact) + epsilon
    pooled = sums / jnp.where(total > 0, total, 1)[..., None]
    return pooled.reshape(batch, weights.shape[1], width)


def hard_weights(masks: Masks, grid: tuple[int, int]) -> Float[Array, "b n t"]:
    """1 where a mask, resized to the grid (bilinear, half-pixel), is at least 1/2, else 0.

    FC-CLIP's rule for masks that are kept as probabilities. It has no gradient.
    """
    return patch_mask(masks, grid).astype(jnp.float32)


def mask_of_logits(
    logits: Float[Array, "b n mask_h mask_w"], grid: tuple[int, int]
) -> Bool[Array, "b n grid_h grid_w"]:
    """Where the logits of masks, resized to the grid, are positive: FC-CLIP's and MAFT+'s rule.

    A few cells at edges differ from those of `hard_weights`, since a probability is no linear
    function of its logit.
    """
    return resize(logits.astype(jnp.float32), grid, axes=(2, 3)) > 0


RULES: dict[str, Callable[[Masks, tuple[int, int]], Float[Array, "b n t"]]] = {
    "hard": hard_weights,
    "soft": soft_patch_mask,
}
"""The values of config.model.mask_pooling; soft is MaskCLIP++'s."""


@runtime_checkable
class DrawsMasks(Protocol):
    """A learned rule, as Mask-Adapter's: a model that draws the maps to pool with."""

    def __call__(
        self, cells: Float[Array, "b grid_h grid_w e"], masks: Masks
    ) -> Float[Array, "b n maps t"]:
        """Weights of cells, not negative, of one or several maps for each proposal.

        Args:
            cells: embeddings of the single cells, not normalised.
            masks: the proposals, at a resolution of the model's choice.

        Each map is pooled and embedded by itself, and the embeddings are averaged.
        """
