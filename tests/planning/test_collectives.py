"""Collectives are counted once each, with the bytes of what they reduce or gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maft_jax.planning.collectives import (
    BETWEEN_SLICES,
    Collective,
    find_collectives,
    parse_replica_groups,
)
from maft_jax.planning.hlo_text import parse_module

ALL = (tuple(range(8)),)
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))
EVERY_OTHER = ((0, 2, 4, 6), (1, 3, 5, 7))


def found_in(*lines: str, before: str = "") -> list[Collective]:
    """Collectives of a program whose entry has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    text = f"HloModule m, num_partitions=8\n\n{before}\nENTRY %main (p: f32[16]) -> f32[16] {{\n"
    text += f"  %p = f32[16]{{0}} parameter(0)\n  %h = bf16[4,2] bitcast(%p)\n{body}\n}}\n"
    return find_collectives(parse_module(text))


def summary(found: list[Collective]) -> list[tuple]:
    return [(one.kind, one.payload_bytes, one.elements, one.groups, one.times) for one in found]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", PAIRS),
        ("{}", ALL),
        ("[4,2]<=[8]", PAIRS),
        ("[2,4]<=[4,2]T(1,0)", EVERY_OTHER),
        ("mesh['axis_0'=8] {'axis_0'}", ALL),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", PAIRS),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", EVERY_OTHER),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}", EVERY_OTHER),
        ("mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_1'}", EVERY_OTHER),
    ],
)
def test_groups_in_every_form_that_xla_prints(text, groups):
    assert parse_replica_groups(text, 8) == groups


@pytest.mark.parametrize("text", ["mesh['axis_0'=8] {'axis_0':(2)4}", "iota(8)"])
def test_groups_in_another_form_are_refused(text):
    with pytest.raises(ValueError, match="not known"):
        parse_replica_groups(text, 8)


def test_payload_of_every_kind():
    found = found_in(
        "%a = (f32[16], bf16[4,2]) all-reduce(%p, %h), channel_id=1, replica_groups={}",
        "%b = f32[32] all-gather(%p), channel_id=2, replica_groups=[4,2]<=[8], dimensions={0}",
        "%c = f32[4] reduce-scatter(%p), channel_id=3, replica_groups=[2,4]<=[4,2]T(1,0)",
        "%d = f32[16] all-to-all(%p), channel_id=4, replica_groups=mesh['x'=8] {'x'}",
        "%e = f32[16] collective-permute(%p), source_target_pairs={{0,0},{1,2},{2,1}}",
    )
    assert summary(found) == [
        ("all-reduce", 64 + 16, 24, ALL, 1),
        ("all-gather", 128, 32, PAIRS, 1),
        ("reduce-scatter", 64, 16, EVERY_OTHER, 1),
        ("all-to-all", 64, 16, ALL, 1),
        ("collective-permute", 64, 16, ((1, 2), (2, 1)), 1),
    ]


def test_a_start_and_its_done_are_one():
    found = found_in(
        "%s = (f32[16], f32[128]) all-gather-start(%p), channel_id=1, replica_groups={}",
        "%d = f32[128] all-gather-done(%s)",
    )
    assert summary(found) == [("all-gather", 512, 128, ALL, 1)]


def test_the_parts_of_an_asynchronous_fusion_are_one():
    fusion = (
        "%part.N (q.N: f32[16]) -> f32[128] {\n  %q.N = f32[16] parameter(0)\n"
        "  ROOT %g.N = f32[128] all-gather(%q.N), channel_id=9, replica_groups={}\n}\n"
    )
    found = found_in(
        "%f.1 = f32[128] fusion(%p), kind=kOutput, calls=%part.1",
        "%f.2 = f32[128] fusion(%p), kind=kOutput, calls=%part.2",
        before=fusion.replace("N", "1") + fusion.replace("N", "2"),
    )
    assert summary(found) == [("all-gather", 512, 128, ALL, 1)]


def test_clones_that_share_a_channel_both_run():
    found = found_in(
        "%a = f32[16] all-reduce(%p), channel_id=4, replica_groups={}",
        "%b = f32[16] all-reduce(%p), channel_id=4, replica_groups={}",
    )
    assert summary(found) == [("all-reduce", 64, 16, ALL, 1)] * 2


def test_a_reduce_scatter_that_the_tpu_compiler_keeps_as_an_all_reduce():
    found = found_in(
        "%f = f32[2] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3",
        before="%all-reduce-scatter.3 (q: f32[16]) -> f32[2] {\n  %q = f32[16] parameter(0)\n"
        "  %r = f32[16] all-reduce(%q), channel_id=9, replica_groups={}\n"
        "  ROOT %s = f32[2] slice(%r), slice={[0:2]}\n}\n",
    )
    assert summary(found) == [("reduce-scatter", 64, 16, ALL, 1)]


def test_sends_between_slices_are_apart_from_collectives_of_their_channel():
    found = found_in(
        "%a = f32[16] all-reduce(%p), channel_id=6, replica_groups={}",
        "%t = token[] after-all()",
        "%s = (f32[16], u32[], token[]) send(%a, %t), channel_id=6, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}',
        "%x = token[] send-done(%s), channel_id=6",
    )
    assert summary(found) == [("all-reduce", 64, 16, ALL, 1), (BETWEEN_SLICES, 64, 16, (), 1)]


def test_what_stays_on_a_device_or_never_runs_is_not_counted():
    found = found_in(
        "%a = f32[16] all-reduce(%p), channel_id=1, replica_groups={{0},{1},{2},{3}}",
        before="%unused (q: f32[16]) -> f32[16] {\n  %q = f32[16] parameter(0)\n"
        "  ROOT %r = f32[16] all-reduce(%q), channel_id=9, replica_groups={}\n}\n",
    )
    assert found == []


@pytest.fixture(scope="module")
def mesh():
    axes = (AxisType.Auto,) * 2
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"), axis_types=axes)


def compiled_collectives(mesh, function, *arguments, out):
    """`arguments` are (shape, partition)s."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, partition))
        for shape, partition in arguments
    ]
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out))
    return find_collectives(parse_module(jitted.lower(*shapes).compile().as_text()))


def test_gradient_of_a_compiled_program_is_reduced_once(mesh):
    batch = ((16, 32), PartitionSpec(("data", "fsdp")))
    found = compiled_collectives(
        mesh,
        jax.grad(lambda w, x: jnp.sum(jnp.sin(x @ w))),
        ((32, 24), PartitionSpec()),
        batch,
        out=PartitionSpec(),
    )
    assert summary(found) == [("all-reduce", 4 * 32 * 24, 32 * 24, ALL, 1)]


def test_collectives_in_a_loop_count_every_time(mesh):
    def summed(x):
        def add(total, row):
            return jnp.sin(total) + jnp.sum(row), None

        return jax.lax.scan(add, jnp.float32(0), x)[0]

    sharded = ((5, 16), PartitionSpec(None, ("data", "fsdp")))
    found = compiled_collectives(mesh, summed, sharded, out=PartitionSpec())
    assert summary(found) == [("all-reduce", 4, 1, ALL, 5)]


def test_sharded_parameters_are_gathered_in_their_groups(mesh):
    sharded = ((32, 24), PartitionSpec("fsdp"))
    found = compiled_collectives(mesh, jnp.sin, sharded, out=PartitionSpec())
    assert summary(found) == [("all-gather", 4 * 32 * 24, 32 * 24, PAIRS, 1)]
