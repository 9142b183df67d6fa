import numpy as np
import pytest

from mm1_jax.rehearse.flops import Operands
from mm1_jax.rehearse.predict import executed, flops, limits, low_flops, traffic
from mm1_jax.rehearse.program import HloProgram, Loop, Start, Work, WorkKind
from mm1_jax.rehearse.report import program_report, render
from mm1_jax.rehearse.topologies import parse_topology
from mm1_jax.rehearse.transfers import Route
from mm1_jax.rehearse.vector_ops import TRANSCENDENTAL

# A loop of seven iterations (from 1 by 2 below 14) around a product and a gather of 4 x 64 rows; a
# kernel whose attributes hold lines that begin with braces; a permutation that sends nothing.
LOOP = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%body (p: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %p = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = bf16[64,32]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %whole = bf16[256,32]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, replica_groups={}, dimensions={0}
  %product = bf16[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %out = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) tuple(%next, /*index=1*/%x)
}

%condition (p.1: (s32[], bf16[64,32])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = s32[]{:T(128)} constant(14)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: bf16[64,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(1)
  %copied = s32[]{:T(128)} copy(%start)
  %initial = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) tuple(%copied, %a)
  %while = (s32[]{:T(128)}, bf16[64,32]{1,0:T(8,128)(2,1)}) while(%initial), condition=%condition, body=%body
  %kernel = bf16[64,32]{1,0:T(8,128)(2,1)} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof": "{}"
}}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","bytes_accessed":"1"}}}
  %still = bf16[64,32]{1,0} collective-permute(%a), channel_id=3, source_target_pairs={{0,0},{1,1}}
  ROOT %result = bf16[64,32]{1,0:T(8,128)(2,1)} get-tuple-element(%while), index=1
}
"""  # noqa: E501


def loop(groups: str = "{{0,1,2,3}}"):
    return HloProgram.parse(LOOP.replace("replica_groups={}", f"replica_groups={groups}"))


# A row of 8 x 32 that is copied to host memory during a product, and back.
HOST = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

ENTRY %main (a: bf16[8,32]) -> bf16[1,8,32] {
  %a = bf16[8,32]{1,0:T(8,128)(2,1)} parameter(0)
  %row = bf16[1,8,32]{2,1,0:T(8,128)(2,1)} bitcast(%a)
  %i = s32[]{:T(128)} constant(1)
  %kept = bf16[4,8,32]{2,1,0:T(8,128)(2,1)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %out = ((bf16[4,8,32]{2,1,0:T(8,128)(2,1)S(5)}, bf16[1,8,32]{2,1,0:T(8,128)(2,1)}, s32[]{:T(128)}), bf16[4,8,32]{2,1,0:T(8,128)(2,1)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%kept, %row, %i)
  %product = bf16[8,8]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %written = bf16[4,8,32]{2,1,0:T(8,128)(2,1)S(5)} dynamic-update-slice-done(%out)
  %in = ((bf16[4,8,32]{2,1,0:T(8,128)(2,1)S(5)}, s32[]{:T(128)}), bf16[1,8,32]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) dynamic-slice-start(%written, %i), dynamic_slice_sizes={1,8,32}
  ROOT %fetched = bf16[1,8,32]{2,1,0:T(8,128)(2,1)} dynamic-slice-done(%in)
}
"""  # noqa: E501


def test_counts_are_multiplied_by_loop_trips():
    program = loop()
    schedule = program.schedule()
    (trips,) = [item.trips for item in schedule if isinstance(item, Loop)]
    assert trips == 7
    assert flops(schedule) == 7 * 2 * 64 * 64 * 32 + 1000
    gathers = traffic(schedule)["all-gather"]
    assert (gathers.count, gathers.executions) == (1, 7)
    assert gathers.sent == 7 * 3 * 64 * 32 * 2
    assert program.warnings == []


