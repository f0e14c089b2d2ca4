"""ResNet with bottlenecks as a backbone: plain, or with DeepLab's stem and multi-grid."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.generators.projections import convolution


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of stages res2 to res5, whose maps have strides 4, 8, 16 and 32."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """3 4 23 3 for 101 layers."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    bottlenecks: tuple[int, ...] = (64, 128, 256, 512)
    stem_widths: tuple[int, ...] = (64,)
    """One: a convolution of 7x7. Three: DeepLab's of 3x3, and the last stage's convolutions of 3x3
    are dilated by `multi_grid`."""
    multi_grid: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self):
        if len(self.stem_widths) not in (1, 3):
            raise ValueError(
                f"a ResNet's stem of widths {self.stem_widths}; expected one or three convolutions"
            )
        if len({len(sizes) for sizes in (self.blocks, self.widths, self.bottlenecks)}) != 1:
            raise ValueError(
                f"a ResNet of stages with {self.blocks} blocks, widths {self.widths} and "
                f"bottlenecks {self.bottlenecks}; expected as many of each"
            )

    def dilations(self, stage: int) -> tuple[int, ...]:
        """Of the 3x3 convolutions of a stage's blocks."""
        blocks = self.blocks[stage]
        if len(self.stem_widths) == 1 or stage != len(self.blocks) - 1:
            return (1,) * blocks
        return tuple(self.multi_grid[block % len(self.multi_grid)] for block in range(blocks))

    def make_module(self, dtype: DTypeLike) -> "ResNet":
        return ResNet(self, dtype)

    def describe(self) -> str:
        kind = "ResNet" if len(self.stem_widths) == 1 else "DeepLab ResNet"
        return f"{kind}-{3 * sum(self.blocks) + 2}"


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose four constants are never trained: one product and one sum a channel."""

    dtype: DTypeLike
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        ones, zeros, width = nn.initializers.ones, nn.initializers.zeros, x.shape[-1:]
        scale = self.param("scale", ones, width)
        bias = self.param("bias", zeros, width)
        mean = self.param("mean", zeros, width)
        variance = self.param("var", ones, width)
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return (x * factor + (bias - mean * factor)).astype(self.dtype)


class FrozenConvolution(nn.Module):
    """A convolution without bias, and its norm."""

    features: int
    size: int
    dtype: DTypeLike
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w channels"]) -> Float[Array, "b h2 w2 d"]:
        x = convolution(
            self.features,
            self.size,
            self.dtype,
            stride=self.stride,
            dilation=self.dilation,
            bias=False,
            name="conv",
        )(x)
        return FrozenBatchNorm(self.dtype, name="norm")(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions, added to their input."""

    width: int
    bottleneck: int
    dtype: DTypeLike
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w channels"]) -> Float[Array, "b h2 w2 d"]:
        shortcut = x
        if x.shape[-1] != self.width or self.stride != 1:
            shortcut = FrozenConvolution(
                self.width, 1, self.dtype, stride=self.stride, name="shortcut"
            )(x)
        x = jax.nn.relu(FrozenConvolution(self.bottleneck, 1, self.dtype, name="conv1")(x))
        x = FrozenConvolution(
            self.bottleneck,
            3,
            self.dtype,
            stride=self.stride,
            dilation=self.dilation,
            name="conv2",
        )(x)
        x = FrozenConvolution(self.width, 1, self.dtype, name="conv3")(jax.nn.relu(x))
        return jax.nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Normalised images to the maps of all stages."""

    config: ResNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b _ _ _"], ...]:
        config, x = self.config, images.astype(self.dtype)
        size = 7 if len(config.stem_widths) == 1 else 3
        for index, width in enumerate(config.stem_widths):
            layer = FrozenConvolution(
                width, size, self.dtype, stride=2 if index == 0 else 1, name=f"stem_{index}"
            )
            x = jax.nn.relu(layer(x))
        x = _max_pool(x)
        maps = []
        for stage, width in enumerate(config.widths):
            for block, dilation in enumerate(config.dilations(stage)):
                stride = 2 if stage and not block else 1
                x = Bottleneck(
                    width,
                    config.bottlenecks[stage],
                    self.dtype,
                    stride,
                    dilation,
                    name=f"res{stage + 2}_{block}",
                )(x)
            maps.append(x)
        return tuple(maps)


def _max_pool(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d"]:
    """3x3 with stride 2; what is outside never is the greatest."""
    padding = ((1, 1), (1, 1))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding).astype(jnp.dtype(x.dtype))
