"""What an evaluation computes, apart from weights and data: its settings, once they are decided."""

import hashlib
from dataclasses import dataclass

import jax.numpy as jnp

from input_pipeline.eval_pipeline import EvalGeometry
from maft_jax.inference.segmenter import InferenceSpec, eval_geometry
from maft_jax.models.encoder import ImageEncoder, MaskingSpec
from maft_jax.resolved_config import ResolvedConfig

MASK_SETTINGS = ("mask_pooling", "mask_rule", "class_token")
"""Of masking, what version 0.1 did not know: keys have them only where they are no default."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """How images are read and labelled; only what shares it can be compared."""

    masking: MaskingSpec
    image_aspect: str
    logit_scale: float
    templates: tuple[str, ...]
    """Prompts, in which {} stands for the class name."""
    geometry: EvalGeometry
    scales: tuple[float, ...]
    flip: bool
    ensemble_weight: float
    filter_invalid: bool
    ensemble_exponents: tuple[float, float] | None

    @classmethod
    def of(cls, config: ResolvedConfig) -> "EvaluationProtocol":
        """What config.evaluation, config.model, config.loss and config.data say of it."""
        settings, aspect = config.evaluation, config.model.image_aspect
        return cls(
            config.masking,
            aspect,
            config.loss.logit_scale,
            config.data.templates,
            eval_geometry(aspect, settings.short_side, settings.max_long_side),
            settings.scales,
            settings.flip,
            settings.ensemble_weight,
            settings.filter_invalid,
            settings.ensemble_exponents or None,
        )

    def inference_spec(self, encoder: ImageEncoder) -> InferenceSpec:
        """The program of an encoder under this protocol."""
        return InferenceSpec(
            encoder=encoder,
            image_size=(self.masking.image_size, self.masking.image_size),
            short_side=self.geometry.short_side if self.image_aspect == "keep" else None,
            scales=self.scales,
            flip=self.flip,
            ensemble_weight=self.ensemble_weight,
            filter_invalid=self.filter_invalid,
            ensemble_exponents=self.ensemble_exponents,
        )

    def describe(self, encoder: ImageEncoder) -> dict:
        """JSON values for results and keys, under the names of version 0.1, whose results stay."""
        rules = self.masking.as_json()
        later = {name: rules[name] for name in MASK_SETTINGS if name in rules}
        later |= {} if self.image_aspect == "squash" else {"image_aspect": self.image_aspect}
        exponents = self.ensemble_exponents
        later |= {} if exponents is None else {"ensemble_exponents": list(exponents)}
        prompts = "".join(f"{template}\n" for template in self.templates)
        return {
            "short_side": self.geometry.short_side,
            "max_long_side": self.geometry.max_long_side,
            "padding_multiple": self.geometry.divisor,
            "image_size": self.masking.image_size,
            "scales": list(self.scales),
            "flip": self.flip,
            "mask_start_layer": self.masking.mask_start_layer,
            **later,
            "temperature": self.logit_scale,
            "ensemble_weight": self.ensemble_weight,
            "filter_invalid": self.filter_invalid,
            "compute_dtype": jnp.dtype(encoder.dtype).name,
            "prompts": list(self.templates),
            "prompts_sha256": sha256_of_text(prompts),
        }


def sha256_of_text(text: str) -> str:
    """Of its UTF-8, whatever characters file names have left in it."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
