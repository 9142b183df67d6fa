"""Predicts the time of a step, and its parts, from a schedule and a topology.

This is a model that was never checked on the chips themselves; use it to compare programs.
Assumptions:

    work        the compiler's estimate of cycles / clock, but at least FLOPs / peak FLOP/s; bytes /
                memory bandwidth if there is no estimate
    kernels     Pallas and the like: FLOPs at KERNEL_EFFICIENCY of the peak
    transfers   bytes sent / bandwidth: of all axes of the torus within a slice, of the network
                between slices, of the host's bus for copies to its memory and back; one transfer
                at a time on each
    overlap     only what the schedule shows: a transfer runs from its start to the place where its
                result is needed, and the step waits for the rest of it there
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields

from mm1_jax.rehearse.program import Branch, Done, Loop, Schedule, Start, Work, WorkKind
from mm1_jax.rehearse.topologies import Topology
from mm1_jax.rehearse.transfers import Route, Transfer

# Share of the peak that good attention kernels reach; for kernels without a compiler's estimate.
KERNEL_EFFICIENCY = 0.6


@dataclass(frozen=True)
class Times:
    """Seconds of one step on one chip.

    Attributes:
        matrix, vector, kernel: Time of compute, by the unit that limits it.
        transfer: Time of transfers, hidden or not.
        exposed: Time of waiting for transfers.
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


def predict(schedule: Schedule, topology: Topology) -> Times:
    """Returns the times of one run of `schedule`."""
    clock = 0.0
    # Each route sends one transfer at a time, independently of the other routes.
    free_at = dict.fromkeys(Route, 0.0)
    ends: dict[str, float] = {}
    total = Times()
    for item in schedule:
        match item:
            case Work():
                seconds = work_seconds(item, topology)
                total += Times(**{item.kind.value: seconds})
                clock += seconds
            case Start(transfer):
                seconds = transfer_seconds(transfer, topology)
                total += Times(transfer=seconds)
                end = max(clock, free_at[transfer.route]) + seconds
                free_at[transfer.route] = ends[transfer.name] = end
            case Done(name):
                waited = max(ends.pop(name, 0.0) - clock, 0.0)
                total += Times(exposed=waited)
                clock += waited
            case Loop(trips, body):
                times = predict(body, topology) * trips
                total, clock = total + times, clock + times.step
            case Branch(bodies):
                slowest = max((predict(b, topology) for b in bodies), key=lambda t: t.step)
                total, clock = total + slowest, clock + slowest.step
    # Transfers that nothing waits for still have to end.
    waited = max([end - clock for end in ends.values()], default=0.0)
    return total + Times(exposed=max(waited, 0.0))


def work_seconds(work: Work, topology: Topology) -> float:
    peak = topology.device_peak_flops
    by_bytes = work.hbm_bytes / topology.device_hbm_bandwidth
    if work.kind is WorkKind.KERNEL:
        return max(work.flops / (peak * KERNEL_EFFICIENCY), by_bytes)
    if work.cycles is None or topology.chip.clock is None:
        return max(by_bytes, work.flops / peak)
    return max(work.cycles / topology.chip.clock, work.flops / peak)


def transfer_seconds(transfer: Transfer, topology: Topology) -> float:
    chip = topology.chip
    match transfer.route:
        case Route.LINKS:
            return transfer.sent / topology.device_link_bandwidth
        case Route.NETWORK:
            return transfer.sent * chip.devices_per_chip / chip.network_bandwidth
        case Route.HOST:
            return transfer.sent * chip.devices_per_chip / chip.host_bandwidth


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
