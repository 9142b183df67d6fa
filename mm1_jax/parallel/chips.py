"""Specifications of accelerator chips: FLOP/s, memory, bandwidths.

Figures come from four sources, which the report of a rehearsal names:

    published   the chip's page of Google Cloud or NVIDIA
    compiler    memory that libtpu 0.0.42.1 allows a program, according to its error messages
    inferred    clock rates that make `estimated_cycles` of large matrix products plausible
    guessed     no source to check against
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A type of TPU chip or GPU.

    Attributes:
        peak_flops: Dense bfloat16 FLOP/s per chip; published.
        peak_int8, peak_fp8: Dense operations/s per chip on operands of these types; published. None
            if the chip multiplies them no faster than bfloat16.
        hbm_bytes: Memory of one JAX device that a program may use; from the compiler for TPUs,
            published for GPUs.
        hbm_bandwidth: Memory bandwidth per chip in bytes/s; published.
        vector_rate: Operations of the vector units on 32-bit elements per second and chip: cores x
            8 x 128 lanes x adders per lane x clock. A core of v4 has two adders per lane, one of v5
            four, says "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus, appendix C);
            guessed for later chips. For a GPU, half of its published FP32 FLOP/s.
        link_bandwidth: Bytes/s that a chip sends along one axis of the torus, both directions
            together. For a GPU, all bytes/s that it sends over its links.
        network_bandwidth: Bytes/s that a chip sends to other slices; guessed.
        host_bandwidth: Bytes/s between a chip and its host's memory, in one direction; guessed.
        clock: Clock rate in Hz; None if the compiler reports no cycles.
        torus_dims: Number of torus dims of the interconnect; 0 if all devices are linked directly.
        devices_per_chip: Number of JAX devices per chip.
        source: Source of clock and link bandwidth.
    """

    name: str
    kind: str
    peak_flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    vector_rate: float
    link_bandwidth: float
    network_bandwidth: float
    host_bandwidth: float
    clock: float | None
    torus_dims: int
    devices_per_chip: int
    source: str
    peak_int8: float | None = None
    peak_fp8: float | None = None

    def peak(self, operands: str) -> float | None:
        """Returns the peak for operands of "int8" or "fp8"; None if bfloat16 is as fast."""
        return {"int8": self.peak_int8, "fp8": self.peak_fp8}[operands]


# Peak FLOP/s and memory bandwidths are from cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} and
# NVIDIA's data sheets of the SXM modules, where figures with sparsity are halved. The int8 peak of
# v5p is from its announcement (December 2023). Link bandwidths are from the same pages, minus 10%
# for protocol overhead. Bandwidths between slices are those of a host's network interfaces, shared
# by its chips. Host bandwidths are those of 16 PCIe lanes per chip: generation 3 up to v5p, then
# generation 4 or 5.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            kind="TPU v4",
            peak_flops=275e12,
            hbm_bytes=30.75 * GIB,
            hbm_bandwidth=1228e9,
            vector_rate=2 * 1024 * 2 * 1.05e9,
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
            peak_int8=393e12,
            hbm_bytes=15.75 * GIB,
            hbm_bandwidth=819e9,
            vector_rate=1024 * 4 * 1.5e9,
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
            peak_int8=918e12,
            hbm_bytes=95.74 * GIB,
            hbm_bandwidth=2765e9,
            vector_rate=2 * 1024 * 4 * 1.75e9,
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
            peak_int8=1836e12,
            hbm_bytes=31.25 * GIB,
            hbm_bandwidth=1640e9,
            vector_rate=1024 * 4 * 1.75e9,
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
            peak_fp8=4614e12,
            hbm_bytes=94.75 * GIB,
            hbm_bandwidth=7380e9,
            vector_rate=2 * 1024 * 4 * 2.2e9,
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
            peak_int8=1979e12,
            peak_fp8=1979e12,
            hbm_bytes=80e9,
            hbm_bandwidth=3350e9,
            vector_rate=33.5e12,
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
            peak_int8=1979e12,
            peak_fp8=1979e12,
            hbm_bytes=141e9,
            hbm_bandwidth=4800e9,
            vector_rate=33.5e12,
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