@pytest.mark.parametrize(
    ("chip", "left", "right", "operations_per_second"),
    [
        ("v5e:2x2", "s8", "s8", 393e12),
        ("v5e:2x2", "s8", "bf16", 197e12),
        ("v4:2x2x1", "s8", "s8", 275e12),
        ("v5e:2x2", "f8e4m3fn", "f8e5m2", 197e12),
        ("tpu7x:2x2x1", "f8e4m3fn", "f8e5m2", 4614e12 / 2),
        ("h200:4", "f8e4m3fn", "f8e5m2", 1979e12),
    ],
)
def test_products_of_8_bits_run_at_the_peak_of_their_type(chip, left, right, operations_per_second):
    text = f"""\
HloModule low, is_scheduled=true

ENTRY %main () -> s32[4096,4096] {{
  %a = {left}[4096,4096]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  %b = {right}[4096,4096]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %y = s32[4096,4096]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}
"""  # noqa: E501
    schedule = HloProgram.parse(text).schedule()
    (work,) = schedule
    assert work.flops == 2 * 4096**3
    is_low = left[0] == right[0]
    assert sum(low_flops(schedule).values()) == (work.flops if is_low else 0)
    found = limits(work, parse_topology(chip))["flops"]
    np.testing.assert_allclose(found, work.flops / operations_per_second)


def test_offloaded_pieces_go_to_host_memory_and_back():
    schedule = HloProgram.parse(HOST).schedule()
    start, product, done, back, back_done = schedule
    assert isinstance(product, Work) and product.flops == 2 * 8 * 8 * 32
    assert start.transfer.kind == "copy to the host" and done.name == start.transfer.name
    assert back.transfer.kind == "copy from the host" and back_done.name == back.transfer.name
    assert {start.transfer.sent, back.transfer.sent} == {8 * 32 * 2}
    assert traffic(schedule, Route.LINKS, Route.NETWORK) == {}
    assert len(traffic(schedule, Route.HOST)) == len(traffic(schedule)) == 2


def test_a_report_lists_host_copies_beside_collectives():
    report = program_report(HOST, parse_topology("v5e:2x2"), None)
    assert report["collectives"] == {}
    assert {kind: each["sent"] for kind, each in report["host_copies"].items()} == {
        "copy to the host": 512,
        "copy from the host": 512,
    }
    text = render({"topology": "v5e:2x2", "num_chips": 4, **report})
    assert "copies to the host" in text and "15 GB/s to the host" in text
    inside = program_report(HOST.replace("S(5)", ""), parse_topology("v5e:2x2"), None)
    assert "host" not in render({"topology": "v5e:2x2", "num_chips": 4, **inside})


def test_a_copy_ahead_of_its_use_moves_bytes_of_hbm_only():
    inside = HloProgram.parse(HOST.replace("S(5)", "")).schedule()
    # A tile has 8 x 128 elements, and both ends of the copy lie in HBM.
    assert [item.transfer.sent for item in inside if isinstance(item, Start)] == [2 * 2048] * 2
    fetched = HOST.replace("S(5)", "").replace("bf16[1,8,32]{2,1,0:T(8,128)(2,1)}, u32", "X, u32")
    fetched = fetched.replace("X, u32", "bf16[1,8,32]{2,1,0:T(8,128)(2,1)S(1)}, u32")
    (_, fetch) = [i for i in HloProgram.parse(fetched).schedule() if isinstance(i, Start)]
    assert fetch.transfer.route is Route.HBM and fetch.transfer.sent == 2048
    within = HloProgram.parse(HOST.replace("S(5)", "S(1)").replace("(2,1)}", "(2,1)S(1)}"))
    assert not [item for item in within.schedule() if isinstance(item, Start)]


def test_sending_to_itself_is_not_traffic():
    assert set(traffic(loop().schedule())) == {"all-gather"}


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,2]<=[4]", 2),
        ("[1,4]<=[2,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=2] {'b'}", 2),
        ("mesh['a'=1,'b'=4] {'b'}", 4),
        ("mesh['a'=4] {'a':(1)2}", 2),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", 2),
        ("{}", 4),
    ],
)
def test_group_sizes_are_parsed_in_every_notation(groups, size):
    assert traffic(loop(groups).schedule())["all-gather"].sent == 7 * (size - 1) * 64 * 32 * 2


def test_annotated_trip_counts_override_the_loop_condition():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert flops(HloProgram.parse(text).schedule()) == 5 * 2 * 64 * 64 * 32 + 1000


def test_a_loop_of_unknown_length_raises_a_warning():
    program = HloProgram.parse(LOOP.replace("constant(14)", "constant(1e3)"))
    program.schedule()
    assert "loop while: its trip count is unknown" in program.warnings[0]


