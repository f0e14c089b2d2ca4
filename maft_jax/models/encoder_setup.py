"""The image tower as config.model runs it: for training, evaluation and prediction alike."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maft_jax.config.sections import ModelConfig
from maft_jax.models.encoder import EncoderSettings, ImageArchitecture, ImageEncoder, MaskingSpec


def make_encoder(
    model: ModelConfig,
    architecture: ImageArchitecture,
    mesh: Mesh,
    logit_scale: float,
    probabilities: str = "softmax",
) -> ImageEncoder:
    """The encoder of these weights, for the devices of `mesh`, which need not be there.

    Start layer, image size, pooling rule and dtype of `model` are decided; of `attention=auto` the
    tower says what it stands for.

    Raises:
        ValueError: the start layer, the image size or the probabilities do not suit the weights.
    """
    settings = EncoderSettings(
        masking=model_masking(model),
        mesh=mesh,
        dtype=jnp.dtype(model.compute_dtype),
        attention=model.attention,
        remat=model.remat,
        scan_blocks=model.scan_blocks and platform_of(mesh) != "cpu",
        logit_scale=logit_scale,
        probabilities=probabilities,
    )
    if probabilities == "sigmoid" and not hasattr(architecture, "logit_bias"):
        raise ValueError(
            "config.loss.probabilities=sigmoid: needs the bias that SigLIP's weights have beside "
            f"their logit scale; {architecture.describe()} has none, use softmax"
        )
    try:
        return architecture.make_encoder(settings)
    except ValueError as error:
        raise ValueError(
            f"config.model does not suit these weights: {error}. mask_start_layer=-1 and "
            "image_size=0 choose what does"
        ) from error


def model_masking(model: ModelConfig) -> MaskingSpec:
    """What decided settings say of how proposals are read."""
    rules = model.mask_pooling or "hard", model.mask_rule or "maft", max(model.class_token, 0)
    return MaskingSpec(model.mask_start_layer, model.image_size, *rules)


def platform_of(mesh: Mesh) -> str:
    """Of its devices: cpu, tpu, gpu or cuda."""
    return mesh.devices.flat[0].platform


def compute_dtype(name: str, platform: str | None = None):
    """The dtype of matrix products; auto is bfloat16 wherever there is an accelerator."""
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)
