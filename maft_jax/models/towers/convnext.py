"""ConvNeXt as CLIP's image tower: its architecture, from which its encoder follows, and its module.

Liu et al., A ConvNet for the 2020s, as timm builds it and open_clip trains it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.block_stack import BlockLoop, through_blocks
from maft_jax.models.encoder import EncoderSettings, MaskingSpec, Parameters, refuse_start_layer
from maft_jax.models.layers import (
    ACTIVATIONS,
    SHARDING_RULES,
    BlockConfig,
    LayerNorm,
    Mlp,
    fan_in_init,
)
from maft_jax.models.precision import float32_product, matmul_precision
from maft_jax.models.towers.convnext_encoder import CELL, ConvNextEncoder
from maft_jax.runtime.mesh_axes import MODEL, OVER_IMAGES, ShardingRule

STEM_STRIDE = 4
_KERNEL_SIZE = 7
HEADS = ("linear", "mlp")


@dataclasses.dataclass(frozen=True)
class ConvNextConfig:
    """The image tower's architecture.

    Raises:
        ValueError: not four stages, or an unknown head.
    """

    depths: tuple[int, ...]
    """Blocks of each stage."""
    dims: tuple[int, ...]
    """Channels of each stage."""
    embed_dim: int
    head: str = "linear"
    """After the LayerNorm of the pooled map: linear, one matrix, or mlp, to twice the embedding's
    width, GELU, and a matrix."""
    norm_epsilon: float = 1e-6
    image_size: int = 256
    """Pixels per side at which the weights were trained."""
    logit_scale: float = 100.0
    """Factor of similarities that the weights were trained with, at most 100 as in FC-CLIP."""

    def __post_init__(self):
        for name in ("depths", "dims"):
            sizes = getattr(self, name)
            if len(sizes) != 4 or min(sizes) < 1:
                raise ValueError(f"{name}: expected four positive numbers, got {sizes}")
        if self.head not in HEADS:
            raise ValueError(f"head: expected one of {HEADS}, got {self.head!r}")

    @property
    def native_grid(self) -> tuple[int, int]:
        side = -(-self.image_size // CELL)
        return side, side

    @property
    def default_trainable(self) -> tuple[str, ...]:
        """Stem and stages, as MAFT+ tunes it; the head, which text was aligned with, stays."""
        return (r"^stem/", r"^ln_stem/", r"^stages_")

    @property
    def default_logit_scale(self) -> float:
        return self.logit_scale

    @property
    def default_masking(self) -> MaskingSpec:
        """The size of the weights, in whole cells."""
        return MaskingSpec(0, self.native_grid[0] * CELL)

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return SHARDING_RULES

    def make_encoder(self, settings: EncoderSettings) -> ConvNextEncoder:
        masking = settings.masking
        refuse_start_layer(
            masking, "a ConvNeXt has no class token; proposals are pooled from its last map"
        )
        if masking.image_size % CELL:
            raise ValueError(
                f"image_size={masking.image_size}: expected a multiple of {CELL}, the pixels that "
                "a cell of a ConvNeXt's last map covers"
            )
        tower = ConvNext(
            self,
            dtype=jnp.dtype(settings.dtype),
            remat=settings.remat,
            loop=BlockLoop.SCANNED if settings.scan_blocks else BlockLoop.UNROLLED,
            mesh=settings.mesh if settings.mesh.shape[MODEL] > 1 else None,
        )
        return ConvNextEncoder(tower, masking.mask_pooling, settings.logit_scale)

    def init(self, key: jax.Array) -> Parameters:
        return _init(self, key)

    def step_flops(self, masking: MaskingSpec, num_proposals: int, *, teacher: bool = True) -> int:
        """The trunk forward, its gradients of maps and weights, and the teacher's; no head."""
        trunk = self._forward_flops(masking.image_size)
        return (4 if teacher else 3) * sum(trunk) - trunk[0]

    def _forward_flops(self, image_size: int) -> tuple[int, int]:
        """Of the stem, whose pixels want no gradient, and of the stages."""
        cells = (image_size // STEM_STRIDE) ** 2
        stem = 2 * STEM_STRIDE**2 * 3 * self.dims[0] * cells
        stages = 0
        for stage, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True)):
            if stage:
                cells //= 4
                stages += 2 * 4 * self.dims[stage - 1] * width * cells
            stages += depth * cells * (2 * _KERNEL_SIZE**2 * width + 16 * width**2)
        return stem, stages

    def describe(self) -> str:
        depths, dims = ("-".join(map(str, sizes)) for sizes in (self.depths, self.dims))
        return f"ConvNeXt of {depths} blocks, {dims} channels, {self.head} head"


