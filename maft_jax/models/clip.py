"""The architecture of a whole CLIP, the published sizes, and random parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from maft_jax.models.encoder import ImageArchitecture, TextArchitecture
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.towers.clip_vit import VisionConfig


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, whose `embed_dim` are equal, or the image tower alone."""

    vision: ImageArchitecture
    text: TextArchitecture | None
    has_logit_bias: bool = dataclasses.field(default=False, repr=False)
    """Whether a bias was trained beside the logit scale, as in SigLIP; the towers tell it, too."""


def clip_config(
    width: int,
    layers: int,
    patch_size: int,
    image_size: int,
    text_width: int,
    text_layers: int,
    embed_dim: int,
) -> ClipConfig:
    """A CLIP of OpenAI's layout, with its vocabulary and the length of its texts."""
    return ClipConfig(
        VisionConfig(width, layers, patch_size, image_size, embed_dim),
        TextConfig(text_width, text_layers, 49408, 77, embed_dim),
    )


CLIP_SIZES = {
    "tiny": clip_config(128, 4, 16, 96, 64, 2, 64),
    "ViT-B-32": clip_config(768, 12, 32, 224, 512, 12, 512),
    "ViT-B-16": clip_config(768, 12, 16, 224, 512, 12, 512),
    "ViT-L-14": clip_config(1024, 24, 14, 224, 768, 12, 768),
    "ViT-L-14-336": clip_config(1024, 24, 14, 336, 768, 12, 768),
}
"""Only for random weights: the sizes of real weights are read off the weights."""


def random_parameters(config: ClipConfig, seed: int = 0) -> dict:
    """Freshly initialised float32 parameters {"visual", "text", "logit_scale"}.

    Perhaps with "logit_bias"; without a text tower {"visual"} alone.
    """
    visual_key, text_key = jax.random.split(jax.random.key(seed))
    visual = config.vision.init(visual_key)
    if config.text is None:
        return {"visual": visual}
    similarity = {"logit_scale": jnp.log(jnp.float32(1 / 0.07))}
    if config.has_logit_bias:
        similarity["logit_bias"] = jnp.float32(-10)
    return {"visual": visual, "text": config.text.init(text_key), **similarity}
