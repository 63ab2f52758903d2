import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bltjax.hlo import Program
from bltjax.movement import memory_traffic

# One layer of seven is read in each run of a loop, and one row of a record written.
SCAN = """
HloModule scan

%slice_computation (p0: f32[7,64,32], p1: s32[]) -> f32[64,32] {
  %p0 = f32[7,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one_layer = f32[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %kernel = f32[64,32]{1,0} bitcast(%one_layer)
}

%update_computation (q0: f32[7,64,32], q1: f32[64,32], q2: s32[]) -> f32[7,64,32] {
  %q0 = f32[7,64,32]{2,1,0} parameter(0)
  %q1 = f32[64,32]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %null = s32[] constant(0)
  %row = f32[1,64,32]{2,1,0} bitcast(%q1)
  ROOT %updated = f32[7,64,32]{2,1,0} dynamic-update-slice(%q0, %row, %q2, %null, %null)
}

%body (t: (s32[], f32[7,64,32], f32[7,64,32])) -> (s32[], f32[7,64,32], f32[7,64,32]) {
  %t = (s32[], f32[7,64,32]{2,1,0}, f32[7,64,32]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %layers = f32[7,64,32]{2,1,0} get-tuple-element(%t), index=1
  %record = f32[7,64,32]{2,1,0} get-tuple-element(%t), index=2
  %layer = LAYER
  %written = f32[7,64,32]{2,1,0} fusion(%record, %layer, %i), kind=kLoop, calls=%update_computation
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %out = (s32[], f32[7,64,32]{2,1,0}, f32[7,64,32]{2,1,0}) tuple(%next, %layers, %written)
}

%condition (u: (s32[], f32[7,64,32], f32[7,64,32])) -> pred[] {
  %u = (s32[], f32[7,64,32]{2,1,0}, f32[7,64,32]{2,1,0}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (z: (s32[], f32[7,64,32], f32[7,64,32])) -> (s32[], f32[7,64,32], f32[7,64,32]) {
  %z = (s32[], f32[7,64,32]{2,1,0}, f32[7,64,32]{2,1,0}) parameter(0)
  ROOT %while.1 = (s32[], f32[7,64,32]{2,1,0}, f32[7,64,32]{2,1,0}) while(%z), condition=%condition, body=%body
}
"""
ONE = "f32[64,32]{1,0} fusion(%layers, %i), kind=kLoop, calls=%slice_computation"
BEGUN = ONE.replace("f32[64,32]{1,0} fusion", "((f32[7,64,32]{2,1,0}, s32[]), f32[64,32]{1,0}, u32[]) fusion-start")
AWAITED = f"%begun = {BEGUN}\n  %layer = f32[64,32]{{1,0}} fusion-done(%begun)"
LAYER = 64 * 32 * 4
SCALARS = 7 * 5 * 4 + 7 * 9 * 4 + 8  # counters: bytes that make no difference


@pytest.mark.parametrize(
    "text",
    [SCAN.replace("LAYER", ONE), SCAN.replace("%layer = LAYER", AWAITED)],
    ids=["at once", "started and awaited"],
)
def test_a_scan_reads_and_writes_the_layer_that_it_is_at(text):
    # read from all layers, written aside, read again, written into the record
    assert memory_traffic(Program(text)) == pytest.approx(7 * 4 * LAYER, abs=SCALARS)


def test_what_lies_on_the_chip_moves_nothing():
    text = SCAN.replace("LAYER", ONE).replace("{2,1,0}", "{2,1,0:S(1)}").replace("{1,0}", "{1,0:S(1)}")
    assert memory_traffic(Program(text)) < SCALARS


def test_a_table_is_read_where_it_is_looked_up():
    shapes = jax.ShapeDtypeStruct((10_000, 64), np.float32), jax.ShapeDtypeStruct((50,), np.int32)
    program = jax.jit(lambda table, ids: jnp.take(table, ids, axis=0, mode="clip")).lower(*shapes).compile()
    moved = memory_traffic(Program(program.as_text() or ""))
    assert 2 * 50 * 64 * 4 <= moved < 4 * 50 * 64 * 4


def test_a_product_reads_its_operands_and_writes_its_result():
    shapes = jax.ShapeDtypeStruct((128, 64), np.float32), jax.ShapeDtypeStruct((64, 32), np.float32)
    program = jax.jit(lambda x, y: x @ y).lower(*shapes).compile()
    moved = memory_traffic(Program(program.as_text() or ""))
    assert moved == 4 * (128 * 64 + 64 * 32 + 128 * 32)
