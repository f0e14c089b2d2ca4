"""How attention is computed: plainly by XLA, or by fused kernels that never write the scores.

All three give the same numbers within rounding. Between `project` and `merge` each keeps queries,
keys and values in the layout that suits it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models import flash_attention
from maft_jax.models.attention_pattern import AttentionPattern, AttentionSegment
from maft_jax.models.masked_attention import proposal_attention, self_attention
from maft_jax.models.precision import matmul_precision
from maft_jax.models.rotary import Rotation, rotated
from maft_jax.runtime.mesh_axes import MODEL, OVER_IMAGES

Projected = Any
Attended = Any


@runtime_checkable
class Attention(Protocol):
    """What a transformer block asks of an attention."""

    def project(
        self, x: Float[Array, "b t d"], kernel: Float[Array, "d p a h"], bias: Float[Array, "p a h"]
    ) -> Projected:
        """Query, key and value of every token, or queries alone, or keys and values."""

    def attend(
        self,
        queries: Projected,
        sources: Projected | None,
        pattern: AttentionPattern,
        allowed: Bool[Array, "..."] | None,
    ) -> Attended:
        """All queries, in their order.

        Args:
            queries: query, key and value of every token, or only queries.
            sources: keys and values that only queries read; None where they have their own.
            pattern: which queries attend to which keys; covers every query, and every source.
            allowed: what the one masked segment may attend to: [b, q, k] for queries with an own
                key, [q, k] for others, of which XLA's attention also takes numbers, [b, a, q, k],
                that are added to their scores.
        """

    def rotate(self, projected: Projected, parts: str, rotation: Rotation) -> Projected:
        """Queries and keys turned; `parts` says, in letters of "qkv", what was projected."""

    def over_heads(self, attended: Attended, function: Callable[[Array], Array]) -> Attended:
        """A function of tokens whose heads are joined, [b, t, d]."""

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

    def attend(self, queries, sources, pattern, allowed) -> Float[Array, "b a q h"]:
        key, value = (queries if sources is None else sources)[-2:]
        attended = [self._of_segment(s, queries[0], key, value, allowed) for s in pattern]
        return jnp.concatenate(attended, axis=2)

    def _of_segment(self, segment: AttentionSegment, queries, key, value, allowed):
        query = _rows(queries, segment.queries)
        read = _rows(key, segment.keys), _rows(value, segment.keys)
        if segment.own is None:
            return self.read(query, *read, allowed if segment.masked else None)
        own = _rows(key, segment.own), _rows(value, segment.own)
        return proposal_attention(query, *own, *read, allowed)

    def read(self, query, key, value, allowed) -> Float[Array, "b a q h"]:
        """Of queries that read no key of their own."""
        return self_attention(query, key, value, allowed)

    def rotate(self, projected, parts, rotation) -> list[Float[Array, "b a t h"]]:
        return [
            x if part == "v" else rotated(x, rotation.cos, rotation.sin)
            for part, x in zip(parts, projected, strict=True)
        ]

    def over_heads(self, attended, function) -> Float[Array, "b a t h"]:
        joined = rearrange(attended, "b a t h -> b t (a h)")
        return rearrange(function(joined), "b t (a h) -> b a t h", a=attended.shape[1])

    def merge(self, attended, kernel) -> Float[Array, "b t d"]:
        precision = matmul_precision(attended.dtype)
        return jnp.einsum("bath,ahd->btd", attended, kernel, precision=precision)


@dataclasses.dataclass(frozen=True)
class CudnnAttention(XlaAttention):
    """cuDNN's fused kernel where all attend to all; as XLA proposals, which it cannot express.

    A class token alone is not worth it either. For float16 and bfloat16 on NVIDIA GPUs.

    jax refuses gradients of an odd number of tokens, and of the numbers that a tower attends over,
    with and without its class token, one is odd. So these get a row more, of which cuDNN is told
    that it does not count.
    """

    mesh: Mesh
    """Over which the arrays are spread: each device runs the kernel on its images and heads."""
    implementation: str = "cudnn"
    """Of jax.nn.dot_product_attention; "xla" gives the same without a GPU."""

    def project(self, x, kernel, bias) -> list[Float[Array, "b a t h"]]:
        return super().project(self._spread(x), kernel, bias)

    def merge(self, attended, kernel) -> Float[Array, "b t d"]:
        return self._spread(super().merge(attended, kernel))

    def _spread(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Images over devices. Left to itself XLA splits tokens as fsdp splits the weights, and
        exchanges 38 GB of them in a step instead of 0.5 GB of weights
        (tests/cuda/test_meshes.py)."""
        return jax.lax.with_sharding_constraint(tokens, NamedSharding(self.mesh, OVER_IMAGES))

    def read(self, query, key, value, allowed) -> Float[Array, "b a q h"]:
        if query.shape != key.shape or allowed is not None:
            return super().read(query, key, value, allowed)
        heads = PartitionSpec(*OVER_IMAGES, MODEL)
        return jax.shard_map(
            self._read_on_device, mesh=self.mesh, in_specs=heads, out_specs=heads, check_vma=False
        )(query, key, value)

    def _read_on_device(self, *projected: Float[Array, "b a t h"]) -> Float[Array, "b a t h"]:
        batch, _, tokens, _ = projected[0].shape
        rows = [(0, 0), (0, tokens % 2), (0, 0), (0, 0)]
        lengths = jnp.full(batch, tokens, jnp.int32) if tokens % 2 else None
        query, key, value = (jnp.pad(jnp.swapaxes(x, 1, 2), rows) for x in projected)
        attended = jax.nn.dot_product_attention(
            query,
            key,
            value,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation=self.implementation,
        )
        return jnp.swapaxes(attended[:, :tokens], 1, 2)