def test_a_kernel_without_flops_raises_a_warning():
    program = HloProgram.parse(LOOP.replace('"flops":"1000"', '"flops":"0"'))
    program.schedule()
    assert "kernel kernel: its FLOPs are unknown" in program.warnings[0]


def test_a_kernel_without_code_takes_what_its_author_estimates():
    estimate = '"cost_estimate":{"bytes_accessed":"9999999","transcendentals":"7","flops":"1000"}'
    old = '"cost_estimate":{"flops":"1000","bytes_accessed":"1"}'
    schedule = HloProgram.parse(LOOP.replace(old, estimate)).schedule()
    (kernel,) = [i for i in schedule if isinstance(i, Work) and i.kind is WorkKind.KERNEL]
    assert (kernel.flops, kernel.padded_flops, kernel.hbm_bytes) == (1000, 1000, 9999999)
    assert kernel.vector_ops == 7 * TRANSCENDENTAL
    # Operands and results move at least.
    (kernel,) = [i for i in loop().schedule() if isinstance(i, Work) and i.name == "kernel"]
    assert kernel.hbm_bytes == 2 * 64 * 128 * 2


def test_groups_in_an_unknown_notation_are_an_error():
    with pytest.raises(ValueError, match="unknown notation.*replica_groups=ring"):
        loop("ring(4)").schedule()


# After the loop body comes a computation for another core of the chip, without a cycle estimate.
OFFLOADED = """\
HloModule jit_step, is_scheduled=true, num_partitions=1

%added (p: f32[64]) -> f32[64] {
  %p = f32[64]{0:T(128)} parameter(0)
  ROOT %sum = f32[64]{0:T(128)} add(%p, %p), backend_config={"estimated_cycles":"9223372036854775807"}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0:T(128)} parameter(0)
  %start = ((f32[64]{0:T(128)}), f32[64]{0:T(128)}) call-start(%a), async_execution_thread="sparsecore", to_apply=%added
  ROOT %done = f32[64]{0:T(128)} call-done(%start)
}
"""  # noqa: E501


def test_work_of_another_core_is_timed_by_its_bytes():
    program = HloProgram.parse(OFFLOADED)
    (work,) = [item for item in program.schedule() if isinstance(item, Work) and item.hbm_bytes]
    assert (work.name, work.cycles, work.hbm_bytes) == ("sum", None, 2 * 128 * 4)


def test_text_that_is_not_hlo_is_an_error():
    with pytest.raises(ValueError, match="not HLO text"):
        HloProgram.parse("module {}")


SPLASH = """\
HloModule jit_step, is_scheduled=true, num_partitions=1

ENTRY %main (q: bf16[2,8,64,128]) -> bf16[2,8,64,128] {
  %q = bf16[2,8,64,128]{3,2,1,0} parameter(0)
  %mask = s8[1,2,2]{2,1,0} constant({...})
  %rows = s32[2,64,128]{2,1,0} broadcast(%mask)
  %columns = s32[2,8,64]{2,1,0} broadcast(%mask)
  %numbers = s32[64,128]{1,0} iota(), iota_dimension=0
  ROOT %NAME.1 = RESULT custom-call(%mask, %mask, %q, %q, %q, OPERANDS), custom_call_target="tpu_custom_call"
}
"""  # noqa: E501
PIECES = "(bf16[3,2,8,64,128]{4,3,2,1,0}, bf16[2,8,64,128]{3,2,1,0})"


@pytest.mark.parametrize(
    ("name", "result", "products"),
    [
        ("splash_mha_fwd_segmented_residuals", "bf16[2,8,64,128]{3,2,1,0}", 2),
        ("splash_mha_dkv_segmented_no_residuals", PIECES, 5),
        ("splash_mha_dkv_segmented_no_residuals", "bf16[2,8,64,128]{3,2,1,0}", 4),
        ("splash_mha_dq_segmented_no_residuals", "bf16[2,8,64,128]{3,2,1,0}", 3),
    ],
)
@pytest.mark.parametrize(
    ("operands", "share"),
    [
        ("%rows, %columns, %numbers", 0.5),
        ("%rows, %columns", 1.0),
        ("%numbers", 0.5),
    ],
)
def test_flops_of_splash_attention_follow_from_its_shapes(name, result, products, operands, share):
    text = SPLASH.replace("NAME", name).replace("RESULT", result).replace("OPERANDS", operands)
    works = [item for item in HloProgram.parse(text).schedule() if isinstance(item, Work)]
    (kernel,) = [work for work in works if work.kind is WorkKind.KERNEL]
    assert kernel.flops == share * products * 2 * 2 * 8 * 64 * 64 * 128


