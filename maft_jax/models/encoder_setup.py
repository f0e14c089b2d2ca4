"""The image tower as config.model runs it: for training, evaluation and prediction alike."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maft_jax.config_sections import ModelConfig
from maft_jax.models.encoder import EncoderSettings, ImageArchitecture, ImageEncoder, MaskingSpec


def make_encoder(
    model: ModelConfig, architecture: ImageArchitecture, mesh: Mesh, logit_scale: float
) -> ImageEncoder:
    """The encoder of these weights; start layer and image size must not be left to them.

    `mesh` says what it will run on, which need not be there: dtypes follow its devices.

    Raises:
        ValueError: the start layer or the image size does not suit the weights.
    """
    platform = mesh.devices.flat[0].platform
    settings = EncoderSettings(
        masking=MaskingSpec(model.mask_start_layer, model.image_size),
        mesh=mesh,
        dtype=compute_dtype(model.compute_dtype, platform),
        attention=model.attention,
        remat=model.remat,
        scan_blocks=model.scan_blocks and platform != "cpu",
        logit_scale=logit_scale,
    )
    try:
        return architecture.make_encoder(settings)
    except ValueError as error:
        raise ValueError(
            f"config.model does not suit these weights: {error}. mask_start_layer=-1 and "
            "image_size=0 choose what does"
        ) from error


def compute_dtype(name: str, platform: str | None = None):
    """The dtype of matrix products; auto is bfloat16 wherever there is an accelerator."""
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)
