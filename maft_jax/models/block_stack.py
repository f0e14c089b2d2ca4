"""Running a tower's blocks one after another, compiled once for all of them on accelerators."""

import enum
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from maft_jax.models.layers import SAVED, in_compute_dtype


class BlockLoop(enum.Enum):
    """How several blocks become a program."""

    UNROLLED = "unrolled"
    """One after another: what a block keeps for the backward pass is never copied."""
    SCANNED = "scanned"
    """A loop over stacked weights, whose body is compiled once."""


def through_blocks(
    blocks: Sequence[nn.Module],
    step: Callable[[nn.Module, Array], Array],
    tokens: Float[Array, "b *t d"],
    loop: BlockLoop,
    remat: bool,
) -> Float[Array, "b *t d"]:
    """`step` applied with each block in turn, of equal shape, to tokens or to maps of them.

    The scanned loop keeps, for the backward pass, its input and what is named in SAVED: all
    products, so that only elementwise arithmetic is done again; with `remat` its input alone.
    Unrolled blocks recompute what they were made to recompute.
    """
    if loop is BlockLoop.UNROLLED or len(blocks) < 2 or blocks[0].is_initializing():
        for block in blocks:
            tokens = step(block, tokens)
        return tokens
    weights = [in_compute_dtype(block.variables["params"], block.dtype) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    detached = blocks[0].clone(parent=None)

    def body(tokens, params):
        return step(detached.bind({"params": params}), tokens), None

    saved = () if remat else SAVED
    policy = jax.checkpoint_policies.save_only_these_names(*saved)
    tokens, _ = lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), tokens, stacked)
    return tokens
