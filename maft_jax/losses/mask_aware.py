"""The mask-aware loss: a proposal's class probability should follow its IoU with the class.

Rows are (image, class present in it); a row has one term per valid proposal.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from maft_jax.models.array_types import Batch, Masks
from maft_jax.models.preprocess import mask_probability
from maft_jax.models.resize import bilinear_matrix

_EXACT = lax.Precision.HIGHEST


def class_masks(
    label_map: Int[Array, "b h w"], present_classes: Int[Array, "b g"]
) -> Float[Array, "b g h w"]:
    """One binary mask per present class; padding (negative classes) gives empty masks."""
    classes = present_classes[:, :, None, None]
    return ((label_map[:, None] == classes) & (classes >= 0)).astype(jnp.float32)


def soft_iou(proposals: Masks, ground_truth: Float[Array, "b g h2 w2"]) -> Float[Array, "b g n"]:
    """sum(g m) / (sum g + sum m - sum g m + 1e-7), pixel sums at the ground truth's resolution.

    Proposals of another resolution count as resampled to it, bilinearly with align_corners=True.
    Resampling is linear, m' = U m, and sum(g (U m)) = sum((U^T g) m): so the few ground-truth
    masks are brought to the proposals' grid instead of the many proposals to theirs. The sums
    are the same, and no proposal is ever copied at full resolution.
    """
    masks = mask_probability(proposals)
    rows, columns = (
        bilinear_matrix(masks.shape[axis], ground_truth.shape[axis], align_corners=True)
        for axis in (2, 3)
    )
    adjoint = ground_truth
    if ground_truth.shape[2:] != masks.shape[2:]:
        adjoint = jnp.einsum("bgHw,Hh->bghw", ground_truth, rows, precision=_EXACT)
        adjoint = jnp.einsum("bghW,Ww->bghw", adjoint, columns, precision=_EXACT)
    # row by row, then over rows: one sum of a hundred thousand float32 terms loses 1e-6
    intersection = jnp.einsum("bghw,bnhw->hbgn", adjoint, masks, precision=_EXACT).sum(0)
    area = jnp.einsum("bnhw,w->bnh", masks, columns.sum(0), precision=_EXACT) @ rows.sum(0)
    truth_area = ground_truth.sum((2, 3))
    union = truth_area[:, :, None] + area[:, None] - intersection
    return intersection / (union + 1e-7)


def normalise_over_proposals(
    iou: Float[Array, "b g n"], valid: Bool[Array, "b n"]
) -> Float[Array, "b g n"]:
    """(x - min) / (max - min + 1e-8) over each row's valid proposals; padding becomes 0."""
    valid = valid[:, None]
    low = jnp.min(iou, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
    high = jnp.max(iou, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    return jnp.where(valid, (iou - low) / (high - low + 1e-8), 0.0)


def iou_target(batch: Batch) -> Float[Array, "b g n"]:
    """What probabilities should be: normalised IoU of the batch's proposals with its classes."""
    truth = class_masks(batch.label_map, batch.present_classes)
    return normalise_over_proposals(soft_iou(batch.proposals, truth), batch.proposal_valid)


def smooth_l1(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """Huber loss with beta 1, elementwise."""
    error = jnp.abs(p - q)
    return jnp.where(error < 1, 0.5 * error * error, error - 0.5)


def l1(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """Absolute error, elementwise."""
    return jnp.abs(p - q)


def l2(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """Squared error, elementwise."""
    return jnp.square(p - q)


def kl(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """KL(q || p) of Bernoulli distributions, elementwise; probabilities clipped to 1e-6.

    The paper names KL without a formula; this one is zero exactly where the others are.
    """
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return jax.scipy.special.rel_entr(q, p) + jax.scipy.special.rel_entr(1 - q, 1 - p)


MASK_AWARE_LOSSES: dict[str, Callable] = {"smooth_l1": smooth_l1, "l1": l1, "l2": l2, "kl": kl}
"""Elementwise losses between probability and target, by their name in the configuration."""


def count_terms(present_classes: Int[Array, "b g"], valid: Bool[Array, "b n"]) -> Float[Array, ""]:
    """How many (row, proposal) terms a batch has, at least 1."""
    rows = jnp.sum(present_classes >= 0, axis=1)
    return jnp.maximum(jnp.sum(rows * jnp.sum(valid, axis=1)), 1).astype(jnp.float32)


def mask_aware_terms(
    probability: Float[Array, "b n c"],
    target: Float[Array, "b g n"],
    present_classes: Int[Array, "b g"],
    valid: Bool[Array, "b n"],
    *,
    kind: str = "smooth_l1",
) -> Float[Array, " b"]:
    """Each image's sum over its rows and valid proposals; divide by count_terms for the mean.

    Args:
        probability: of every class.
        target: normalised IoU; no gradient flows into it.
    """
    classes = jnp.maximum(present_classes, 0)[:, None]
    present_probability = jnp.swapaxes(jnp.take_along_axis(probability, classes, axis=2), 1, 2)
    terms = MASK_AWARE_LOSSES[kind](present_probability, lax.stop_gradient(target))
    counted = (present_classes >= 0)[:, :, None] & valid[:, None]
    return jnp.sum(terms, axis=(1, 2), where=counted)
