"""What a run compiles: model, loss and optimiser as pure functions, placed on a mesh of devices.

No array is made here and no data is read, so the same program is trained by `trainer.py` and
compiled ahead of time, for devices that are not there, by a rehearsal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import batch_shardings, device_batch, use_mesh
from mm1_jax.train.guards.anomalies import Anomalies
from mm1_jax.train.host_batches import Part, place_parts
from mm1_jax.train.loss import Loss
from mm1_jax.train.optimizer import Optimizer
from mm1_jax.train.train_state import (
    TrainState,
    abstract_model,
    make_initialize,
    state_shardings,
    with_shardings,
)
from mm1_jax.train.train_step import (
    lower_train_step,
    make_train_step,
    raise_if_indivisible,
)


class Program:
    """The train step of a model on a mesh, and the state that it changes.

    Attributes:
        graphdef: With parameters, `nnx.merge(graphdef, params)` is the model.
        mesh: Of the devices.
        abstract_state: Shapes of the state with their shardings.
        initialize: PRNG key -> first state, a pure function.
        train_step: (state, batch) -> (state, metrics), a pure function.
    """

    def __init__(
        self,
        *,
        model: InstantiableConfig,
        loss: Loss.Config,
        optimizer: Optimizer.Config,
        parallelism: Parallelism.Config,
        batch_size: int,
        image_buffer: ImageBuffer,
        num_corpora: int,
        devices: Sequence[Any],
        anomalies: Anomalies.Config | None = None,
        norms_by_part: bool = False,
    ):
        guard = None if anomalies is None else anomalies.instantiate()
        self.batch_size = batch_size
        self.parallelism = parallelism.instantiate()
        self.optimizer: Optimizer = optimizer.instantiate()
        model = self.parallelism.configure(model)

        def make_model(prng_key: jax.Array) -> nnx.Module:
            return model.instantiate(rngs=nnx.Rngs(params=prng_key))

        self.graphdef, params = abstract_model(make_model)
        self.num_parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
        self.mesh, self.rules = self.parallelism.mesh(devices), self.parallelism.rules
        self.batch_shardings = batch_shardings(self.mesh, self.rules)
        raise_if_indivisible(
            batch_size,
            self.batch_shardings,
            image_buffer,
            self.parallelism.gradient_accumulation,
        )
        self.update = self.optimizer.update(params)
        self.initialize = make_initialize(make_model, self.update.first_state)
        shapes = jax.eval_shape(self.initialize, jax.eval_shape(lambda: jax.random.key(0)))
        trained, _ = self.update.split(shapes.params)
        shardings = state_shardings(shapes, params, trained, self.mesh, self.rules)
        self.abstract_state = with_shardings(shapes, shardings)
        self.train_step = make_train_step(
            self.graphdef,
            loss.instantiate(),
            self.update,
            self.optimizer.learning_rate,
            num_corpora=num_corpora,
            gradient_accumulation=self.parallelism.gradient_accumulation,
            accepts=guard.accepts if guard is not None and guard.skips else None,
            norms_by_part=norms_by_part,
        )

    def first_state(
        self, prng_key: jax.Array, loaded: Mapping[str, jax.Array] | None = None
    ) -> TrainState:
        """The initial state, made where it belongs.

        Args:
            loaded: Parameters by path that are not drawn; their memory becomes the state's.
        """
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        initialize = jax.jit(self.initialize, out_shardings=shardings, donate_argnums=1)
        return initialize(prng_key, dict(loaded or {}))

    def lower(self, batch: Batch) -> jax.stages.Lowered:
        """The step for batches of these shapes, before XLA has compiled it."""
        return lower_train_step(self.train_step, self.abstract_state, batch, self.mesh, self.rules)

    def compile(self, batch: Batch) -> Callable[..., Any]:
        """The step for batches of these shapes; it takes placed batches (`place`)."""
        return self.lower(batch).compile(self.parallelism.compiler_options or None)

    def place(self, batch: Batch | Sequence[Part]) -> Batch:
        """A batch, or the parts of it that this process makes, as global arrays on the devices."""
        if isinstance(batch, Batch):
            return device_batch(batch, self.batch_shardings)
        return place_parts(batch, self.batch_shardings, self.batch_size)

    def model(self, params: Any) -> nnx.Module:
        return nnx.merge(self.graphdef, params)

    def use_mesh(self) -> Any:
        """A context in which what is traced is placed on the mesh."""
        return use_mesh(self.mesh, self.rules)
