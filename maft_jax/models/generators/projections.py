"""Linear maps and convolutions of the generators: products in the compute dtype, channels last."""

from collections.abc import Sequence

import jax
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.precision import matmul_precision

_GROUPS = 32


def linear(features: int, dtype: DTypeLike, *, bias: bool = True, **module) -> nn.Dense:
    """A product, in float32 exact on every device."""
    precision = matmul_precision(dtype)
    return nn.Dense(features, use_bias=bias, dtype=dtype, precision=precision, **module)


def convolution(
    features: int,
    size: int,
    dtype: DTypeLike,
    *,
    stride: int = 1,
    dilation: int = 1,
    bias: bool = True,
    **module,
) -> nn.Conv:
    """A convolution of odd `size` that pads with zeros on all sides, as PyTorch's."""
    padding = dilation * (size // 2)
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=(dilation, dilation),
        use_bias=bias,
        dtype=dtype,
        precision=matmul_precision(dtype),
        **module,
    )


def check_groups(what: str, width: int) -> None:
    """Raises ValueError where GroupNorm cannot divide the channels."""
    if width % _GROUPS or width < 1:
        raise ValueError(f"a {what} of width {width}; expected a multiple of {_GROUPS}")


class NormedConvolution(nn.Module):
    """A convolution, GroupNorm of 32 groups, and perhaps ReLU."""

    features: int
    size: int
    dtype: DTypeLike
    bias: bool = False
    relu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w channels"]) -> Float[Array, "b h w d"]:
        x = convolution(self.features, self.size, self.dtype, bias=self.bias, name="conv")(x)
        # the difference of two means of squares would lose digits
        norm = nn.GroupNorm(
            _GROUPS, epsilon=1e-5, dtype=self.dtype, use_fast_variance=False, name="norm"
        )
        x = norm(x)
        return jax.nn.relu(x) if self.relu else x


class Perceptron(nn.Module):
    """Linear maps with ReLU between them, as queries become mask and class embeddings."""

    widths: Sequence[int]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        for index, width in enumerate(self.widths):
            x = linear(width, self.dtype, name=f"layers_{index}")(x)
            x = jax.nn.relu(x) if index + 1 < len(self.widths) else x
        return x
