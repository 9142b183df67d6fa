"""Parses names of TPU slices and GPU hosts.

v5p:4x4x8   2xv5p:4x4x4 (two slices)   v5p-128, v5litepod-256 (Cloud's names)   h100:8
"""

import math
import re
from dataclasses import dataclass

from mm1_jax.config import close_names
from mm1_jax.parallel.chips import CHIPS, Chip

# Cloud's accelerator type -> chip, and how much each chip adds to the type's number.
_CLOUD = {
    "v4": ("v4", 2),
    "v5litepod": ("v5e", 1),
    "v5e": ("v5e", 1),
    "v5p": ("v5p", 2),
    "v6e": ("v6e", 1),
    "tpu7x": ("tpu7x", 2),
}

# Shapes that Cloud uses for each number of chips.
_SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SHAPES_3D = (
    "2x2x1",
    "2x2x2",
    "2x2x4",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
)

_NAME = re.compile(r"(?:(\d+)x)?([a-z]\w*?)(?::(\d+(?:x\d+)*)|-(\d+))")


@dataclass(frozen=True)
class Topology:
    """One or more slices of chips, each wired as a torus of `shape`."""

    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def name(self) -> str:
        """Canonical name, which `parse_topology` reads."""
        slices = f"{self.num_slices}x" if self.num_slices > 1 else ""
        return f"{slices}{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return self.num_slices * math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    @property
    def is_tpu(self) -> bool:
        return self.chip.torus_dims > 0

    @property
    def device_peak_flops(self) -> float:
        """Peak FLOP/s of a JAX device."""
        return self.chip.peak_flops / self.chip.devices_per_chip

    def device_peak(self, operands: str) -> float | None:
        """Peak operations/s of a JAX device on "int8" or "fp8"; None if bfloat16 is as fast."""
        peak = self.chip.peak(operands)
        return None if peak is None else peak / self.chip.devices_per_chip

    @property
    def device_hbm_bandwidth(self) -> float:
        """HBM bandwidth of a JAX device in bytes/s."""
        return self.chip.hbm_bandwidth / self.chip.devices_per_chip

    @property
    def device_vector_rate(self) -> float:
        """Vector operations of a JAX device on 32-bit elements per second."""
        return self.chip.vector_rate / self.chip.devices_per_chip

    @property
    def device_link_bandwidth(self) -> float:
        """Bytes/s that a device sends over all torus axes longer than 1."""
        axes = sum(dim > 1 for dim in self.shape) if self.is_tpu else 1
        return max(axes, 1) * self.chip.link_bandwidth / self.chip.devices_per_chip

    @property
    def wrap(self) -> list[bool]:
        """Tells which dims of a TPU slice are rings: all if of 4x4x4 cubes, in 2D those of 16."""
        if self.chip.torus_dims == 3:
            return [all(dim % 4 == 0 for dim in self.shape)] * 3
        return [*(dim == 16 for dim in self.shape), False]


def parse_topology(name: str) -> Topology:
    """Returns the topology of a name.

    Raises:
        ValueError: There is none; the message suggests close names.
    """
    match = _NAME.fullmatch(name)
    slices, kind, shape, count = match.groups() if match else (None, name, None, None)
    if count is not None and kind in _CLOUD:
        chip, per_chip = _CLOUD[kind]
        return Topology(CHIPS[chip], _cloud_shape(name, chip, int(count) / per_chip), _int(slices))
    if kind not in CHIPS or shape is None:
        raise ValueError(f"--topology={name}: no such topology; {_hint(name, kind)}")
    chip = CHIPS[kind]
    dims = tuple(map(int, shape.split("x")))
    if len(dims) != max(chip.torus_dims, 1) or not all(dims):
        example = {0: f"{kind}:8", 2: f"{kind}:16x16", 3: f"{kind}:4x4x4"}[chip.torus_dims]
        raise ValueError(
            f"--topology={name}: {chip.kind} has {max(chip.torus_dims, 1)} positive dims, "
            f"e.g. {example}"
        )
    if not chip.torus_dims and (dims[0] > 8 or slices):
        raise ValueError(
            f"--topology={name}: only GPUs of one host are supported, {kind}:8 at most"
        )
    return Topology(chip, dims, _int(slices))


def _int(slices: str | None) -> int:
    return int(slices or 1) or 1


def _cloud_shape(name: str, chip: str, num_chips: float) -> tuple[int, ...]:
    shapes = _SHAPES_2D if CHIPS[chip].torus_dims == 2 else _SHAPES_3D
    by_chips = {math.prod(dims): dims for dims in (_dims(shape) for shape in shapes)}
    if num_chips not in by_chips:
        known = ", ".join(f"{chip}:{shape}" for shape in shapes)
        raise ValueError(
            f"--topology={name}: no shape is known for {num_chips:g} chips; give one of {known}"
        )
    return by_chips[int(num_chips)]


def _dims(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def _hint(name: str, kind: str) -> str:
    examples = [f"{chip}:{shape}" for chip in CHIPS for shape in _shapes_of(chip)]
    close = close_names(name, examples) or [f"{each}:..." for each in close_names(kind, CHIPS)]
    known = "v4:4x4x4, v5e:16x16, v5p:4x4x8, 2xv5p:4x4x4, v6e:16x16, tpu7x:8x8x8, h100:8, v5p-128"
    return f"did you mean {' or '.join(close)}?" if close else f"names look like {known}"


def _shapes_of(chip: str) -> tuple[str, ...]:
    return {0: ("8",), 2: _SHAPES_2D, 3: _SHAPES_3D}[CHIPS[chip].torus_dims]
