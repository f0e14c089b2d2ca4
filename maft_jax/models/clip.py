"""The architecture of a whole CLIP, the published sizes, and random parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from maft_jax.models.encoder import ImageArchitecture, TextArchitecture
from maft_jax.models.layers import BlockConfig
from maft_jax.models.text.clip_text import TextConfig
from maft_jax.models.text.siglip_text import SigLipTextConfig
from maft_jax.models.text.tips_text import TipsTextConfig
from maft_jax.models.text.tokenizer import VOCABULARY_SIZE
from maft_jax.models.towers.clip_vit import VisionConfig
from maft_jax.models.towers.convnext import ConvNextConfig
from maft_jax.models.towers.eva02 import Eva02Config
from maft_jax.models.towers.siglip import SigLipVisionConfig
from maft_jax.models.towers.tips import TipsConfig


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers, whose `embed_dim` are equal, or the image tower alone."""

    vision: ImageArchitecture
    text: TextArchitecture | None
    has_logit_bias: bool = dataclasses.field(default=False, repr=False)
    """Whether a bias was trained beside the logit scale, as in SigLIP; the towers tell it, too."""


def untold_architecture(config: ClipConfig) -> dict[str, str]:
    """What keys need beside the values of tensors, which do not tell activations, heads, epsilons.

    Nothing where these are as in OpenAI's CLIP: version 0.1 had no such entry.
    """
    is_openai = all(
        isinstance(tower, kind)
        and tower.block == BlockConfig(tower.width, mlp_width=tower.mlp_width)
        for tower, kind in ((config.vision, VisionConfig), (config.text, TextConfig))
    )
    return {} if is_openai else {"architecture": repr(config)}


def convnext_clip(
    dims: tuple[int, ...],
    embed_dim: int,
    image_size: int,
    text_layers: int,
    *,
    depths: tuple[int, ...] = (3, 3, 27, 3),
    head: str = "linear",
    norm_epsilon: float = 1e-6,
) -> ClipConfig:
    """A CLIP of open_clip with a ConvNeXt, whose text tower is as wide as the embedding."""
    return ClipConfig(
        ConvNextConfig(depths, dims, embed_dim, head, norm_epsilon, image_size),
        TextConfig(embed_dim, text_layers, 49408, 77, embed_dim, activation="gelu"),
    )


_BASE, _LARGE = (128, 256, 512, 1024), (192, 384, 768, 1536)


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


def siglip_config(
    width: int,
    layers: int,
    patch_size: int,
    image_size: int,
    *,
    head_width: int = 64,
    mlp_width: int | None = None,
    text_width: int | None = None,
    text_layers: int | None = None,
) -> ClipConfig:
    """A SigLIP whose text tower is as large as its image tower, or as said, with CLIP's vocabulary.

    The published vocabularies come with weights.
    """
    text_width, text_layers = text_width or width, text_layers or layers
    heads = {"head_width": head_width, "mlp_width": mlp_width}
    if text_width != width:  # the giant's, which is So400m's
        heads = {"head_width": 72, "mlp_width": 4304}
    return ClipConfig(
        SigLipVisionConfig(
            width, layers, patch_size, image_size, head_width=head_width, mlp_width=mlp_width
        ),
        SigLipTextConfig(text_width, text_layers, VOCABULARY_SIZE, 64, width, **heads),
        has_logit_bias=True,
    )


