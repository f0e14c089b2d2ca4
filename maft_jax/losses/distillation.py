"""Self-distillation: without masks the tuned encoder must still answer like the frozen CLIP."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.losses.mask_aware import smooth_l1


def distillation_terms(
    student: Float[Array, "b c"], teacher: Float[Array, "b c"]
) -> Float[Array, " b"]:
    """Each image's SmoothL1 between the two class distributions, mean over classes."""
    return jnp.mean(smooth_l1(student, teacher), axis=-1)
