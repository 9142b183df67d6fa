"""The compiled program of a run: objective and optimizer as pure functions, placed on a mesh.

Constructing a program creates no arrays and reads no data. The same program is therefore trained by
`loop.py` and compiled ahead of time by a rehearsal, for devices that need not be present.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.parallel.parallelism import MeshRule, Parallelism, choose, devices_name
from mm1_jax.parallel.sharding import use_mesh
from mm1_jax.train.guards.anomalies import Anomalies
from mm1_jax.train.host_batches import HostBatch
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.objective import Objective
from mm1_jax.train.optimizers.optimizer import Optimizer
from mm1_jax.train.train_state import (
    TrainState,
    abstract_model,
    first_shapes,
    make_initialize,
    state_shardings,
    with_shardings,
)
from mm1_jax.train.train_step import make_train_step


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """Everything that determines a compiled train step, except the devices."""

    objective: Objective
    optimizer: Optimizer.Config
    parallelism: Parallelism.Config
    mesh_rules: Sequence[MeshRule] = ()
    anomalies: Anomalies.Config | None = None
    norms_by_part: bool = False


class Program:
    """Train step of an objective on a mesh, and the abstract state that it updates.

    Attributes:
        graphdef: Graph definition of the model; `nnx.merge(graphdef, params)` is the model.
        mesh: Mesh over the devices.
        rows: Sharding of the rows of a batch.
        abstract_state: Shapes and shardings of the state.
        initialize: Pure function PRNG key -> initial state.
        train_step: Pure function (state, batch) -> (state, metrics).
    """

    def __init__(self, spec: ProgramSpec, devices: Sequence[Any]):
        """Places the step on `devices`, which need not be present.

        Raises:
            ValueError: Parameters or rows cannot be split evenly over the mesh.
        """
        parallelism = choose(spec.mesh_rules, spec.parallelism, devices_name(devices))
        self.parallelism: Parallelism = parallelism.instantiate()
        self.optimizer: Optimizer = spec.optimizer.instantiate()
        model = self.parallelism.configure(spec.objective.model)
        self.objective = dataclasses.replace(spec.objective, model=model)

        def make_model(prng_key: jax.Array) -> nnx.Module:
            return model.instantiate(rngs=nnx.Rngs(params=prng_key))

        self.graphdef, params = abstract_model(make_model)
        self.num_parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        self.mesh, self.rules = self.parallelism.mesh(devices), self.parallelism.rules
        self.rows = NamedSharding(self.mesh, self.rules.spec(("batch",), self.mesh))
        self.batch_shardings = self.objective.shardings(self.mesh, self.rules)
        _raise_if_indivisible(self.objective, self.rows, self.parallelism.gradient_accumulation)
        self.update = self.optimizer.update(params)
        self.initialize = make_initialize(make_model, self.update.first_state)
        shapes = first_shapes(params, self.update.first_state)
        trained, _ = self.update.split(shapes.params)
        shardings = state_shardings(shapes, params, trained, self.mesh, self.rules)
        self.abstract_state = with_shardings(shapes, shardings)
        guard = None if spec.anomalies is None else spec.anomalies.instantiate()
        self.train_step = make_train_step(
            self.objective,
            self.graphdef,
            self.update,
            gradient_accumulation=self.parallelism.gradient_accumulation,
            accepts=guard.accepts if guard is not None and guard.skips else None,
            norms_by_part=spec.norms_by_part,
        )

    def first_state(
        self, prng_key: jax.Array, loaded: Mapping[str, jax.Array] | None = None
    ) -> TrainState:
        """Creates the initial state directly with its shardings.

        Args:
            loaded: Parameters by path that replace randomly initialized ones; they are donated.
        """
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        initialize = jax.jit(
            self.initialize,
            out_shardings=shardings,
            donate_argnums=1,
            compiler_options=_quick_options(self.mesh),
        )
        return initialize(prng_key, dict(loaded or {}))

    def lower(self) -> jax.stages.Lowered:
        """Lowers the train step, which donates the state.

        The same executable is used for new and restored states. An array with another shape, dtype
        or placement is an error; it never leads to a second program with different rounding.
        """

        def placed_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
            with self.use_mesh():
                return self.train_step(state, batch)

        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        jitted = jax.jit(
            placed_step,
            in_shardings=(shardings, self.batch_shardings),
            out_shardings=(shardings, NamedSharding(self.mesh, PartitionSpec())),
            donate_argnums=0,
        )
        return jitted.lower(self.abstract_state, self.objective.batch)

    def compile(self, lowered: Any = None) -> Any:
        """Compiles the train step, lowered or not; batches must be placed with `place`."""
        lowered = self.lower() if lowered is None else lowered
        return lowered.compile(self.parallelism.compiler_options or None)

    def place(self, batch: HostBatch) -> Any:
        """Places a batch on the devices as global arrays."""
        return batch.place(self.batch_shardings)

    def model(self, params: Any) -> nnx.Module:
        return nnx.merge(self.graphdef, params)

    def use_mesh(self) -> Any:
        """Returns a context in which traced code is placed on the mesh."""
        return use_mesh(self.mesh, self.rules)


def _quick_options(mesh: Mesh) -> dict[str, int] | None:
    """Returns options to compile a program that runs once; results are the same bits.

    XLA optimizes each draw of random numbers for about a second on a CPU, a third of which is
    enough. A level in XLA_FLAGS is kept.
    """
    level = "xla_backend_optimization_level"
    if mesh.devices.flat[0].platform != "cpu" or level in os.environ.get("XLA_FLAGS", ""):
        return None
    return {level: 1}


def _raise_if_indivisible(
    objective: Objective, rows: NamedSharding, gradient_accumulation: int
) -> None:
    """Raises ValueError if the rows of a micro-batch cannot be split evenly over the devices."""
    num_rows = objective.num_rows
    if num_rows % gradient_accumulation:
        raise ValueError(
            f"input.batch_size={num_rows} is not divisible by gradient_accumulation="
            f"{gradient_accumulation} of trainer.parallelism; change one of them"
        )
    num_shards = math.prod(rows.mesh.shape[axis] for axis in jax.tree.leaves(tuple(rows.spec)))
    if num_rows // gradient_accumulation % num_shards:
        raise ValueError(
            f"input.batch_size={num_rows} is not divisible by the {num_shards} devices that share "
            f"the rows in the mesh {dict(rows.mesh.shape)}, times gradient_accumulation="
            f"{gradient_accumulation}; change it, or trainer.parallelism"
        )
    objective.raise_if_unshareable(num_rows // gradient_accumulation, num_shards)
