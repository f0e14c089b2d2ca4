"""The text of compiled programs is read as XLA writes it."""

import pytest

from maft_jax.planning.hlo_text import ArrayShape, parse_module

PROGRAM = """\
HloModule jit_step, entry_computation_layout={(f32[4]{0})->f32[4]{0}}, num_partitions=8

%region_0.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
}

%body (state: (s32[], bf16[2,3])) -> (s32[], bf16[2,3]) {
  %state = (s32[]{:T(128)}, bf16[2,3]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[2,3]{1,0} get-tuple-element(%state), index=1
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %tuple.1 = (s32[], bf16[2,3]) tuple(%i, %x)
}

%cond (state.1: (s32[], bf16[2,3])) -> pred[] {
  %limit = s32[] constant(5)
  %state.1 = (s32[], bf16[2,3]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT, metadata={op_name="jit(s)/lt" frame=3}
}

%unknown (state.2: (s32[], bf16[2,3])) -> pred[] {
  %state.2 = (s32[], bf16[2,3]) parameter(0)
  ROOT %stop = pred[] custom-call(%state.2), custom_call_target="Stop"
}

ENTRY %main (p: f32[4], q: (s32[], bf16[2,3])) -> f32[4] {
  %p = f32[4]{0:T(128)} parameter(0), metadata={op_name="state.step"}
  %q = (s32[], bf16[2,3]) parameter(1)
  %loop = (s32[], bf16[2,3]) while(%q), condition=%cond, body=%body
  %again = (s32[], bf16[2,3]) while(%loop), condition=%unknown, body=%body, NOTED
  %once = (s32[], bf16[2,3]) while(%again), condition=%unknown, body=%body
  %many = (f32[4]{0}, u8[3]{0}, /*index=2*/pred[5]{0}) custom-call(%p), custom_call_target="Many"
  ROOT %sum = f32[4] all-reduce(%p), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%region_0.1
}
""".replace("NOTED", 'backend_config={"known_trip_count":{"n":"7"}}')


@pytest.fixture(scope="module")
def module():
    return parse_module(PROGRAM)


def test_shapes_of_arrays_and_tuples_without_their_layouts(module):
    many = module.computations["main"]["many"]
    assert many.shapes == (
        ArrayShape("f32", (4,)),
        ArrayShape("u8", (3,)),
        ArrayShape("pred", (5,)),
    )
    assert (many.num_bytes, many.size) == (16 + 3 + 5, 12)
    state = module.computations["body"]["state"]
    assert state.shapes == (ArrayShape("s32", ()), ArrayShape("bf16", (2, 3)))
    assert state.num_bytes == 4 + 2 * 6


def test_operands_attributes_and_origin(module):
    total = module.computations["main"]["sum"]
    assert (total.opcode, total.operands, total.is_root) == ("all-reduce", ("p",), True)
    assert total.attribute("channel_id") == "1"
    assert total.attribute("replica_groups") == "[2,4]<=[8]"
    assert total.attribute("dimensions") is None
    assert total.called == ("region_0.1",)
    assert module.computations["cond"]["lt"].op_name == "jit(s)/lt"
    assert (module.entry, module.num_partitions) == ("main", 8)


def test_loops_run_as_often_as_is_noted_or_as_their_condition_says(module):
    main = module.computations["main"]
    counts = [module.trip_count(main[name]) for name in ("loop", "again", "once")]
    assert counts == [5, 7, 1]
    assert module.repetitions() == {
        "region_0.1": 1,
        "body": 5 + 7 + 1,
        "cond": 5,
        "unknown": 7 + 1,
        "main": 1,
    }


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("module @jit_step {\n}\n")
