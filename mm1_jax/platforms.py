"""Keeps JAX from looking for a TPU where libtpu is installed, as for rehearsals, and no TPU is.

libtpu would print errors about it. Nothing here imports jax.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

_VARIABLE = "JAX_PLATFORMS"
# JAX sets it where it finds no TPU, and child processes inherit it.
_NO_SIGN = "TPU_SKIP_MDS_QUERY"
_GOOGLE = "0x1ae0"  # PCI vendor of TPUs, and of network cards of Google Cloud.


def prefer_cpu() -> None:
    """Chooses JAX's CPU platform if that is all there is, before jax is imported."""
    if os.environ.get(_VARIABLE) or not _has_module("libtpu"):
        return
    if not (may_have_tpu(Path("/"), os.environ) or _has_plugins()):
        os.environ[_VARIABLE] = "cpu"


def may_have_tpu(root: Path, env: Mapping[str, str]) -> bool:
    """Returns whether a machine may have a TPU; false only if there is no sign of one.

    Args:
        root: Root of the file system.
        env: Environment variables.
    """
    names = [name for name in env if name.startswith("TPU_") and name != _NO_SIGN]
    if names or "JAX_FORCE_TPU_INIT" in env:
        return True
    if [*root.glob("dev/accel*"), *root.glob("dev/vfio/*")]:
        return True
    try:
        vendors = [x.read_text().strip() for x in root.glob("sys/bus/pci/devices/*/vendor")]
    except OSError:
        return True
    # Without any device, PCI is not visible here.
    return not vendors or _GOOGLE in vendors


def _has_plugins() -> bool:
    """Returns whether JAX finds another platform, such as CUDA."""
    return _has_module("jax_plugins") or bool(importlib.metadata.entry_points(group="jax_plugins"))


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
