"""Small random CLIPs and batches that many tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from maft_jax.config.sections import LossConfig
from maft_jax.models.array_types import Batch
from maft_jax.models.towers.clip_vit import VisionConfig, VisionTransformer
from maft_jax.models.towers.ip_clip import IPClip
from maft_jax.training.clip_objective import ClipObjective

VISION = VisionConfig(width=128, layers=3, patch_size=16, image_size=64, embed_dim=32)
NUM_CLASSES = 5
CLIP_TRAINABLE = VISION.default_trainable


def ip_clip(
    vision: VisionConfig, mask_start_layer: int, logit_scale: float = 100.0, **tower
) -> IPClip:
    """The encoder of an architecture; `tower` are further fields of VisionTransformer."""
    return IPClip(VisionTransformer(vision, **tower), mask_start_layer, logit_scale)


def tiny_spec(loss: LossConfig | None = None, accumulation_steps: int = 1, **encoder):
    """A step on 64x64 images, masked from the second of three layers on."""
    loss = loss or LossConfig()
    scale = loss.logit_scale or VISION.default_logit_scale
    encoder = ip_clip(VISION, **{"mask_start_layer": 1, **encoder}, logit_scale=scale)
    return ClipObjective(encoder, loss, (64, 64), accumulation_steps)


def tiny_visual() -> dict:
    """Random parameters of VISION."""
    return VISION.init(jax.random.key(0))


def tiny_text() -> jax.Array:
    """Normalised class embeddings."""
    text = jax.random.normal(jax.random.key(7), (NUM_CLASSES, VISION.embed_dim))
    return text / jnp.linalg.norm(text, axis=-1, keepdims=True)


def tiny_batch(batch_size: int = 8, num_proposals: int = 6, seed: int = 0) -> Batch:
    """uint8 images and masks; each label map is made of blocks of random classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(-1, NUM_CLASSES, (batch_size, 4, 4))
    label_map = blocks.repeat(16, axis=1).repeat(16, axis=2).astype(np.int32)
    present = np.full((batch_size, NUM_CLASSES), -1, np.int32)
    for row, labels in zip(present, label_map, strict=True):
        classes = np.unique(labels[labels >= 0])
        row[: len(classes)] = classes
    coarse = rng.integers(0, 2, (batch_size, num_proposals, 4, 4), np.uint8) * 255
    batch = Batch(
        image=rng.integers(0, 256, (batch_size, 64, 64, 3), np.uint8),
        label_map=label_map,
        present_classes=present,
        proposals=coarse.repeat(4, axis=2).repeat(4, axis=3),
        proposal_valid=np.ones((batch_size, num_proposals), bool),
    )
    return jax.device_put(batch)
