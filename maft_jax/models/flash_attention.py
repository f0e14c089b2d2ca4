"""Attention by our Pallas kernels: packing, sharding and gradients around flash_kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from maft_jax.models.flash_kernels import LANES, AttentionCall
from maft_jax.models.masked_attention import matmul_precision


def why_not(heads: int, head_width: int, model_devices: int) -> str | None:
    """Why the kernels cannot run a tower, or None."""
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
        self, tokens: Array, allowed: Bool[Array, "q k"] | None = None
    ) -> Float[Array, "b t d"]:
        if allowed is not None:
            raise ValueError("attention=pallas: patches attend to all patches; use xla")
        return _attention(self, True, (tokens, None, None))[0]

    def attend_both(
        self, proposals: Array, patches: Array, allowed: Bool[Array, "b n t"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        operands = patches, proposals, allowed.astype(jnp.int8)
        of_patches, of_proposals = _attention(self, True, operands)
        return of_proposals, of_patches

    def read(
        self, proposals: Array, patches: Array, allowed: Bool[Array, "b n t"] | None
    ) -> Float[Array, "b n d"]:
        allowed = None if allowed is None else allowed.astype(jnp.int8)
        return _attention(self, False, (patches, proposals, allowed))[0]

    def merge(self, attended: Array, kernel: Float[Array, "a h d"]) -> Float[Array, "b t d"]:
        kernel = kernel.reshape(-1, kernel.shape[-1])
        return jnp.dot(attended, kernel, precision=matmul_precision(attended.dtype))


def _pack(kernel: Float[Array, "d p a h"]) -> Float[Array, "d columns"]:
    d, parts, heads, head_width = kernel.shape
    group = LANES // head_width
    grouped = kernel.reshape(d, parts, heads // group, LANES)
    return jnp.moveaxis(grouped, 1, 2).reshape(d, -1)


_Operands = tuple[Array, Array | None, Array | None]
"""Projections of the patches and of the proposals, and int8 which patches each proposal reads."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(attention: FlashAttention, patches_attend: bool, operands: _Operands):
    call = _call(attention, patches_attend, operands)
    return _on_each_device(attention.mesh, call.forward, _present(operands))


def _attention_forward(attention, patches_attend, operands):
    return _attention(attention, patches_attend, operands), operands


def _attention_backward(attention, patches_attend, operands, gradients):
    call = _call(attention, patches_attend, operands)
    present = _present(operands)

    def backward(*arrays):
        return call.backward(arrays[: len(present)], arrays[len(present) :])

    results = _on_each_device(attention.mesh, backward, [*present, *gradients])
    return ((*results, *[None] * (len(operands) - len(results))),)


_attention.defvjp(_attention_forward, _attention_backward)


def _call(attention, patches_attend, operands) -> AttentionCall:
    _, proposals, allowed = operands
    return AttentionCall(
        attention.head_width,
        patches_attend,
        has_proposals=proposals is not None,
        is_masked=allowed is not None,
        interpret=attention.interpret,
    )


def _present(operands) -> list[Array]:
    return [x for x in operands if x is not None]


def _on_each_device(mesh: Mesh, function, arrays: list[Array]) -> tuple[Array, ...]:
    """XLA cannot split a kernel by itself: images over data and fsdp, heads over model."""
    by_heads = PartitionSpec(("data", "fsdp"), None, "model")
    shared = PartitionSpec(("data", "fsdp"), None, None)
    specs = tuple(shared if x.dtype == jnp.int8 else by_heads for x in arrays)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=by_heads, check_vma=False)(
        *arrays
    )
