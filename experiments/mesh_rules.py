"""How the models are spread over each kind and number of devices; the first match counts."""

from mm1_jax.parallelism import MeshRule, Parallelism


def by_device() -> list[MeshRule]:
    """All parameters and rows over all devices (FSDP)."""
    return [MeshRule().set(devices=".*", parallelism=Parallelism.default_config().set(fsdp=-1))]
