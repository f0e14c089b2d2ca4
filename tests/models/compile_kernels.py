"""Compiles the attention kernels for a TPU that need not be there; test_flash_on_tpus.py starts it.

    python -m tests.models.compile_kernels TOPOLOGY

Prints one line per kernel: its form, dtype, and the FLOPs and bytes that it tells the compiler.
"""

# ruff: noqa: E402 - the environment comes before JAX
import sys

from maft_jax.planning.topology import parse_topology, prepare_environment

prepare_environment()

import jax
import jax.numpy as jnp

from maft_jax.config.sections import MeshConfig
from maft_jax.models.attention_pattern import (
    AttentionSegment,
    ProposalSequence,
    full_attention,
    with_separate_queries,
)
from maft_jax.models.flash_attention import FlashAttention, why_not
from maft_jax.runtime import sharding

WIDTH, TOKENS, PROPOSALS = 768, 901, 100


def patterns():
    """What the encoders use: whole images, masked layers with and without, and last layers."""
    both = (ProposalSequence(TOKENS - 1, PROPOSALS, has_whole) for has_whole in (True, False))
    sequence, alone = both
    yield "attend", full_attention(TOKENS), False
    yield "masked", sequence.pattern, False
    yield "read", (AttentionSegment(range(1), range(TOKENS)),), True
    yield "read_masked", with_separate_queries(sequence.last_pattern), True
    yield "masked_alone", alone.pattern, False
    yield "read_masked_alone", with_separate_queries(alone.last_pattern), True


def compile_for(device: jax.Device) -> None:
    """Forward and backward; in float32, which nobody trains in on a TPU, for v5e alone."""
    dtypes = (jnp.bfloat16, jnp.float32) if "v5 lite" in device.device_kind else (jnp.bfloat16,)
    mesh = sharding.make_mesh(MeshConfig(), [device])
    attention = FlashAttention(mesh, 64)

    def shape(*dimensions, dtype):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding.replicated(mesh))

    for name, some, apart in patterns():
        queries = max(segment.queries.stop for segment in some)
        sources = max(rows.stop for segment in some for rows in (segment.keys, segment.own) if rows)
        masked = any(segment.masked for segment in some)
        mask = shape(1, PROPOSALS, TOKENS - 1, dtype=jnp.bool_) if masked else None
        for dtype in dtypes:
            if why_not(WIDTH // 64, 64, 1, dtype, device.device_kind):
                continue
            operands = (
                shape(1, queries, (1 if apart else 3) * WIDTH, dtype=dtype),
                shape(1, sources, 2 * WIDTH, dtype=dtype) if apart else None,
            )

            def attend(operands, mask, some=some):
                return attention.attend(*operands, some, mask)

            def backward(operands, mask, attend=attend):
                return jax.grad(lambda x: attend(x, mask).astype(jnp.float32).sum())(operands)

            costs = jax.jit(attend).lower(operands, mask).compile().cost_analysis()
            jax.jit(backward).lower(operands, mask).compile()
            print(name, jnp.dtype(dtype).name, int(costs["flops"]), int(costs["bytes accessed"]))


if __name__ == "__main__":
    compile_for(parse_topology(sys.argv[1]).devices()[0])
