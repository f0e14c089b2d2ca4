"""MaskFormer's pixel decoder: a feature pyramid from coarse to fine."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.generators.projections import NormedConvolution, convolution


class FpnPixelDecoder(nn.Module):
    """A backbone's maps to mask features at stride 4."""

    width: int
    mask_width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b _ _ _"]]) -> Float[Array, "b h w e"]:
        *finer, coarsest = maps
        x = NormedConvolution(self.width, 3, self.dtype, relu=True, name="stem")(coarsest)
        for index, skip in enumerate(reversed(finer)):
            lateral = NormedConvolution(self.width, 1, self.dtype, name=f"lateral_{index}")(skip)
            x = lateral + _nearest(x, lateral.shape[1:3])
            x = NormedConvolution(self.width, 3, self.dtype, relu=True, name=f"fusion_{index}")(x)
        return convolution(self.mask_width, 3, self.dtype, name="mask_features")(x)


def _nearest(x: Float[Array, "b h w d"], size: tuple[int, int]) -> Float[Array, "b h2 w2 d"]:
    """Row and column floor(i * source / target), as PyTorch's nearest."""
    for axis, target in zip((1, 2), size, strict=True):
        x = jnp.take(x, np.arange(target) * x.shape[axis] // target, axis=axis)
    return x
