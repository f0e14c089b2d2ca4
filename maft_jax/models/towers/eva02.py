"""EVA-02's CLIP image tower: rotary positions, SwiGLU, LayerNorms inside of attention and MLP."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models.attention_pattern import MASK_RULES, Count
from maft_jax.models.encoder import MaskingSpec
from maft_jax.models.layers import (
    HEAD_WIDTH,
    Block,
    BlockConfig,
    GatedMlp,
    LayerNorm,
    OutProjection,
    Projections,
    QkvProjection,
)
from maft_jax.models.rotary import Rotation, grid_rotation
from maft_jax.models.towers.class_token_architecture import ClassTokenArchitecture
from maft_jax.models.towers.clip_vit import VisionTransformer

FIRST_MASK_LOGIT_SCALE = -5.0
"""What MaskCLIP++ begins with: at first a soft mask weighs its 0.0067th part."""
_OUTSIDE = -100.0
"""Added to the scores of patches outside of a soft mask."""


@dataclasses.dataclass(frozen=True)
class Eva02Config(ClassTokenArchitecture):
    """The image tower's architecture.

    Tuned by default are, as in CLIP, attention with the LayerNorm inside of it, the LayerNorms
    before attention and MLP, and the last one. Not the LayerNorm inside of the MLP, nor
    mask_logit_scale, which mask_rule=maskclippp alone reads.

    Raises:
        ValueError: heads do not divide the width, or cannot be turned on a grid.
    """

    width: int
    layers: int
    patch_size: int
    image_size: int
    """Native pixels per side."""
    embed_dim: int
    mlp_width: int
    head_width: int = HEAD_WIDTH
    logit_scale: float = 100.0
    """Factor of similarities that the weights were trained with, at most 100 as in MaskCLIP++."""

    norm_epsilon = 1e-6
    has_ln_pre = False
    has_patch_bias = True
    has_proj_bias = True
    pixel_range = "clip"
    mask_rules = MASK_RULES

    def __post_init__(self):
        _ = self.block
        if self.head_width % 4:
            raise ValueError(
                f"heads of width {self.head_width}; expected a multiple of 4: a pair of features "
                "for rows and one for columns"
            )

    @property
    def block(self) -> BlockConfig:
        return BlockConfig(
            self.width,
            self.head_width,
            self.mlp_width,
            norm_epsilon=self.norm_epsilon,
            gated=True,
        )

    @property
    def default_masking(self) -> MaskingSpec:
        """The last third of the layers, as MAFT has it, and the native image size."""
        return MaskingSpec(2 * self.layers // 3, self.image_size)

    @property
    def default_logit_scale(self) -> float:
        return self.logit_scale

    @property
    def mlp_flops(self) -> int:
        return 6 * self.width * self.mlp_width

    def describe(self) -> str:
        return f"EVA-02: {self.layers} layers of width {self.width}, patches of {self.patch_size}"

    @property
    def module(self) -> type[nn.Module]:
        return Eva02Transformer


class Eva02Transformer(VisionTransformer):
    """CLIP's ViT with EVA-02's blocks, whose queries and keys of patches are rotated.

    Positions of other grids: the learned ones are resized as MAFT and MaskCLIP++ do (bicubic,
    align_corners=True), not as timm does, which antialiases; the rotation is computed anew.
    """

    @property
    def block_kind(self):
        return Eva02Block

    def rotation(self, grid: tuple[int, int], patches: list[range], tokens: Count) -> Rotation:
        return grid_rotation(grid, self.config.head_width, patches, tokens)


class Eva02Block(Block):
    """A pre-norm block with LayerNorms over the joined heads and over the hidden features."""

    def setup(self):
        epsilon = self.config.norm_epsilon
        self.ln_1 = LayerNorm(self.dtype, epsilon)
        self.attn = _Projections(self.config, self.dtype, self.attention)
        self.ln_2 = LayerNorm(self.dtype, epsilon)
        self.mlp = _NormedMlp(self.config, self.dtype)
        self.mask_logit_scale = self.param(
            "mask_logit_scale",
            nn.initializers.constant(FIRST_MASK_LOGIT_SCALE),
            (self.config.heads,),
        )

    def _allowed(self, allowed):
        """Of soft masks [b, n, t] what is added to scores, [b, a, n, t]: MaskCLIP++'s rule.

        An empty mask, like a constant one, adds the same everywhere: nothing is masked.
        """
        if allowed is None or allowed.dtype == bool:
            return allowed
        inside = allowed > jnp.max(allowed, axis=-1, keepdims=True) / 2
        added = jnp.exp(self.mask_logit_scale)[:, None, None] * allowed[:, None]
        return jnp.where(inside[:, None], added, _OUTSIDE)


class _QkvProjection(QkvProjection):
    """Keys have no bias."""

    def _bias(self, shape: tuple[int, int, int]) -> Float[Array, "3 a h"]:
        query, value = (
            self.param(name, nn.initializers.zeros, shape[1:]) for name in ("q_bias", "v_bias")
        )
        return jnp.stack([query, jnp.zeros_like(query), value])


class _OutProjection(OutProjection):
    """Of heads that are normalised together."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, attended):
        norm = LayerNorm(self.dtype, self.epsilon, name="ln_heads")
        return super().__call__(self.attention.over_heads(attended, norm))


class _Projections(Projections):
    def setup(self):
        config = self.config
        self.in_proj = _QkvProjection(config.heads, self.dtype, self.attention)
        self.out_proj = _OutProjection(
            config.heads, config.width, self.dtype, self.attention, config.norm_epsilon
        )


class _NormedMlp(GatedMlp):
    def setup(self):
        super().setup()
        self.ln_hidden = LayerNorm(self.dtype, self.config.norm_epsilon)

    def normalised(self, hidden: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        return self.ln_hidden(hidden)
