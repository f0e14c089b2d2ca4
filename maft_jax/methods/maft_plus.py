"""MAFT+'s two losses of CLIP: probabilities follow IoU, and the map keeps what it knew.

Its transfer of class rows (models.adapters.content_dependent_transfer) is not a part of it: class
rows are those of the text tower.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax
from jaxtyping import Array, Float

from maft_jax.config.sections import LossConfig
from maft_jax.convert.rules import Rule
from maft_jax.losses.mask_aware import count_terms, iou_target, mask_aware_terms
from maft_jax.losses.representation import representation_terms
from maft_jax.methods.method import StepInputs
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder, MapEncoder, class_logits
from maft_jax.models.preprocess import coarse_masks_on_grid
from maft_jax.training.objective import LossTerm


class Counts(NamedTuple):
    """Of the full batch of a step."""

    ranking_terms: Float[Array, ""]
    images: int


@dataclasses.dataclass(frozen=True)
class MaftPlus:
    """Proposals as in MAFT; instead of a distillation, compensation by the frozen tower's map."""

    mask_aware: str
    mask_aware_weight: float
    compensation_weight: float
    """The settings of these names."""
    has_modules: bool = False

    @classmethod
    def of(cls, loss: LossConfig) -> "MaftPlus":
        return cls(loss.mask_aware, loss.mask_aware_weight, loss.compensation_weight)

    def default_trainable(self, vision: ImageArchitecture) -> tuple[str, ...]:
        return tuple(vision.default_trainable)

    def check(self, encoder: ImageEncoder) -> None:
        if not isinstance(encoder, MapEncoder):
            raise ValueError(
                "config.method=maft_plus: keeps the map that proposals are pooled from, which "
                f"{encoder.architecture.describe()} has not; use maft, or a ConvNeXt"
            )

    def init_modules(self, vision: ImageArchitecture, key: jax.Array) -> dict:
        return {}

    @property
    def module_rules(self) -> Sequence[Rule]:
        return ()

    def counts(self, batch: Batch) -> Counts:
        return Counts(count_terms(batch.present_classes, batch.proposal_valid), len(batch.image))

    def terms(self, step: StepInputs, counts: Counts) -> dict[str, LossTerm]:
        encoder, batch, size = step.encoder, step.batch, step.pixels.shape[1:3]
        masks = coarse_masks_on_grid(batch.proposals, batch.label_map.shape[1:], encoder.grid(size))
        maps = encoder.feature_map(step.student, step.pixels)
        before = lax.stop_gradient(encoder.feature_map(step.frozen, step.pixels))
        proposals = encoder.pool_proposals(step.student, maps, size, masks)
        ranking = mask_aware_terms(
            encoder.probabilities(class_logits(encoder, proposals, step.text)),
            iou_target(batch),
            batch.present_classes,
            batch.proposal_valid,
            kind=self.mask_aware,
        )
        compensation = representation_terms(maps, before)
        return {
            "ranking": LossTerm(self.mask_aware_weight, ranking, counts.ranking_terms),
            "compensation": LossTerm(self.compensation_weight, compensation, counts.images),
        }
