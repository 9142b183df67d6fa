"""Bytes of hand-written fusions, counted by hand."""

import pytest

from mm1_jax.rehearse.hbm_traffic import hbm_bytes
from mm1_jax.rehearse.hlo import parse

# A stack of three layers of 20 x 80, each of which fills 24 x 128 in tiles of 8 x 128.
STACK = "f32[3,20,80]{2,1,0:T(8,128)}"
LAYER = "f32[1,20,80]{2,1,0:T(8,128)}"
LAYER_BYTES = 24 * 128 * 4

MODULE = """\
HloModule jit_step, is_scheduled=true

%nested (q: STACK, j: s32[]) -> LAYER {
  %q = STACK parameter(0)
  %j = s32[]{:T(128)} parameter(1)
  %view = STACK bitcast(%q)
  ROOT %piece = LAYER dynamic-slice(%view, %j, %j, %j), dynamic_slice_sizes={1,20,80}
}

%fused (p: STACK, i: s32[], x: LAYER) -> RESULT {
  %p = STACK parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %x = LAYER parameter(2)
BODY
}

ENTRY %main (a: STACK, n: s32[], b: LAYER) -> RESULT {
  %a = STACK parameter(0)
  %n = s32[]{:T(128)S(6)} parameter(1)
  %b = LAYER parameter(2)
  ROOT %fusion = RESULT fusion(%a, %n, %b), kind=kLoop, calls=%fused
}
"""


def fusion_bytes(body: str, result: str = LAYER, layer: str = LAYER, stack: str = STACK) -> float:
    text = MODULE.replace("BODY", "\n".join("  " + line for line in body.strip().splitlines()))
    text = text.replace("RESULT", result).replace("STACK", stack).replace("LAYER", layer)
    module = parse(text)
    entry = module.computations[module.entry]
    return hbm_bytes(module, entry.by_name["fusion"], entry)


SLICED = "%s = LAYER dynamic-slice(%p, %i, %i, %i), dynamic_slice_sizes={1,20,80}\n"
ADDED = "ROOT %sum = LAYER add(%s, %x)"


def test_a_slice_reads_its_piece_with_its_padding():
    assert fusion_bytes(SLICED + ADDED) == 3 * LAYER_BYTES


def test_a_slice_within_a_nested_fusion_reads_its_piece():
    body = "%s = LAYER fusion(%p, %i), kind=kLoop, calls=%nested\n" + ADDED
    assert fusion_bytes(body) == 3 * LAYER_BYTES


def test_the_same_slice_in_two_places_is_read_once():
    body = SLICED + (
        "%t = LAYER fusion(%p, %i), kind=kLoop, calls=%nested\n"
        "%u = LAYER add(%s, %t)\n"
        "ROOT %sum = LAYER add(%u, %x)"
    )
    assert fusion_bytes(body) == 3 * LAYER_BYTES


def test_slices_read_at_most_the_whole():
    body = "".join(
        f"%s{n} = LAYER slice(%p), slice={{[{n}:{n + 1}], [0:20], [0:80]}}\n" for n in range(3)
    )
    body += "%t = STACK negate(%p)\n%u = LAYER slice(%t), slice={[0:1], [0:20], [0:80]}\n"
    body += "%v = LAYER add(%s0, %s1)\n%w = LAYER add(%v, %s2)\nROOT %sum = LAYER add(%u, %w)"
    assert fusion_bytes(body) == (3 + 1) * LAYER_BYTES


def test_an_update_in_place_writes_its_piece():
    body = "%y = LAYER negate(%x)\nROOT %out = STACK dynamic-update-slice(%p, %y, %i, %i, %i)"
    assert fusion_bytes(body, STACK) == 2 * LAYER_BYTES


def test_vector_memory_is_not_hbm():
    inside = LAYER.replace("}", "S(1)}")
    assert fusion_bytes(SLICED + ADDED, inside, inside) == LAYER_BYTES
    assert fusion_bytes(SLICED + ADDED, inside, inside, STACK.replace("}", "S(1)}")) == 0


def test_what_is_passed_on_or_handed_to_a_collective_does_not_count():
    body = (
        "%g = WIDE all-gather(%p), replica_groups={{0,1}}, dimensions={2}\n"
        "%y = LAYER negate(%x)\n"
        "ROOT %out = (LAYER, STACK, WIDE) tuple(%y, %p, %g)"
    )
    wide = "f32[3,20,160]{2,1,0:T(8,128)}"
    result = f"(LAYER, STACK, {wide})"
    assert fusion_bytes(body.replace("WIDE", wide), result) == 2 * LAYER_BYTES


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[24,2305,16,80]{3,1,2,0:T(8,128)(2,1)}", 24 * 16 * 2312 * 128 * 2),
        ("f32[1280]{0:T(1024)}", 2048 * 4),
        ("bf16[1,1280]{1,0:T(1,128)}", 1280 * 2),
        ("f32[30,40]{1,0}", 30 * 40 * 4),
        ("f32[]{:T(128)}", 4),
    ],
)
def test_arrays_are_stored_in_whole_tiles(shape, size):
    text = "HloModule m\n\nENTRY %main (a: X) -> X {\n  ROOT %a = X parameter(0)\n}\n"
    (held,) = parse(text.replace("X", shape)).computations["main"].root.shapes
    assert held.stored_bytes == size
