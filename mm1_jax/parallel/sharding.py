"""Mesh axes, rules that map logical names to them, and shardings of whole trees.

An *axis* is always a mesh axis, a *dim* a tensor dimension. A parameter carries one logical name
per dim, and `AxisRules` maps each name to the mesh axes that split it. The same model also runs
without a mesh; `constrain` is then the identity.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.batch import Batch, ImageTextBatch

# From least to most communication: neighbors on the last axes are neighbors on the torus.
MESH_AXES = ("data", "expert", "fsdp", "seq", "model")

# One logical name (or None) per dim of an array.
LogicalAxes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """Table of the mesh axes that split dims of each logical name; empty means not split.

    The first block names dims of activations, the second dims of parameters. Axes that a mesh lacks
    are ignored, so one table serves many meshes.
    """

    batch: tuple[str, ...] = ("data", "expert", "fsdp")
    images: tuple[str, ...] = ("data", "expert", "fsdp")
    sequence: tuple[str, ...] = ("seq",)
    activation_heads: tuple[str, ...] = ("model",)
    activation_kv_heads: tuple[str, ...] = ("model",)
    activation_mlp: tuple[str, ...] = ("model",)
    activation_vocab: tuple[str, ...] = ("model",)

    layers: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ("model",)
    embed: tuple[str, ...] = ("fsdp",)
    mlp: tuple[str, ...] = ("model",)
    heads: tuple[str, ...] = ("model",)
    kv_heads: tuple[str, ...] = ("model",)
    expert: tuple[str, ...] = ("expert",)

    def spec(self, names: Sequence[str | None], mesh: Mesh) -> PartitionSpec:
        """Returns the partition of an array whose dims have these logical `names`.

        Raises:
            ValueError: A name has no rule, or two dims would be split over the same mesh axis.
        """
        used: dict[str, str] = {}
        dims: list[Any] = []
        for name in names:
            if name is None:
                dims.append(None)
                continue
            if not hasattr(self, name):
                known = ", ".join(field.name for field in dataclasses.fields(self))
                raise ValueError(
                    f"no axis rule for the logical name {name!r}; the rules have {known}"
                )
            axes = tuple(axis for axis in getattr(self, name) if mesh.shape.get(axis, 1) > 1)
            for axis in axes:
                if axis in used:
                    raise ValueError(
                        f"logical names {used[axis]!r} and {name!r} of {tuple(names)} are both "
                        f"split over the mesh axis {axis!r}; change the axis rules so that one of "
                        "them is not"
                    )
                used[axis] = name
            dims.append(axes[0] if len(axes) == 1 else axes or None)
        return PartitionSpec(*dims)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Placement of activations: a mesh, and the rules that map logical names to its axes."""

    mesh: Mesh
    rules: AxisRules

    def num_shards(self, axes: str | tuple[str, ...] | None) -> int:
        """Returns the number of shards of a dim split over these axes (a `PartitionSpec` entry)."""
        return _num_shards(axes, self.mesh)


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "placement", default=None
)


_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Sets the platform to trace for without a mesh, so that no device is queried."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None, rules: AxisRules | None = None) -> Iterator[None]:
    """Makes `constrain` place activations on `mesh` for code traced inside this context."""
    token = _placement.set(None if mesh is None else Placement(mesh, rules or AxisRules()))
    try:
        yield
    finally:
        _placement.reset(token)


def current_placement() -> Placement | None:
    """Returns the placement of the surrounding `use_mesh`, or None.

    `constrain` reads it only while tracing. A jitted function that is called on several meshes must
    therefore take it as a static argument, so that it becomes part of the compilation key.
    """
    return _placement.get()


