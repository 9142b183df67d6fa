"""Parallelism of a training step: mesh, axis rules, rematerialization, gradient accumulation.

The mesh rules of an experiment (`trainer.mesh_rules`) provide one `Parallelism.Config` per kind and
number of devices. `choose` takes the first rule that matches and applies the fields that are set in
`trainer.parallelism` on top.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mm1_jax.config import (
    REQUIRED,
    ConfigBase,
    Configurable,
    InstantiableConfig,
    Required,
    config_class,
)
from mm1_jax.field_types import PositiveInt, Range
from mm1_jax.parallel.rematerialisation import Remat
from mm1_jax.parallel.sharding import MESH_AXES, AxisRules

# Pattern of JAX's `device_kind`, and our short name of the kind.
_DEVICE_KINDS = (
    ("TPU v4.*", "v4"),
    ("TPU v5 lite.*|TPU v5e.*", "v5e"),
    ("TPU v5.*", "v5p"),
    ("TPU v6 lite.*|TPU v6e.*", "v6e"),
    ("TPU ?v?7x?.*", "tpu7x"),
    (".*H100.*", "h100"),
    (".*H200.*", "h200"),
    ("cpu", "cpu"),
)


# -1 uses all devices that the other axes leave.
AxisSize = Annotated[int, Range(at_least=-1, other_than=0)]


class Parallelism(Configurable):
    """Mesh axis sizes, axis rules and memory options of a step; creates the mesh.

    A field that is None takes its value from the mesh rule. Without a rule, it takes the default
    that its comment states.
    """

    @config_class
    class Config(Configurable.Config):
        # Sizes of the mesh axes. They default to 1, except `data`: it defaults to -1 (all remaining
        # devices) or, if another axis is -1, to the number of slices, so that only gradient sums
        # cross the network between slices. Axes of size 1 are not created. docs/training.md
        # explains why there are no pipeline stages.
        data: AxisSize | None = None
        expert: AxisSize | None = None
        fsdp: AxisSize | None = None
        seq: AxisSize | None = None
        model: AxisSize | None = None
        rules: AxisRules | None = None  # defaults to AxisRules()
        # Number of micro-batches per update; defaults to 1.
        gradient_accumulation: PositiveInt | None = None
        # Values that layers save for the backward pass; default to the fields of the model config.
        decoder_remat: Remat | None = None
        decoder_saved_names: tuple[str, ...] | None = None
        decoder_offloaded_names: tuple[str, ...] | None = None
        vision_encoder_remat: Remat | None = None
        vision_encoder_saved_names: tuple[str, ...] | None = None
        vision_encoder_offloaded_names: tuple[str, ...] | None = None
        text_encoder_remat: Remat | None = None
        text_encoder_saved_names: tuple[str, ...] | None = None
        text_encoder_offloaded_names: tuple[str, ...] | None = None
        # XLA options for compiling the step, each "name=value"; defaults to none.
        compiler_options: tuple[str, ...] | None = None

    def __init__(self, cfg: Config):
        super().__init__(cfg)
        self.rules: AxisRules = cfg.rules or AxisRules()
        self.gradient_accumulation: int = (
            1 if cfg.gradient_accumulation is None else cfg.gradient_accumulation
        )
        self.compiler_options = _options(cfg.compiler_options or ())

    def mesh(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Creates the mesh over `devices` (default: all) with only the axes in use.

        Axis types are `Auto`, because under explicit axes, the default of `jax.make_mesh`, ordinary
        operations raise errors.
        """
        devices = jax.devices() if devices is None else devices
        shape = mesh_shape(self.config, len(devices), num_slices(devices))
        if math.prod(shape.values()) == 1:
            shape = {"data": 1}
        grid = _device_grid(shape, devices)
        return Mesh(grid, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))

    def configure(self, model: InstantiableConfig) -> Any:
        """Returns a copy of a model config with the rematerialization fields of this config."""
        model = model.clone()
        for part in ("decoder", "vision_encoder", "text_encoder"):
            for field in ("remat", "saved_names", "offloaded_names"):
                value = getattr(self.config, f"{part}_{field}")
                if value is not None and getattr(model, part, None) is not None:
                    model.set_recursively((part, "stack", field), value=value)
        return model


@config_class
class MeshRule(ConfigBase):
    """Parallelism for devices whose `devices_name` fully matches a regular expression.

    The prefix for the number of slices is optional: `v5p-128` matches 128 devices in any number of
    slices, `2xv5p-128` two slices of 64. Devices are JAX devices, of which tpu7x has two per chip.
    """

    devices: Required[str] = REQUIRED
    parallelism: Required[Parallelism.Config] = REQUIRED