@dataclasses.dataclass(frozen=True)
class DeviceKind:
    """What of a device decides which attention it can run."""

    platform: str
    """As JAX calls it: cpu, tpu, gpu or cuda."""
    name: str = ""
    """Such as TPU v4."""
    compute_capability: str = ""
    """Of an NVIDIA GPU, such as 9.0; of another vendor's not a number."""

    @classmethod
    def of(cls, device: jax.Device) -> "DeviceKind":
        """Of a device that need not be there: a compiler's description of one will do."""
        capability = str(getattr(device, "compute_capability", ""))
        return cls(device.platform, device.device_kind, capability)


def choose_attention(name: str, mesh: Mesh, heads: int, head_width: int, dtype) -> Attention:
    """The implementation of this name for the devices of a mesh; see resolve_name.

    Raises:
        ValueError: the one that is asked for cannot run this tower there.
    """
    device = DeviceKind.of(mesh.devices.flat[0])
    name = resolve_name(name, device, mesh.shape[MODEL], heads, head_width, dtype)
    if name == "pallas":
        return flash_attention.FlashAttention(mesh, head_width, interpret=device.platform != "tpu")
    return CudnnAttention(mesh) if name == "cudnn" else XlaAttention()


def resolve_name(
    name: str, device: DeviceKind, model_devices: int, heads: int, head_width: int, dtype: DTypeLike
) -> str:
    """xla, pallas or cudnn; auto takes the fused one of the platform, if it can run the tower.

    Not looked at is the size of images, of which TPUs up to v4 can only take some with pallas: see
    flash_attention.why_not.

    Raises:
        ValueError: the one that is asked for cannot.
    """
    why_not = {
        "pallas": flash_attention.why_not(heads, head_width, model_devices, dtype, device.name),
        "cudnn": _why_not_cudnn(device, heads, head_width, model_devices, dtype),
    }
    if why_not.get(name):
        raise ValueError(f"attention={name}: {why_not[name]}; use xla or auto")
    if name != "auto":
        return name
    if device.platform == "tpu":
        return "xla" if why_not["pallas"] else "pallas"
    return "xla" if why_not["cudnn"] else "cudnn"


_CUDNN_CAPABILITY = (8, 0)
"""Ampere: cuDNN's flash attention has no kernels for anything older."""
_CUDNN_WIDEST_HEAD = 128
"""jax's check_is_flash_attention takes widths up to this in steps of 8. (256 on Hopper; but it
asks the first GPU of the process, and no CLIP has such heads.)"""


def _why_not_cudnn(
    device: DeviceKind, heads: int, head_width: int, model_devices: int, dtype: DTypeLike
) -> str | None:
    """Why cuDNN cannot run a tower, or None."""
    if device.platform not in ("gpu", "cuda") or dtype == jnp.float32:
        return (
            "expected an NVIDIA GPU and compute_dtype=bfloat16, got "
            f"{device.platform} and {jnp.dtype(dtype).name}"
        )
    number = re.fullmatch(r"(\d+)\.(\d+)", device.compute_capability)
    if number is None or tuple(map(int, number.groups())) < _CUDNN_CAPABILITY:
        return (
            "expected an NVIDIA GPU of compute capability 8.0 or more (Ampere), got "
            f"{device.compute_capability or 'none'} of {device.name or device.platform}"
        )
    if head_width % 8 or head_width > _CUDNN_WIDEST_HEAD:
        return f"heads of width {head_width}; expected a multiple of 8 up to {_CUDNN_WIDEST_HEAD}"
    if heads % model_devices:
        return (
            f"{heads} heads; expected a multiple of {model_devices}, the devices of mesh.model, "
            "so that each has whole heads"
        )
    return None


def _rows(x: Float[Array, "b a t h"], rows: range | slice) -> Float[Array, "b a rows h"]:
    return x[:, :, rows.start : rows.stop]
