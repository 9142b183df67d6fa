"""Predicts the time of a step, and its parts, from a schedule and a topology.

This is a model that was never checked on the chips themselves; use it to compare programs.
Assumptions, each of which `Rules` can switch off:

    work        the most of the compiler's estimate of cycles / clock, FLOPs / peak FLOP/s of the
                operands' type, bytes / memory bandwidth, and vector operations / rate of the
                vector unit
    kernels     Pallas and the like, which have no estimate: products padded to tiles, at
                KERNEL_EFFICIENCY of the peak, and vector operations after them; at least the bytes
    transfers   bytes sent / bandwidth: of the axes of the torus that the group of devices spans
                (see `links`), of the network between slices, of the host's bus for copies to its
                memory and back; one transfer at a time on each
    copies      between HBM and vector memory, beside other work: bytes / memory bandwidth, one at a
                time, as if the work beside them left the memory free
    overlap     only what the schedule shows: a transfer runs from its start to the place where its
                result is needed, and the step waits for the rest of it there
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields

from mm1_jax.rehearse import links
from mm1_jax.rehearse.flops import Operands
from mm1_jax.rehearse.links import Places
from mm1_jax.rehearse.program import Branch, Done, Loop, Schedule, Start, Work, WorkKind
from mm1_jax.rehearse.topologies import Topology
from mm1_jax.rehearse.transfers import Route, Transfer

# Version of this model, which reports carry. Reports of version 1, which carry none, used the last
# rules of `ALTERNATIVES`.
PREDICTOR = 2

# Share of the peak that products of a kernel reach. With its vector operations, splash attention
# with a causal mask and heads of 128 then runs at 0.6 of the peak, forward and backward together,
# which is the share that good attention kernels reach.
KERNEL_EFFICIENCY = 0.87


@dataclass(frozen=True)
class Rules:
    """Assumptions of a prediction.

    Attributes:
        bytes_moved, vector_ops: Work takes at least the time of these, beside an estimate.
        padded_products: Products of kernels are padded to tiles, and run for whole blocks.
        kernel_efficiency: Share of the peak that kernels' products reach.
        kernels_take_turns: Products and vector operations of a kernel do not overlap.
        links_of_groups: A group of devices has the links of the axes that it spans, not all.
        copies: Copies between HBM and vector memory take time.
    """

    bytes_moved: bool = True
    vector_ops: bool = True
    padded_products: bool = True
    kernel_efficiency: float = KERNEL_EFFICIENCY
    kernels_take_turns: bool = True
    links_of_groups: bool = True
    copies: bool = True


RULES = Rules()
# Other rules, by the difference that they make.
ALTERNATIVES = {
    "bytes take no time beside an estimate": Rules(bytes_moved=False),
    "vector operations take no time": Rules(vector_ops=False),
    "kernels pad no products": Rules(padded_products=False),
    "kernels' products at the peak": Rules(kernel_efficiency=1.0),
    "kernels' vector operations beside their products": Rules(kernels_take_turns=False),
    "all groups have all links": Rules(links_of_groups=False),
    "copies into vector memory take no time": Rules(copies=False),
    "predictor 1: none of these, kernels at 0.6": Rules(
        bytes_moved=False,
        vector_ops=False,
        padded_products=False,
        kernel_efficiency=0.6,
        links_of_groups=False,
        copies=False,
    ),
}


@dataclass(frozen=True)
class Times:
    """Seconds of one step on one chip.

    Attributes:
        matrix, vector, kernel: Time of compute: products and what is fused into them, everything
            else, and kernels.
        transfer: Time of transfers and copies, hidden or not.
        exposed: Time of waiting for them.
    """

    matrix: float = 0.0
    vector: float = 0.0
    kernel: float = 0.0
    transfer: float = 0.0
    exposed: float = 0.0

    @property
    def step(self) -> float:
        return self.matrix + self.vector + self.kernel + self.exposed

    def __add__(self, other: "Times") -> "Times":
        return Times(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, count: int) -> "Times":
        return Times(*(getattr(self, f.name) * count for f in fields(self)))


def predict(
    schedule: Schedule,
    topology: Topology,
    places: Places | None = None,
    rules: Rules = RULES,
) -> Times:
    """Returns the times of one run of `schedule`.

    Args:
        places: Places of the program's devices, if known; else every group has all links.
    """
    clock = 0.0
    # Each route sends one transfer at a time, independently of the other routes.
    free_at = dict.fromkeys(Route, 0.0)
    ends: dict[str, float] = {}
    total = Times()
    for item in schedule:
        match item:
            case Work():
                seconds = work_seconds(item, topology, rules)
                total += Times(**{item.kind.value: seconds})
                clock += seconds
            case Start(transfer):
                seconds = transfer_seconds(transfer, topology, places, rules)
                total += Times(transfer=seconds)
                end = max(clock, free_at[transfer.route]) + seconds
                free_at[transfer.route] = ends[transfer.name] = end
            case Done(name):
                waited = max(ends.pop(name, 0.0) - clock, 0.0)
                total += Times(exposed=waited)
                clock += waited
            case Loop(trips, body):
                times = predict(body, topology, places, rules) * trips
                total, clock = total + times, clock + times.step
            case Branch(bodies):
                slowest = max(
                    (predict(body, topology, places, rules) for body in bodies),
                    key=lambda times: times.step,
                )
                total, clock = total + slowest, clock + slowest.step
    # Transfers that nothing waits for still have to end.
    waited = max([end - clock for end in ends.values()], default=0.0)
    return total + Times(exposed=max(waited, 0.0))


def work_seconds(work: Work, topology: Topology, rules: Rules = RULES) -> float:
    return max(limits(work, topology, rules).values())


def limits(work: Work, topology: Topology, rules: Rules = RULES) -> dict[str, float]:
    """Returns the seconds that work takes by each of its limits, of which the slowest counts."""
    peak, clock = topology.device_peak_flops, topology.chip.clock
    found = {"flops": _product_seconds(work, topology)}
    ops = work.vector_ops / topology.device_vector_rate if rules.vector_ops else 0.0
    if work.kind is WorkKind.KERNEL:
        flops = max(work.flops, work.padded_flops) if rules.padded_products else work.flops
        found["flops"] = flops / (peak * rules.kernel_efficiency)
        found["turns"] = found["flops"] + ops if rules.kernels_take_turns else 0.0
    elif work.cycles is not None and clock is not None:
        found["cycles"] = work.cycles / clock
    if rules.bytes_moved or "cycles" not in found:
        found["bytes"] = work.hbm_bytes / topology.device_hbm_bandwidth
    return {**found, "vector operations": ops}


def _product_seconds(work: Work, topology: Topology) -> float:
    seconds, left = 0.0, work.flops
    for operands, flops in work.low_flops.items():
        if (peak := topology.device_peak(operands.value)) is not None:
            seconds += flops / peak
            left -= flops
    return seconds + left / topology.device_peak_flops


def transfer_seconds(
    transfer: Transfer, topology: Topology, places: Places | None = None, rules: Rules = RULES
) -> float:
    chip = topology.chip
    match transfer.route:
        case Route.LINKS:
            return links.seconds(transfer, topology, places if rules.links_of_groups else None)
        case Route.NETWORK:
            return transfer.sent * chip.devices_per_chip / chip.network_bandwidth
        case Route.HOST:
            return transfer.sent * chip.devices_per_chip / chip.host_bandwidth
        case Route.HBM:
            return transfer.sent / topology.device_hbm_bandwidth if rules.copies else 0.0


@dataclass
class Traffic:
    """Transfers of one kind: count in the text, executions per step, bytes per device and step."""

    count: int = 0
    executions: int = 0
    sent: float = 0.0


def traffic(schedule: Schedule, *routes: Route) -> dict[str, Traffic]:
    """Returns transfers over these routes (default: all) by kind, without those of no bytes."""
    found: dict[str, Traffic] = defaultdict(Traffic)
    for item, executions in executed(schedule):
        if (
            isinstance(item, Start)
            and item.transfer.sent
            and item.transfer.route in (routes or Route)
        ):
            entry = found[item.transfer.kind]
            entry.count += 1
            entry.executions += executions
            entry.sent += executions * item.transfer.sent
    return dict(sorted(found.items()))


def flops(schedule: Schedule) -> float:
    """Returns the FLOPs of matrix products and kernels, per device and step."""
    works = ((item, times) for item, times in executed(schedule) if isinstance(item, Work))
    return sum((times * work.flops for work, times in works), 0.0)


def low_flops(schedule: Schedule) -> dict[Operands, float]:
    """Returns those of `flops` that multiply 8-bit operands, by their type."""
    found: dict[Operands, float] = {}
    for item, times in executed(schedule):
        if isinstance(item, Work):
            for operands, flops in item.low_flops.items():
                found[operands] = found.get(operands, 0.0) + times * flops
    return found


def costs_by_part(schedule: Schedule, topology: Topology) -> dict[str, tuple[float, float]]:
    """Returns seconds of compute and FLOPs per part of the model, for a device and step.

    Waiting for transfers belongs to no part.
    """
    found: dict[str, tuple[float, float]] = {}
    for item, times in executed(schedule):
        if isinstance(item, Work):
            seconds, flops = found.get(item.part, (0.0, 0.0))
            seconds += times * work_seconds(item, topology)
            found[item.part] = (seconds, flops + times * item.flops)
    return dict(sorted(found.items(), key=lambda entry: -entry[1][0]))


def executed(schedule: Schedule, executions: int = 1) -> Iterator[tuple[Work | Start | Done, int]]:
    """Yields everything in a schedule with how often it runs; every branch counts."""
    for item in schedule:
        match item:
            case Loop(trips, body):
                yield from executed(body, executions * trips)
            case Branch(bodies):
                for body in bodies:
                    yield from executed(body, executions)
            case _:
                yield item, executions
