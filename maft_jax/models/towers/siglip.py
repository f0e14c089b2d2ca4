"""SigLIP's image tower: patches without a class token, pooled by one query that was learned.

SigLIP 2 at a fixed size is the same tower. What pools is attention of a probe, the same for every
image, to all patches. A proposal is the probe allowed to see the patches of its mask, so that
every head weighs patches as it does for the whole image: a mask pooling in closed form
(mask_pooling.pool), which costs almost nothing for any number of proposals.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.attention import Attention, XlaAttention, choose_attention
from maft_jax.models.attention_pattern import full_attention
from maft_jax.models.block_stack import BlockLoop, through_blocks
from maft_jax.models.encoder import EncoderSettings, MaskingSpec, Parameters, refuse_start_layer
from maft_jax.models.layers import (
    HEAD_WIDTH,
    SHARDING_RULES,
    BlockConfig,
    LayerNorm,
    Mlp,
    Projections,
    fan_in_init,
    make_blocks,
)
from maft_jax.models.mask_pooling import pool
from maft_jax.models.patches import embed_patches, patch_grid
from maft_jax.models.precision import matmul_precision
from maft_jax.models.resize import resize
from maft_jax.models.towers.siglip_encoder import SigLipEncoder
from maft_jax.runtime.mesh_axes import ShardingRule

_LEAST_SCORE = -60.0
"""Below the largest: e^-60 is lost beside it, and yet no number that float32 takes for 0."""


@dataclasses.dataclass(frozen=True)
class SigLipVisionConfig:
    """The image tower's architecture; see BlockConfig for what is not explained here."""

    width: int
    layers: int
    patch_size: int
    image_size: int
    """Native pixels per side: the position embedding has (image_size // patch_size)^2 rows."""
    head_width: int = HEAD_WIDTH
    mlp_width: int | None = None
    activation: str = "gelu_tanh"
    norm_epsilon: float = 1e-6
    logit_scale: float = 10.0
    """Of the weights: what their similarities are multiplied by, and before training 10."""
    logit_bias: float = -10.0
    """Of the weights: added to a logit before its sigmoid; a softmax does not see it."""

    def __post_init__(self):
        _ = self.block  # refuses what cannot be

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width, self.head_width, self.mlp_width, self.activation, self.norm_epsilon
        )

    @property
    def embed_dim(self) -> int:
        """The tower's width: there is no projection."""
        return self.width

    @property
    def native_grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def default_trainable(self) -> tuple[str, ...]:
        """MAFT's choice for CLIP: attention and its LayerNorms, here the pooling head's as well."""
        return (r"/attn/", r"/ln_[12]/", r"^ln_post/")

    @property
    def default_masking(self) -> MaskingSpec:
        """At the size that the positions were trained for."""
        return MaskingSpec(0, self.image_size)

    @property
    def default_logit_scale(self) -> float:
        return self.logit_scale

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return SHARDING_RULES

    def make_encoder(self, settings: EncoderSettings) -> SigLipEncoder:
        refuse_start_layer(settings.masking, "whose proposals are pooled after the last layer")
        self.grid(settings.masking.image_size, settings.masking.image_size)
        mesh, dtype = settings.mesh, jnp.dtype(settings.dtype)
        heads = self.block.heads
        tower = SigLipTransformer(
            self,
            dtype=dtype,
            attention=choose_attention(settings.attention, mesh, heads, self.head_width, dtype),
            remat=settings.remat,
            loop=BlockLoop.SCANNED if settings.scan_blocks else BlockLoop.UNROLLED,
        )
        return SigLipEncoder(
            tower,
            settings.logit_scale,
            settings.masking.mask_pooling,
            settings.probabilities == "sigmoid",
        )

    def init(self, key: jax.Array) -> Parameters:
        return _init(self, key)

    def step_flops(self, masking: MaskingSpec, num_proposals: int, *, teacher: bool = True) -> int:
        rows, columns = self.grid(masking.image_size, masking.image_size)
        return step_flops(self, rows * columns, num_proposals, teacher=teacher)

    def describe(self) -> str:
        return f"SigLIP of {self.layers} layers of width {self.width}, patches of {self.patch_size}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See patches.patch_grid."""
        return patch_grid(height, width, self.patch_size)


