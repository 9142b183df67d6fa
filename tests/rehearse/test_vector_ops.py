"""Vector operations of hand-written fusions, counted by hand."""

import pytest

from mm1_jax.rehearse.hlo import parse
from mm1_jax.rehearse.vector_ops import TRANSCENDENTAL, vector_ops

MODULE = """\
HloModule jit_step, is_scheduled=true

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %lr = f32[] add(%l, %r)
}

%fused (x: f32[20,80]) -> RESULT {
  %x = f32[20,80]{1,0:T(8,128)} parameter(0)
  %zero = f32[] constant(0)
  ROOT %out = RESULT OP
}

ENTRY %main (a: f32[20,80]) -> RESULT {
  %a = f32[20,80]{1,0:T(8,128)} parameter(0)
  ROOT %fusion = RESULT fusion(%a), kind=kLoop, calls=%fused
}
"""
F32, BF16 = "f32[20,80]{1,0:T(8,128)}", "bf16[20,80]{1,0:T(8,128)(2,1)}"
MASK = "pred[20,80]{1,0:T(8,128)}"
# 20 x 80 elements fill 24 x 128.
PADDED = 24 * 128


@pytest.mark.parametrize(
    ("result", "op", "ops"),
    [
        (F32, "multiply(%x, %x)", PADDED),
        (F32, "exponential(%x)", TRANSCENDENTAL * PADDED),
        (BF16, "convert(%x)", PADDED),
        (MASK, "compare(%x, %x), direction=LT", PADDED),
        ("f32[20]{0:T(128)}", "reduce(%x, %zero), dimensions={1}, to_apply=%add", PADDED),
        (F32, "broadcast(%zero), dimensions={}", 0),
        ("f32[80,20]{1,0:T(8,128)}", "transpose(%x), dimensions={1,0}", 0),
        (F32, "copy(%x)", 0),
    ],
)
def test_operations_count_elements_in_whole_tiles(result, op, ops):
    module = parse(MODULE.replace("RESULT", result).replace("OP", op))
    entry = module.computations[module.entry]
    assert vector_ops(module, entry.by_name["fusion"], entry) == ops


def test_elements_of_16_bits_count_half_and_masks_nothing():
    text = MODULE.replace("RESULT", BF16).replace("f32[20,80]{1,0:T(8,128)}", BF16)
    module = parse(text.replace("OP", "add(%x, %x)"))
    assert vector_ops(module, module.computations["main"].root, module.computations["main"]) == (
        PADDED / 2
    )
    masks = MODULE.replace("RESULT", MASK).replace("f32[20,80]{1,0:T(8,128)}", MASK)
    module = parse(masks.replace("OP", "and(%x, %x)"))
    assert vector_ops(module, module.computations["main"].root, module.computations["main"]) == 0
