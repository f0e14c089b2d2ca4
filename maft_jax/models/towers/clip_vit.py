"""CLIP's image tower: its architecture, from which its encoder follows, and its module."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.attention import Attention, XlaAttention, choose_attention
from maft_jax.models.attention_pattern import AttentionSegment, full_attention
from maft_jax.models.block_stack import BlockLoop, through_blocks
from maft_jax.models.encoder import (
    EncoderSettings,
    MaskingSpec,
    Parameters,
    refuse_mask_pooling,
)
from maft_jax.models.flops import EncoderSize, step_flops
from maft_jax.models.layers import (
    HEAD_WIDTH,
    SHARDING_RULES,
    BlockConfig,
    LayerNorm,
    fan_in_init,
    make_blocks,
)
from maft_jax.models.patches import embed_patches, patch_grid
from maft_jax.models.precision import float32_product
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.resize import resize
from maft_jax.models.towers.ip_clip import IPClip
from maft_jax.runtime.mesh_axes import ShardingRule


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The image tower's architecture; see BlockConfig for what is not explained here."""

    width: int
    layers: int
    patch_size: int
    image_size: int
    """Native pixels per side: the position embedding has (image_size // patch_size)^2 rows."""
    embed_dim: int
    head_width: int = HEAD_WIDTH
    mlp_width: int | None = None
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    has_ln_pre: bool = True
    """This and the next two: CLIP has a LayerNorm after the embedding and no such biases, a ViT of
    big_vision is the other way round."""
    has_patch_bias: bool = False
    has_proj_bias: bool = False
    pixel_range: str = "clip"
    """What the tower's weights expect: clip, images less CLIP's mean and divided by its deviation,
    or minus_one_to_one. Images are given in the former either way, and brought to the latter."""

    def __post_init__(self):
        if self.pixel_range not in ("clip", "minus_one_to_one"):
            raise ValueError(
                f"pixel_range: expected clip or minus_one_to_one, got {self.pixel_range!r}"
            )

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width, self.head_width, self.mlp_width, self.activation, self.norm_epsilon
        )

    @property
    def native_grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side

    @property
    def heads(self) -> int:
        return self.block.heads

    @property
    def default_trainable(self) -> tuple[str, ...]:
        """As the official code tunes CLIP: attention, its LayerNorms, and the last one."""
        return (r"/attn/", r"/ln_[12]/", r"^ln_post/")

    @property
    def default_masking(self) -> MaskingSpec:
        """The published layer 8, in towers of up to 8 layers two thirds of them, and 480 pixels."""
        return MaskingSpec(8 if self.layers > 8 else 2 * self.layers // 3, 480)

    @property
    def default_logit_scale(self) -> float:
        """CLIP's own is capped there, and all published ones have reached it."""
        return 100.0

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        return SHARDING_RULES

    def make_encoder(self, settings: EncoderSettings) -> IPClip:
        self.grid(settings.masking.image_size, settings.masking.image_size)
        refuse_mask_pooling(settings.masking)
        mesh, dtype = settings.mesh, jnp.dtype(settings.dtype)
        attention = choose_attention(settings.attention, mesh, self.heads, self.head_width, dtype)
        tower = VisionTransformer(
            self,
            dtype=dtype,
            attention=attention,
            remat=settings.remat,
            loop=BlockLoop.SCANNED if settings.scan_blocks else BlockLoop.UNROLLED,
        )
        return IPClip(tower, settings.masking.mask_start_layer, settings.logit_scale)

    def init(self, key: jax.Array) -> Parameters:
        return _init(self, key)

    def step_flops(self, masking: MaskingSpec, num_proposals: int, *, teacher: bool = True) -> int:
        rows, columns = self.grid(masking.image_size, masking.image_size)
        size = EncoderSize(
            self.width, self.layers, masking.mask_start_layer, rows * columns, num_proposals
        )
        return step_flops(size, teacher=teacher)

    def describe(self) -> str:
        return f"{self.layers} layers of width {self.width}, patches of {self.patch_size}"

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See patches.patch_grid."""
        return patch_grid(height, width, self.patch_size)


class VisionTransformer(nn.Module):
    """ViT with a class token, pre-norm blocks and a final projection."""

    config: VisionConfig
    dtype: DTypeLike = jnp.float32
    attention: Attention = XlaAttention()
    remat: bool = False
    loop: BlockLoop = BlockLoop.UNROLLED

    def setup(self):
        config = self.config
        patch = config.patch_size
        rows = 1 + config.native_grid[0] * config.native_grid[1]
        shape = (patch, patch, 3, config.width)
        self.patch_kernel = self.param("patch_kernel", fan_in_init(3 * patch * patch), shape)
        init = fan_in_init(config.width)
        self.class_embedding = self.param("class_embedding", init, (config.width,))
        self.position_embedding = self.param("position_embedding", init, (rows, config.width))
        if config.has_patch_bias:
            self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (config.width,))
        if config.has_ln_pre:
            self.ln_pre = LayerNorm(self.dtype, config.norm_epsilon)
        # A scanned loop recomputes by itself; blocks inside of it must not do it once more.
        remat = self.remat and self.loop is BlockLoop.UNROLLED
        self.blocks = make_blocks(
            config.layers, config.block, self.dtype, self.attention, remat=remat
        )
        self.ln_post = LayerNorm(jnp.float32, config.norm_epsilon)
        self.proj = self.param("proj", init, (config.width, config.embed_dim))
        if config.has_proj_bias:
            self.proj_bias = self.param("proj_bias", nn.initializers.zeros, (config.embed_dim,))

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """L2-normalised embedding of whole, normalised images."""
        return self.read_class_token(self.run(self.embed(images), 0, self.config.layers - 1))

    def run(self, tokens: Float[Array, "b t d"], first: int, last: int) -> Float[Array, "b t d"]:
        """Through the plain layers first, ..., last - 1."""
        pattern = full_attention(tokens.shape[1])
        return through_blocks(
            self.blocks[first:last],
            lambda block, tokens: block(tokens, pattern),
            tokens,
            self.loop,
            self.remat,
        )

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Class token followed by patches in row-major order, positions added, normalised."""
        patches = self._patchify(images)
        grid = self.config.grid(*images.shape[1:3])
        positions = resize_position_embedding(
            self.position_embedding, self.config.native_grid, grid
        )
        start = jnp.broadcast_to(
            self.class_embedding.astype(self.dtype), (len(images), 1, self.config.width)
        )
        tokens = jnp.concatenate([start, patches], axis=1) + positions.astype(self.dtype)
        return self.ln_pre(tokens) if self.config.has_ln_pre else tokens

    def read_class_token(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b e"]:
        """Runs the last layer for the class token alone and projects it."""
        pattern = (AttentionSegment(range(1), range(tokens.shape[1])),)
        return self.project(self.blocks[-1].read(tokens, pattern))[:, 0]

    def project(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """ln_post, projection and L2 normalisation, in float32."""
        flat = tokens.reshape(-1, self.config.width)
        features = float32_product(self.ln_post(flat), self.proj, self.dtype)
        if self.config.has_proj_bias:
            features = features + self.proj_bias
        features = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        return features.reshape(*tokens.shape[:2], -1)

    def _patchify(self, images):
        """The stride-p convolution, and its bias if it has one."""
        if self.config.pixel_range == "minus_one_to_one":
            images = (images * PIXEL_STD + PIXEL_MEAN) / 127.5 - 1
        patches = embed_patches(images, self.patch_kernel, self.dtype)
        if self.config.has_patch_bias:
            patches = patches + self.patch_bias.astype(self.dtype)
        return patches


def resize_position_embedding(
    embedding: Float[Array, "rows d"], native_grid: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "rows2 d"]:
    """Resizes the patch rows bicubically with align_corners=True; the class row stays."""
    patches = embedding[1:].reshape(*native_grid, -1)
    patches = resize(patches, grid, axes=(0, 1), method="bicubic", align_corners=True)
    return jnp.concatenate([embedding[:1], patches.reshape(grid[0] * grid[1], -1)])


@functools.partial(jax.jit, static_argnums=0)
def _init(config: VisionConfig, key):
    images = jnp.zeros((1, config.image_size, config.image_size, 3))
    return VisionTransformer(config).init(key, images)["params"]
