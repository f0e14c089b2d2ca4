"""LoRA: kernels of attention are tuned by products of two thin matrices, all else is frozen.

Hu et al., LoRA. The kernel that a step computes with is the merged one, so that the tower knows
nothing of it and a merged file gives what training saw.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from maft_jax.models.array_types import Leaf
from maft_jax.models.layers import fan_in_init
from maft_jax.runtime import tree_rules

KERNELS = (r"attn/(in|out)_proj/kernel$",)
"""What can be tuned so: every tower of models.layers has these."""
FACTORS = ("lora_down", "lora_up")
"""Beside the kernel's own name."""


def check_has_kernels(tower: Mapping) -> None:
    """Raises ValueError for a tower without attention of ours."""
    if not any(tree_rules.matches_any(KERNELS, path) for path in tree_rules.flatten(tower)):
        raise ValueError(
            "config.optimizer.lora_rank: tunes kernels of attention, and this tower has none; use 0"
        )


def init_factors(kernels: Mapping[str, Leaf], rank: int, key: jax.Array) -> dict[str, Array]:
    """Factors by path of the kernels of these paths, whose product is 0.

    Of in_proj, [d, 3, heads, head width], queries, keys and values have their own; out_proj is
    [heads, head width, d].

    Raises:
        ValueError: a path is no kernel of attention.
    """
    factors = {}
    for number, (path, kernel) in enumerate(sorted(kernels.items())):
        if not tree_rules.matches_any(KERNELS, path):
            raise ValueError(
                f"config.optimizer.lora_rank={rank}: tunes kernels of attention alone, and "
                f"config.optimizer.trainable chooses {path}; leave it empty, or choose among "
                f"{KERNELS[0]}"
            )
        down, up = _shapes(kernel.shape, rank)
        names = [path.removesuffix("kernel") + factor for factor in FACTORS]
        factors[names[0]] = fan_in_init(down[-2])(jax.random.fold_in(key, number), down)
        factors[names[1]] = jnp.zeros(up)
    return factors


def merge(tower: Mapping, alpha: float) -> dict:
    """The tower with kernel + alpha / rank * down @ up for each that has factors, which are gone.

    The sum is in float32.
    """
    leaves = tree_rules.flatten(tower)
    merged = {path: leaf for path, leaf in leaves.items() if not path.endswith(FACTORS)}
    for path, down in leaves.items():
        if not path.endswith(FACTORS[0]):
            continue
        module = path.removesuffix(FACTORS[0])
        kernel, up = leaves[f"{module}kernel"], leaves[f"{module}{FACTORS[1]}"]
        product = alpha / down.shape[-1] * jnp.matmul(down, up, precision="highest")
        if kernel.ndim == 4:
            product = jnp.moveaxis(product, 0, 1)
        merged[f"{module}kernel"] = kernel.astype(jnp.float32) + product.reshape(kernel.shape)
    return tree_rules.unflatten(merged)


def paths_of_factors_and_kernels(leaves: Mapping[str, Leaf]) -> list[str]:
    """Of all that a merge reads."""
    factors = [path for path in leaves if path.endswith(FACTORS)]
    kernels = {path.rpartition("/")[0] + "/kernel" for path in factors}
    return [*factors, *(kernels & leaves.keys())]


def _shapes(kernel: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if len(kernel) == 4:
        width, parts, heads, head_width = kernel
        return (parts, width, rank), (parts, rank, heads * head_width)
    heads, head_width, width = kernel
    return (heads * head_width, rank), (rank, width)
