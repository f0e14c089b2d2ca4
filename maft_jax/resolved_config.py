"""Settings once the weights are known: nothing in them is left to be decided later."""

import dataclasses

from maft_jax.config import Config
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import MaskingSpec, resolve_masking


@dataclasses.dataclass(frozen=True)
class ResolvedConfig(Config):
    """A Config whose start layer, image size and trainable rules are those that are used."""

    @property
    def masking(self) -> MaskingSpec:
        """How the image tower reads proposals."""
        return MaskingSpec(self.model.mask_start_layer, self.model.image_size)


def resolve(config: Config, clip: ClipConfig, noted: MaskingSpec | None) -> ResolvedConfig:
    """The settings with what the weights decide: what they note, else the architecture's own."""
    masking = resolve_masking(clip.vision, noted, *config.model.given_masking)
    model = dataclasses.replace(config.model, **dataclasses.asdict(masking))
    trainable = config.optimizer.trainable or clip.vision.default_trainable
    optimizer = dataclasses.replace(config.optimizer, trainable=tuple(trainable))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return ResolvedConfig(**fields | {"model": model, "optimizer": optimizer})
