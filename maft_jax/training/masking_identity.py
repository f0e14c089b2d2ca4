"""How proposals are read, as a part of what a run is."""

from typing import Any

from maft_jax.evaluators.protocol import MASK_SETTINGS
from maft_jax.models.encoder import MaskingSpec


def masking_identity(masking: MaskingSpec, own: MaskingSpec) -> dict[str, Any]:
    """What a checkpoint must agree with, by the names of config.model.

    None is the tower's `own` choice, so that checkpoints of earlier versions, which knew no other
    and noted nothing, agree with it. How the images of an evaluation are squashed is no part.
    """
    chosen = {name: getattr(masking, name) for name in MASK_SETTINGS}
    return {
        "mask_start_layer": masking.mask_start_layer,
        "image_size": masking.image_size,
        **{name: None if value == getattr(own, name) else value for name, value in chosen.items()},
    }
