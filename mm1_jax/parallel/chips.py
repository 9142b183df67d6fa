"""What is known of the chips that run or compile a program.

Figures come from four places, which the report of a rehearsal repeats:

    published   Cloud's or NVIDIA's page of the chip
    compiler    the memory that libtpu 0.0.42.1 lets a program use, as its error messages state it
    inferred    clocks: what makes `estimated_cycles` of large matrix products plausible
    guessed     nothing to check it against
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip, or of GPU.

    Attributes:
        peak_flops: Dense bfloat16 FLOP/s of a chip; published.
        hbm_bytes: What a program may use of a device's memory; compiler for TPUs, published for
            GPUs.
        hbm_bandwidth: Bytes/s of a chip; published.
        link_bandwidth: Bytes/s that a chip sends along one axis of the torus, both directions
            together; of a GPU, all that it sends.
        network_bandwidth: Bytes/s that a chip sends to other slices; guessed.
        host_bandwidth: Bytes/s between a chip and the memory of its host, one way; guessed.
        clock: Hz; None where the compiler gives no cycles.
        torus_dims: Of the wiring; 0 where every device reaches every other one directly.
        devices_per_chip: JAX devices.
        source: Where clock and link bandwidth come from.
    """

    name: str
    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    clock: float | None
    torus_dims: int
    devices_per_chip: int
    source: str


# Peaks and bandwidths of memory: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} and NVIDIA's data
# sheets of the SXM modules. Links: what the same pages state for a chip, less the tenth that
# protocols take. Between slices: a host's network interfaces, shared by its chips. To the host: 16
# lanes of PCIe for each chip, of the third generation up to v5p, then the fourth or fifth.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="TPU v4",
            peak_flops=275e12,
            hbm_bytes=30.75 * GIB,
            hbm_bandwidth=1228e9,
            link_bandwidth=90e9,
            network_bandwidth=6.25e9,
            host_bandwidth=15e9,
            clock=1.05e9,
            torus_dims=3,
            devices_per_chip=1,
            source="clock inferred, links published",
        ),
        Chip(
            name="v5e",
            kind="TPU v5e",
            peak_flops=197e12,
            hbm_bytes=15.75 * GIB,
            hbm_bandwidth=819e9,
            link_bandwidth=90e9,
            network_bandwidth=3.125e9,
            host_bandwidth=15e9,
            clock=1.5e9,
            torus_dims=2,
            devices_per_chip=1,
            source="clock inferred, links published",
        ),
        Chip(
            name="v5p",
            kind="TPU v5p",
            peak_flops=459e12,
            hbm_bytes=95.74 * GIB,
            hbm_bandwidth=2765e9,
            link_bandwidth=180e9,
            network_bandwidth=6.25e9,
            host_bandwidth=15e9,
            clock=1.75e9,
            torus_dims=3,
            devices_per_chip=1,
            source="clock inferred, links published",
        ),
        Chip(
            name="v6e",
            kind="TPU v6e",
            peak_flops=918e12,
            hbm_bytes=31.25 * GIB,
            hbm_bandwidth=1640e9,
            link_bandwidth=180e9,
            network_bandwidth=12.5e9,
            host_bandwidth=30e9,
            clock=1.75e9,
            torus_dims=2,
            devices_per_chip=1,
            source="clock guessed, links published",
        ),
        Chip(
            name="tpu7x",
            kind="TPU7x",
            peak_flops=2307e12,
            hbm_bytes=94.75 * GIB,
            hbm_bandwidth=7380e9,
            link_bandwidth=180e9,
            network_bandwidth=12.5e9,
            host_bandwidth=30e9,
            clock=2.2e9,
            torus_dims=3,
            devices_per_chip=2,
            source="clock guessed, links published",
        ),
        Chip(
            name="h100",
            kind="NVIDIA H100 SXM",
            peak_flops=989e12,
            hbm_bytes=80e9,
            hbm_bandwidth=3350e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=55e9,
            clock=None,
            torus_dims=0,
            devices_per_chip=1,
            source="no cycles, so a roofline; links published",
        ),
        Chip(
            name="h200",
            kind="NVIDIA H200 SXM",
            peak_flops=989e12,
            hbm_bytes=141e9,
            hbm_bandwidth=4800e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,
            host_bandwidth=55e9,
            clock=None,
            torus_dims=0,
            devices_per_chip=1,
            source="no cycles, so a roofline; links published",
        ),
    )
}