MHA = """\
HloModule jit_step, is_scheduled=true, num_partitions=1

ENTRY %main (q: bf16[2,64,8,32]) -> bf16[2,64,8,32] {
  %q = bf16[2,64,8,32]{3,2,1,0} parameter(0)
  ROOT %call = bf16[2,64,8,32]{3,2,1,0} custom-call(%q, %q, %q), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(step)/SCOPE/NAME/pallas_call"}
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("name", "products"),
    [("mha_forward", 2), ("mha_backward", 7), ("mha_preprocess_backward", 0)],
)
@pytest.mark.parametrize(("scope", "share"), [("causal", 0.5), ("full", 1.0)])
def test_flops_of_attention_on_gpus_follow_from_its_shapes(name, products, scope, share):
    program = HloProgram.parse(MHA.replace("NAME", name).replace("SCOPE", scope))
    (kernel,) = [item for item in program.schedule() if isinstance(item, Work)]
    assert kernel.kind is WorkKind.KERNEL and not program.warnings
    assert kernel.flops == share * products * 2 * 2 * 8 * 64 * 64 * 32


def test_a_compiled_loop_has_its_exact_flops(programs):
    schedule = HloProgram.parse((programs / "looped.hlo").read_text()).schedule()
    assert flops(schedule) == 3 * 2 * 512 * 256 * 256
    assert 3 in [executions for _, executions in executed(schedule)]


def test_batched_products_compiled_as_convolutions_have_their_exact_flops(programs):
    schedule = HloProgram.parse((programs / "batched.hlo").read_text()).schedule()
    assert flops(schedule) == 4 * 2 * 128 * 256 * 512


def test_int8_products_compile_to_integer_products_of_gathered_integers(programs):
    """Forward product and gradient of the inputs, but not that of the kernel, on four devices."""
    program = HloProgram.parse((programs / "low_precision.hlo").read_text())
    schedule = program.schedule()
    product = 2 * (2048 // 4) * 1024 * 512
    assert low_flops(schedule) == {Operands.INT8: 2 * product}
    assert flops(schedule) == 3 * product
    gathered = [
        i.shapes[0]
        for computation in program.module.computations.values()
        for i in computation.instructions
        if i.opcode.startswith("all-gather") and i.shapes[0].size >= 1024 * 512
    ]
    assert gathered and {shape.dtype for shape in gathered} == {"s8"}


def test_compiled_collectives_send_their_exact_bytes(programs):
    schedule = HloProgram.parse((programs / "collectives.hlo").read_text()).schedule()
    whole = 1024 * 512 * 2
    assert {kind: each.sent for kind, each in traffic(schedule).items()} == {
        "all-gather": whole * 3 / 4,
        "reduce-scatter": whole * 3 / 4,
    }


FRAMES = """

FileNames
1 "/home/mm1_jax/train/train_step.py"
2 "/home/mm1_jax/models/decoder.py"
3 "/home/mm1_jax/layers/stack.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=48 end_line=48 column=1 end_column=9}
2 {file_name_id=2 function_name_id=1 line=90 end_line=90 column=1 end_column=9}
3 {file_name_id=3 function_name_id=1 line=88 end_line=88 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

"""


def test_work_belongs_to_the_innermost_part_of_its_stack_frames():
    text = LOOP.replace("num_partitions=4\n", "num_partitions=4" + FRAMES, 1)
    text = text.replace("replica_groups={}", "replica_groups={{0,1,2,3}}")
    product = "rhs_contracting_dims={1}"
    text = text.replace(product, product + ', metadata={op_name="dot" stack_frame_id=3}')
    report = program_report(text, parse_topology("v5e:2x2"), None)
    assert set(report["parts"]) == {"decoder", "other"}
    # Seven products of 64 x 64 x 32 on each of four devices.
    assert report["parts"]["decoder"]["flops"] == 4 * 7 * 2 * 64 * 64 * 32
    step = report["step"]
    seconds = sum(part["seconds"] for part in report["parts"].values())
    assert seconds == pytest.approx(step["total"] - step["exposed"])
    text = render({**report, "config": "c", "topology": "v5e:2x2", "num_chips": 4})
    assert "of which decoder" in text
