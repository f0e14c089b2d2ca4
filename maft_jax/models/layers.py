"""The pre-norm transformer block that CLIP's two towers share.

Matrix products run in `dtype`; parameters, LayerNorm and softmax stay in float32.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models.attention import Attended, Attention, Projected
from maft_jax.models.attention_pattern import (
    AttentionPattern,
    gather_queries,
    with_separate_queries,
)
from maft_jax.models.precision import matmul_precision
from maft_jax.models.rotary import Rotation
from maft_jax.runtime.mesh_axes import MODEL

HEAD_WIDTH = 64
"""Of OpenAI's towers and of most others."""


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a transformer block is, besides its weights.

    Raises:
        ValueError: the heads do not divide the width, or the activation is unknown.
    """

    width: int
    head_width: int = HEAD_WIDTH
    mlp_width: int | None = None
    """None: four times the width."""
    activation: str = "quick_gelu"
    """A key of ACTIVATIONS."""
    norm_epsilon: float = 1e-5
    gated: bool = False
    """The MLP is SwiGLU, whatever the activation."""

    def __post_init__(self):
        if self.head_width < 1 or self.width % self.head_width:
            raise ValueError(
                f"a tower of width {self.width}; expected a multiple of {self.head_width}, the "
                "width of an attention head"
            )
        if self.activation not in _ALL_ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {list(ACTIVATIONS)}, got {self.activation!r}"
            )

    @property
    def heads(self) -> int:
        return self.width // self.head_width


def fan_in_init(fan_in: int) -> nn.initializers.Initializer:
    """Normal with deviation fan_in ** -0.5, as random CLIPs begin."""
    return nn.initializers.normal(fan_in**-0.5)


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(1.702 x), OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
"""OpenAI's; torch.nn.GELU; and its approximation by tanh, as big_vision has it."""
_ALL_ACTIVATIONS = ACTIVATIONS | {"relu": jax.nn.relu}
"""Those that weights do not tell, and that of TIPS's text tower, which has no other."""


class LayerNorm(nn.Module):
    """LayerNorm with float32 arithmetic whose result is in `dtype`."""

    dtype: DTypeLike
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width)
        bias = self.param("bias", nn.initializers.zeros, width)
        x = x.astype(jnp.float32)
        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        return (normal * scale + bias).astype(self.dtype)


