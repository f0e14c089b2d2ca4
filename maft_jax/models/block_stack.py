"""Running a tower's blocks one after another, compiled once for all of them on accelerators."""

import enum
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from maft_jax.models.layers import SAVED, Block, in_compute_dtype

Carry = TypeVar("Carry", bound=Any)


class BlockLoop(enum.Enum):
    """How several blocks become a program."""

    UNROLLED = "unrolled"
    """One after another: fastest on a CPU, and a long compilation."""
    SCANNED = "scanned"
    """A loop over stacked weights, whose body is compiled once."""


def through_blocks(
    blocks: Sequence[Block],
    step: Callable[[Block, Carry], Carry],
    carry: Carry,
    loop: BlockLoop,
    remat: bool,
) -> Carry:
    """`step` applied with each block in turn.

    The scanned loop keeps, for the backward pass, its input and what is named in SAVED: all
    products, so that only elementwise arithmetic is done again; with `remat` its input alone.
    Unrolled blocks recompute what they were made to recompute.
    """
    if loop is BlockLoop.UNROLLED or len(blocks) < 2 or blocks[0].is_initializing():
        for block in blocks:
            carry = step(block, carry)
        return carry
    weights = [in_compute_dtype(block.variables["params"], block.dtype) for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    detached = blocks[0].clone(parent=None)

    def body(carry, params):
        return step(detached.bind({"params": params}), carry), None

    saved = () if remat else SAVED
    policy = jax.checkpoint_policies.save_only_these_names(*saved)
    carry, _ = lax.scan(jax.checkpoint(body, policy=policy, prevent_cse=False), carry, stacked)
    return carry
