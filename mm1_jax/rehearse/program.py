"""Converts the computations of a module to the schedule of a step: work, transfers and loops.

The compiler splits an asynchronous collective over several fusions; the schedule joins its pieces.
"""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mm1_jax.rehearse.flops import (
    Operands,
    is_causal,
    kernel_estimate,
    kernel_flops,
    kernel_vector_ops,
    matmul_flops,
)
from mm1_jax.rehearse.hbm_traffic import hbm_bytes, stored_in_hbm
from mm1_jax.rehearse.hlo import Computation, Instruction, Module, parse
from mm1_jax.rehearse.loops import trip_count
from mm1_jax.rehearse.mosaic import KernelWork, kernel_work
from mm1_jax.rehearse.parts import OTHER, Parts
from mm1_jax.rehearse.transfers import (
    SENT,
    Transfer,
    collective,
    hbm_transfer,
    host_transfer,
    network_transfer,
    rendezvous,
)
from mm1_jax.rehearse.vector_ops import vector_ops

# Opcodes that take no time: names of values, or copies that start ahead of their use.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "copy-start",
    "copy-done",
    "slice-start",
    "slice-done",
    "dynamic-slice-start",
    "dynamic-update-slice-start",
    "async-update",
    "recv",
}
_FREE_CALLS = {
    "AllocateBuffer",
    "ConcatBitcast",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "Sharding",
    "annotate_device_placement",
}
_KERNELS = {"tpu_custom_call", "mosaic_gpu_v2", "mosaic_gpu", "__gpu$xla.gpu.triton"}


class WorkKind(enum.Enum):
    """The limit of a piece of work: matrix unit, rest of the core, or a kernel's own code."""

    MATRIX = "matrix"
    VECTOR = "vector"
    KERNEL = "kernel"