class ConvNext(nn.Module):
    """Stem, four stages that each halve the map's sides but the first, and a head.

    Maps are channels last. Products and convolutions run in `dtype`, norms and the head in float32.
    """

    config: ConvNextConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    loop: BlockLoop = BlockLoop.UNROLLED
    mesh: Mesh | None = None
    """The devices where some share images; see DepthwiseConvolution."""

    def setup(self):
        config = self.config
        self.stem = StridedProjection(STEM_STRIDE, config.dims[0], self.dtype)
        self.ln_stem = LayerNorm(self.dtype, config.norm_epsilon)
        self.stages = [
            Stage(config, stage, self.dtype, self.remat, self.loop, self.mesh) for stage in range(4)
        ]
        self.ln_post = LayerNorm(jnp.float32, config.norm_epsilon)
        width = config.dims[-1]
        if config.head == "mlp":
            hidden = 2 * config.embed_dim
            self.head_kernel = self.param("head_kernel", fan_in_init(width), (width, hidden))
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (hidden,))
            width = hidden
        self.proj = self.param("proj", fan_in_init(width), (width, config.embed_dim))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """Embedding of whole, normalised images, not L2-normalised."""
        maps = self.feature_map(images).astype(jnp.float32)
        return self.embed(jnp.mean(maps, axis=(1, 2)))

    def feature_map(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b grid_h grid_w d"]:
        """Output of the last stage, before any norm."""
        return self.feature_maps(images)[-1]

    def feature_maps(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b _ _ _"]]:
        """After the stem and after each stage."""
        maps = [self.ln_stem(self.stem(images))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def embed(self, pooled: Float[Array, "*rows d"]) -> Float[Array, "*rows e"]:
        """LayerNorm and head of pooled maps, in float32."""
        x = self.ln_post(pooled.reshape(-1, self.config.dims[-1]))
        if self.config.head == "mlp":
            x = float32_product(x, self.head_kernel, self.dtype) + self.head_bias
            x = ACTIVATIONS["gelu"](x)
        x = float32_product(x, self.proj, self.dtype)
        return x.reshape(*pooled.shape[:-1], -1)


class Stage(nn.Module):
    """Downsampling, but of the first stage, then blocks of equal shape."""

    config: ConvNextConfig
    number: int
    dtype: DTypeLike
    remat: bool
    loop: BlockLoop
    mesh: Mesh | None

    def setup(self):
        config, width = self.config, self.config.dims[self.number]
        if self.number:
            self.ln_downsample = LayerNorm(self.dtype, config.norm_epsilon)
            self.downsample = StridedProjection(2, width, self.dtype)
        # A scanned loop recomputes by itself; blocks inside of it must not do it once more.
        remat = self.remat and self.loop is BlockLoop.UNROLLED
        block = nn.remat(Block) if remat else Block
        self.blocks = [
            block(width, config.norm_epsilon, self.dtype, self.mesh)
            for _ in range(config.depths[self.number])
        ]

    def __call__(self, x: Float[Array, "b _ _ _"]) -> Float[Array, "b grid_h grid_w d"]:
        if self.number:
            x = self.downsample(self.ln_downsample(x))
        return through_blocks(self.blocks, lambda block, x: block(x), x, self.loop, self.remat)


class Block(nn.Module):
    """x + layer_scale * mlp(ln(conv_dw(x)))."""

    width: int
    epsilon: float
    dtype: DTypeLike
    mesh: Mesh | None = None

    def setup(self):
        width = self.width
        self.conv_dw = DepthwiseConvolution(self.dtype, self.mesh)
        self.ln_mlp = LayerNorm(self.dtype, self.epsilon)
        self.mlp = Mlp(BlockConfig(width, head_width=width, activation="gelu"), self.dtype)
        self.layer_scale = self.param("layer_scale", nn.initializers.constant(1e-6), (width,))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        mixed = checkpoint_name(self.conv_dw(x), "mixed")
        branch = checkpoint_name(self.mlp(self.ln_mlp(mixed)), "branch")
        return x + branch * self.layer_scale.astype(self.dtype)


class DepthwiseConvolution(nn.Module):
    """7x7, a kernel for each channel, zeros around the map; kernel [7, 7, 1, d].

    Where devices share images, XLA would sum the kernel's gradient once for each of them (jax
    0.10.2), so there every device is told to compute with its own images alone.
    """

    dtype: DTypeLike
    mesh: Mesh | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        width = x.shape[-1]
        shape = (_KERNEL_SIZE, _KERNEL_SIZE, 1, width)
        kernel = self.param("kernel", fan_in_init(_KERNEL_SIZE**2), shape)
        bias = self.param("bias", nn.initializers.zeros, (width,))
        convolve = functools.partial(
            lax.conv_general_dilated,
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=width,
            precision=matmul_precision(self.dtype),
        )
        if self.mesh is not None:
            convolve = jax.shard_map(
                convolve,
                mesh=self.mesh,
                in_specs=(OVER_IMAGES, PartitionSpec()),
                out_specs=OVER_IMAGES,
                check_vma=False,
            )
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class StridedProjection(nn.Module):
    """The convolution of stride and size `size`; pixels that fill no square are dropped.

    Kernel [size, size, channels, width], applied as one product over whole squares.
    """

    size: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b _ _ d"]:
        size, channels = self.size, x.shape[-1]
        shape = (size, size, channels, self.width)
        kernel = self.param("kernel", fan_in_init(math.prod(shape[:3])), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        rows, columns = (side // size * size for side in x.shape[1:3])
        squares = rearrange(
            x[:, :rows, :columns].astype(self.dtype),
            "b (h p) (w q) z -> b h w (p q z)",
            p=size,
            q=size,
        )
        kernel = rearrange(kernel.astype(self.dtype), "p q z d -> (p q z) d")
        projected = jnp.dot(squares, kernel, precision=matmul_precision(self.dtype))
        return projected + bias.astype(self.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _init(config: ConvNextConfig, key):
    return ConvNext(config).init(key, jnp.zeros((1, CELL, CELL, 3)))["params"]
