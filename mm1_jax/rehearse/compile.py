"""Compiles the train step of a config for devices that are only described.

`__main__` sets the environment (jax on the CPU, no search for TPUs) before it imports this module,
which imports jax.
"""

import importlib.metadata
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from mm1_jax.batch import Batch
from mm1_jax.parallel.chips import GIB
from mm1_jax.parallel.device_memory import Memory
from mm1_jax.parallel.sharding import MESH_AXES
from mm1_jax.rehearse import gpus
from mm1_jax.rehearse.links import Places
from mm1_jax.rehearse.topologies import Topology

# Packages that a compiled program depends on; one of the last two compiles it.
_VERSIONS = ("jax", "jaxlib", "flax", "libtpu", "jax-cuda13-plugin")

# Releases with which the figures in docs/ were predicted; the extras [rehearse] and
# [rehearse-cuda] install them.
PREDICTED_WITH = {"jax": "0.10.2", "libtpu": "0.0.42.1", "jax-cuda13-plugin": "0.10.2"}

# Further arguments that describe a TPU slice, by kind of chip.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}


@dataclass(frozen=True)
class Compiled:
    """A compiled train step.

    Attributes:
        text: The optimized, scheduled HLO; None if the program does not fit.
        memory: None if the program does not fit.
        needed: Bytes per device that a program that does not fit would need, if known.
        parallelism: Field -> text of the parallelism that mesh rule and config chose, except axes,
            which are in `mesh`.
        places: Coordinates of the devices of a slice, in the order of the program's numbers; None
            for GPUs.
    """

    text: str | None
    memory: Memory | None
    needed: float | None
    mesh: dict[str, int]
    parallelism: dict[str, str]
    places: Places | None
    lower_seconds: float
    compile_seconds: float


def make_devices(topology: Topology) -> list[Any]:
    """Returns the devices of a slice that need not exist, in the order of their ids.

    Raises:
        ValueError: The compiler does not know such a slice, or is not installed.
    """
    options = _tpu_options(topology) if topology.is_tpu else gpus.topology_options(topology)
    try:
        description = topologies.get_topology_desc(**options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology.name}: the compiler has no such slice ({_first_line(error)})"
        ) from error
    return list(description.devices)


def _tpu_options(topology: Topology) -> dict[str, Any]:
    if version("libtpu") is None:
        raise ValueError(
            "libtpu, which compiles for TPUs, is not installed; pip install 'mm1_jax[rehearse]'"
        )
    options: dict[str, Any] = dict(_OPTIONS.get(topology.chip.name, {}))
    if any(topology.wrap):
        options["wrap"] = topology.wrap
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    shape = "x".join(map(str, topology.shape))
    return {"platform": "tpu", "topology_name": f"{topology.chip.name}:{shape}", **options}


def compile_train_step(
    cfg: Any, topology: Topology, progress: Callable[[str], None] = lambda stage: None
) -> Compiled:
    """Compiles the train step that a launch of the resolved `cfg` would run on such a slice.

    Args:
        progress: Called with the name of each stage before it starts.

    Raises:
        ValueError: The config does not fit onto the slice's mesh.
    """
    progress("describing the slice")
    devices = make_devices(topology)
    progress("lowering the train step")
    start = time.perf_counter()
    try:
        program = cfg.klass.program(cfg, devices)
    except NotImplementedError as error:
        raise ValueError(
            f"--topology={topology.name}: trainer.parallelism does not fit onto it: "
            f"{_first_line(error)}"
        ) from error
    lowered = program.lower()
    lowered_at = time.perf_counter()
    progress("compiling")
    text, memory, needed = None, None, None
    try:
        compiled = program.compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        if "memory space vmem" in str(error):
            raise ValueError(
                "a kernel needs more of the chip's vector memory than the compiler allows; use "
                "smaller blocks, or --config.trainer.parallelism.compiler_options="
                f"\"('xla_tpu_scoped_vmem_limit_kib=65536',)\" ({_first_line(error)})"
            ) from error
        needed = bytes_needed(str(error))
    else:
        text, memory = compiled.as_text(), Memory.of(compiled.memory_analysis())
    return Compiled(
        text=text,
        memory=memory,
        needed=needed,
        mesh=dict(program.mesh.shape),
        parallelism=_chosen(program.parallelism.config),
        places=_places(program.mesh, topology),
        lower_seconds=lowered_at - start,
        compile_seconds=time.perf_counter() - lowered_at,
    )