class SigLipTransformer(nn.Module):
    """ViT without class token, whose patches a head pools after the final LayerNorm."""

    config: SigLipVisionConfig
    dtype: DTypeLike = jnp.float32
    attention: Attention = XlaAttention()
    remat: bool = False
    loop: BlockLoop = BlockLoop.UNROLLED

    def setup(self):
        config = self.config
        patch, rows = config.patch_size, math.prod(config.native_grid)
        shape = (patch, patch, 3, config.width)
        self.patch_kernel = self.param("patch_kernel", fan_in_init(3 * patch * patch), shape)
        self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (config.width,))
        init = fan_in_init(config.width)
        self.position_embedding = self.param("position_embedding", init, (rows, config.width))
        # A scanned loop recomputes by itself; blocks inside of it must not do it once more.
        remat = self.remat and self.loop is BlockLoop.UNROLLED
        self.blocks = make_blocks(
            config.layers, config.block, self.dtype, self.attention, remat=remat
        )
        self.ln_post = LayerNorm(self.dtype, config.norm_epsilon)
        self.head = PoolingHead(config.block, self.dtype)

    def __call__(
        self, images: Float[Array, "b h w 3"], weights: Float[Array, "b n t"]
    ) -> Float[Array, "b n e"]:
        """L2-normalised embeddings, each of the patches that its row of `weights` lets it see."""
        return unit_rows(self.head(self.patches(images), weights))

    def patches(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Patches after the final LayerNorm."""
        patches = embed_patches(images, self.patch_kernel, self.dtype)
        positions = resize_positions(
            self.position_embedding, self.config.native_grid, self.config.grid(*images.shape[1:3])
        )
        patches = patches + self.patch_bias.astype(self.dtype) + positions.astype(self.dtype)
        pattern = full_attention(patches.shape[1])
        patches = through_blocks(
            self.blocks,
            lambda block, tokens: block(tokens, pattern),
            patches,
            self.loop,
            self.remat,
        )
        return self.ln_post(patches)


class PoolingHead(nn.Module):
    """Attention of a learned probe to patches, then x + mlp(ln_2(x)); big_vision's MAPHead."""

    config: BlockConfig
    dtype: DTypeLike

    def setup(self):
        config = self.config
        self.probe = self.param("probe", fan_in_init(config.width), (config.width,))
        self.attn = Projections(config, self.dtype, XlaAttention())
        self.ln_2 = LayerNorm(self.dtype, config.norm_epsilon)
        self.mlp = Mlp(config, self.dtype)

    def __call__(
        self, patches: Float[Array, "b t d"], weights: Float[Array, "b n t"]
    ) -> Float[Array, "b n d"]:
        """In float32. Where no patch has weight, what the attention adds is zero."""
        (query,) = self.attn.in_proj(self.probe[None, None], "q")
        keys, values = self.attn.in_proj(patches, "kv")
        scores = jnp.einsum(
            "ah,bath->bta", query[0, :, 0], keys, precision=matmul_precision(self.dtype)
        ).astype(jnp.float32) / math.sqrt(self.config.head_width)
        scores = scores - jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))
        importance = jnp.exp(jnp.maximum(scores, _LEAST_SCORE))
        values = rearrange(values, "b a t h -> b t (a h)")
        pooled = pool(values, weights, importance).astype(self.dtype)
        heads = rearrange(pooled, "b n (a h) -> b a n h", a=self.config.heads)
        x = self.attn.out_proj(heads)
        return x.astype(jnp.float32) + self.mlp(self.ln_2(x)).astype(jnp.float32)


def unit_rows(x: Float[Array, "b n e"]) -> Float[Array, "b n e"]:
    """Rows of L2 norm 1, and zeros, with a gradient of zero, where a row is zero.

    That is the embedding of an empty mask as long as biases are zero, before any training.
    """
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def resize_positions(
    embedding: Float[Array, "rows d"], native_grid: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "rows2 d"]:
    """To another grid, bicubically with half-pixel centres, as transformers does."""
    positions = embedding.reshape(*native_grid, -1)
    positions = resize(positions, grid, axes=(0, 1), method="bicubic")
    return positions.reshape(grid[0] * grid[1], -1)


def step_flops(
    config: SigLipVisionConfig, num_patches: int, num_proposals: int, *, teacher: bool
) -> int:
    """Arithmetic of tuning on one image, by the convention of models/flops.py.

    A layer over t patches costs 8 t D^2 for projections, 4 t^2 D for attention and 4 t D M for the
    MLP of width M; the head 4 t D^2 for keys and values, 2 D for each score and each product of a
    weight, and 2 D^2 + 4 D M for each of the n + 1 embeddings.
    """
    t, width, embeddings = num_patches, config.width, num_proposals + 1
    mlp = 4 * width * (config.mlp_width or 4 * width)
    trunk = config.layers * (t * (8 * width**2 + mlp) + 4 * t * t * width)

    def head(read: int) -> int:
        pooling = 2 * t * width * (1 + read)
        return 4 * t * width**2 + pooling + read * (2 * width**2 + mlp)

    forward = backward = trunk + head(embeddings)
    if teacher:
        forward += trunk + head(1)
    weights = 8 * config.layers * t * width**2 + (4 * t + 2 * embeddings) * width**2
    return forward + backward + weights


@functools.partial(jax.jit, static_argnums=0)
def _init(config: SigLipVisionConfig, key):
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    weights = jnp.ones((1, 1, math.prod(config.native_grid)))
    return SigLipTransformer(config).init(key, images, weights)["params"]
