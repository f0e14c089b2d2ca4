"""Attention by our Pallas kernels: packing, sharding and gradients around flash_kernels."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maft_jax.models.attention_pattern import AttentionPattern
from maft_jax.models.flash_kernels import LANES, AttentionCall
from maft_jax.models.precision import matmul_precision
from maft_jax.models.rotary import Rotation, rotated
from maft_jax.runtime.mesh_axes import MODEL, OVER_IMAGES

_SMALL_VMEM = ("TPU v2", "TPU v3", "TPU v4")
"""16 MiB: in bfloat16 room for about 2,600 rows of a masked layer, in float32 for too few."""


def why_not(
    heads: int, head_width: int, model_devices: int, dtype: DTypeLike, device_kind: str
) -> str | None:
    """Why the kernels cannot run a tower, or None.

    Images of more rows than _SMALL_VMEM has room for end in an error of the compiler; use xla then.
    """
    if dtype == jnp.float32 and device_kind in _SMALL_VMEM:
        return f"float32 on a {device_kind}; expected bfloat16, of which twice as much fits in VMEM"
    if LANES % head_width:
        return f"heads of width {head_width}; expected a divisor of {LANES}"
    if heads % (LANES // head_width * model_devices):
        return (
            f"{heads} heads of width {head_width}; expected a multiple of "
            f"{LANES // head_width * model_devices}, which fill {LANES} lanes on each of "
            f"{model_devices} devices"
        )
    return None


@dataclasses.dataclass(frozen=True)
class FlashAttention:
    """The interface of attention.Attention over tokens [b, t, groups * parts * LANES].

    Each group of heads has its queries, keys and values side by side; so weights are permuted,
    once a step, and never the activations.
    """

    mesh: Mesh
    """Over which the arrays are spread: each device runs the kernel on its images and heads."""
    head_width: int
    interpret: bool = False

    def project(
        self, x: Float[Array, "b t d"], kernel: Float[Array, "d p a h"], bias: Float[Array, "p a h"]
    ) -> Float[Array, "b t columns"]:
        product = jnp.dot(x, _pack(kernel), precision=matmul_precision(x.dtype))
        return product + _pack(bias[None])[0]

    def attend(
        self,
        queries: Array,
        sources: Array | None,
        pattern: AttentionPattern,
        allowed: Bool[Array, "b n k"] | None,
    ) -> Float[Array, "b q d"]:
        if any(segment.masked and segment.own is None for segment in pattern):
            raise ValueError("attention=pallas: only proposals have a mask; use xla")
        mask = None if allowed is None else allowed.astype(jnp.int8)
        call = AttentionCall(self.head_width, pattern, sources is not None, self.interpret)
        return _attention(self.mesh, call, (queries, sources, mask))

    def rotate(self, projected: Array, parts: str, rotation: Rotation) -> Array:
        """Outside of the kernel; the features of a value are turned by nothing."""
        heads = LANES // self.head_width
        cos, sin = (jnp.tile(table, heads) for table in (rotation.cos, rotation.sin))
        still = {"q": False, "k": False, "v": True}
        cos = jnp.stack([jnp.ones_like(cos) if still[part] else cos for part in parts], axis=1)
        sin = jnp.stack([jnp.zeros_like(sin) if still[part] else sin for part in parts], axis=1)
        grouped = rearrange(projected, "b t (g p l) -> b g t p l", p=len(parts), l=LANES)
        return rearrange(rotated(grouped, cos, sin), "b g t p l -> b t (g p l)")

    def over_heads(self, attended: Array, function: Callable[[Array], Array]) -> Array:
        return function(attended)

    def merge(self, attended: Array, kernel: Float[Array, "a h d"]) -> Float[Array, "b t d"]:
        kernel = kernel.reshape(-1, kernel.shape[-1])
        return jnp.dot(attended, kernel, precision=matmul_precision(attended.dtype))


def _pack(kernel: Float[Array, "d p a h"]) -> Float[Array, "d columns"]:
    d, parts, heads, head_width = kernel.shape
    group = LANES // head_width
    grouped = kernel.reshape(d, parts, heads // group, LANES)
    return jnp.moveaxis(grouped, 1, 2).reshape(d, -1)


_Operands = tuple[Array, Array | None, Array | None]
"""Queries, keys and values if these are apart, and int8 which keys each masked query reads."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(mesh: Mesh, call: AttentionCall, operands: _Operands):
    return _on_each_device(mesh, call.forward, _present(operands))[0]


def _attention_forward(mesh, call, operands):
    return _attention(mesh, call, operands), operands


def _attention_backward(mesh, call, operands, gradient):
    def backward(*arrays):
        return call.backward(arrays[:-1], arrays[-1])

    queries, *rest = _on_each_device(mesh, backward, [*_present(operands), gradient])
    return ((queries, rest[0] if rest else None, None),)


_attention.defvjp(_attention_forward, _attention_backward)


def _present(operands) -> list[Array]:
    return [x for x in operands if x is not None]


def _on_each_device(mesh: Mesh, function, arrays: list[Array]) -> tuple[Array, ...]:
    """XLA cannot split a kernel by itself: images over data and fsdp, heads over model."""
    by_heads = PartitionSpec(*OVER_IMAGES, None, MODEL)
    specs = tuple(OVER_IMAGES if x.dtype == jnp.int8 else by_heads for x in arrays)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=by_heads, check_vma=False)(
        *arrays
    )