def current_platform() -> str:
    """Returns the platform being compiled for: "tpu", "gpu" or "cpu".

    In ahead-of-time compilation the mesh consists of a topology's devices, and its platform may
    differ from the one that JAX runs on.
    """
    placement = _placement.get()
    if placement is None:
        platform = _platform.get() or jax.default_backend()
    else:
        platform = placement.mesh.devices.flat[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def current_device_kind() -> str:
    """Returns the kind of device being compiled for, such as "TPU v5p"; "" if it is not known."""
    placement = _placement.get()
    if placement is None:
        return "" if _platform.get() else jax.devices()[0].device_kind
    return getattr(placement.mesh.devices.flat[0], "device_kind", "")


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Shards an activation by the rules for its logical `names`; the identity without a mesh.

    A dim that its axes do not divide, such as a batch of one prompt, is left to the compiler.
    """
    placement = _placement.get()
    if placement is None:
        return x
    spec = dividing_spec(x.shape, names, placement, otherwise=PartitionSpec.UNCONSTRAINED)
    return jax.lax.with_sharding_constraint(x, NamedSharding(placement.mesh, spec))


def dividing_spec(
    shape: Sequence[int],
    names: Sequence[str | None],
    placement: Placement,
    *,
    otherwise: Any = None,
) -> PartitionSpec:
    """Returns the partition of an activation by its logical `names`.

    Args:
        otherwise: Entry for dims that their axes do not divide; None means not split.
    """
    spec = placement.rules.spec(names, placement.mesh)
    return PartitionSpec(
        *(
            axes if size % placement.num_shards(axes) == 0 else otherwise
            for size, axes in zip(shape, spec, strict=True)
        )
    )


def per_shard(
    function: Callable[..., Any],
    names: Sequence[LogicalAxes],
    out_names: Sequence[LogicalAxes],
    *,
    along: Sequence[str] | None = None,
) -> Callable[..., Any]:
    """Wraps `function` to run per device on its shards, with explicit collectives.

    Without a mesh, or if the axes do not divide an argument, `function` gets whole arrays and
    partitioning is left to the compiler. `shard_axes` tells it which of the two applies.

    Args:
        names: Logical names of the dims of each argument.
        out_names: Logical names of the dims of each result.
        along: Restricts this to the mesh axes of these logical names; the compiler partitions along
            the others.
    """

    def run(*args: jax.Array) -> Any:
        placement = _placement.get()
        if placement is None:
            return function(*args)
        mesh, rules = placement.mesh, placement.rules
        manual = set(mesh.axis_names)
        if along is not None:
            manual = {axis for name in along for axis in _axes_of(name, rules, mesh)}
        if not manual:
            return function(*args)

        def spec(dims: LogicalAxes) -> PartitionSpec:
            return _restricted_to(rules.spec(dims, mesh), manual)

        specs = [spec(dims) for dims in names]
        for x, axes in zip(args, specs, strict=True):
            if any(n % _num_shards(a, mesh) for n, a in zip(x.shape, axes, strict=True)):
                return function(*args)
        # Replicated results are replicated by construction; the check does not understand gathers.
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=tuple(spec(dims) for dims in out_names),
            axis_names=manual,
            check_vma=False,
        )(*args)

    return run


def _axes_of(name: str, rules: AxisRules, mesh: Mesh) -> tuple[str, ...]:
    return tuple(jax.tree.leaves(tuple(rules.spec((name,), mesh))))


def _restricted_to(spec: PartitionSpec, axes: set[str]) -> PartitionSpec:
    """Restricts `spec` to these mesh axes."""
    dims = ((dim,) if isinstance(dim, str) else dim or () for dim in spec)
    return PartitionSpec(*(tuple(axis for axis in dim if axis in axes) or None for dim in dims))


def shard_axes(name: str) -> tuple[str, ...]:
    """Returns the mesh axes that split dims of this logical name; () outside of `per_shard`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    placement = _placement.get()
    if placement is None or not manual:
        return ()
    return tuple(axis for axis in getattr(placement.rules, name) if axis in manual)


def gather_shards(x: jax.Array, name: str, dim: int) -> jax.Array:
    """Inside `per_shard`, gathers `dim` of x, named `name`; the gradient is reduce-scattered."""
    axes = shard_axes(name)
    if not axes:
        return x
    whole = jax.lax.all_gather(x, axes, axis=dim, tiled=True)
    # Fix the layout, or the compiler may transpose large kernels before the gather.
    return with_layout_constraint(whole, Layout(tuple(range(x.ndim))))


def gather_all_shards(x: jax.Array, names: LogicalAxes) -> jax.Array:
    """Inside `per_shard`, gathers all dims of x, which have these logical names."""
    for dim, name in enumerate(names):
        x = x if name is None else gather_shards(x, name, dim)
    return x


def sum_shards(x: jax.Array, name: str) -> jax.Array:
    """Inside `per_shard`, sums x over the devices that dims named `name` are split over."""
    axes = shard_axes(name)
    return jax.lax.psum(x, axes) if axes else x


def _num_shards(axes: Any, mesh: Mesh) -> int:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[axis] for axis in axes)