def eva02_config(
    width: int,
    layers: int,
    patch_size: int,
    image_size: int,
    text_width: int,
    text_layers: int,
    embed_dim: int,
) -> ClipConfig:
    """An EVA-02 CLIP, whose hidden width is that of all published ones."""
    return ClipConfig(
        Eva02Config(width, layers, patch_size, image_size, embed_dim, 8 * width // 3),
        TextConfig(text_width, text_layers, VOCABULARY_SIZE, 77, embed_dim, activation="gelu"),
    )


def tipsv2_config(
    width: int, layers: int, mlp_width: int, text_mlp_width: int, text_layers: int, **vision
) -> ClipConfig:
    """A TIPSv2 with CLIP's vocabulary; its own comes with weights."""
    heads = {"head_width": vision["head_width"]} if "head_width" in vision else {}
    return ClipConfig(
        TipsConfig(width, layers, 14, 448, mlp_width, **vision),
        TipsTextConfig(width, text_layers, VOCABULARY_SIZE, text_mlp_width, **heads),
    )


_SO400M = {"head_width": 72, "mlp_width": 4304}

CLIP_SIZES = {
    "tiny": clip_config(128, 4, 16, 96, 64, 2, 64),
    "ViT-B-32": clip_config(768, 12, 32, 224, 512, 12, 512),
    "ViT-B-16": clip_config(768, 12, 16, 224, 512, 12, 512),
    "ViT-L-14": clip_config(1024, 24, 14, 224, 768, 12, 768),
    "ViT-L-14-336": clip_config(1024, 24, 14, 336, 768, 12, 768),
    "convnext_tiny-random": convnext_clip((16, 24, 32, 64), 64, 64, 2, depths=(1, 1, 2, 1)),
    "convnext_base": convnext_clip(_BASE, 512, 224, 12),
    "convnext_base_w": convnext_clip(_BASE, 640, 256, 12),
    "convnext_base_w_320": convnext_clip(_BASE, 640, 320, 12),
    "convnext_large_d": convnext_clip(_LARGE, 768, 256, 16, head="mlp"),
    "convnext_large_d_320": convnext_clip(_LARGE, 768, 320, 16, head="mlp"),
    "convnext_xxlarge": convnext_clip(
        (384, 768, 1536, 3072), 1024, 256, 24, depths=(3, 4, 30, 3), norm_epsilon=1e-5
    ),
    "siglip_tiny-random": siglip_config(64, 2, 16, 64, head_width=16, mlp_width=96),
    "siglip-base-patch16-224": siglip_config(768, 12, 16, 224),
    "siglip2-base-patch16-256": siglip_config(768, 12, 16, 256),
    "siglip2-base-patch16-512": siglip_config(768, 12, 16, 512),
    "siglip2-large-patch16-512": siglip_config(1024, 24, 16, 512),
    "siglip-so400m-patch14-384": siglip_config(1152, 27, 14, 378, **_SO400M),
    "siglip2-so400m-patch16-512": siglip_config(1152, 27, 16, 512, **_SO400M),
    "siglip2-giant-opt-patch16-384": siglip_config(
        1536, 40, 16, 384, head_width=96, text_width=1152, text_layers=27
    ),
    "eva02_tiny-random": eva02_config(128, 4, 16, 96, 64, 2, 64),
    "EVA02-B-16": eva02_config(768, 12, 16, 224, 512, 12, 512),
    "EVA02-L-14": eva02_config(1024, 24, 14, 224, 768, 12, 768),
    "EVA02-L-14-336": eva02_config(1024, 24, 14, 336, 768, 12, 768),
    "tips_tiny-random": ClipConfig(
        TipsConfig(128, 4, 16, 96, 256), TipsTextConfig(128, 2, VOCABULARY_SIZE, 256)
    ),
    "tipsv2_b14": tipsv2_config(768, 12, 3072, 3072, 12),
    "tipsv2_l14": tipsv2_config(1024, 24, 4096, 4096, 12),
    "tipsv2_so400m14": tipsv2_config(1152, 27, 4304, 4304, 27, head_width=72),
    "tipsv2_g14": tipsv2_config(1536, 40, 4096, 6144, 12, gated=True),
}
"""Only for random weights: the sizes of real weights are read off the weights."""
FOLDERS = {
    "eva02_base_patch16_clip_224": "EVA02-B-16",
    "eva02_large_patch14_clip_224": "EVA02-L-14",
    "eva02_large_patch14_clip_336": "EVA02-L-14-336",
    "tipsv2-b14": "tipsv2_b14",
    "tipsv2-l14": "tipsv2_l14",
    "tipsv2-so400m14": "tipsv2_so400m14",
    "tipsv2-g14": "tipsv2_g14",
}
"""What the hub calls sizes otherwise; a dot and the name of the weights may follow."""


def random_parameters(config: ClipConfig, seed: int = 0) -> dict:
    """Freshly initialised float32 parameters {"visual", "text", "logit_scale"}.

    Perhaps with "logit_bias"; without a text tower {"visual"} alone.
    """
    visual_key, text_key = jax.random.split(jax.random.key(seed))
    visual = config.vision.init(visual_key)
    if config.text is None:
        return {"visual": visual}
    similarity = {"logit_scale": jnp.log(jnp.float32(1 / 0.07))}
    if isinstance(config.vision, TipsConfig):  # of which it is a part
        similarity = {"logit_scale": np.float32(np.log(config.vision.logit_scale))}
    if config.has_logit_bias:  # as SigLIP begins
        similarity = {"logit_scale": jnp.log(jnp.float32(10)), "logit_bias": jnp.float32(-10)}
    return {"visual": visual, "text": config.text.init(text_key), **similarity}