def _options(texts: Sequence[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(
                f"parallelism.compiler_options: {text!r} is not of the form name=value, such as "
                "xla_tpu_scoped_vmem_limit_kib=65536"
            )
        options[name] = value
    return options


def mesh_sizes(text: str) -> dict[str, int]:
    """Parses mesh axis sizes: `mesh_sizes("data=2,model=4") == {"data": 2, "model": 4}`."""
    sizes = {}
    for part in text.split(","):
        axis, equals, size = part.partition("=")
        if axis not in MESH_AXES or not equals or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise ValueError(
                f"mesh {text!r}: expected sizes of some of {', '.join(MESH_AXES)}, such as "
                "data=2,model=4"
            )
        sizes[axis] = int(size)
    return sizes


def mesh_shape(cfg: Parallelism.Config, num_devices: int, num_slices: int = 1) -> dict[str, int]:
    """Returns the sizes of mesh axes larger than 1, with -1 resolved from the device count."""
    sizes = {axis: getattr(cfg, axis) for axis in MESH_AXES}
    if sizes["data"] is None:
        sizes["data"] = num_slices if -1 in sizes.values() else -1
    sizes = {axis: 1 if size is None else size for axis, size in sizes.items()}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise ValueError(f"parallelism: only one axis may be -1, got {' and '.join(free)}")
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"parallelism: axis sizes are positive or -1, got {sizes}")
    if (free and num_devices % fixed) or (not free and fixed != num_devices):
        raise ValueError(
            f"parallelism: the axes {sizes} do not fit {num_devices} devices; "
            f"their product must be {num_devices}, or divide it if one axis is -1"
        )
    if free:
        sizes[free[0]] = num_devices // fixed
    return {axis: size for axis, size in sizes.items() if size > 1}


def _device_grid(shape: dict[str, int], devices: Sequence[Any]) -> np.ndarray:
    """Arranges devices so that neighbors on the last axes are neighbors on the torus.

    Slices are connected only by a network. The first axes whose sizes allow it are split over
    slices.
    """
    sizes = list(shape.values())
    slices = left = num_slices(devices)
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices=devices, allow_split_physical_axes=True)
    over_slices = []
    for size in sizes:
        over_slices.append(math.gcd(size, left))
        left //= over_slices[-1]
    if left > 1:
        raise ValueError(
            f"parallelism: {slices} slices cannot share the axes {shape} evenly; make data a "
            f"multiple of {slices}"
        )
    inside = [size // count for size, count in zip(sizes, over_slices, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inside, over_slices, devices=devices, allow_split_physical_axes=True
    )


def device_kind(device: Any) -> str:
    """Returns the short name of a device's kind, such as "v5p"; JAX's own name if unknown."""
    return short_name(device.device_kind)


def short_name(device_kind: str) -> str:
    for pattern, kind in _DEVICE_KINDS:
        if re.fullmatch(pattern, device_kind):
            return kind
    return device_kind


def num_slices(devices: Sequence[Any]) -> int:
    """Counts slices: groups of devices connected by fast links. On GPUs, a slice is a host."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def devices_name(devices: Sequence[Any]) -> str:
    """Returns the name of these devices in mesh rules: "v5p-64", or "2xv5p-64" in two slices."""
    return name_of(device_kind(devices[0]), len(devices), num_slices(devices))


def name_of(kind: str, number: int, num_slices: int = 1) -> str:
    """Builds a devices name from the total number: `name_of("v5p", 64, 2) == "2xv5p-64"`."""
    return f"{num_slices}x" * (num_slices > 1) + f"{kind}-{number}"


def matches(rule: MeshRule, devices: str) -> bool:
    """Returns whether a mesh rule applies to devices with this `devices_name`."""
    names = {devices, re.sub(r"^\d+x", "", devices)}
    return any(re.fullmatch(rule.devices, name) for name in names)


def choose(
    mesh_rules: Sequence[MeshRule], parallelism: Parallelism.Config, devices: str
) -> Parallelism.Config:
    """Returns the parallelism of the first matching rule, with overrides, or else `parallelism`.

    Args:
        parallelism: Fields that are not None override those of the rule.
        devices: The `devices_name` of the devices.
    """
    for rule in mesh_rules:
        if matches(rule, devices):
            own = {field: value for field, value in parallelism.items() if value is not None}
            return rule.parallelism.clone(**own)
    return parallelism
