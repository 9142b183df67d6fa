"""Instructions that send something -> what is sent, over what, by how many devices at once.

Collectives of a slice, transfers between slices, and copies to the memory of the host and back.
Groups are written in three notations.
"""

import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from mm1_jax.rehearse.hlo import Computation, Instruction

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


def collective(
    i: Instruction, computation: Computation, num_devices: int, name: str | None = None
) -> Transfer:
    """Bytes that each device sends in a collective.

    Args:
        num_devices: All devices of the program, for collectives that name no groups.
        name: Its name in the schedule, where that is not the instruction's.
    """
    kind = i.opcode.removesuffix("-start")
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        # A fusion of an all-reduce and a slice, for which the hardware does the cheaper thing.
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
    """A copy to the memory of the host or from there, of an array or a piece of one."""
    opcode = i.opcode.removesuffix("-start")
    if opcode not in ("copy", "slice", "dynamic-slice", "dynamic-update-slice"):
        return None
    operands = [shape for name in i.operands[:2] for shape in computation.shapes_of(name)]
    if opcode == "dynamic-update-slice":
        whole, piece = operands
        is_fetched, is_sent = False, whole.on_host and not piece.on_host
    else:
        whole = operands[0]
        # The result of a slice that only starts lies behind the operands and before a flag.
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
    # Slices by number, {1,2}x{0:3}, or listed device by device, {{100000,200000},{100001,...
    group = re.search(r'_xla_megascale_target="?\{+([\d,]+)\}', i.attributes)
    group_size = len(group.group(1).split(",")) if group else 2
    held = sum((s.num_bytes for s in computation.shapes_of(i.operands[0])), 0.0)
    sent = held * SENT.get(kind, SENT["collective-permute"])(group_size)
    return Transfer(name, f"{kind} between slices", group_size, sent, Route.NETWORK)


def rendezvous(i: Instruction) -> str | None:
    """The name of a transfer between slices, which looks like one to the host."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.attributes)
    return match.group(1) if match and "_xla_megascale" in i.attributes else None


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