class QkvProjection(nn.Module):
    """Query, key and value projections in one kernel [d, 3, heads, head width]."""

    heads: int
    dtype: DTypeLike
    attention: Attention

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], parts: str) -> Projected:
        """The `parts` asked for, a run of letters of "qkv"; only those are computed."""
        width = x.shape[-1]
        shape = (3, self.heads, width // self.heads)
        kernel = self.param("kernel", fan_in_init(width), (width, *shape))
        bias = self._bias(shape)
        first = "qkv".index(parts)
        chosen = slice(first, first + len(parts))
        projected = self.attention.project(
            x.astype(self.dtype),
            kernel[:, chosen].astype(self.dtype),
            bias[chosen].astype(self.dtype),
        )
        return checkpoint_name(projected, "projected")

    def _bias(self, shape: tuple[int, int, int]) -> Float[Array, "3 a h"]:
        return self.param("bias", nn.initializers.zeros, shape)


class OutProjection(nn.Module):
    """Heads back to the residual width; kernel [heads, head width, d]."""

    heads: int
    width: int
    dtype: DTypeLike
    attention: Attention

    @nn.compact
    def __call__(self, attended: Attended) -> Float[Array, "b t d"]:
        shape = (self.heads, self.width // self.heads, self.width)
        kernel = self.param("kernel", fan_in_init(self.width), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        merged = self.attention.merge(attended, kernel.astype(self.dtype))
        return merged + bias.astype(self.dtype)


class Projections(nn.Module):
    """The two projections of multi-head attention; the block decides who attends to whom."""

    config: BlockConfig
    dtype: DTypeLike
    attention: Attention

    def setup(self):
        heads = self.config.heads
        self.in_proj = QkvProjection(heads, self.dtype, self.attention)
        self.out_proj = OutProjection(heads, self.config.width, self.dtype, self.attention)


class Mlp(nn.Module):
    """d -> the wider `mlp_width` -> d."""

    config: BlockConfig
    dtype: DTypeLike

    def setup(self):
        dense = {
            "dtype": self.dtype,
            "precision": matmul_precision(self.dtype),
        }
        width = self.config.width
        # flax's own initialiser is fan-in too
        self.c_fc = nn.Dense(self.config.mlp_width or 4 * width, **dense)
        self.c_proj = nn.Dense(width, **dense)

    def __call__(self, x: Float[Array, "b *t d"]) -> Float[Array, "b *t d"]:
        hidden = checkpoint_name(self.c_fc(x), "hidden")
        return self.c_proj(_ALL_ACTIVATIONS[self.config.activation](hidden))


class GatedMlp(nn.Module):
    """SwiGLU: d -> silu(gate) times value, each of the wider `mlp_width` -> d.

    Both come of one kernel [d, 2, mlp_width].
    """

    config: BlockConfig
    dtype: DTypeLike

    def setup(self):
        dense = {"dtype": self.dtype, "precision": matmul_precision(self.dtype)}
        width = self.config.width
        self.c_gated = nn.DenseGeneral((2, self.config.mlp_width or 4 * width), **dense)
        self.c_proj = nn.Dense(width, **dense)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        hidden = checkpoint_name(self.c_gated(x), "hidden")
        gate, value = hidden[..., 0, :], hidden[..., 1, :]
        return self.c_proj(self.normalised(jax.nn.silu(gate) * value))

    def normalised(self, hidden: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """As it is; a tower with a LayerNorm here has it in a subclass."""
        return hidden


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)), for all tokens or for some alone."""

    config: BlockConfig
    dtype: DTypeLike
    attention: Attention

    def setup(self):
        epsilon = self.config.norm_epsilon
        self.ln_1 = LayerNorm(self.dtype, epsilon)
        self.attn = Projections(self.config, self.dtype, self.attention)
        self.ln_2 = LayerNorm(self.dtype, epsilon)
        self.mlp = (GatedMlp if self.config.gated else Mlp)(self.config, self.dtype)

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        pattern: AttentionPattern,
        allowed: Bool[Array, "..."] | Float[Array, "..."] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Array, "b t d"]:
        """Every token attends to what `pattern` and, where it is masked, `allowed` let it.

        Queries and keys are turned by `rotation`, of towers with rotary positions.
        """
        projected = self._project(self.ln_1(tokens), "qkv", rotation)
        attended = self.attention.attend(projected, None, pattern, self._allowed(allowed))
        return self._finish(tokens, attended)

    def read(
        self,
        tokens: Float[Array, "b t d"],
        pattern: AttentionPattern,
        allowed: Bool[Array, "..."] | Float[Array, "..."] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Array, "b q d"]:
        """The last layer, for the queries of `pattern` alone, in their order."""
        normal = self.ln_1(tokens)
        of_queries = rotation and rotation.of_queries(pattern)
        attended = self.attention.attend(
            self._project(gather_queries(normal, pattern), "q", of_queries),
            self._project(normal, "kv", rotation),
            with_separate_queries(pattern),
            self._allowed(allowed),
        )
        return self._finish(gather_queries(tokens, pattern), attended)

    def _project(self, normal, parts: str, rotation: Rotation | None) -> Projected:
        projected = self.attn.in_proj(normal, parts)
        return projected if rotation is None else self.attention.rotate(projected, parts, rotation)

    def _allowed(self, allowed):
        """What the attention is given; a tower that reads masks in another way has it in a
        subclass."""
        return allowed

    def _finish(self, tokens, attended):
        attended = checkpoint_name(attended, "attended")
        tokens = checkpoint_name(tokens + self.attn.out_proj(attended), "middle")
        return tokens + self.mlp(self.ln_2(tokens))


SHARDING_RULES = (
    (r"in_proj/kernel$", PartitionSpec(None, None, MODEL)),
    (r"in_proj/bias$", PartitionSpec(None, MODEL)),
    (r"in_proj/[qv]_bias$", PartitionSpec(MODEL)),
    (r"out_proj/kernel$", PartitionSpec(MODEL)),
    (r"c_fc/kernel$", PartitionSpec(None, MODEL)),
    (r"c_fc/bias$", PartitionSpec(MODEL)),
    (r"c_gated/kernel$", PartitionSpec(None, None, MODEL)),
    (r"c_gated/bias$", PartitionSpec(None, MODEL)),
    (r"c_proj/kernel$", PartitionSpec(MODEL)),
)
"""Of every tower of these blocks: heads and MLPs are split, all else is whole."""

SAVED = ("projected", "attended", "middle", "hidden", "mixed", "branch")
"""What a block's backward pass needs beside its input; the rest is elementwise arithmetic."""

_BLOCK_METHODS = ("__call__", "read")
_PATTERN = 2
"""static_argnums of the attention pattern, counted from self."""


def in_compute_dtype(params: Mapping, dtype: DTypeLike) -> Mapping:
    """Weights of projections and MLPs as the products read them; all else as it is, as the
    LayerNorms that some towers have inside of them.

    Done once, outside of what uses a weight several times, gradients of the uses add up before
    devices exchange them.
    """

    def cast(path, leaf):
        names = {entry.key for entry in path}
        of_product = names & {"attn", "mlp"} and not any(name.startswith("ln_") for name in names)
        return leaf.astype(dtype) if of_product else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


def make_blocks(
    layers: int,
    config: BlockConfig,
    dtype,
    attention: Attention,
    *,
    remat: bool = False,
    kind: type[Block] = Block,
) -> list[Block]:
    """The blocks of a tower; with `remat` the backward pass recomputes what is inside them."""
    block = nn.remat(kind, methods=_BLOCK_METHODS, static_argnums=_PATTERN) if remat else kind
    return [block(config, dtype, attention) for _ in range(layers)]
