"""What an optimised program moves, counted by hand from its text (`benchmarks/hlo.py`)."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%rows (a: f32[100,128], i: s32[8]) -> f32[8,128] {
  %a = f32[100,128]{1,0:T(8,128)} parameter(0)
  %i = s32[8]{0:T(128)S(1)} parameter(1)
  ROOT %gather.1 = f32[8,128]{1,0:T(8,128)} gather(%a, %i), offset_dims={1}
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %twice = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%other, \
backend_config={"estimated_cycles":"100"}
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%n, %twice)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%p), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%n, %bound), direction=LT
}

ENTRY %main (a: f32[100,128], i: s32[8]) -> f32[8,128] {
  %a = f32[100,128]{1,0:T(8,128)} parameter(0)
  %i = s32[8]{0:T(128)} parameter(1)
  %near = (s32[8]{0:T(128)S(1)}, s32[8]{0:T(128)}, u32[]{:S(2)}) copy-start(%i)
  %done = s32[8]{0:T(128)S(1)} copy-done(%near)
  %taken = f32[8,128]{1,0:T(8,128)} fusion(%a, %done), kind=kCustom, calls=%rows
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %taken)
  %loop = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) while(%start), \
condition=%condition, body=%body
  %last = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
  ROOT %y = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} convolution(%last, %last), \
backend_config={"estimated_cycles":"7"}
}
"""


def test_bytes_and_cycles_are_those_of_a_count_by_hand():
    rows = 8 * 128 * 4
    # A tile of indices once, as they are copied; of `a` the rows alone; each pass reads and writes
    # x and compares two numbers; the product reads x twice and leaves its result on the chip.
    expected = 128 * 4 + 2 * rows + 5 * (2 * rows + 4 + 4 + 1) + 2 * rows
    found = hlo.costs(TEXT)
    assert found["hbm_bytes"] == expected
    assert (found["cycles"], found["product_cycles"]) == (507, 7)
    assert found["counts"] == {"gather": 1, "while": 1}


def test_a_compiled_program_is_read_whole():
    """Of this CPU: two arguments are read and a result is written; three times in a loop."""
    x = jnp.ones((64, 64))

    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda _, a: jnp.sin(a) * x, x)

    once = hlo.costs(jax.jit(lambda a, x: jnp.sin(a) * x).lower(x, x).compile().as_text())
    assert once["hbm_bytes"] == 3 * x.nbytes
    assert hlo.costs(jax.jit(loop).lower(x).compile().as_text())["hbm_bytes"] >= 9 * x.nbytes


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="text: has no entry computation"):
        hlo.costs("module @jit_f {}")