def parameter_shardings(params: nnx.State, mesh: Mesh, rules: AxisRules) -> nnx.State:
    """Returns the sharding of every parameter, in a tree with the structure of `params`.

    Args:
        params: Parameters or their shapes.

    Raises:
        ValueError: A parameter lacks logical names, or the mesh does not divide its dims. The
            message names the parameter.
    """

    def sharding(path: Any, variable: nnx.Variable) -> nnx.Variable:
        name = "/".join(str(part) for part in path)
        shape = variable.get_value().shape
        names = variable.get_metadata("out_sharding", None)
        if names is None or len(names) != len(shape):
            raise ValueError(
                f"parameter {name} of shape {shape} has the logical names {names}; "
                "give one name per dim"
            )
        try:
            spec = rules.spec(names, mesh)
        except ValueError as error:
            raise ValueError(f"parameter {name}: {error}") from None
        for dim, (size, axes) in enumerate(zip(shape, spec, strict=True)):
            if size % _num_shards(axes, mesh):
                raise ValueError(
                    f"parameter {name}: dim {dim} ({names[dim]!r}, size {size}) is not divisible "
                    f"by the mesh axes {axes} of {_num_shards(axes, mesh)} devices; change the "
                    "size, the mesh or the axis rules"
                )
        return variable.replace(NamedSharding(mesh, spec))

    flat = [(path, sharding(path, variable)) for path, variable in nnx.to_flat_state(params)]
    return nnx.from_flat_state(flat)


def batch_shardings(mesh: Mesh, rules: AxisRules, kind: type = Batch) -> Any:
    """Returns the sharding of every field of a batch: rows and images over the batch axes."""
    dims = _BATCH_DIMS[kind]
    return _make_batch(
        kind, {name: NamedSharding(mesh, rules.spec(dims[name], mesh)) for name in dims}
    )


def constrain_batch(batch: Any) -> Any:
    """Shards a batch like `batch_shardings`; a leading dim of micro-batches is not split."""

    def split(x: jax.Array, dims: tuple[str | None, ...]) -> jax.Array:
        return constrain(x, *[None] * (x.ndim - len(dims)), *dims)

    dims = _BATCH_DIMS[type(batch)]
    return _make_batch(
        type(batch), {name: split(getattr(batch, name), dims[name]) for name in dims}
    )


_PER_ROW, _PER_POSITION = ("batch",), ("batch", None)
_BATCH_DIMS: dict[type, dict[str, tuple[str | None, ...]]] = {
    Batch: {
        each.name: ("images", None, None, None) if each.name == "images" else _PER_POSITION
        for each in dataclasses.fields(Batch)
    },
    ImageTextBatch: {
        "images": ("images", None, None, None),
        "tokens": _PER_POSITION,
        "lengths": _PER_ROW,
        "row_seeds": _PER_ROW,
        "corpus_ids": _PER_ROW,
    },
}


def _make_batch(kind: type, fields: dict[str, Any]) -> Any:
    # Bypass the constructor: trees of shardings, shapes or None have no array fields to check.
    batch = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(batch, name, value)
    return batch


def _register(kind: type) -> None:
    names = tuple(_BATCH_DIMS[kind])
    jax.tree_util.register_pytree_with_keys(
        kind,
        flatten_with_keys=lambda batch: (
            [(jax.tree_util.GetAttrKey(name), getattr(batch, name)) for name in names],
            None,
        ),
        unflatten_func=lambda _, values: _make_batch(kind, dict(zip(names, values, strict=True))),
        flatten_func=lambda batch: ([getattr(batch, name) for name in names], None),
    )


for _kind in _BATCH_DIMS:
    _register(_kind)
