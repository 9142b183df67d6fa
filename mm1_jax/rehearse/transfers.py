"""Describes transfers of an instruction: kind, route, group size and bytes sent.

They are collectives within a slice, transfers between slices, and copies to and from the host's
memory.
"""

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from mm1_jax.rehearse.hlo import Computation, Instruction

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
    """The medium of a transfer: links of chips, network between slices, or bus of the host."""

    LINKS = "links"
    NETWORK = "network"
    HOST = "host"


@dataclass(frozen=True)
class Transfer:
    """One collective operation, or a copy to or from the memory of the host.

    Attributes:
        group_size: Number of devices or slices that exchange data.
        sent: Bytes that a device sends, or fetches from its host, per execution.
    """

    name: str
    kind: str
    group_size: int
    sent: float
    route: Route = Route.LINKS


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
        group_size = _pairs_group_size(i.attributes)
    else:
        group_size = _group_size(i.attributes, num_devices)
    operands = i.operands[:1] if kind == "ragged-all-to-all" else i.operands
    held = sum((s.num_bytes for name in operands for s in computation.shapes_of(name)), 0.0)
    sent = held * SENT[kind](group_size) if group_size > 1 else 0.0
    return Transfer(name or i.name, kind, group_size, sent)


def host_transfer(i: Instruction, computation: Computation) -> Transfer | None:
    """Returns the copy of an array or a piece to or from the host's memory; None for others."""
    opcode = i.opcode.removesuffix("-start")
    if opcode not in ("copy", "slice", "dynamic-slice", "dynamic-update-slice"):
        return None
    operands = [shape for name in i.operands[:2] for shape in computation.shapes_of(name)]
    if opcode == "dynamic-update-slice":
        whole, piece = operands
        is_fetched, is_sent = False, whole.on_host and not piece.on_host
    else:
        whole = operands[0]
        # The result tuple of slice-start is (operands, result, flag).
        place = -2 if i.opcode.endswith("slice-start") else 0
        piece = i.shapes[place]
        is_fetched = whole.on_host and not piece.on_host
        is_sent = piece.on_host and not whole.on_host
    if not is_fetched and not is_sent:
        return None
    kind = "copy from the host" if is_fetched else "copy to the host"
    return Transfer(i.name, kind, 2, piece.num_bytes, Route.HOST)


def network_transfer(i: Instruction, computation: Computation, name: str) -> Transfer:
    kind_match = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.attributes)
    kind = kind_match.group(1).lower().replace("_", "-") if kind_match else "collective-permute"
    # Slices are given by number, {1,2}x{0:3}, or per device, {{100000,200000},{100001,...
    group = re.search(r'_xla_megascale_target="?\{+([\d,]+)\}', i.attributes)
    group_size = len(group.group(1).split(",")) if group else 2
    held = sum((s.num_bytes for s in computation.shapes_of(i.operands[0])), 0.0)
    sent = held * SENT.get(kind, SENT["collective-permute"])(group_size)
    return Transfer(name, f"{kind} between slices", group_size, sent, Route.NETWORK)


def rendezvous(i: Instruction) -> str | None:
    """Returns the name of a transfer between slices, which is written as one to the host."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.attributes)
    return match.group(1) if match and "_xla_megascale" in i.attributes else None


def _group_size(attributes: str, num_devices: int) -> int:
    """Returns the size of a collective's groups, from any of three notations."""
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*)?\s*\{([^}]*)\}", attributes
    )
    if mesh:
        # A group spans whole axes of a mesh, 'a', or a part of one, 'a':(1)2.
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
        raise ValueError(f"groups of a collective have an unknown notation: {attributes[:300]}")
    return num_devices


def _pairs_group_size(attributes: str) -> int:
    """Returns 2 if any device sends to another one, else 1."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    found = re.findall(r"\{(\d+),(\d+)\}", pairs.group(1) if pairs else "")
    return 2 if any(source != target for source, target in found) else 1
