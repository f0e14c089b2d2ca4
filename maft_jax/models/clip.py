"""The architecture of a whole CLIP, the published sizes, and random parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from maft_jax.models.clip_text import TextConfig, TextTransformer
from maft_jax.models.clip_vit import VisionConfig, VisionTransformer


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, whose `embed_dim` are equal, or the image tower alone."""

    vision: VisionConfig
    text: TextConfig | None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How an image tower was tuned to read proposals, and therefore wants to be used."""

    mask_start_layer: int
    """First layer, counted from 0, in which proposals read only their patches."""
    image_size: int
    """Pixels per side at which images are read."""


def resolve_tuning(
    vision: VisionConfig,
    tuning: Tuning | None,
    mask_start_layer: int | None = None,
    image_size: int | None = None,
) -> Tuning:
    """What is given, else what the weights say, else the published layer 8 and 480 pixels.

    In towers of up to 8 layers, two thirds of them stand for layer 8.
    """
    if tuning is None:
        tuning = Tuning(8 if vision.layers > 8 else 2 * vision.layers // 3, 480)
    return Tuning(
        tuning.mask_start_layer if mask_start_layer is None else mask_start_layer,
        tuning.image_size if image_size is None else image_size,
    )


def _config(width, layers, patch_size, image_size, text_width, text_layers, embed_dim):
    return ClipConfig(
        VisionConfig(width, layers, patch_size, image_size, embed_dim),
        TextConfig(text_width, text_layers, 49408, 77, embed_dim),
    )


CLIP_SIZES = {
    "tiny": _config(128, 4, 16, 96, 64, 2, 64),
    "ViT-B-32": _config(768, 12, 32, 224, 512, 12, 512),
    "ViT-B-16": _config(768, 12, 16, 224, 512, 12, 512),
    "ViT-L-14": _config(1024, 24, 14, 224, 768, 12, 768),
    "ViT-L-14-336": _config(1024, 24, 14, 336, 768, 12, 768),
}
"""Only for random weights: the sizes of real weights are read off the weights."""


def random_parameters(config: ClipConfig, seed: int = 0) -> dict:
    """Freshly initialised float32 parameters {"visual", "text", "logit_scale"}.

    Without a text tower {"visual"} alone.
    """
    visual_key, text_key = jax.random.split(jax.random.key(seed))
    images = jnp.zeros((1, config.vision.image_size, config.vision.image_size, 3))
    visual = jax.jit(VisionTransformer(config.vision).init)(visual_key, images)["params"]
    if config.text is None:
        return {"visual": visual}
    tokens = jnp.zeros((1, config.text.context_length), jnp.int32)
    return {
        "visual": visual,
        "text": jax.jit(TextTransformer(config.text).init)(text_key, tokens)["params"],
        "logit_scale": jnp.log(jnp.float32(1 / 0.07)),
    }
