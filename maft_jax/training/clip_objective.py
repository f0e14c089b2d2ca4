"""What tuning CLIP minimises: mask-aware loss and distillation, as MAFT has them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.config.sections import LossConfig
from maft_jax.losses.distillation import distillation_terms
from maft_jax.losses.mask_aware import count_terms, iou_target, mask_aware_terms
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageEncoder, class_logits
from maft_jax.models.preprocess import coarse_masks_on_grid, patch_mask
from maft_jax.runtime.mesh_axes import ShardingRule
from maft_jax.state.tuned_tree import THE_TOWER, TunedTree
from maft_jax.training.objective import LossTerm, Metrics, summed


class Counts(NamedTuple):
    """Of the full batch of a step."""

    mask_aware_terms: Float[Array, ""]
    images: int
    proposals: Float[Array, ""]
    """The valid ones, at least 1."""


@dataclasses.dataclass(frozen=True)
class ClipObjective:
    """The Objective of an image tower; its `context` are class embeddings [c, e], [c, names, e]."""

    encoder: ImageEncoder
    loss: LossConfig
    image_size: tuple[int, int]
    """Height and width at which the encoder reads the images."""
    accumulation_steps: int = 1
    tree: TunedTree = THE_TOWER

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return self.encoder.architecture.sharding_rules

    def in_compute_dtype(self, parameters: Mapping) -> Mapping:
        return self.tree.in_compute_dtype(self.encoder, parameters)

    def counts(self, batch: Batch) -> Counts:
        num_terms = count_terms(batch.present_classes, batch.proposal_valid)
        num_valid = jnp.maximum(jnp.sum(batch.proposal_valid), 1).astype(jnp.float32)
        return Counts(num_terms, len(batch.image), num_valid)

    def loss_and_metrics(
        self,
        trainable: Mapping,
        pretrained: Mapping,
        context: Float[Array, "c *names e"],
        batch: Batch,
        counts: Counts,
    ) -> tuple[Float[Array, ""], Metrics]:
        encoder, text = self.encoder, context
        student, _ = self.tree.student(encoder, pretrained, trainable)
        pretrained = encoder.in_compute_dtype(self.tree.visual(pretrained))
        pixels = encoder.prepare(batch.image, self.image_size)
        grid = encoder.grid(self.image_size)
        masks = coarse_masks_on_grid(batch.proposals, batch.label_map.shape[1:], grid)
        terms: dict[str, LossTerm] = {}
        if self.loss.distillation_weight:
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
            iou_target(batch),
            batch.present_classes,
            batch.proposal_valid,
            kind=self.loss.mask_aware,
        )
        terms["mask_aware"] = LossTerm(
            self.loss.mask_aware_weight, mask_aware, counts.mask_aware_terms
        )
        if self.loss.distillation_weight:
            weight = self.loss.distillation_weight
            terms["distillation"] = LossTerm(weight, distillation, counts.images)
        num_empty = _count_empty(masks, batch.proposal_valid)
        return summed(terms, empty_proposals=num_empty / counts.proposals)


def teacher_probabilities(
    encoder: ImageEncoder,
    pretrained: Mapping,
    text: Float[Array, "c *names e"],
    pixels: Float[Array, "b h w 3"],
) -> Float[Array, "b c"]:
    """How the frozen CLIP classifies whole images, given as `encoder.prepare` makes them."""
    features = encoder.encode_images(pretrained, pixels)
    return encoder.probabilities(class_logits(encoder, features, text))


def _count_empty(masks_on_grid, valid):
    """How many valid proposals allow no patch at all."""
    allowed = patch_mask(masks_on_grid, masks_on_grid.shape[2:])
    return jnp.sum(valid & ~jnp.any(allowed, axis=-1)).astype(jnp.float32)
