"""How attention is computed: plainly by XLA, or by fused kernels that never write the scores.

All three give the same numbers within rounding. Between `project` and `merge` each keeps queries,
keys and values in the layout that suits it.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from maft_jax.models import flash_attention
from maft_jax.models.masked_attention import (
    matmul_precision,
    proposal_attention,
    self_attention,
)

Projected = Any
Attended = Any


@runtime_checkable
class Attention(Protocol):
    """What a transformer block asks of an attention."""

    def project(
        self, x: Float[Array, "b t d"], kernel: Float[Array, "d p a h"], bias: Float[Array, "p a h"]
    ) -> Projected:
        """Query, key and value, or key and value alone, of every token."""

    def attend(self, tokens: Projected, allowed: Bool[Array, "q k"] | None = None) -> Attended:
        """Every token attends to every token, or to those that are allowed."""

    def attend_both(
        self, proposals: Projected, patches: Projected, allowed: Bool[Array, "b n t"]
    ) -> tuple[Attended, Attended]:
        """Proposals to themselves and their allowed patches, and patches to patches."""

    def read(
        self, proposals: Projected, patches: Projected, allowed: Bool[Array, "b n t"] | None
    ) -> Attended:
        """As attend_both for the proposals alone; `patches` are keys and values."""

    def merge(self, attended: Attended, kernel: Float[Array, "a h d"]) -> Float[Array, "b t d"]:
        """The output projection without its bias."""


@dataclasses.dataclass(frozen=True)
class XlaAttention:
    """Products and softmax as XLA compiles them, for any device, mask and number of tokens.

    Heads come before tokens: XLA's products on a CPU take half the time in this layout.
    """

    def project(self, x, kernel, bias) -> list[Float[Array, "b a t h"]]:
        projected = jnp.einsum("btd,dsah->sbath", x, kernel, precision=matmul_precision(x.dtype))
        return list(projected + bias[:, None, :, None])

    def attend(self, tokens, allowed=None) -> Float[Array, "b a t h"]:
        return self_attention(*tokens, allowed)

    def attend_both(self, proposals, patches, allowed):
        attended = proposal_attention(*proposals, *patches[1:], allowed)
        return attended, self.attend(patches)

    def read(self, proposals, patches, allowed) -> Float[Array, "b a t h"]:
        return proposal_attention(*proposals, *patches, allowed)

    def merge(self, attended, kernel) -> Float[Array, "b t d"]:
        precision = matmul_precision(attended.dtype)
        return jnp.einsum("bath,ahd->btd", attended, kernel, precision=precision)


@dataclasses.dataclass(frozen=True)
class CudnnAttention(XlaAttention):
    """cuDNN's fused kernel where all attend to all; proposals, which it cannot express, as XLA.

    For float16 and bfloat16 on NVIDIA GPUs.
    """

    implementation: str = "cudnn"
    """Of jax.nn.dot_product_attention; "xla" gives the same without a GPU."""

    def attend(self, tokens, allowed=None) -> Float[Array, "b a t h"]:
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in tokens)
        mask = None if allowed is None else allowed[None, None]
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=mask, implementation=self.implementation
        )
        return jnp.swapaxes(attended, 1, 2)


def choose_attention(name: str, mesh: Mesh, heads: int, head_width: int, dtype) -> Attention:
    """The implementation of this name for the devices of a mesh; see resolve_name.

    Raises:
        ValueError: the one that is asked for cannot run this tower there.
    """
    platform = mesh.devices.flat[0].platform
    name = resolve_name(name, platform, mesh.shape["model"], heads, head_width, dtype)
    if name == "pallas":
        return flash_attention.FlashAttention(mesh, head_width, interpret=platform != "tpu")
    return CudnnAttention() if name == "cudnn" else XlaAttention()


def resolve_name(
    name: str, platform: str, model_devices: int, heads: int, head_width: int, dtype
) -> str:
    """xla, pallas or cudnn; auto takes the fused one of the platform, if it can run the tower.

    Raises:
        ValueError: the one that is asked for cannot.
    """
    why_not = flash_attention.why_not(heads, head_width, model_devices)
    cudnn_can = platform in ("gpu", "cuda") and dtype != jnp.float32
    if name == "pallas" and why_not:
        raise ValueError(f"attention=pallas: {why_not}; use xla or auto")
    if name == "cudnn" and not cudnn_can:
        raise ValueError(
            f"attention=cudnn: expected an NVIDIA GPU and compute_dtype=bfloat16, got {platform} "
            f"and {jnp.dtype(dtype).name}; use xla or auto"
        )
    if name != "auto":
        return name
    if platform == "tpu" and not why_not:
        return "pallas"
    return "cudnn" if cudnn_can else "xla"
