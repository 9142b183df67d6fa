"""Detection of silent data corruption: devices that compute wrong bits without any error.

There are two checks, each at intervals. The first runs a step twice from the same state and batch.
A program is deterministic, so a device with a different result is faulty. The second compares
copies of an array on several devices, which must be bit-identical; a device with a different copy
made an error some steps ago.

Both compare a digest per device and array, the sum of its bits as 32-bit integers. It changes with
any single bit and costs one pass over memory; only digests are communicated.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import PositiveInt
from mm1_jax.train.train_state import TrainState


class Corrupted(RuntimeError):
    """Raised if a device's result differs from its own earlier one or from another device's."""


class Corruption(Configurable):
    """Checks for corruption at intervals; disabled by default."""

    @config_class
    class Config(Configurable.Config):
        # A recomputed step takes twice the time, and memory for a second state.
        recompute_every_n_steps: PositiveInt | None = None
        compare_replicas_every_n_steps: PositiveInt | None = None

    def __init__(self, cfg: Config, *, mesh: Mesh, state: TrainState):
        """`state` holds shapes with shardings."""
        super().__init__(cfg)
        self._mesh = mesh
        self._names = [
            jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state)
        ]
        self._shardings = jax.tree.map(lambda x: x.sharding, state)
        self._shapes = [tuple(x.shape) for x in jax.tree.leaves(state)]
        self._digests = jax.jit(_digests(mesh, self._shardings))
        self._copy = jax.jit(
            lambda state: jax.tree.map(jnp.copy, state), out_shardings=self._shardings
        )

    def recomputes(self, step: int) -> bool:
        every = self._config.recompute_every_n_steps
        return every is not None and step % every == 0

    def step_twice(
        self, make_step: Callable[[TrainState, Any], tuple[TrainState, Any]], state: Any, batch: Any
    ) -> tuple[TrainState, Any]:
        """Runs `make_step`, which donates the state, twice; returns its result.

        Raises:
            Corrupted: A device had a different result the second time.
        """
        again, _ = make_step(self._copy(state), batch)
        before = np.asarray(self._digests(again))
        del again
        state, metrics = make_step(state, batch)
        self._compare(before, np.asarray(self._digests(state)))
        return state, metrics

    def check_replicas(self, step: int, state: TrainState) -> None:
        """Raises Corrupted if copies of an array differ; checks only if due at `step`."""
        every = self._config.compare_replicas_every_n_steps
        if every is not None and step % every == 0:
            self.raise_if_replicas_differ(np.asarray(self._digests(state)))

    def raise_if_replicas_differ(self, digests: np.ndarray) -> None:
        """Raises Corrupted if digests of copies differ.

        Args:
            digests: Digest per device, in the order of the mesh, and array.
        """
        devices = list(self._mesh.devices.flat)
        for column, sharding in enumerate(jax.tree.leaves(self._shardings)):
            shape = self._shapes[column]
            places: Mapping[Any, Any] = sharding.devices_indices_map(shape)
            by_place: dict[str, list[tuple[Any, int]]] = {}
            for device, digest in zip(devices, digests[:, column].tolist(), strict=True):
                by_place.setdefault(str(places[device]), []).append((device, digest))
            for copies in by_place.values():
                counts = Counter(digest for _, digest in copies)
                if len(counts) > 1:
                    usual = counts.most_common(1)[0][0]
                    odd = [device for device, digest in copies if digest != usual]
                    raise Corrupted(
                        f"{self._names[column]} differs between devices that hold copies of it: "
                        f"{_device_names(odd)} against {len(copies) - len(odd)} others. Remove the "
                        "host, and resume from a checkpoint"
                    )

    def _compare(self, first: np.ndarray, second: np.ndarray) -> None:
        rows, columns = np.nonzero(first != second)
        if len(rows):
            devices = list(self._mesh.devices.flat)
            odd = [devices[i] for i in sorted(set(rows.tolist()))]
            names = ", ".join(self._names[i] for i in sorted(set(columns.tolist()))[:4])
            raise Corrupted(
                f"the same step gave different bits the second time, on {_device_names(odd)} (in "
                f"{names}, ...). Remove the host, and resume from a checkpoint"
            )


def _digests(mesh: Mesh, shardings: TrainState) -> Callable[[TrainState], jax.Array]:
    """Returns the function state -> uint32 digests per device of the mesh and array."""
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

    def of_device(state: TrainState) -> jax.Array:
        return jnp.stack([_digest(x) for x in jax.tree.leaves(state)])[None]

    every = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(specs,),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )

    def all_digests(state: TrainState) -> jax.Array:
        # Replicate the digests, so that every process has those of all devices.
        return jax.lax.with_sharding_constraint(every(state), NamedSharding(mesh, PartitionSpec()))

    return all_digests


def _digest(x: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jnp.sum(jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32), dtype=jnp.uint32)


def _device_names(devices: list[Any]) -> str:
    return ", ".join(f"{device} of process {device.process_index}" for device in devices)
