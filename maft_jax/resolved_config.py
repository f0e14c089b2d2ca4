"""Settings once the weights and the devices are known: nothing in them is left to be decided."""

import dataclasses

from jax.sharding import Mesh

from maft_jax.config import Config
from maft_jax.methods.registry import make_method
from maft_jax.models.adapters.low_rank import KERNELS
from maft_jax.models.clip import ClipConfig
from maft_jax.models.encoder import ImageArchitecture, MaskingSpec, resolve_masking
from maft_jax.models.encoder_setup import compute_dtype, model_masking, platform_of
from maft_jax.runtime.mesh_axes import DATA


@dataclasses.dataclass(frozen=True)
class ResolvedConfig(Config):
    """A Config with the start layer, image size, dtype, logit scale, trainable rules and mesh used.

    What weights were opened with (`model.stated`) is in the ClipConfig that they gave. Which
    attention runs is the tower's to say: the encoder has it. Which labels are ignored by default is
    each class list's. An empty `data.records` or `data.cache_dir` is a folder of this host, the
    same whenever it is asked for.
    """

    @property
    def masking(self) -> MaskingSpec:
        """How the image tower reads proposals."""
        return model_masking(self.model)


def resolve(
    config: Config, clip: ClipConfig, noted: MaskingSpec | None, mesh: Mesh
) -> ResolvedConfig:
    """The settings with what weights and devices decide.

    Of the weights that is what they note, else the architecture's own. The devices of `mesh`, which
    need not be there, are those that make_mesh arranged as config.mesh says.
    """
    masking = resolve_masking(clip.vision, noted, *config.model.given_masking)
    dtype = compute_dtype(config.model.compute_dtype, platform_of(mesh)).name
    model = dataclasses.replace(config.model, **dataclasses.asdict(masking), compute_dtype=dtype)
    trainable = trainable_rules(config, clip.vision)
    logit_scale = config.loss.logit_scale or clip.vision.default_logit_scale
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return ResolvedConfig(
        **fields
        | {
            "model": model,
            "loss": dataclasses.replace(config.loss, logit_scale=logit_scale),
            "optimizer": dataclasses.replace(config.optimizer, trainable=trainable),
            "mesh": dataclasses.replace(config.mesh, data=mesh.shape[DATA]),
        }
    )


def trainable_rules(config: Config, vision: ImageArchitecture) -> tuple[str, ...]:
    """Which parameters of the tower are tuned, or, with LoRA, which have factors that are.

    Those of the settings, else the method's or the architecture's own.
    """
    if config.optimizer.trainable:
        return config.optimizer.trainable
    if config.optimizer.lora_rank:
        return KERNELS
    method = make_method(config)
    return tuple(vision.default_trainable if method is None else method.default_trainable(vision))
