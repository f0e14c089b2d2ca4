"""Loops cost as much as the same iterations written out, by XLA's own count of the latter."""

import jax
import jax.numpy as jnp
import pytest

from maft_jax.planning.hlo_text import parse_module
from maft_jax.planning.loop_costs import (
    Cost,
    computation_cost,
    cost_of_program,
    cost_of_repetitions,
)

ITERATIONS = 6


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def layer(x, weights):
    return jnp.tanh(x @ weights)


def in_a_loop(x, weights):
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]


def written_out(x, weights):
    for index in range(ITERATIONS):
        x = layer(x, weights[index])
    return x


def counted(program) -> Cost:
    costs = program.cost_analysis()
    compiler = Cost(costs["flops"], costs["bytes accessed"])
    return compiler + cost_of_repetitions(parse_module(program.as_text()))


def test_a_loop_costs_as_much_as_its_iterations_written_out():
    shapes = ((64, 128), (ITERATIONS, 128, 128))
    loop, flat = (counted(compiled(one, *shapes)) for one in (in_a_loop, written_out))
    products = ITERATIONS * 2 * 64 * 128 * 128
    assert loop.flops == pytest.approx(products, rel=0.02)
    assert loop.flops == pytest.approx(flat.flops, rel=0.02)
    assert loop.num_bytes == pytest.approx(flat.num_bytes, rel=0.35)


def test_loops_in_loops_multiply():
    def nested(x, weights):
        return jax.lax.fori_loop(0, 3, lambda _, x: in_a_loop(x, weights), x)

    program = compiled(nested, (64, 128), (ITERATIONS, 128, 128))
    assert counted(program).flops == pytest.approx(3 * ITERATIONS * 2 * 64 * 128 * 128, rel=0.02)


def test_a_program_without_loops_has_nothing_to_add():
    program = compiled(written_out, (64, 128), (ITERATIONS, 128, 128))
    assert cost_of_repetitions(parse_module(program.as_text())) == Cost()


def cost_of_entry(*lines: str, before: str = "") -> Cost:
    body = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule m\n\n{before}\nENTRY %main (p: f32[8,4]) -> f32[2] {{\n{body}\n}}\n"
    return computation_cost(parse_module(text), "main")


PARAMETERS = (
    "%a = bf16[6,16,32]{2,1,0} parameter(0)",
    "%k = bf16[3,32,64]{2,1,0} parameter(1)",
    "%i = s32[] parameter(2)",
)


@pytest.mark.parametrize(
    ("window", "result", "positions"),
    [
        ("size=3", 4, 12),
        ("size=3 pad=1_1", 6, 3 * 6 - 2),
        ("size=3 stride=2 pad=1_0", 3, 3 * 3 - 1),
        ("size=3 rhs_dilate=2", 2, 6),
        ("size=3 lhs_dilate=2 pad=2_2", 13, 6 * 3),
        ("size=3 pad=2_2 rhs_reversal=1", 8, 6 * 3),
    ],
)
def test_convolutions_multiply_where_window_and_image_meet(window, result, positions):
    labels = "dim_labels=0bf_0io->0bf"
    line = f"%c = bf16[{result},16,64] convolution(%a, %k), window={{{window}}}, {labels}"
    assert cost_of_entry(*PARAMETERS, line).flops == 2 * positions * 16 * 32 * 64


def test_matrix_products_and_elementwise_arithmetic():
    dot = "%d = f32[16,64] dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    inputs = ("%x = f32[16,32] parameter(0)", "%y = f32[32,64] parameter(1)")
    assert cost_of_entry(*inputs, dot) == Cost(
        2.0 * 16 * 32 * 64, 4.0 * (16 * 32 + 32 * 64 + 16 * 64)
    )
    assert cost_of_entry(*inputs, "%m = f32[16,32] multiply(%x, %x)").flops == 16 * 32
    assert cost_of_entry(*inputs, "%b = f32[512] bitcast(%x)") == Cost()


def test_slices_count_what_they_touch():
    slice_line = "%s = bf16[1,16,32] dynamic-slice(%a, %i, %i, %i)"
    assert cost_of_entry(*PARAMETERS, slice_line).num_bytes == 2 * 2 * 16 * 32
    fused = (
        "%fused (q: bf16[6,16,32], n: s32[]) -> bf16[6,16,32] {\n"
        "  %q = bf16[6,16,32] parameter(0)\n  %n = s32[] parameter(1)\n"
        "  %s = bf16[1,16,32] dynamic-slice(%q, %n, %n, %n)\n"
        "  %d = bf16[1,16,32] add(%s, %s)\n"
        "  ROOT %u = bf16[6,16,32] dynamic-update-slice(%q, %d, %n, %n, %n)\n}\n"
    )
    fusion = "%f = bf16[6,16,32] fusion(%a, %i), kind=kLoop, calls=%fused"
    touched = cost_of_entry(*PARAMETERS, fusion, before=fused)
    assert touched == Cost(16.0 * 32, 2.0 * (2 * 16 * 32) + 4)


def test_kernels_cost_what_they_say():
    estimate = '"cost_estimate":{"flops":"70","transcendentals":"3","bytes_accessed":"90"}'
    estimate = f'backend_config={{"custom_call_config":{{{estimate}}}}}'
    kernel = f'%c = bf16[6] custom-call(%a), custom_call_target="tpu_custom_call", {estimate}'
    assert cost_of_entry(*PARAMETERS, kernel) == Cost(70.0, 90.0)
    silent = '%c = bf16[6] custom-call(%i), custom_call_target="tpu_custom_call"'
    assert cost_of_entry(*PARAMETERS, silent) == Cost(0.0, 12.0 + 4)


def test_a_whole_program_counts_as_the_compiler_does():
    """With loops, where the compiler counts once what runs several times."""
    loop = compiled(in_a_loop, (64, 128), (ITERATIONS, 128, 128))
    whole = cost_of_program(parse_module(loop.as_text()))
    assert whole.flops == pytest.approx(counted(loop).flops, rel=0.02)
    assert whole.num_bytes == pytest.approx(counted(loop).num_bytes, rel=0.1)


def test_room_that_a_library_works_in_is_no_traffic():
    cost = cost_of_entry(
        "%a = f32[4,8]{1,0} parameter(0)",
        "%b = f32[8,2]{1,0} parameter(1)",
        "ROOT %c = (f32[4,2]{1,0}, s8[4194304]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$gemm"',
    )
    assert cost.num_bytes == 4 * (4 * 8 + 8 * 2 + 4 * 2)
