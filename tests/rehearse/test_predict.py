from dataclasses import replace

import pytest

from mm1_jax.rehearse.predict import ALTERNATIVES, KERNEL_EFFICIENCY, predict, work_seconds
from mm1_jax.rehearse.program import Branch, Done, HloProgram, Loop, Start, Work, WorkKind
from mm1_jax.rehearse.topologies import parse_topology
from mm1_jax.rehearse.transfers import Route, Transfer

TOPOLOGY = parse_topology("v5e:2x2")
CLOCK = 1.5e9
LINKS = 2 * 90e9
HBM = 819e9
VECTOR = 1024 * 4 * 1.5e9


def work(seconds):
    return Work("work", WorkKind.VECTOR, 0.0, seconds * CLOCK, 0.0)


def transfer(seconds, name="gather", route=Route.LINKS):
    chip = TOPOLOGY.chip
    bandwidth = {Route.NETWORK: chip.network_bandwidth, Route.HOST: chip.host_bandwidth}
    return Transfer(name, "all-gather", seconds * bandwidth.get(route, LINKS), route)


def exposed(*schedule):
    return predict(schedule, TOPOLOGY).exposed


def test_a_transfer_is_exposed_except_for_overlapped_work():
    start, done = Start(transfer(3.0)), Done("gather")
    assert exposed(start, done) == pytest.approx(3)
    assert exposed(work(5), start, done, work(5)) == pytest.approx(3)
    assert exposed(start, work(2), done) == pytest.approx(1)
    assert exposed(start, work(4), done) == 0
    assert exposed(start, Loop(4, (work(0.5),)), done) == pytest.approx(1)
    # The step also waits for results that are not used.
    assert exposed(start, work(2)) == pytest.approx(1)


@pytest.mark.parametrize("route", [Route.NETWORK, Route.HOST])
def test_transfers_share_the_bandwidth_of_their_route_only(route):
    first, second = transfer(2.0, "a"), transfer(2.0, "b")
    both = (Start(first), Start(second), work(3), Done("a"), Done("b"))
    assert exposed(*both) == pytest.approx(1)
    elsewhere = (Start(first), Start(transfer(2.0, "b", route)), *both[2:])
    assert exposed(*elsewhere) == 0
    same = (Start(transfer(2.0, "a", route)), Start(transfer(2.0, "b", route)), *both[2:])
    assert exposed(*same) == pytest.approx(1)


def test_the_slowest_branch_counts():
    assert predict((Branch(((work(1),), (work(3),))),), TOPOLOGY).step == pytest.approx(3)


def test_work_takes_at_least_its_flops_at_peak_rate():
    peak = TOPOLOGY.device_peak_flops
    product = Work("product", WorkKind.MATRIX, peak, 1.0, 0.0)
    copy = Work("copy", WorkKind.VECTOR, 0.0, None, 819e9)
    kernel = Work("kernel", WorkKind.KERNEL, peak / 2, None, 0.0, padded_flops=peak)
    times = predict((product, kernel, copy), TOPOLOGY)
    assert times.matrix == pytest.approx(1)
    assert times.kernel == pytest.approx(1 / KERNEL_EFFICIENCY)
    assert times.vector == pytest.approx(1)


LIMITS = ("flops", "cycles", "hbm_bytes", "vector_ops", "padded_flops")


@pytest.mark.parametrize("kind", list(WorkKind))
@pytest.mark.parametrize("limit", LIMITS)
def test_work_takes_at_least_each_of_its_limits_and_never_less_for_more(kind, limit):
    """Each limit alone takes a second, as does all work that stays below it."""
    second = {
        "flops": TOPOLOGY.device_peak_flops,
        "cycles": CLOCK,
        "hbm_bytes": HBM,
        "vector_ops": VECTOR,
        "padded_flops": KERNEL_EFFICIENCY * TOPOLOGY.device_peak_flops,
    }
    small = Work("w", kind, **{name: seconds / 4 for name, seconds in second.items()})
    large = replace(small, **{limit: second[limit]})
    is_ignored = limit == ("cycles" if kind is WorkKind.KERNEL else "padded_flops")
    if not is_ignored:
        assert work_seconds(large, TOPOLOGY) >= 1
    if kind is not WorkKind.KERNEL and not is_ignored:
        assert work_seconds(large, TOPOLOGY) == pytest.approx(1)
    growing = [
        work_seconds(replace(small, **{limit: share * second[limit]}), TOPOLOGY)
        for share in (0, 0.25, 0.5, 1, 2)
    ]
    assert growing == sorted(growing)


def test_operations_moved_into_a_kernel_still_take_the_vector_unit():
    kernel = Work("kernel", WorkKind.KERNEL, 0.0, None, 0.0, padded_flops=1e12)
    fused = Work("fused", WorkKind.VECTOR, 0.0, None, 0.0, vector_ops=VECTOR)
    apart = predict((kernel, fused), TOPOLOGY).step
    assert predict((replace(kernel, vector_ops=VECTOR),), TOPOLOGY).step == pytest.approx(apart)


def test_a_step_takes_at_least_the_sum_of_each_limit():
    works = [
        Work("w", WorkKind.MATRIX, 1e12 * n, 1e6 * (n % 3), 1e9 * (n % 2), 1e10 * (n % 5))
        for n in range(7)
    ]
    step = predict(tuple(works), TOPOLOGY).step
    for name, rate in (("flops", 197e12), ("cycles", CLOCK), ("hbm_bytes", HBM)):
        assert step >= sum(getattr(work, name) for work in works) / rate
    assert step >= sum(work.vector_ops for work in works) / VECTOR


