"""Optimised, scheduled HLO text -> the schedule of one step: work, transfers and loops in order.

Read from the text rather than asked of the compiler, whose own figures count the body of a loop
once and know nothing of the interconnect. The text has its traps: attributes that are JSON with
newlines in it, three notations of groups, and asynchronous collectives that stand, piece by piece,
inside several fusions.
"""

import enum
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

# Kinds of transfers -> what a chip sends in a group of n, as a multiple of the bytes it holds
# before: as rings do it, and the all-reduce as a reduce-scatter and an all-gather.
SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}

# Bits of the element types whose names do not say it.
_BITS = {"pred": 8, "token": 0, "opaque": 0}

# Take no time: names of values, or copies that the schedule starts ahead of their use.
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


@dataclass(frozen=True)
class Shape:
    """An array: its element type, dims, and whether the chip or its host has it in main memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool
    on_host: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> float:
        return self.size * _bits(self.dtype) / 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `shapes` are the arrays of its result, tuples flattened."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def called(self, *names: str) -> tuple[str, ...]:
        """The computations that the attributes of these names give."""
        found: list[str] = []
        for name in names:
            for text in re.findall(rf"\b{name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += re.findall(r"[\w.\-]+", text)
        return tuple(found)

    @functools.cached_property
    def call_target(self) -> str:
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match.group(1) if match else ""


@dataclass
class Computation:
    name: str
    instructions: list[Instruction]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.operands[0]): i for i in self.instructions if i.opcode == "parameter"}

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        return [s for name in instruction.operands for s in self.shapes_of(name)]

    def shapes_of(self, name: str) -> tuple[Shape, ...]:
        return self.by_name[name].shapes if name in self.by_name else ()


class Kind(enum.Enum):
    """What limits a piece of work: matrix units, everything else of the core, or its own code."""

    MATRIX = "matrix"
    VECTOR = "vector"
    KERNEL = "kernel"


@dataclass(frozen=True)
class Work:
    """One instruction that computes.

    Attributes:
        flops: Of matrix products; of a kernel, all that is known of it.
        cycles: The compiler's estimate, if it has one.
        hbm_bytes: Read from and written to the main memory.
    """

    name: str
    kind: Kind
    flops: float
    cycles: float | None
    hbm_bytes: float


class Route(enum.Enum):
    """Over what something is sent: links of chips, the network of slices, the bus of the host."""

    LINKS = "links"
    NETWORK = "network"
    HOST = "host"


@dataclass(frozen=True)
class Transfer:
    """One collective operation, or a copy to or from the memory of the host.

    Attributes:
        group_size: Devices that exchange something, or slices.
        sent: Bytes that a device sends, or fetches from its host, once.
    """

    name: str
    kind: str
    group_size: int
    sent: float
    route: Route = Route.LINKS


@dataclass(frozen=True)
class Start:
    transfer: Transfer


@dataclass(frozen=True)
class Done:
    """The place where the transfer of this name must have ended."""

    name: str


@dataclass(frozen=True)
class Loop:
    trips: int
    body: "Schedule"


@dataclass(frozen=True)
class Branch:
    """One of these runs."""

    bodies: tuple["Schedule", ...]


Schedule = tuple[Work | Start | Done | Loop | Branch, ...]


@dataclass
class Program:
    """All computations of a module, by name.

    Attributes:
        num_devices: That it was compiled for, those of one slice.
        warnings: What had to be assumed; filled while it is read.
    """

    computations: dict[str, Computation]
    entry: str
    num_devices: int
    warnings: list[str] = field(default_factory=list)

    def schedule(self) -> Schedule:
        return self._schedule(self.computations[self.entry])

    def _schedule(self, computation: Computation) -> Schedule:
        items: list[Work | Start | Done | Loop | Branch] = []
        windows = self._windows(computation)
        open_transfers: set[str] = set()
        for place, i in enumerate(computation.instructions):
            if i.opcode == "while":
                (body,) = i.called("body")
                trips = self._trip_count(i, computation)
                items.append(Loop(trips, self._schedule(self.computations[body])))
            elif i.opcode == "conditional":
                names = i.called("branch_computations", "true_computation", "false_computation")
                items.append(Branch(tuple(self._schedule(self.computations[n]) for n in names)))
            elif i.opcode in ("call", "call-start"):
                # What another core of the chip does is counted as if this one waited for it.
                for name in i.called("to_apply"):
                    items += self._schedule(self.computations[name])
            elif i.opcode in SENT:
                transfer = self._transfer(i, computation)
                items += [Start(transfer), Done(transfer.name)]
            elif i.opcode.removesuffix("-start") in SENT:
                open_transfers.add(i.name)
                items.append(Start(self._transfer(i, computation)))
            elif i.opcode == "async-start":
                (called,) = i.called("calls")
                inner = self.computations[called]
                transfers = [x for x in inner.instructions if x.opcode in SENT]
                for each in transfers:
                    transfer = self._transfer(each, inner, i.name)
                    items.append(Start(transfer))
                    open_transfers.add(i.name)
                if not transfers:
                    items += self._schedule(inner)
            elif (transfer := _host_transfer(i, computation)) is not None:
                items.append(Start(transfer))
                if i.opcode.endswith("-start"):
                    open_transfers.add(i.name)
                else:
                    items.append(Done(transfer.name))
            elif i.opcode == "send":
                if (name := _rendezvous(i)) is not None:
                    open_transfers.add(name)
                    items.append(Start(_network_transfer(i, computation, name)))
            elif i.opcode == "recv-done":
                receive = computation.by_name.get(i.operands[0])
                if receive is not None and (name := _rendezvous(receive)) in open_transfers:
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

    def _start_of(self, done: Instruction, computation: Computation) -> str:
        instruction = done
        while instruction.operands and instruction.opcode.endswith(("-done", "-update")):
            name = instruction.operands[0]
            if name not in computation.by_name:
                return name
            instruction = computation.by_name[name]
        return instruction.name

    def _windows(self, computation: Computation) -> dict[int, tuple[list[Transfer], list[str]]]:
        """Of transfers inside fusions: those that start at a place, and those that end there.

        The compiler spreads one collective over several fusions, each of which repeats it with the
        same channel; between the first and the last, it is under way.
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
                    first[key] = (place, self._transfer(each, inner, key))
                last[key] = place
        windows: dict[int, tuple[list[Transfer], list[str]]] = {}
        for key, (place, transfer) in first.items():
            windows.setdefault(place, ([], []))[0].append(transfer)
            windows.setdefault(last[key], ([], []))[1].append(key)
        return windows

    def _collectives_within(self, fusion: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        for name in fusion.called("calls"):
            computation = self.computations[name]
            for i in computation.instructions:
                if i.opcode in SENT:
                    yield computation, i
                elif i.opcode == "fusion":
                    yield from self._collectives_within(i)

    def _transfer(
        self, i: Instruction, computation: Computation, name: str | None = None
    ) -> Transfer:
        kind = i.opcode.removesuffix("-start")
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            # A fusion of an all-reduce and a slice, for which the hardware does the cheaper thing.
            kind = "reduce-scatter"
        if kind == "collective-permute":
            group_size = _pairs_group_size(i.attributes)
        else:
            group_size = _group_size(i.attributes, self.num_devices)
        operands = i.operands[:1] if kind == "ragged-all-to-all" else i.operands
        held = sum((s.num_bytes for name in operands for s in computation.shapes_of(name)), 0.0)
        sent = held * SENT[kind](group_size) if group_size > 1 else 0.0
        return Transfer(name or i.name, kind, group_size, sent)

    def _work(self, i: Instruction, computation: Computation) -> Work | None:
        if i.opcode in _FREE or i.call_target in _FREE_CALLS:
            return None
        hbm_bytes = self._hbm_bytes(i, computation)
        if i.opcode == "custom-call" and i.call_target in _KERNELS:
            flops = self._kernel_flops(i, computation)
            return Work(i.name, Kind.KERNEL, flops, None, hbm_bytes)
        flops = self._matmul_flops(i, computation)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
        cycles = float(estimate.group(1)) if estimate else None
        # The largest integer stands for "no estimate" of what another core does.
        cycles = cycles if cycles is None or cycles < 2**62 else None
        kind = Kind.MATRIX if flops else Kind.VECTOR
        return Work(i.name, kind, flops, cycles, hbm_bytes)

    def _matmul_flops(self, i: Instruction, computation: Computation) -> float:
        if i.opcode == "dot":
            return dot_flops(i, computation)
        if i.opcode == "convolution":
            return convolution_flops(i, computation)
        if i.opcode == "custom-call" and i.call_target.startswith("__cublas$"):
            return dot_flops(i, computation)
        if i.opcode == "fusion":
            inner = (self.computations[name] for name in i.called("calls"))
            return sum((self._matmul_flops(each, c) for c in inner for each in c.instructions), 0.0)
        return 0.0

    def _kernel_flops(self, i: Instruction, computation: Computation) -> float:
        # A kernel's own estimate, where its author gave one.
        estimate = re.search(r'"cost_estimate":\{"flops":"?(\d+)', i.attributes)
        if estimate and int(estimate.group(1)):
            return float(estimate.group(1))
        op_name = re.search(r'op_name="([^"]*)"', i.attributes)
        text = f"{i.name} {op_name.group(1) if op_name else ''}"
        for name, flops in KERNEL_FLOPS.items():
            if name in text:
                return flops(i, computation)
        self._warn(f"kernel {i.name}: its FLOPs are not known; timed by the bytes that it touches")
        return 0.0

    def _hbm_bytes(self, i: Instruction, computation: Computation) -> float:
        """What an instruction moves: of arrays that it slices or updates in place, the piece."""
        if i.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * _hbm(i.shapes)
        if i.opcode == "dynamic-update-slice":
            return 2 * _hbm(computation.shapes_of(i.operands[1]))
        if i.opcode == "scatter":
            return 3 * _hbm(computation.shapes_of(i.operands[-1]))
        if i.opcode != "fusion":
            return _hbm(i.shapes) + _hbm(computation.operand_shapes(i))
        (name,) = i.called("calls")
        inner = self.computations[name]
        total = _written(inner, inner.root)
        for number, operand in enumerate(i.operands):
            shapes = computation.shapes_of(operand)
            if _hbm(shapes):
                total += min(_read(inner, number), _hbm(shapes))
        return total

    def _trip_count(self, loop: Instruction, computation: Computation) -> int:
        """How often a loop runs: its annotation, or start, step and bound of its counter."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        (condition,) = (self.computations[name] for name in loop.called("condition"))
        compare, values = self._comparison(condition)
        if compare is not None:
            for side, other in ((0, 1), (1, 0)):
                counter, bound = values[side], values[other]
                index = _tuple_index(counter, condition)
                limit = _constant(bound, condition)
                if limit is None and (passed := _tuple_index(bound, condition)) is not None:
                    limit = self._passed(loop, computation, passed)
                if index is None or limit is None:
                    continue
                start = self._passed(loop, computation, index) or 0
                step = self._step(loop, index)
                inclusive = "direction=LE" in compare or "direction=GE" in compare
                return max(math.ceil((abs(limit - start) + inclusive) / abs(step or 1)), 0)
        self._warn(f"loop {loop.name}: how often it runs is not known; counted once")
        return 1

    def _comparison(self, condition: Computation) -> tuple[str | None, list[Instruction]]:
        """The attributes of the comparison that ends a condition, and what it compares."""
        root = condition.root
        if root.opcode == "fusion":
            (name,) = root.called("calls")
            inner = self.computations[name]
            if inner.root.opcode != "compare":
                return None, []
            numbers = {p.name: number for number, p in inner.parameters.items()}
            operands = [
                condition.by_name[root.operands[numbers[name]]]
                if name in numbers
                else inner.by_name[name]
                for name in inner.root.operands
            ]
            return inner.root.attributes, operands
        if root.opcode != "compare":
            return None, []
        return root.attributes, [condition.by_name[name] for name in root.operands]

    def _passed(self, loop: Instruction, computation: Computation, index: int) -> int | None:
        """The constant that a loop's element `index` starts as."""
        initial = computation.by_name.get(loop.operands[0])
        while initial is not None and initial.opcode in ("copy", "opt-barrier", "bitcast"):
            initial = computation.by_name.get(initial.operands[0])
        if initial is None or initial.opcode != "tuple":
            return None
        value = computation.by_name.get(initial.operands[index])
        return None if value is None else _constant(value, computation)

    def _step(self, loop: Instruction, index: int) -> int | None:
        """What an iteration adds to the counter."""
        (body,) = (self.computations[name] for name in loop.called("body"))
        if body.root.opcode != "tuple" or index >= len(body.root.operands):
            return None
        value = body.by_name.get(body.root.operands[index])
        computation = body
        while value is not None and value.opcode in ("copy", "bitcast", "convert", "fusion"):
            if value.opcode == "fusion":
                (name,) = value.called("calls")
                computation = self.computations[name]
                value = computation.root
            else:
                value = computation.by_name.get(value.operands[0])
        if value is None or value.opcode not in ("add", "subtract"):
            return None
        for name in value.operands:
            constant = _constant(computation.by_name[name], computation)
            if constant is not None:
                return constant
        return None

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


# --- reading the text


def parse(text: str) -> Program:
    """Reads the text of an optimised module.

    Raises:
        ValueError: It is not one.
    """
    header = re.search(r"^HloModule .*$", text, re.MULTILINE)
    if header is None:
        raise ValueError(
            "this is not HLO text: no line begins with HloModule; give what as_text() of a "
            "compiled JAX function returns"
        )
    num_devices = 1
    for name in ("num_partitions", "replica_count"):
        match = re.search(rf"\b{name}=(\d+)", header.group())
        num_devices *= int(match.group(1)) if match else 1
    computations: dict[str, Computation] = {}
    entry = None
    for name, is_entry, statements in _computations(text):
        computations[name] = Computation(name, [_instruction(s) for s in statements])
        entry = name if is_entry else entry
    if entry is None:
        raise ValueError("this HLO text has no ENTRY computation")
    return Program(computations, entry, num_devices)


_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*")
_END = re.compile(r"\}(, execution_thread=\"\w+\")?")
_STATEMENT = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")


def _computations(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    """Name, whether it is the entry, and statements of each computation.

    JSON inside a statement may have lines of its own, some of which begin with `}`: only a line
    that is nothing but a brace ends a computation. It may name the core that runs it.
    """
    statements: list[str] | None = None
    name, is_entry = "", False
    for line in text.splitlines():
        if statements is None:
            match = _HEADER.fullmatch(line)
            if match and " = " not in line.partition("(")[0]:
                name, is_entry, statements = match.group(2), bool(match.group(1)), []
        elif _END.fullmatch(line):
            yield name, is_entry, statements
            statements = None
        elif _STATEMENT.match(line):
            statements.append(line)
        elif statements:
            statements[-1] += "\n" + line


def _instruction(statement: str) -> Instruction:
    match = _STATEMENT.match(statement)
    assert match is not None
    rest = statement[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shapes(rest[:end]))
    rest = rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[:opening]
    if opcode in ("parameter", "constant"):
        operands: tuple[str, ...] = (inside,)
    else:
        operands = tuple(_operand_names(inside))
    return Instruction(
        match.group(2), shapes, opcode, operands, rest[closing + 1 :], bool(match.group(1))
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in the HLO text: {text[:80]}")


def _operand_names(text: str) -> Iterator[str]:
    """Names of operands, with or without their types before them."""
    depth, start = 0, 0
    text = re.sub(r"/\*.*?\*/", "", text) + ","
    for place, letter in enumerate(text):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if letter == "," and depth == 0:
            operand = text[start:place].strip()
            start = place + 1
            if operand:
                yield operand.split(" ")[-1].removeprefix("%")


_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(dim.removeprefix("<=")) for dim in dims.split(",") if dim)
        space = re.search(r"S\((\d+)\)", layout)
        memory = space.group(1) if space else "0"
        yield Shape(dtype, sizes, in_hbm=memory == "0", on_host=memory == "5")


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match.group(1)) if match else 0


# --- groups of devices


def _group_size(attributes: str, num_devices: int) -> int:
    """Members of one group of a collective, from any of the notations."""
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*)?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        # Along whole axes of a mesh, 'a', or along a part of one, 'a':(1)2.
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']*)'(?::\(\d+\)(\d+))?", mesh.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=", attributes)
    if iota:
        return int(iota.group(1).split(",")[-1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(
            f"the groups of a collective are in an unknown notation: {attributes[:300]}"
        )
    return num_devices


def _pairs_group_size(attributes: str) -> int:
    """2 where some device sends to another one, 1 where all keep what they have."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    found = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1) if pairs else "")
    return 2 if any(source != target for source, target in found) else 1


def _rendezvous(i: Instruction) -> str | None:
    """What a transfer between slices, which looks like one to the host, is called."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.attributes)
    return match.group(1) if match and "_xla_megascale" in i.attributes else None


def _network_transfer(i: Instruction, computation: Computation, name: str) -> Transfer:
    kind_match = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
    kind = kind_match.group(1).lower().replace("_", "-") if kind_match else "collective-permute"
    # Slices by number, {1,2}x{0:3}, or listed device by device, {{100000,200000},{100001,...
    group = re.search(r'_xla_megascale_target="?\{+([\d,]+)\}', i.attributes)
    group_size = len(group.group(1).split(",")) if group else 2
    held = sum((s.num_bytes for s in computation.shapes_of(i.operands[0])), 0.0)
    sent = held * SENT.get(kind, SENT["collective-permute"])(group_size)
    return Transfer(name, f"{kind} between slices", group_size, sent, Route.NETWORK)


def _host_transfer(i: Instruction, computation: Computation) -> Transfer | None:
    """What a copy moves to the host's memory or from there, as a whole or a piece of an array."""
    opcode = i.opcode.removesuffix("-start")
    if opcode not in ("copy", "slice", "dynamic-slice", "dynamic-update-slice"):
        return None
    operands = [shape for name in i.operands[:2] for shape in computation.shapes_of(name)]
    if opcode == "dynamic-update-slice":
        whole, piece = operands
        is_fetched, is_sent = False, whole.on_host and not piece.on_host
    else:
        whole = operands[0]
        # Of a slice that only starts, the result lies behind the operands and before a flag.
        place = -2 if i.opcode.endswith("slice-start") else 0
        piece = i.shapes[place]
        is_fetched = whole.on_host and not piece.on_host
        is_sent = piece.on_host and not whole.on_host
    if not is_fetched and not is_sent:
        return None
    kind = "copy from the host" if is_fetched else "copy to the host"
    return Transfer(i.name, kind, 2, piece.num_bytes, Route.HOST)


# --- matrix products


def dot_flops(i: Instruction, computation: Computation) -> float:
    """2 for each element of the result and of the summed dims."""
    left = computation.shapes_of(i.operands[0])
    match = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d,"]*)[\]}]', i.attributes)
    if not left or match is None:
        return 0.0
    dims = [int(dim) for dim in match.group(1).replace('"', "").split(",") if dim]
    return 2.0 * i.shapes[0].size * math.prod(left[0].dims[dim] for dim in dims)


def convolution_flops(i: Instruction, computation: Computation) -> float:
    """2 for each multiplication with an element of the input: padding and holes do not count.

    TPUs run every matrix product as a convolution, batch dims as spatial ones with holes.
    """
    left, right = (computation.shapes_of(name)[0].dims for name in i.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels is not None, i.name
    left_labels, right_labels, out_labels = labels.groups()
    window = _window(i.attributes)
    result = i.shapes[0].dims
    feature_groups, batch_groups = (
        int(match.group(1)) if (match := re.search(rf"{name}=(\d+)", i.attributes)) else 1
        for name in ("feature_group_count", "batch_group_count")
    )
    products = (
        left[left_labels.index("f")]
        / feature_groups
        * result[out_labels.index("f")]
        * left[left_labels.index("b")]
        / batch_groups
    )
    for dim in range(len(left_labels) - 2):
        products *= _num_products(
            num_inputs=left[left_labels.index(str(dim))],
            num_taps=right[right_labels.index(str(dim))],
            num_outputs=result[out_labels.index(str(dim))],
            **{name: values[dim] for name, values in window.items() if dim < len(values)},
        )
    return 2.0 * products


def _window(attributes: str) -> dict[str, list]:
    match = re.search(r"window=\{([^}]*)\}", attributes)
    entries = dict(part.split("=") for part in match.group(1).split()) if match else {}
    window: dict[str, list] = {
        name: [int(value) for value in entries[name].split("x")]
        for name in ("stride", "lhs_dilate", "rhs_dilate")
        if name in entries
    }
    if "pad" in entries:
        window["pad"] = [int(value.split("_")[0]) for value in entries["pad"].split("x")]
    return window


@functools.lru_cache(maxsize=4096)
def _num_products(
    num_inputs: int,
    num_taps: int,
    num_outputs: int,
    stride: int = 1,
    pad: int = 0,
    lhs_dilate: int = 1,
    rhs_dilate: int = 1,
) -> int:
    """Pairs of an output and a tap of the window that meet an element of the input."""
    if num_taps == 1 and pad == 0 and lhs_dilate == 1:
        return num_outputs
    outputs, last = np.arange(num_outputs) * stride, (num_inputs - 1) * lhs_dilate
    met = 0
    for tap in range(num_taps):
        places = outputs + (tap * rhs_dilate - pad)
        is_inside = (places >= 0) & (places <= last) & (places % lhs_dilate == 0)
        met += int(np.count_nonzero(is_inside))
    return met


# --- kernels


def _splash_flops(num_products: Callable[[Instruction, int], int]):
    def flops(i: Instruction, computation: Computation) -> float:
        """Products of queries with keys: all of them, or the half that a causal mask leaves.

        Causal masks are worked out inside the kernel from the numbers of the queries. Those are
        one more array of integers than the segment ids, which come in pairs or not at all.
        """
        operands = [s for name in i.operands for s in computation.shapes_of(name)]
        is_array = [s.dtype in ("bf16", "f32", "f16") and len(s.dims) >= 3 for s in operands]
        first = is_array.index(True)
        query, key = operands[first], operands[first + 1]
        is_causal = sum(s.dtype == "s32" for s in operands[first:]) % 2
        pairs = math.prod(query.dims[:-1]) * key.dims[-2] / (2 if is_causal else 1)
        return 2.0 * pairs * query.dims[-1] * num_products(i, len(query.dims))

    return flops


def _products_backward(i: Instruction, query_rank: int) -> int:
    # With the gradient of the queries, which comes in one piece for each block of keys, five;
    # without it, four.
    return 5 if any(len(s.dims) > query_rank for s in i.shapes) else 4


def _mha_flops(num_products: int):
    """Of jax's attention for GPUs, which `layers.attention_kernels` runs in a scope "causal"."""

    def flops(i: Instruction, computation: Computation) -> float:
        queries, keys = (s for name in i.operands[:2] for s in computation.shapes_of(name))
        pairs = math.prod(queries.dims) * keys.dims[1]
        return 2.0 * num_products * pairs / (2 if "/causal/" in i.attributes else 1)

    return flops


# Part of the name of a kernel -> its FLOPs, for kernels that bring no estimate of their own.
KERNEL_FLOPS: dict[str, Callable[[Instruction, Computation], float]] = {
    "splash_mha_fwd": _splash_flops(lambda i, rank: 2),
    "splash_mqa_fwd": _splash_flops(lambda i, rank: 2),
    "splash_mha_dq": _splash_flops(lambda i, rank: 3),
    "splash_mqa_dq": _splash_flops(lambda i, rank: 3),
    "splash_mha_dkv": _splash_flops(_products_backward),
    "splash_mqa_dkv": _splash_flops(_products_backward),
    "mha_forward": _mha_flops(2),
    # Two passes in one call: four products for keys and values, three for queries.
    "mha_backward": _mha_flops(7),
    # Sums over the head dim.
    "mha_preprocess_backward": lambda i, computation: 0.0,
}


# --- small questions to instructions


def _hbm(shapes: Sequence[Shape]) -> float:
    return sum((shape.num_bytes for shape in shapes if shape.in_hbm), 0.0)


def _read(inner: Computation, number: int) -> float:
    """Bytes that a fusion reads of its operand `number`."""
    parameter = inner.parameters.get(number)
    if parameter is None:
        return 0.0
    users = [i for i in inner.instructions if parameter.name in i.operands]
    total = 0.0
    for user in users:
        if (
            user.opcode in ("dynamic-slice", "gather", "slice")
            and user.operands[0] == parameter.name
        ):
            total += sum((s.num_bytes for s in user.shapes), 0.0)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        else:
            return _hbm(parameter.shapes)
    return total


def _written(inner: Computation, root: Instruction) -> float:
    """Bytes that a fusion writes."""
    if root.opcode == "tuple":
        values = [inner.by_name[name] for name in root.operands if name in inner.by_name]
        return sum((_written(inner, value) for value in values), 0.0)
    if not _hbm(root.shapes) or root.opcode == "parameter":
        return 0.0
    value = root
    while value.opcode in ("bitcast", "copy", "convert") and value.operands[0] in inner.by_name:
        value = inner.by_name[value.operands[0]]
    if value.opcode == "dynamic-update-slice":
        return sum((s.num_bytes for s in inner.shapes_of(value.operands[1])), 0.0)
    return _hbm(root.shapes)


def _tuple_index(i: Instruction, computation: Computation) -> int | None:
    while i.opcode in ("copy", "convert", "bitcast") and i.operands[0] in computation.by_name:
        i = computation.by_name[i.operands[0]]
    match = re.search(r"\bindex=(\d+)", i.attributes)
    return int(match.group(1)) if i.opcode == "get-tuple-element" and match else None


def _constant(i: Instruction, computation: Computation) -> int | None:
    while i.opcode in ("copy", "convert", "bitcast") and i.operands[0] in computation.by_name:
        i = computation.by_name[i.operands[0]]
    if i.opcode != "constant" or not re.fullmatch(r"-?\d+", i.operands[0]):
        return None
    return int(i.operands[0])
