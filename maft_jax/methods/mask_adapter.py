"""Mask-Adapter: a frozen CLIP, and a model that learns with which maps a mask is pooled."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from maft_jax.config.sections import LossConfig
from maft_jax.convert.method_modules import MASK_ADAPTER
from maft_jax.losses.classification import best_matches, cosine_distance_terms, cross_entropies
from maft_jax.losses.mask_aware import class_masks, soft_iou
from maft_jax.methods.method import Method, StepInputs
from maft_jax.models.adapters.mask_adapter import AdapterReader, MaskAdapter, MaskAdapterConfig
from maft_jax.models.array_types import Batch, Masks
from maft_jax.models.encoder import ImageArchitecture, ImageEncoder, MapEncoder
from maft_jax.models.mask_reader import cut
from maft_jax.models.preprocess import coarse_masks_on_grid
from maft_jax.models.resize import resize
from maft_jax.training.objective import LossTerm

CLASSIFICATION_WEIGHT, CONSISTENCY_WEIGHT = 2.0, 5.0
PROPOSAL_THRESHOLD, MATCH_IOU, MOST_MATCHES = 0.4, 0.7, 8
"""At what proposals are cut, what IoU with a mask they need, and how many an image has at most."""


class Pairs(NamedTuple):
    """Proposals of a batch, each with the ground truth's mask that it overlaps best."""

    proposals: Int[Array, "b m"]
    truths: Int[Array, "b m"]
    matched: Bool[Array, "b m"]
    """Whether it does enough."""


class Counts(NamedTuple):
    """Of the full batch of a step, at least 1 each."""

    masks: Float[Array, ""]
    pairs: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class MaskAdapterMethod(Method):
    """Cross-entropy of masks that the adapter reads; with proposals also agreement with the truth.

    Masks of the ground truth are those of whole classes, as label maps have them, where the
    authors' are segments of COCO panoptic; and classes are told apart without a void row.
    """

    mixed: bool
    """Whether there are proposals among the masks: the authors' second phase."""
    reader: AdapterReader = dataclasses.field()  # or the None of Method would be its default
    has_modules = True
    module_rules = MASK_ADAPTER

    @classmethod
    def of(cls, loss: LossConfig) -> "MaskAdapterMethod":
        config = MaskAdapterConfig(width=loss.adapter_width)
        return cls(loss.adapter_masks == "mixed", AdapterReader(config))

    def default_trainable(self, vision: ImageArchitecture) -> tuple[str, ...]:
        return ()

    def check(self, encoder: ImageEncoder) -> None:
        if not isinstance(encoder, MapEncoder):
            raise ValueError(
                "config.method=mask_adapter: draws weights of the map that proposals are pooled "
                f"from, which {encoder.architecture.describe()} has not; use a ConvNeXt"
            )

    def init_modules(self, vision: ImageArchitecture, key: jax.Array) -> dict:
        cells, masks = jnp.zeros((1, 1, 1, vision.embed_dim)), jnp.zeros((1, 1, 1, 1))
        return dict(MaskAdapter(self.reader.config).init(key, cells, masks)["params"])

    def counts(self, batch: Batch) -> Counts:
        num_masks = jnp.sum(batch.present_classes >= 0)
        num_pairs = jnp.sum(_pairs(batch).matched) if self.mixed else 0
        at_least_one = (jnp.maximum(x, 1) for x in (num_masks + 2 * num_pairs, num_pairs))
        return Counts(*(x.astype(jnp.float32) for x in at_least_one))

    def terms(self, step: StepInputs, counts: Counts) -> dict[str, LossTerm]:
        batch, grid = step.batch, step.encoder.grid(step.pixels.shape[1:3])
        size = tuple(self.reader.mask_scale * side for side in grid)
        masks = resize(class_masks(batch.label_map, batch.present_classes), size, axes=(2, 3))
        if not self.mixed:
            return self.losses(step, counts, masks, batch.present_classes, None)
        pairs = _pairs(batch)
        chosen = cut(batch.proposals, PROPOSAL_THRESHOLD)
        chosen = jnp.take_along_axis(chosen, pairs.proposals[:, :, None, None], axis=1)
        chosen = coarse_masks_on_grid(chosen, batch.label_map.shape[1:], size)
        masks = jnp.concatenate([masks, chosen], axis=1)
        return self.losses(step, counts, masks, batch.present_classes, pairs)

    def losses(
        self,
        step: StepInputs,
        counts: Counts,
        masks: Masks,
        labels: Int[Array, "b g"],
        pairs: Pairs | None,
    ) -> dict[str, LossTerm]:
        """Of masks with labels (negative: none), and behind them a proposal of each of `pairs`.

        The class of a pair is that of its mask, which counts as often as it is in pairs besides.
        """
        read = self.reader.read(step.encoder, step.student, step.modules, step.pixels, masks)
        logits = self.reader.logits(step.encoder, step.modules, read, step.text)
        if pairs is None:
            entropy = jnp.sum(cross_entropies(logits, labels), axis=1)
            return {"mask_classification": LossTerm(CLASSIFICATION_WEIGHT, entropy, counts.masks)}
        num_truths = labels.shape[1]
        of_pairs = jnp.take_along_axis(labels, pairs.truths, axis=1)
        of_pairs = jnp.where(pairs.matched, of_pairs, -1)
        of_truths = jnp.take_along_axis(logits[:, :num_truths], pairs.truths[..., None], axis=1)
        logits = jnp.concatenate([logits, of_truths], axis=1)
        entropies = cross_entropies(logits, jnp.concatenate([labels, of_pairs, of_pairs], axis=1))
        truths = jnp.take_along_axis(read[:, :num_truths], pairs.truths[..., None], axis=1)
        distances = cosine_distance_terms(
            read[:, num_truths:], lax.stop_gradient(truths), pairs.matched
        )
        entropy = jnp.sum(entropies, axis=1)
        return {
            "mask_classification": LossTerm(CLASSIFICATION_WEIGHT, entropy, counts.masks),
            "consistency": LossTerm(CONSISTENCY_WEIGHT, distances, counts.pairs),
        }


def _pairs(batch: Batch) -> Pairs:
    truths = class_masks(batch.label_map, batch.present_classes)
    iou = soft_iou(cut(batch.proposals, PROPOSAL_THRESHOLD), truths)
    return Pairs(*best_matches(iou, batch.proposal_valid, MATCH_IOU, MOST_MATCHES))
