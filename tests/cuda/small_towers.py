"""Towers of the published patches, head widths and numbers of tokens, with fewer, thinner layers.

They compile in seconds, and their programs have the same parts.
"""

import dataclasses

from maft_jax.config import Config
from maft_jax.models.clip import ClipConfig
from tests.cuda.gpu_programs import BACKWARD, FORWARD, coco_config

LAYERS, START = 5, 2
"""Two plain layers, two masked ones, and the last."""
WIDTH, HEADS = 256, 4

IMAGE_SIZES = {
    **{"ViT-B-16": 480, "ViT-B-32": 480, "ViT-L-14": 480, "ViT-L-14-336": 336},
    **{"EVA02-L-14-336": 336, "tipsv2_b14": 448},
    **{"siglip2-base-patch16-512": 512, "convnext_large_d_320": 128},
}
"""900, 225, 1156 and 576 patches: with the class token one number is odd, without it the other."""
_NARROW = {
    "EVA02-L-14-336": {"mlp_width": 682},
    "tipsv2_b14": {"mlp_width": 512},
    "convnext_large_d_320": {"depths": (1, 1, 1, 1), "dims": (32, 64, 96, 128)},
}
"""What makes towers of other kinds as small."""


def small_step(tower: str, batch_size: int, **changes) -> tuple[Config, ClipConfig]:
    """configs/coco.py on a small `tower` of CLIP_SIZES; changes as for coco_config."""
    settings = {
        "model__pretrained": f"random:{tower}",
        "model__image_size": IMAGE_SIZES[tower],
        "model__mask_start_layer": START,
    }
    config, clip = coco_config(batch_size, **(settings | changes))
    sizes = {"width": WIDTH, "layers": LAYERS} | _NARROW.get(tower, {})
    own = {field.name for field in dataclasses.fields(clip.vision)}
    sizes = {name: value for name, value in sizes.items() if name in own}
    vision = dataclasses.replace(clip.vision, **sizes)
    return config, dataclasses.replace(clip, vision=vision)


def calls_of_step(
    whole: bool = True, teacher: bool = True, forward_passes: int = 2, parts: int = 1
) -> dict[str, int]:
    """How often a small step calls cuDNN, by function.

    Args:
        whole: the student reads whole images, too, for distillation.
        teacher: it is asked in the step.
        forward_passes: of the student's layers: one more where the way back repeats them.
        parts: into which the batch is split.
    """
    student = START + (1 + whole) * (LAYERS - 1 - START)
    forward = forward_passes * student + teacher * (LAYERS - 1)
    return {FORWARD: parts * forward, BACKWARD: parts * student}