def test_alternatives_change_what_they_name():
    kernel = Work("k", WorkKind.KERNEL, 1e12, None, 0.0, vector_ops=1e10, padded_flops=2e12)
    fusion = Work("f", WorkKind.VECTOR, 0.0, 1.0, 1e9, vector_ops=1e10)
    gather = Transfer("g", "all-gather", 1e9, groups=((0, 1),))
    copy = Transfer("c", "copy", 1e9, Route.HBM)
    schedule = (kernel, fusion, Start(gather), Done("g"), Start(copy), Done("c"))
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    step = predict(schedule, TOPOLOGY, places).step
    steps = [predict(schedule, TOPOLOGY, places, rules).step for rules in ALTERNATIVES.values()]
    product, vector = 1e12 / 197e12, 1e10 / VECTOR
    turns = 2 * product / KERNEL_EFFICIENCY + vector
    floor, waits = max(1e9 / HBM, vector), 1e9 / 45e9 + 1e9 / HBM
    assert step == pytest.approx(turns + floor + waits)
    assert steps == pytest.approx(
        [
            turns + vector + waits,
            turns - vector + 1e9 / HBM + waits,
            product / KERNEL_EFFICIENCY + vector + floor + waits,
            2 * product + vector + floor + waits,
            max(turns - vector, vector) + floor + waits,
            turns + floor + 1e9 / 180e9 + 1e9 / HBM,
            turns + floor + 1e9 / 45e9,
            product / 0.6 + 1 / CLOCK + 1e9 / 180e9,
        ]
    )


# One gather overlaps a product and is split into three fusions with the same channel; another one
# is started before a copy and done after it.
OVERLAP = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%begin (x.1: bf16[64,32]) -> bf16[256,32] {
  %x.1 = bf16[64,32]{1,0} parameter(0)
  %gather.1 = bf16[256,32]{1,0} all-gather(%x.1), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c.1 = bf16[256,32]{1,0} custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (x.2: bf16[64,32]) -> bf16[64,64] {
  %x.2 = bf16[64,32]{1,0} parameter(0)
  %gather.2 = bf16[256,32]{1,0} all-gather(%x.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %product = bf16[64,64]{1,0} dot(%x.2, %x.2), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%end (x.3: bf16[64,32]) -> bf16[256,32] {
  %x.3 = bf16[64,32]{1,0} parameter(0)
  %gather.3 = bf16[256,32]{1,0} all-gather(%x.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c.3 = bf16[256,32]{1,0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[64,32]) -> bf16[256,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %f1 = bf16[256,32]{1,0} fusion(%a), kind=kCustom, calls=%begin, backend_config={"estimated_cycles":"0"}
  %f2 = bf16[64,64]{1,0} fusion(%a), kind=kOutput, calls=%beside, backend_config={"estimated_cycles":"FUSED"}
  %f3 = bf16[256,32]{1,0} fusion(%a), kind=kCustom, calls=%end, backend_config={"estimated_cycles":"0"}
  %start = (bf16[64,32]{1,0}, bf16[256,32]{1,0}) all-gather-start(%a), channel_id=8, replica_groups={{0,1,2,3}}, dimensions={0}
  %copied = bf16[64,32]{1,0} copy(%a), backend_config={"estimated_cycles":"COPIED"}
  ROOT %done = bf16[256,32]{1,0} all-gather-done(%start)
}
"""  # noqa: E501
GATHER_SECONDS = 3 * 64 * 32 * 2 / LINKS


@pytest.mark.parametrize(
    ("fused", "copied", "waits"), [(0, 0, 2), (10**6, 0, 1), (0, 10**6, 1), (10**6, 10**6, 0)]
)
def test_overlap_is_derived_from_the_schedule(fused, copied, waits):
    text = OVERLAP.replace("FUSED", str(fused)).replace("COPIED", str(copied))
    times = predict(HloProgram.parse(text).schedule(), TOPOLOGY)
    assert times.transfer == pytest.approx(2 * GATHER_SECONDS)
    # Without cycles, product and copy take the time of the bytes that they read and write.
    product = fused / CLOCK or (64 * 32 + 64 * 64) * 2 / HBM
    copy = copied / CLOCK or 2 * 64 * 32 * 2 / HBM
    hidden = min(product, GATHER_SECONDS) + min(copy, GATHER_SECONDS)
    assert times.exposed == pytest.approx(2 * GATHER_SECONDS - hidden, abs=1e-15)
    assert (times.exposed > 0.5 * GATHER_SECONDS) + (times.exposed > 1.5 * GATHER_SECONDS) == waits


# A sum over slices: the send and the receive look like transfers with the host.
SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

ENTRY %main (a: bf16[64,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  %after = token[] after-all()
  %send = (bf16[64,32]{1,0}, u32[], token[]) send(%a, %after), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[64,32]{1,0}, u32[], token[]) recv(%after), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r_0",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (bf16[64,32]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %result = bf16[64,32]{1,0} get-tuple-element(%recv-done), index=0
}
"""  # noqa: E501


def test_transfers_between_slices_go_over_the_network():
    topology = parse_topology("2xv5e:2x2")
    times = predict(HloProgram.parse(SLICES).schedule(), topology)
    sent = 2 * (1 / 2) * 64 * 32 * 2
    assert times.exposed == pytest.approx(sent / topology.chip.network_bandwidth)


def test_a_large_product_approaches_the_peak_rate(programs):
    times = predict(HloProgram.parse((programs / "large.hlo").read_text()).schedule(), TOPOLOGY)
    assert 0.85 < 2 * 8192**3 / TOPOLOGY.device_peak_flops / times.step < 0.95
