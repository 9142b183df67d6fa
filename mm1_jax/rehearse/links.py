"""Time of a collective on the links of a torus, from the places of the devices that take part.

A group of devices has the links of the axes that it spans. An axis counts with both directions if
the group covers all of it and it is a ring, else with one. Between axes, collectives share the
work; an all-to-all waits for the links in the middle of its longest axis. Groups that share links
with others, and the hops of a permutation, do not count.
"""

import re
from collections.abc import Iterator, Sequence

from mm1_jax.rehearse.topologies import Topology
from mm1_jax.rehearse.transfers import Transfer

# Coordinates of the chip of each device of a program, in the order of the program's numbers.
Places = Sequence[tuple[int, ...]]

# First line of a program's text that `--save_hlo` wrote; HLO text itself does not tell the places.
_HEADER = "// coordinates of the devices: "


def with_places(text: str, places: Places | None) -> str:
    """Returns a program's text with the places of its devices, which `places_in` reads."""
    if places is None:
        return text
    return _HEADER + " ".join(",".join(map(str, place)) for place in places) + "\n" + text


def places_in(text: str) -> Places | None:
    match = re.match(rf"{_HEADER}(.*)\n", text)
    if match is None:
        return None
    return [tuple(map(int, place.split(","))) for place in match.group(1).split()]


def seconds(transfer: Transfer, topology: Topology, places: Places | None) -> float:
    """Returns the time of a transfer over links.

    Args:
        places: None if unknown; then each group has all links.
    """
    whole = transfer.sent / topology.device_link_bandwidth
    if places is None or not topology.is_tpu:
        return whole
    return max(
        (_seconds(transfer, group, topology, places) for group in transfer.groups), default=whole
    )


def _seconds(
    transfer: Transfer, group: tuple[int, ...], topology: Topology, places: Places
) -> float:
    axes = list(_axes(group, topology, places))
    if not axes:
        # The devices of one chip.
        return transfer.sent / topology.device_link_bandwidth
    if transfer.kind.endswith("all-to-all"):
        held = transfer.sent * len(group) / (len(group) - 1)
        return max(held * length / 4 / bandwidth for length, bandwidth in axes)
    return transfer.sent / sum(bandwidth for _, bandwidth in axes)


def _axes(
    group: tuple[int, ...], topology: Topology, places: Places
) -> Iterator[tuple[int, float]]:
    """Yields length and bandwidth of each axis that a group spans."""
    bandwidth = topology.chip.link_bandwidth / topology.chip.devices_per_chip
    for axis, (size, is_ring) in enumerate(zip(topology.shape, topology.wrap, strict=False)):
        length = len({places[device][axis] for device in group})
        if length > 1:
            yield length, bandwidth if is_ring and length == size else bandwidth / 2
