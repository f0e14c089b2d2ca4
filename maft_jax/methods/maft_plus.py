"""MAFT+: probabilities follow IoU, class rows look at the image, the map keeps what it knew."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maft_jax.config.sections import LossConfig
from maft_jax.convert.method_modules import CONTENT_DEPENDENT_TRANSFER
from maft_jax.losses.mask_aware import count_terms, iou_target, mask_aware_terms
from maft_jax.losses.representation import representation_terms
from maft_jax.methods.method import Method, StepInputs
from maft_jax.models.adapters.content_dependent_transfer import (
    HEADS,
    ContentDependentTransfer,
    TransferReader,
)
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder, MapEncoder, class_logits
from maft_jax.models.preprocess import coarse_masks_on_grid
from maft_jax.training.objective import LossTerm


class Counts(NamedTuple):
    """Of the full batch of a step."""

    ranking_terms: Float[Array, ""]
    images: int


@dataclasses.dataclass(frozen=True)
class MaftPlus(Method):
    """Proposals as in MAFT; instead of a distillation, compensation by the frozen tower's map."""

    mask_aware: str
    mask_aware_weight: float
    compensation_weight: float
    """The settings of these names."""
    reader: TransferReader | None = None
    """With the transfer of class rows; None: they are those of the text tower."""
    module_rules = CONTENT_DEPENDENT_TRANSFER

    @classmethod
    def of(cls, loss: LossConfig) -> "MaftPlus":
        adapts = loss.transfer != "none"
        reader = TransferReader(loss.transfer, loss.transfer_memory) if adapts else None
        return cls(loss.mask_aware, loss.mask_aware_weight, loss.compensation_weight, reader)

    def __repr__(self) -> str:
        """Without a transfer as in checkpoints of versions that had none."""
        shown = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        ]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"MaftPlus({values})"

    @property
    def has_modules(self) -> bool:
        return self.reader is not None

    def check(self, encoder: ImageEncoder) -> None:
        if not isinstance(encoder, MapEncoder):
            raise ValueError(
                "config.method=maft_plus: keeps the map that proposals are pooled from, which "
                f"{encoder.architecture.describe()} has not; use maft, or a ConvNeXt"
            )
        if self.has_modules and encoder.architecture.embed_dim % HEADS:
            raise ValueError(
                f"config.loss.transfer={self.reader.kind}: expected embeddings of a multiple of "
                f"{HEADS} numbers, of {encoder.architecture.describe()} they have "
                f"{encoder.architecture.embed_dim}; use none"
            )

    def init_modules(self, vision: ImageArchitecture, key: jax.Array) -> dict:
        text = jnp.zeros((1, vision.embed_dim))
        transfer = ContentDependentTransfer(self.reader.kind)
        return dict(transfer.init(key, text, jnp.zeros((1, 1, *text.shape)))["params"])

    def counts(self, batch: Batch) -> Counts:
        return Counts(count_terms(batch.present_classes, batch.proposal_valid), len(batch.image))

    def terms(self, step: StepInputs, counts: Counts) -> dict[str, LossTerm]:
        encoder, batch, size = step.encoder, step.batch, step.pixels.shape[1:3]
        masks = coarse_masks_on_grid(batch.proposals, batch.label_map.shape[1:], encoder.grid(size))
        maps = encoder.feature_map(step.student, step.pixels)
        before = lax.stop_gradient(encoder.feature_map(step.frozen, step.pixels))
        proposals = encoder.pool_proposals(step.student, maps, size, masks)
        ranking = mask_aware_terms(
            encoder.probabilities(self._logits(step, maps, proposals)),
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

    def _logits(self, step: StepInputs, maps, proposals) -> Float[Array, "b n c"]:
        if self.reader is None:
            return class_logits(step.encoder, proposals, step.text)
        cells = self.reader.memory_of(step.encoder, step.student, maps)
        return self.reader.logits(step.encoder, step.modules, (proposals, cells), step.text)
