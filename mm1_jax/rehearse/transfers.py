"""Describes transfers of an instruction: kind, route, groups of devices and bytes sent.

They are collectives within a slice, transfers between slices, copies to and from the host's memory,
and copies between the chip's own memories that run beside other work.
"""

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mm1_jax.rehearse.hlo import Computation, Instruction, Shape

Groups = tuple[tuple[int, ...], ...]

# Kind of transfer -> bytes that a device in a group of n sends, as a multiple of its input bytes.
# Collectives run as rings, and all-reduce as reduce-scatter and all-gather.
SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: n - 1,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}


class Route(enum.Enum):
    """The medium of a transfer: chips' links, network of slices, bus of the host, or HBM."""

    LINKS = "links"
    NETWORK = "network"
    HOST = "host"
    HBM = "hbm"


@dataclass(frozen=True)
class Transfer:
    """One collective operation, or a copy.

    Attributes:
        sent: Bytes that a device sends, or fetches from its host or HBM, per execution.
        groups: Devices that exchange data over links; of a permutation, pairs.
    """

    name: str
    kind: str
    sent: float
    route: Route = Route.LINKS
    groups: Groups = ()


def collective(
    i: Instruction, computation: Computation, num_devices: int, name: str | None = None
) -> Transfer:
    """Returns the transfer of a collective within a slice.

    Args:
        num_devices: Number of devices of the program, for collectives that list no groups.
        name: Name in the schedule; defaults to the instruction's.
    """
    kind = i.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        # A fused all-reduce and slice, which runs as a reduce-scatter.
        kind = "reduce-scatter"
    if kind == "collective-permute":
        groups = _pairs(i.attributes)
    else:
        groups = _groups(i.attributes, num_devices)
    group_size = max((len(group) for group in groups), default=1)
    operands = i.operands[:1] if kind == "ragged-all-to-all" else i.operands
    held = sum((s.num_bytes for name in operands for s in computation.shapes_of(name)), 0.0)
    sent = held * SENT[kind](group_size) if group_size > 1 else 0.0
    return Transfer(name or i.name, kind, sent, groups=groups)


def host_transfer(i: Instruction, computation: Computation) -> Transfer | None:
    """Returns the copy of an array or a piece to or from the host's memory; None for others."""
    found = _copied(i, computation)
    if found is None:
        return None
    source, target, piece = found
    if source.on_host == target.on_host:
        return None
    kind = "copy from the host" if source.on_host else "copy to the host"
    return Transfer(i.name, kind, piece.num_bytes, Route.HOST)


def hbm_transfer(i: Instruction, computation: Computation) -> Transfer | None:
    """Returns a copy between HBM and vector memory that runs beside other work; None for others."""
    found = _copied(i, computation) if i.opcode.endswith("-start") else None
    if found is None:
        return None
    source, target, piece = found
    times = source.in_hbm + target.in_hbm
    return Transfer(i.name, "copy", times * piece.stored_bytes, Route.HBM) if times else None


def _copied(i: Instruction, computation: Computation) -> tuple[Shape, Shape, Shape] | None:
    """Returns source, target and the piece that a copy moves."""
    opcode = i.opcode.removesuffix("-start")
    if opcode not in ("copy", "slice", "dynamic-slice", "dynamic-update-slice"):
        return None
    operands = [shape for name in i.operands[:2] for shape in computation.shapes_of(name)]
    if opcode == "dynamic-update-slice":
        target, piece = operands
        return piece, target, piece
    # The result tuple of slice-start is (operands, result, flag).
    place = -2 if i.opcode.endswith("slice-start") else 0
    piece = i.shapes[place]
    return operands[0], piece, piece


def network_transfer(i: Instruction, computation: Computation, name: str) -> Transfer:
    kind_match = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
    kind = kind_match.group(1).lower().replace("_", "-") if kind_match else "collective-permute"
    # Slices are given by number, {1,2}x{0:3}, or per device, {{100000,200000},{100001,...
    group = re.search(r'_xla_megascale_target="?\{+([\d,]+)\}', i.attributes)
    group_size = len(group.group(1).split(",")) if group else 2
    held = sum((s.num_bytes for s in computation.shapes_of(i.operands[0])), 0.0)
    sent = held * SENT.get(kind, SENT["collective-permute"])(group_size)
    return Transfer(name, f"{kind} between slices", sent, Route.NETWORK)


def rendezvous(i: Instruction) -> str | None:
    """Returns the name of a transfer between slices, which is written as one to the host."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.attributes)
    return match.group(1) if match and "_xla_megascale" in i.attributes else None


def _groups(attributes: str, num_devices: int) -> Groups:
    """Returns the groups of a collective, from any of three notations; by default all devices."""
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[^{]*)\))?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        return _groups_of_mesh(*mesh.groups())
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\S*)", attributes)
    if iota:
        return _as_groups(_iota(iota.group(1)))
    listed = re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", attributes)
    if listed:
        members = re.findall(r"\{([\d,]+)\}", listed.group(1))
        return tuple(tuple(map(int, each.split(","))) for each in members)
    if re.search(r"replica_groups=(?!\{\})", attributes):
        raise ValueError(f"groups of a collective have an unknown notation: {attributes[:300]}")
    return (tuple(range(num_devices)),)


def _groups_of_mesh(sizes: str, order: str | None, axes: str) -> Groups:
    """Returns groups that span whole axes of a mesh, 'a', or a part of one, 'a':(1)2.

    The part 'a':(1)2 is the first factor 2 of the axis, after a factor of 1.
    """
    parts = {name: (int(b), int(n)) for name, b, n in re.findall(r"'([^']*)':\((\d+)\)(\d+)", axes)}
    named = set(re.findall(r"'([^']*)'", axes))
    dims: list[int] = []
    grouped: list[int] = []
    for name, size in re.findall(r"'([^']*)'=(\d+)", sizes):
        before, length = parts.get(name, (1, int(size)))
        if name in named:
            grouped.append(len(dims) + 1)
        dims += [before, length, int(size) // (before * length)]
    devices = np.arange(np.prod(dims)) if order is None else _iota(order)
    grid = devices.reshape(dims)
    others = [dim for dim in range(len(dims)) if dim not in grouped]
    length = int(np.prod([dims[dim] for dim in grouped]))
    return _as_groups(grid.transpose(*others, *grouped).reshape(-1, length))


def _iota(text: str) -> np.ndarray:
    """Returns devices in the notation [2,4]<=[8], [2,4]<=[4,2]T(1,0) or [2,4]T(1,0)."""
    dims, *rest = ([int(n) for n in part.split(",")] for part in re.findall(r"[\[(]([\d,]+)", text))
    source = rest[0] if "<=" in text else dims
    devices = np.arange(np.prod(source)).reshape(source)
    if "T(" in text:
        devices = devices.transpose(rest[-1])
    return devices.reshape(dims if "<=" in text else -1)


def _as_groups(devices: np.ndarray) -> Groups:
    return tuple(tuple(map(int, row)) for row in devices)


def _pairs(attributes: str) -> Groups:
    """Returns each pair of a device and another one that it sends to."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    found = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1) if pairs else "")
    return tuple((int(source), int(target)) for source, target in found if source != target)
