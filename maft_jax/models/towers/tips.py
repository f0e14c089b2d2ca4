"""The image tower of TIPS and TIPSv2: two class tokens, and embeddings as wide as the tower."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models.array_types import Images
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.layers import HEAD_WIDTH, BlockConfig, LayerNorm, fan_in_init
from maft_jax.models.towers.class_token_architecture import ClassTokenArchitecture
from maft_jax.models.towers.clip_vit import VisionTransformer

PUBLISHED_LOGIT_SCALE = 1 / 0.005065968
"""transformers' default temperature, which files of its layout do not hold."""


@dataclasses.dataclass(frozen=True)
class TipsConfig(ClassTokenArchitecture):
    """The image tower's architecture; see BlockConfig for what is not explained here.

    The first class token was matched with alt-texts of the web, the second with written captions.
    Patches were trained to read both in every layer, so by default (mask_rule=shared_patches) they
    go on doing so where proposals, copies of one of them, read masks.
    """

    width: int
    layers: int
    patch_size: int
    image_size: int
    """Pixels per side to which the table of positions belongs: (image_size // patch_size)^2."""
    mlp_width: int
    head_width: int = HEAD_WIDTH
    activation: str = "gelu_tanh"
    """gelu_tanh, as it was trained and scenic's files mean; gelu, as PyTorch's files mean. Of gated
    MLPs, which have silu, it says nothing."""
    gated: bool = False
    logit_scale: float = PUBLISHED_LOGIT_SCALE
    """One over the temperature of the weights, which no cap of CLIP's limits."""

    norm_epsilon = 1e-6
    has_patch_bias = True
    pixel_range = "clip"  # nothing is to be done to pixels but what normalise does
    class_tokens = 2

    def __post_init__(self):
        _ = self.block

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width,
            self.head_width,
            self.mlp_width,
            self.activation,
            self.norm_epsilon,
            self.gated,
        )

    @property
    def default_masking(self) -> MaskingSpec:
        """The last third of the layers, as MAFT has it, and the native image size."""
        return MaskingSpec(2 * self.layers // 3, self.image_size, mask_rule="shared_patches")

    @property
    def default_logit_scale(self) -> float:
        return self.logit_scale

    @property
    def mlp_flops(self) -> int:
        return (6 if self.gated else 4) * self.width * self.mlp_width

    @property
    def module(self) -> type[nn.Module]:
        return TipsTransformer

    def describe(self) -> str:
        return f"TIPS: {self.layers} layers of width {self.width}, patches of {self.patch_size}"

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        """Pixels in [0, 1]."""
        if images.dtype == jnp.uint8:
            return images.astype(jnp.float32) / 255
        return images.astype(jnp.float32)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches per column and row; the last ones may be filled up with padding."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def proposal_grid(self, height: int, width: int) -> tuple[int, int]:
        """Without padding, of which masks know nothing.

        Raises:
            ValueError: patches do not fill the image.
        """
        if height % self.patch_size or width % self.patch_size or not height or not width:
            below, above = (
                tuple(max(1, round_(side)) * self.patch_size for side in (height, width))
                for round_ in (
                    lambda side: side // self.patch_size,
                    lambda side: -(-side // self.patch_size),
                )
            )
            raise ValueError(
                f"image of {height}x{width} pixels: TIPS reads proposals on whole patches of "
                f"{self.patch_size}; expected a size such as {below[0]}x{below[1]} or "
                f"{above[0]}x{above[1]}"
            )
        return self.grid(height, width)


class TipsTransformer(VisionTransformer):
    """ViT with two class tokens without positions, whose last LayerNorm gives the embedding."""

    def setup(self):
        config = self.config
        patch = config.patch_size
        shape = (patch, patch, 3, config.width)
        self.patch_kernel = self.param("patch_kernel", fan_in_init(3 * patch * patch), shape)
        self.patch_bias = self.param("patch_bias", nn.initializers.zeros, (config.width,))
        init = fan_in_init(config.width)
        rows = config.native_grid[0] * config.native_grid[1]
        self.class_embedding = self.param(
            "class_embedding", init, (config.class_tokens, config.width)
        )
        self.position_embedding = self.param("position_embedding", init, (rows, config.width))
        self.blocks = self._make_blocks()
        self.ln_post = LayerNorm(jnp.float32, config.norm_epsilon)

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Both class tokens, and patches in row-major order, to which positions are added.

        Images whose sides are no multiple of the patch get zeros around them, as in Flax; the odd
        pixel lies right or below. PyTorch's rendition refuses them.
        """
        grid = self.grid_of(images)
        padding = [
            (missing // 2, missing - missing // 2)
            for missing in (
                cells * self.config.patch_size - side
                for cells, side in zip(grid, images.shape[1:3], strict=True)
            )
        ]
        patches = self._patchify(jnp.pad(images, [(0, 0), *padding, (0, 0)]))
        positions = resize_positions(self.position_embedding, self.config.native_grid, grid)
        start = jnp.broadcast_to(
            self.class_embedding.astype(self.dtype), (images.shape[0], *self.class_embedding.shape)
        )
        return jnp.concatenate([start, patches + positions.astype(self.dtype)], axis=1)

    def project(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """ln_post and L2 normalisation, in float32."""
        features = self.ln_post(tokens)
        return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def resize_positions(
    table: Float[Array, "rows d"], native_grid: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "rows2 d"]:
    """Bilinear, half-pixel, antialiased where the grid is smaller, as scenic and PyTorch do it."""
    square = table.reshape(*native_grid, -1)
    resized = jax.image.resize(square, (*grid, table.shape[-1]), "bilinear", antialias=True)
    return resized.reshape(grid[0] * grid[1], -1)
