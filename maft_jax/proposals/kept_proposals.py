"""From what a generator returns to what is kept of it: checked, the best first, on the grid."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.examples import proposal_grid_size
from maft_jax.proposals.generator import MaskLogits, Proposals
from maft_jax.proposals.soft_masks import soften_masks

_MASK_TYPES = (np.bool_, np.uint8, np.float32)


@dataclass(frozen=True)
class KeptProposals:
    """The best proposals of an image, highest score first, on the grid of the records."""

    masks: UInt8[np.ndarray, "n grid_h grid_w"]
    scores: Float32[np.ndarray, " n"]
    class_logits: Float32[np.ndarray, "n c"] | None
    input_size: tuple[int, int]
    """(height, width) at which the generator read the image."""
    mask_logits: MaskLogits | None = None


def keep_best(made: Proposals, image_size: tuple[int, int], most: int) -> KeptProposals:
    """At most so many of an image of (height, width); ties stay in the generator's order."""
    input_size = made.input_size or image_size
    best_first = np.argsort(-made.scores, kind="stable")[:most]
    masks = made.masks[best_first]
    if not len(best_first):
        masks = np.zeros((0, *proposal_grid_size(*input_size)), np.uint8)
    elif not made.on_grid:
        masks = soften_masks(masks, input_size)
    logits, mask_logits = made.class_logits, made.mask_logits
    if mask_logits is not None:
        mask_logits = dataclasses.replace(mask_logits, values=mask_logits.values[best_first])
    return KeptProposals(
        masks,
        made.scores[best_first],
        None if logits is None else logits[best_first],
        input_size,
        mask_logits,
    )


def check_proposals(made: Proposals, where: str) -> None:
    """Refuses what a generator must not return; `where` names generator and example.

    Raises:
        ValueError: says what was expected and what came.
    """
    masks, scores, logits = made.masks, made.scores, made.class_logits
    if masks.ndim != 3 or masks.dtype not in _MASK_TYPES:
        raise ValueError(
            f"{where}: expected masks [n, h, w] of bool, uint8 or float32, got {masks.dtype} "
            f"{list(masks.shape)}"
        )
    if len(masks) and not masks.size:
        raise ValueError(f"{where}: expected masks with pixels, got {list(masks.shape)}")
    if scores.shape != (len(masks),) or scores.dtype != np.float32:
        raise ValueError(
            f"{where}: expected a float32 score for each of {len(masks)} masks, got "
            f"{scores.dtype} {list(scores.shape)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"{where}: expected finite scores, got {scores[~np.isfinite(scores)][0]}")
    if masks.dtype == np.float32 and masks.size:
        # Written so that NaN fails as well.
        low, high = masks.min(), masks.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{where}: expected masks in [0, 1], got {low} to {high}")
    if logits is not None and (logits.ndim != 2 or len(logits) != len(masks)):
        raise ValueError(
            f"{where}: expected class logits [{len(masks)}, c], got {list(logits.shape)}"
        )
    if logits is not None and not np.isfinite(logits).all():
        raise ValueError(f"{where}: expected finite class logits")
