"""What architectures have in common whose encoder is IPClip."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from maft_jax.models import preprocess
from maft_jax.models.array_types import Images
from maft_jax.models.attention import XlaAttention, choose_attention
from maft_jax.models.block_stack import BlockLoop
from maft_jax.models.encoder import EncoderSettings, MaskingSpec, Parameters, refuse_mask_pooling
from maft_jax.models.flash_attention import FlashAttention
from maft_jax.models.flops import EncoderSize, step_flops
from maft_jax.models.layers import SHARDING_RULES, BlockConfig
from maft_jax.models.patches import patch_grid
from maft_jax.models.towers.ip_clip import IPClip
from maft_jax.runtime.mesh_axes import ShardingRule


class ClassTokenArchitecture:
    """Most of an ImageArchitecture; base of frozen dataclasses that have the sizes.

    These are width, layers, patch_size, image_size (native pixels per side), embed_dim, head_width.
    """

    class_tokens = 1
    """How many there are before the patches."""
    mask_rules = ("maft", "shared_patches")
    """Which of attention_pattern.MASK_RULES its blocks can do."""
    default_logit_scale = 100.0
    """CLIP's, which training ends at."""

    @property
    def block(self) -> BlockConfig:
        """Its transformer blocks."""
        raise NotImplementedError

    @property
    def module(self) -> type[nn.Module]:
        """What computes it: a VisionTransformer."""
        raise NotImplementedError

    @property
    def mlp_flops(self) -> int | None:
        """See EncoderSize."""
        return None

    @property
    def native_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of which positions were learned."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def heads(self) -> int:
        """Of attention."""
        return self.block.heads

    @property
    def default_trainable(self) -> tuple[str, ...]:
        """As the official code tunes CLIP: attention, its LayerNorms, and the last one."""
        return (r"/attn/", r"/ln_[12]/", r"^ln_post/")

    @property
    def sharding_rules(self) -> Sequence[ShardingRule]:
        """Of all towers of these blocks."""
        return SHARDING_RULES

    def make_encoder(self, settings: EncoderSettings) -> IPClip:
        """See ImageArchitecture."""
        masking = settings.masking
        self.proposal_grid(masking.image_size, masking.image_size)
        refuse_mask_pooling(masking)
        self._check_masking(masking)
        dtype = jnp.dtype(settings.dtype)
        attention = choose_attention(
            settings.attention, settings.mesh, self.heads, self.head_width, dtype
        )
        if masking.mask_rule == "maskclippp" and isinstance(attention, FlashAttention):
            if settings.attention != "auto":
                raise ValueError(
                    "mask_rule=maskclippp adds numbers to scores, which attention="
                    f"{settings.attention} cannot; use xla or auto"
                )
            attention = XlaAttention()
        tower = self.module(
            self,
            dtype=dtype,
            attention=attention,
            remat=settings.remat,
            loop=BlockLoop.SCANNED if settings.scan_blocks else BlockLoop.UNROLLED,
            class_token=masking.class_token,
        )
        return IPClip(tower, masking.mask_start_layer, settings.logit_scale, masking.mask_rule)

    def _check_masking(self, masking: MaskingSpec) -> None:
        if masking.mask_rule not in self.mask_rules:
            raise ValueError(
                f"mask_rule={masking.mask_rule}: the blocks of this tower have no "
                f"mask_logit_scale; expected one of {', '.join(self.mask_rules)}"
            )
        if masking.class_token >= self.class_tokens:
            raise ValueError(
                f"class_token={masking.class_token}: expected a number below {self.class_tokens}, "
                "the class tokens of this tower"
            )

    def init(self, key: jax.Array) -> Parameters:
        """See ImageArchitecture."""
        return _init(self, key)

    def step_flops(self, masking: MaskingSpec, num_proposals: int, *, teacher: bool = True) -> int:
        """See ImageArchitecture."""
        rows, columns = self.proposal_grid(masking.image_size, masking.image_size)
        size = EncoderSize(
            self.width,
            self.layers,
            masking.mask_start_layer,
            rows * columns,
            num_proposals,
            self.class_tokens,
            self.mlp_flops,
            masking.mask_rule,
        )
        return step_flops(size, teacher=teacher)

    def normalise(self, images: Images) -> Float[Array, "b h w 3"]:
        """See ImageEncoder: as CLIP expects pixels."""
        return preprocess.normalised(images)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """See patches.patch_grid."""
        return patch_grid(height, width, self.patch_size)

    def proposal_grid(self, height: int, width: int) -> tuple[int, int]:
        """The same of images on which proposals are read."""
        return self.grid(height, width)


@functools.partial(jax.jit, static_argnums=0)
def _init(architecture: ClassTokenArchitecture, key):
    images = jnp.zeros((1, architecture.image_size, architecture.image_size, 3))
    return architecture.module(architecture).init(key, images)["params"]
