"""The image tower as config.model runs it, for training and for evaluation."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maft_jax.config import ModelConfig
from maft_jax.models.attention import choose_attention
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.clip_vit import VisionConfig
from maft_jax.models.ip_clip import IPClip


def make_encoder(model: ModelConfig, vision: VisionConfig, mesh: Mesh) -> IPClip:
    """The image tower of these weights; start layer and image size must not be left to them.

    `mesh` says what it will run on, which need not be there: dtypes follow its devices.

    Raises:
        ValueError: the start layer or the image size does not suit the weights.
    """
    try:
        vision.grid(model.image_size, model.image_size)
        platform = mesh.devices.flat[0].platform
        dtype = compute_dtype(model.compute_dtype, platform)
        return IPClip(
            vision,
            dtype=dtype,
            attention=choose_attention(
                model.attention, mesh, vision.heads, vision.head_width, dtype
            ),
            remat=model.remat,
            loop=_block_loop(model.scan_blocks, platform),
            mask_start_layer=model.mask_start_layer,
        )
    except ValueError as error:
        raise ValueError(
            f"config.model does not suit these weights: {error}. mask_start_layer=-1 and "
            "image_size=0 choose what does"
        ) from error


def _block_loop(scan_blocks: bool, platform: str) -> BlockLoop:
    return BlockLoop.SCANNED if scan_blocks and platform != "cpu" else BlockLoop.UNROLLED


def compute_dtype(name: str, platform: str | None = None):
    """The dtype of matrix products; auto is bfloat16 wherever there is an accelerator."""
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)
