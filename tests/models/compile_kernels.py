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
from jax.sharding import SingleDeviceSharding

from maft_jax.models.flash_kernels import AttentionCall

WIDTH, TOKENS, PROPOSALS = 768, 901, 100


def calls():
    """What the encoders use: patches alone, with masked proposals, and the last layer's two."""
    yield "attend", AttentionCall(64, True, False, False), ()
    yield "attend_both", AttentionCall(64, True, True, True), (PROPOSALS,)
    yield "read", AttentionCall(64, False, True, True), (PROPOSALS,)
    yield "read_all", AttentionCall(64, False, True, False), (1,)


def compile_for(device: jax.Device) -> None:
    """Forward and backward, in both dtypes."""
    sharding = SingleDeviceSharding(device)

    def shape(*dimensions, dtype):
        return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)

    for name, call, proposals in calls():
        for dtype in (jnp.bfloat16, jnp.float32):
            operands = [shape(1, TOKENS, call.patch_parts * WIDTH, dtype=dtype)]
            operands += [shape(1, n, 3 * WIDTH, dtype=dtype) for n in proposals]
            if call.is_masked:
                operands.append(shape(1, PROPOSALS, TOKENS, dtype=jnp.int8))
            outputs = [TOKENS] * call.patches_attend + [*proposals]
            gradients = [shape(1, n, WIDTH, dtype=dtype) for n in outputs]
            forward = jax.jit(lambda *x, call=call: call.forward(*x)).lower(*operands).compile()
            jax.jit(call.backward).lower(operands, gradients).compile()
            costs = forward.cost_analysis()
            print(name, jnp.dtype(dtype).name, int(costs["flops"]), int(costs["bytes accessed"]))


if __name__ == "__main__":
    compile_for(parse_topology(sys.argv[1]).devices()[0])
