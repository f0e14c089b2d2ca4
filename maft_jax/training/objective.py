"""What a step minimises: named loss terms of the student, weighted and summed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.config.sections import LossConfig
from maft_jax.losses.distillation import distillation_terms
from maft_jax.losses.mask_aware import (
    class_masks,
    mask_aware_terms,
    normalise_over_proposals,
    soft_iou,
)
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageEncoder, class_logits
from maft_jax.models.preprocess import coarse_masks_on_grid, patch_mask
from maft_jax.state.train_state import overlay

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What the step computes, apart from its array arguments."""

    encoder: ImageEncoder
    loss: LossConfig
    image_size: tuple[int, int]
    """Height and width at which the encoder reads the images."""
    accumulation_steps: int = 1


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """One of the losses that a step sums."""

    weight: float
    examples: Float[Array, " b"]
    """Of each image, before weight and division."""
    count: Float[Array, ""] | int
    """By which the whole batch's sum is divided."""

    @property
    def value(self) -> Float[Array, ""]:
        """The microbatch's share of the batch's weighted mean."""
        return self.weight * jnp.sum(self.examples) / self.count


def loss_fn(
    spec: StepSpec,
    trainable: Mapping,
    pretrained: Mapping,
    text: Float[Array, "c *names e"],
    batch: Batch,
    num_terms: Float[Array, ""],
    num_images: int,
) -> tuple[Float[Array, ""], Metrics]:
    """The microbatch's loss, normalised by counts of the full batch, and what it is made of.

    `num_terms` and `num_images` count the full batch of a step, of which this may be a part: so
    losses and gradients of the parts add up to those of the whole.
    """
    encoder = spec.encoder
    pretrained = encoder.in_compute_dtype(pretrained)
    student = overlay(pretrained, encoder.in_compute_dtype(trainable))
    pixels = encoder.prepare(batch.image, spec.image_size)
    masks = _masks_on_grid(spec, batch)
    terms: dict[str, LossTerm] = {}
    if spec.loss.distillation_weight:
        proposals, whole = encoder.encode_both(student, pixels, masks)
        teacher = batch.teacher_probabilities
        if teacher is None:
            teacher = teacher_probabilities(encoder, pretrained, text, pixels)
        answer = encoder.probabilities(class_logits(encoder, whole, text))
        distillation = distillation_terms(answer, teacher)
    else:
        proposals = encoder.encode_proposals(student, pixels, masks)
    probabilities = encoder.probabilities(class_logits(encoder, proposals, text))
    mask_aware = mask_aware_terms(
        probabilities,
        _iou_target(batch),
        batch.present_classes,
        batch.proposal_valid,
        kind=spec.loss.mask_aware,
    )
    terms["mask_aware"] = LossTerm(spec.loss.mask_aware_weight, mask_aware, num_terms)
    if spec.loss.distillation_weight:
        terms["distillation"] = LossTerm(spec.loss.distillation_weight, distillation, num_images)
    values = {name: term.value for name, term in terms.items()}
    finite = [jnp.isfinite(term.examples) for term in terms.values()]
    metrics = {
        "terms": values,
        "example_finite": jnp.all(jnp.stack(finite), axis=0),
        "num_empty": _count_empty(masks, batch.proposal_valid),
    }
    return sum(values.values()), metrics


def teacher_probabilities(
    encoder: ImageEncoder,
    pretrained: Mapping,
    text: Float[Array, "c *names e"],
    pixels: Float[Array, "b h w 3"],
) -> Float[Array, "b c"]:
    """How the frozen CLIP classifies whole images, given as `encoder.prepare` makes them."""
    features = encoder.encode_images(pretrained, pixels)
    return encoder.probabilities(class_logits(encoder, features, text))


def _iou_target(batch: Batch):
    truth = class_masks(batch.label_map, batch.present_classes)
    return normalise_over_proposals(soft_iou(batch.proposals, truth), batch.proposal_valid)


def _masks_on_grid(spec: StepSpec, batch: Batch):
    grid = spec.encoder.grid(spec.image_size)
    return coarse_masks_on_grid(batch.proposals, batch.label_map.shape[1:], grid)


def _count_empty(masks_on_grid, valid):
    """How many valid proposals allow no patch at all."""
    allowed = patch_mask(masks_on_grid, masks_on_grid.shape[2:])
    return jnp.sum(valid & ~jnp.any(allowed, axis=-1)).astype(jnp.float32)
