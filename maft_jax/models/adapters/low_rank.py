"""LoRA: kernels of attention are tuned by products of two thin matrices, all else is frozen.

Hu et al., LoRA. The kernel that a step computes with is the merged one, so that the tower knows
nothing of it and a merged file gives what training saw.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maft_jax.models.layers import fan_in_init
from maft_jax.runtime import tree_rules

KERNELS = (r"attn/(in|out)_proj/kernel$",)
"""What can be tuned so: every tower of models.layers has these."""
FACTORS = ("lora_down", "lora_up")
"""Beside the kernel's own name."""


def init_factors(
    kernels: Mapping[str, Array | jax.ShapeDtypeStruct], rank: int, key: jax.Array
) -> dict[str, Array]:
    """Factors by path of the kernels of these paths, whose product is 0.

    Of in_proj, [d, 3, heads, head width], queries, keys and values have their own; out_proj is
    [heads, head width, d].
    """
    factors = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        down, up = _shapes(kernel.shape, rank)
        module = path.removesuffix("kernel")
        random = fan_in_init(down[-2])(jax.random.fold_in(key, number), down)
        factors[module + FACTORS[0]] = random
        factors[module + FACTORS[1]] = jnp.zeros(up)
    return factors


def merge(pretrained: Mapping, trainable: Mapping, alpha: float) -> dict[str, Array]:
    """Merged kernels by path: kernel + alpha / rank * down @ up, in float32."""
    kernels, merged = tree_rules.flatten(pretrained), {}
    factors = tree_rules.flatten(trainable)
    for path, down in factors.items():
        module, _, name = path.rpartition("/")
        if name != FACTORS[0]:
            continue
        kernel, up = kernels[f"{module}/kernel"], factors[f"{module}/{FACTORS[1]}"]
        scaled = alpha / down.shape[-1] * product(down, up)
        if kernel.ndim == 4:
            scaled = jnp.moveaxis(scaled, 0, 1)
        merged[f"{module}/kernel"] = kernel.astype(jnp.float32) + scaled.reshape(kernel.shape)
    return merged


def product(down: Float[Array, "*p d r"], up: Float[Array, "*p r d2"]) -> Float[Array, "*p d d2"]:
    """Matrix by matrix."""
    return jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)


def _shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(kernel) == 4:
        width, parts, heads, head_width = kernel
        return (parts, width, rank), (parts, rank, heads * head_width)
    heads, head_width, width = kernel
    return (heads * head_width, rank), (rank, width)
