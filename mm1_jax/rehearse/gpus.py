"""Describes GPUs to XLA's CUDA compiler, so that it compiles without one.

The compiler would query a GPU for its limits; here they are listed as the driver reports them.
Autotuning needs a GPU, so the compiler uses its default algorithm for each product.
"""

import importlib.util
from pathlib import Path
from typing import Any

from mm1_jax.rehearse.topologies import Topology

# GPU -> memory in bytes, memory bandwidth in bytes/s, and the driver's name.
_GPUS = {
    "h100": (84_942_979_072, 3_352_320_000_000, "NVIDIA H100 80GB HBM3"),
    "h200": (151_397_597_184, 4_800_000_000_000, "NVIDIA H200"),
}

# An xla.GpuTargetConfigProto of a Hopper GPU (SXM), in protobuf's text format.
_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def environment() -> dict[str, str]:
    """Returns variables to set before jax is imported; none if the CUDA plug-in is missing."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    tools = next((path for each in folders if (path := Path(each) / "cu13").is_dir()), None)
    if tools is None:
        return {}
    flags = {
        "cuda_data_dir": tools,
        "autotune_level": 0,
        # Without autotuning, it fails on some products; cuBLAS supports all.
        "enable_triton_gemm": "false",
    }
    return {"XLA_FLAGS": " ".join(f"--xla_gpu_{name}={value}" for name, value in flags.items())}


def topology_options(topology: Topology) -> dict[str, Any]:
    """Returns arguments of `get_topology_desc` for the GPUs of one host.

    Raises:
        ValueError: The CUDA plug-in is not installed.
    """
    if importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        raise ValueError(
            "jax's CUDA plug-in, which compiles for GPUs, is not installed; "
            "pip install 'mm1_jax[rehearse-cuda]'"
        )
    memory, bandwidth, name = _GPUS[topology.chip.name]
    return {
        "platform": "cuda",
        "topology_name": topology.chip.name,
        "topology": f"1x1x{topology.shape[0]}",
        "target_config": _TARGET.format(memory=memory, bandwidth=bandwidth, name=name),
    }
