"""CLIP's image tower: its architecture, from which its encoder follows, and its module."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maft_jax.models.attention import Attention, XlaAttention
from maft_jax.models.attention_pattern import AttentionSegment, Count, full_attention
from maft_jax.models.block_stack import BlockLoop, through_blocks
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.layers import (
    HEAD_WIDTH,
    Block,
    BlockConfig,
    LayerNorm,
    fan_in_init,
    make_blocks,
)
from maft_jax.models.patches import embed_patches
from maft_jax.models.precision import float32_product
from maft_jax.models.preprocess import PIXEL_MEAN, PIXEL_STD
from maft_jax.models.resize import resize
from maft_jax.models.rotary import Rotation
from maft_jax.models.towers.class_token_architecture import ClassTokenArchitecture


@dataclasses.dataclass(frozen=True)
class VisionConfig(ClassTokenArchitecture):
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
    def default_masking(self) -> MaskingSpec:
        """The published layer 8, in towers of up to 8 layers two thirds of them, and 480 pixels."""
        return MaskingSpec(8 if self.layers > 8 else 2 * self.layers // 3, 480)

    def describe(self) -> str:
        return f"{self.layers} layers of width {self.width}, patches of {self.patch_size}"

    @property
    def module(self) -> type[nn.Module]:
        return VisionTransformer


class VisionTransformer(nn.Module):
    """ViT with a class token, pre-norm blocks and a final projection."""

    config: Any
    """A VisionConfig, or an architecture with the same fields."""
    dtype: DTypeLike = jnp.float32
    attention: Attention = XlaAttention()
    remat: bool = False
    loop: BlockLoop = BlockLoop.UNROLLED
    class_token: int = 0
    """Of those before the patches the one that stands for the image."""

    @property
    def class_tokens(self) -> int:
        """How many there are before the patches."""
        return self.config.class_tokens

    @property
    def block_kind(self) -> type[Block]:
        """What its layers are."""
        return Block

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
        self.blocks = self._make_blocks()
        self.ln_post = LayerNorm(jnp.float32, config.norm_epsilon)
        self.proj = self.param("proj", init, (config.width, config.embed_dim))
        if config.has_proj_bias:
            self.proj_bias = self.param("proj_bias", nn.initializers.zeros, (config.embed_dim,))

    def _make_blocks(self) -> list[Block]:
        # A scanned loop recomputes by itself; blocks inside of it must not do it once more.
        remat = self.remat and self.loop is BlockLoop.UNROLLED
        return make_blocks(
            self.config.layers,
            self.config.block,
            self.dtype,
            self.attention,
            remat=remat,
            kind=self.block_kind,
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b e"]:
        """L2-normalised embedding of whole, normalised images."""
        grid = self.grid_of(images)
        tokens = self.run(self.embed(images), 0, self.config.layers - 1, grid)
        return self.read_class_token(tokens, grid)

    def run(
        self, tokens: Float[Array, "b t d"], first: int, last: int, grid: tuple[int, int]
    ) -> Float[Array, "b t d"]:
        """Through the plain layers first, ..., last - 1."""
        pattern = full_attention(tokens.shape[1])
        rotation = self._whole_rotation(grid)
        return through_blocks(
            self.blocks[first:last],
            lambda block, tokens: block(tokens, pattern, None, rotation),
            tokens,
            self.loop,
            self.remat,
        )

    def grid_of(self, images: Float[Array, "b h w 3"]) -> tuple[int, int]:
        """Rows and columns of their patches."""
        return self.config.grid(*images.shape[1:3])

    def rotation(
        self, grid: tuple[int, int], patches: list[range], tokens: Count
    ) -> Rotation | None:
        """Of towers with rotary positions: of a sequence of tokens with patches in these places."""
        return None

    def _whole_rotation(self, grid):
        whole = self.class_tokens + grid[0] * grid[1]
        return self.rotation(grid, [range(self.class_tokens, whole)], whole)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Class token followed by patches in row-major order, positions added, normalised."""
        patches = self._patchify(images)
        grid = self.grid_of(images)
        positions = resize_position_embedding(
            self.position_embedding, self.config.native_grid, grid
        )
        start = jnp.broadcast_to(
            self.class_embedding.astype(self.dtype), (images.shape[0], 1, self.config.width)
        )
        tokens = jnp.concatenate([start, patches], axis=1) + positions.astype(self.dtype)
        return self.ln_pre(tokens) if self.config.has_ln_pre else tokens

    def read_class_token(
        self, tokens: Float[Array, "b t d"], grid: tuple[int, int]
    ) -> Float[Array, "b e"]:
        """Runs the last layer for the class token alone and projects it."""
        reading = range(self.class_token, self.class_token + 1)
        pattern = (AttentionSegment(reading, range(tokens.shape[1])),)
        read = self.blocks[-1].read(tokens, pattern, None, self._whole_rotation(grid))
        return self.project(read)[:, 0]

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
