"""What a step minimises: the mask-aware loss, and the distillation loss where it has a weight."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.array_types import Batch
from maft_jax.config import LossConfig
from maft_jax.losses.distillation import distillation_terms
from maft_jax.losses.mask_aware import (
    class_masks,
    mask_aware_terms,
    normalise_over_proposals,
    soft_iou,
)
from maft_jax.models.ip_clip import IPClip
from maft_jax.models.layers import in_compute_dtype
from maft_jax.models.precision import float32_product
from maft_jax.models.preprocess import clip_input, coarse_masks_on_grid, patch_mask
from maft_jax.train_state import overlay

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What the step computes, apart from its array arguments."""

    encoder: IPClip
    loss: LossConfig
    image_size: tuple[int, int]
    """Height and width at which the encoder reads the images."""
    accumulation_steps: int = 1


def losses(
    spec: StepSpec,
    trainable: Mapping,
    pretrained: Mapping,
    text: Float[Array, "c e"],
    batch: Batch,
    num_terms: Float[Array, ""],
    num_images: int,
) -> tuple[Float[Array, ""], Metrics]:
    """The batch's share of the total loss, and its parts.

    `num_terms` and `num_images` count the whole batch that a step sees, of which this one may be
    a part: so the shares of the parts add up to the loss of the whole.
    """
    dtype = spec.encoder.dtype
    pretrained = in_compute_dtype(pretrained, dtype)
    student = {"params": overlay(pretrained, in_compute_dtype(trainable, dtype))}
    images = clip_input(batch.image, spec.image_size, dtype)
    masks = _masks_on_grid(spec, batch)
    if spec.loss.distillation_weight:
        proposals, whole = spec.encoder.apply(student, images, masks, method=IPClip.encode_both)
        teacher = batch.teacher_probabilities
        if teacher is None:
            teacher = teacher_probabilities(spec, pretrained, text, images)
        distillation = distillation_terms(_class_logits(spec, whole, text), teacher)
    else:
        proposals = spec.encoder.apply(student, images, masks, method=IPClip.encode_proposals)
        distillation = jnp.zeros(len(batch.image))
    mask_aware = mask_aware_terms(
        _class_logits(spec, proposals, text),
        _iou_target(batch),
        batch.present_classes,
        batch.proposal_valid,
        kind=spec.loss.mask_aware,
    )
    mask_aware_loss = spec.loss.mask_aware_weight * jnp.sum(mask_aware) / num_terms
    distillation_loss = spec.loss.distillation_weight * jnp.sum(distillation) / num_images
    metrics = {
        "mask_aware_loss": mask_aware_loss,
        "distillation_loss": distillation_loss,
        "example_finite": jnp.isfinite(mask_aware) & jnp.isfinite(distillation),
        "num_empty": _count_empty(masks, batch.proposal_valid),
    }
    return mask_aware_loss + distillation_loss, metrics


def teacher_probabilities(
    spec: StepSpec,
    pretrained: Mapping,
    text: Float[Array, "c e"],
    images: Float[Array, "b h w 3"],
) -> Float[Array, "b c"]:
    """How the frozen CLIP classifies whole images, given as `clip_input` makes them."""
    teacher = spec.encoder.apply({"params": pretrained}, images)
    return jax.nn.softmax(_class_logits(spec, teacher, text), axis=-1)


def _class_logits(spec: StepSpec, features, text):
    flat = features.reshape(-1, features.shape[-1])
    similarities = float32_product(flat, text.T, spec.encoder.dtype)
    return spec.loss.temperature * similarities.reshape(*features.shape[:-1], len(text))


def _iou_target(batch: Batch):
    truth = class_masks(batch.label_map, batch.present_classes)
    return normalise_over_proposals(soft_iou(batch.proposals, truth), batch.proposal_valid)


def _masks_on_grid(spec: StepSpec, batch: Batch):
    grid = spec.encoder.config.grid(*spec.image_size)
    return coarse_masks_on_grid(batch.proposals, batch.label_map.shape[1:], grid)


def _count_empty(masks_on_grid, valid):
    """How many valid proposals allow no patch at all."""
    allowed = patch_mask(masks_on_grid, masks_on_grid.shape[2:])
    return jnp.sum(valid & ~jnp.any(allowed, axis=-1)).astype(jnp.float32)
