"""MaskCLIP++: CLIP classifies the ground truth's masks. No proposals, no generator, no teacher."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.config.sections import LossConfig
from maft_jax.convert.method_modules import LINEAR_ALIGNMENT, PSEUDO_TEXT_ALIGNMENT
from maft_jax.convert.rules import Rule
from maft_jax.losses.classification import balanced_cross_entropy_terms
from maft_jax.losses.mask_aware import class_masks
from maft_jax.methods.method import Method, StepInputs
from maft_jax.models.adapters.consistency_alignment import LinearAlignment, PseudoTextAlignment
from maft_jax.models.array_types import Batch
from maft_jax.models.encoder import (
    ImageArchitecture,
    ImageEncoder,
    MapEncoder,
    best_of_names,
    class_logits,
)
from maft_jax.training.objective import LossTerm

_MODULES = {"linear": LinearAlignment(), "pseudo_text": PseudoTextAlignment()}


@dataclasses.dataclass(frozen=True)
class MaskClipPlusPlus(Method):
    """Cross-entropy of every class present in an image, read through its own mask.

    Between logits and loss is the alignment, which prediction and evaluation do not use. A class
    of several names scores their maximum, where the authors draw one name in every step; masks are
    those of whole classes, as label maps have them, where theirs are segments of COCO panoptic.
    """

    alignment: str
    """A value of config.loss.alignment."""

    @classmethod
    def of(cls, loss: LossConfig) -> "MaskClipPlusPlus":
        return cls(loss.alignment)

    @property
    def has_modules(self) -> bool:
        return self.alignment != "none"

    def check(self, encoder: ImageEncoder) -> None:
        if self.alignment == "pseudo_text" and not isinstance(encoder, MapEncoder):
            raise ValueError(
                "config.loss.alignment=pseudo_text: reads the map that proposals are pooled from, "
                f"which {encoder.architecture.describe()} has not; use linear"
            )

    def init_modules(self, vision: ImageArchitecture, key: jax.Array) -> dict:
        text = jnp.zeros((1, vision.embed_dim))
        inputs = {
            "linear": (jnp.zeros((1, 1)),),
            "pseudo_text": (text, jnp.zeros((1, 1, *text.shape))),
        }
        return dict(_MODULES[self.alignment].init(key, *inputs[self.alignment])["params"])

    @property
    def module_rules(self) -> Sequence[Rule]:
        return {"linear": LINEAR_ALIGNMENT, "pseudo_text": PSEUDO_TEXT_ALIGNMENT}[self.alignment]

    def counts(self, batch: Batch) -> Float[Array, ""]:
        """Images that show any class, at least 1."""
        shown = jnp.any(batch.present_classes >= 0, axis=1)
        return jnp.maximum(jnp.sum(shown), 1).astype(jnp.float32)

    def terms(self, step: StepInputs, counts: Float[Array, ""]) -> dict[str, LossTerm]:
        labels = step.batch.present_classes
        logits = self._logits(step, class_masks(step.batch.label_map, labels))
        examples = balanced_cross_entropy_terms(logits, labels)
        return {"mask_classification": LossTerm(1.0, examples, counts)}

    def _logits(self, step: StepInputs, masks) -> Float[Array, "b g c"]:
        encoder, student, text = step.encoder, step.student, step.text
        parameters = {"params": step.modules}
        if self.alignment != "pseudo_text":
            embeddings = encoder.encode_proposals(student, step.pixels, masks)
            logits = class_logits(encoder, embeddings, text)
            if self.alignment == "none":
                return logits
            return _MODULES["linear"].apply(parameters, logits[..., None])
        maps = encoder.feature_map(student, step.pixels)
        embeddings = encoder.pool_proposals(student, maps, step.pixels.shape[1:3], masks)
        cells = encoder.embed(student, maps)
        cells = cells / jnp.linalg.norm(cells, axis=-1, keepdims=True)
        rows = text.reshape(-1, text.shape[-1])
        rows = _MODULES["pseudo_text"].apply(parameters, rows, cells)
        scores = jnp.einsum("bge,bre->bgr", embeddings, rows, precision="highest")
        return best_of_names(scores, text.shape[:-1])