def places_of(cfg: Any, topology: Topology) -> Places | None:
    """Returns the places of a program's devices in the mesh of the resolved `cfg`."""
    return _places(cfg.klass.program(cfg, make_devices(topology)).mesh, topology)


def _places(mesh: Mesh, topology: Topology) -> Places | None:
    if not topology.is_tpu:
        return None
    # A program for several slices is that of the first.
    devices = [device for device in mesh.devices.flat if getattr(device, "slice_index", 0) == 0]
    return [tuple(device.coords) for device in devices]


def _chosen(parallelism: Any) -> dict[str, str]:
    chosen = {
        name: value
        for name, value in parallelism.items()
        if value is not None and name not in (*MESH_AXES, "klass", "rules")
    }
    return {name: str(getattr(value, "value", value)) for name, value in chosen.items()}


def bytes_needed(message: str) -> float | None:
    """Returns the bytes that a program needs, from the compiler's message that it does not fit.

    >>> bytes_needed("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.") / GIB
    20.5
    """
    match = re.search(r"Used ([\d.]+)([KMGT]?) of|temporaries \(([\d.]+)([KMGT]?)\)", message)
    if match is None:
        return None
    number, unit = (group for group in match.groups() if group is not None)
    return float(number) * GIB * {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}.get(unit, 1 / GIB)


# Stream -> images per row: MM1's packing of web pages, and none in text. Rows of captions are full,
# since they run out of image slots before tokens. Rows of 4096 of conversations have 22.36 views if
# nine of ten are about one picture of five views (docs/fine_tuning.md).
_IMAGES_PER_ROW = {
    "captions": math.inf,
    "interleaved": 10.0,
    "text": 0.0,
    "conversations": 22.36,
}


def expected_images(cfg: Any, images_per_row: float | None = None) -> float:
    """Returns the average number of images in a batch of the resolved `cfg`, over its streams.

    Args:
        images_per_row: Average over all rows, if known.

    Raises:
        ValueError: `images_per_row` is None, and a stream is not one of MM1's mixture.
    """
    batch = cfg.klass.objective(cfg).batch
    num_slots = batch.images.shape[0]
    if not isinstance(batch, Batch):
        # A picture per row.
        return float(num_slots)
    streams = [stream for stream in cfg.input.streams if stream.weight]
    if images_per_row is None:
        unknown = [stream.name for stream in streams if stream.name not in _IMAGES_PER_ROW]
        if unknown:
            raise ValueError(
                f"the number of images per row of the stream {unknown[0]!r} is unknown; give the "
                "average over all rows by --images_per_row=N"
            )
        total = sum(
            stream.weight * min(_IMAGES_PER_ROW[stream.name], cfg.input.max_images)
            for stream in streams
        )
        images_per_row = total / max(sum(stream.weight for stream in streams), 1)
    return float(min(images_per_row * cfg.input.batch_size, num_slots))


def model_flops(cfg: Any, num_images: float) -> float:
    """Returns the FLOPs of a training step of the resolved `cfg`, with so many images per batch."""
    objective = cfg.klass.objective(cfg)
    return objective.flops().of_training(objective.num_rows, num_images)


def versions() -> dict[str, str | None]:
    return {name: version(name) for name in _VERSIONS}


def other_versions(compiler: str) -> list[str]:
    """Returns a warning if jax or `compiler` is not of the release behind the figures in docs/."""
    names = ("jax", compiler)
    if all(version(name) == PREDICTED_WITH[name] for name in names):
        return []
    installed, expected = (
        " and ".join(f"{name} {known[name]}" for name in names)
        for known in (versions(), PREDICTED_WITH)
    )
    extra = "rehearse" if compiler == "libtpu" else "rehearse-cuda"
    return [
        f"{installed} may compile another program than {expected}, for which the figures of "
        f"docs/performance.md were predicted; those are installed by 'mm1_jax[{extra}]'"
    ]


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