@dataclass(frozen=True)
class Work:
    """One instruction that computes.

    Attributes:
        flops: FLOPs of its matrix products, or of a kernel as far as known.
        cycles: The compiler's estimate, if any.
        hbm_bytes: Bytes read from and written to HBM.
        vector_ops: Operations of the vector unit on 32-bit elements.
        padded_flops: FLOPs of a kernel's products with the padding of tiles and blocks.
        low_flops: Those of `flops` that multiply 8-bit operands, by their type.
        part: Part of the model that it belongs to (see `parts`).
    """

    name: str
    kind: WorkKind
    flops: float
    cycles: float | None
    hbm_bytes: float
    vector_ops: float = 0.0
    padded_flops: float = 0.0
    part: str = OTHER
    low_flops: Mapping[Operands, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    transfer: Transfer


@dataclass(frozen=True)
class Done:
    """The place where the step waits for the transfer of this name."""

    name: str


@dataclass(frozen=True)
class Loop:
    trips: int
    body: "Schedule"


@dataclass(frozen=True)
class Branch:
    """A conditional: one of the bodies runs."""

    bodies: tuple["Schedule", ...]


Schedule = tuple[Work | Start | Done | Loop | Branch, ...]


@dataclass
class HloProgram:
    """An HLO module with its schedule.

    Attributes:
        warnings: Assumptions that the schedule makes; `schedule` adds them.
    """

    module: Module
    parts: Parts
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> "HloProgram":
        """Parses HLO text; raises ValueError if it is not that of an optimized module."""
        module = parse(text)
        return cls(module, Parts(text, module))

    def schedule(self) -> Schedule:
        return self._schedule(self.module.computations[self.module.entry])

    def _schedule(self, computation: Computation) -> Schedule:
        items: list[Work | Start | Done | Loop | Branch] = []
        windows = self._windows(computation)
        open_transfers: set[str] = set()
        for place, i in enumerate(computation.instructions):
            if i.opcode == "while":
                (body,) = self.module.called(i, "body")
                items.append(Loop(self._trips(i, computation), self._schedule(body)))
            elif i.opcode == "conditional":
                names = i.called("branch_computations", "true_computation", "false_computation")
                items.append(
                    Branch(tuple(self._schedule(self.module.computations[n]) for n in names))
                )
            elif i.opcode in ("call", "call-start"):
                # Work of another core of the chip counts as if this core waited for it.
                for called in self.module.called(i, "to_apply"):
                    items += self._schedule(called)
            elif i.opcode in SENT:
                transfer = self._collective(i, computation)
                items += [Start(transfer), Done(transfer.name)]
            elif i.opcode.removesuffix("-start") in SENT:
                open_transfers.add(i.name)
                items.append(Start(self._collective(i, computation)))
            elif i.opcode == "async-start":
                (inner,) = self.module.called(i, "calls")
                transfers = [x for x in inner.instructions if x.opcode in SENT]
                for each in transfers:
                    transfer = self._collective(each, inner, i.name)
                    items.append(Start(transfer))
                    open_transfers.add(i.name)
                if not transfers:
                    items += self._schedule(inner)
            elif (
                transfer := host_transfer(i, computation) or hbm_transfer(i, computation)
            ) is not None:
                items.append(Start(transfer))
                if i.opcode.endswith("-start"):
                    open_transfers.add(i.name)
                else:
                    items.append(Done(transfer.name))
            elif i.opcode == "send":
                if (name := rendezvous(i)) is not None:
                    open_transfers.add(name)
                    items.append(Start(network_transfer(i, computation, name)))
            elif i.opcode == "recv-done":
                receive = computation.by_name.get(i.operands[0])
                if receive is not None and (name := rendezvous(receive)) in open_transfers:
                    items.append(Done(name))
            elif i.opcode.endswith("-done"):
                start = self._start_of(i, computation)
                if start in open_transfers:
                    items.append(Done(start))
            else:
                starts, ends = windows.get(place, ((), ()))
                items += [Start(transfer) for transfer in starts]
                work = self._work(i, computation)
                items += [] if work is None else [work]
                items += [Done(name) for name in ends]
        return tuple(items)

    def _trips(self, loop: Instruction, computation: Computation) -> int:
        trips = trip_count(self.module, loop, computation)
        if trips is None:
            self._warn(f"loop {loop.name}: its trip count is unknown; counted once")
        return 1 if trips is None else trips

    def _collective(
        self, i: Instruction, computation: Computation, name: str | None = None
    ) -> Transfer:
        return collective(i, computation, self.module.num_devices, name)

    def _start_of(self, done: Instruction, computation: Computation) -> str:
        instruction = done
        while instruction.operands and instruction.opcode.endswith(("-done", "-update")):
            name = instruction.operands[0]
            if name not in computation.by_name:
                return name
            instruction = computation.by_name[name]
        return instruction.name

    def _windows(self, computation: Computation) -> dict[int, tuple[list[Transfer], list[str]]]:
        """Returns place -> transfers inside fusions that start there, and names of those that end.

        The compiler spreads one collective over several fusions, each of which repeats it with the
        same channel. The transfer runs from the first of them to the last.
        """
        first: dict[str, tuple[int, Transfer]] = {}
        last: dict[str, int] = {}
        for place, i in enumerate(computation.instructions):
            if i.opcode != "fusion":
                continue
            for inner, each in self._collectives_within(i):
                channel = re.search(r"channel_id=(\d+)", each.attributes)
                key = f"channel {channel.group(1)}" if channel else f"{i.name}/{each.name}"
                if key not in first:
                    first[key] = (place, self._collective(each, inner, key))
                last[key] = place
        windows: dict[int, tuple[list[Transfer], list[str]]] = {}
        for key, (place, transfer) in first.items():
            windows.setdefault(place, ([], []))[0].append(transfer)
            windows.setdefault(last[key], ([], []))[1].append(key)
        return windows

    def _collectives_within(self, fusion: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        for computation in self.module.called(fusion, "calls"):
            for i in computation.instructions:
                if i.opcode in SENT:
                    yield computation, i
                elif i.opcode == "fusion":
                    yield from self._collectives_within(i)

    def _work(self, i: Instruction, computation: Computation) -> Work | None:
        if i.opcode in _FREE or i.call_target in _FREE_CALLS:
            return None
        if i.opcode == "custom-call" and i.call_target in _KERNELS:
            return self._kernel(i, computation)
        moved = hbm_bytes(self.module, i, computation)
        ops = vector_ops(self.module, i, computation)
        flops = matmul_flops(self.module, i, computation)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
        cycles = float(estimate.group(1)) if estimate else None
        # The largest integer stands for "no estimate" for work of another core.
        cycles = cycles if cycles is None or cycles < 2**62 else None
        kind = WorkKind.MATRIX if flops else WorkKind.VECTOR
        low = {of: matmul_flops(self.module, i, computation, of) for of in Operands if flops}
        low = {of: each for of, each in low.items() if each}
        return Work(i.name, kind, flops, cycles, moved, ops, part=self.parts.of(i), low_flops=low)

    def _kernel(self, i: Instruction, computation: Computation) -> Work:
        """Returns the work of a kernel: that of its code, or else what its author or name tells."""
        code = kernel_work(i, is_causal(i, computation))
        flops = kernel_flops(i, computation)
        estimated_bytes = 0.0
        if code is None:
            code = KernelWork(flops or 0.0, flops or 0.0, kernel_vector_ops(i, computation))
            estimated_bytes = kernel_estimate(i, "bytes_accessed")
            if flops is None:
                self._warn(
                    f"kernel {i.name}: its FLOPs are unknown; timed by the bytes that it moves"
                )
        arrays = [computation.shapes_of(name) for name in i.operands]
        arrays += [(shape,) for shape in i.shapes]
        known = (*code.moved, *[None] * (len(arrays) - len(code.moved)))
        moved = 0.0
        for held, by_code in zip(map(stored_in_hbm, arrays), known, strict=True):
            if held:
                moved += held if by_code is None else by_code
        return Work(
            i.name,
            WorkKind.KERNEL,
            code.flops if flops is None else flops,
            None,
            max(moved, estimated_bytes),
            code.vector_ops,
            code.padded_flops,
            self.parts.of(i),
        )

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
