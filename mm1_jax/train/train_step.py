"""One update, as a pure function of state and batch."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.batch import Batch
from mm1_jax.models.image_exchange import shards_per_group
from mm1_jax.sharding import AxisRules, batch_shardings, use_mesh
from mm1_jax.train.loss import Loss
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.train_state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Any], jax.Array],
    num_corpora: int,
) -> TrainStep:
    """The function (state, batch) -> (state, metrics) for one model, loss and optimiser."""

    def objective(params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, params)
        output = model(batch)
        return loss(model.logits(output.hidden), batch, output.router, num_corpora=num_corpora)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradient_function = jax.value_and_grad(objective, has_aux=True)
        (total, metrics), gradient = gradient_function(state.params, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "total_loss": _mean_of_one(total),
            "grad_norm": _mean_of_one(optax.tree_utils.tree_norm(gradient)),
            "learning_rate": _mean_of_one(learning_rate(state.step)),
            "tokens": jnp.sum(batch.segment_ids > 0),
            "images": jnp.sum(batch.image_index >= 0),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def compile_train_step(
    train_step: TrainStep,
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
    rules: AxisRules,
) -> jax.stages.Compiled:
    """Compiles `train_step` once for these shapes; the state is donated.

    One executable serves fresh and restored states alike: an array of other shape, type or
    placement is an error, never a second program with other rounding.

    Args:
        state: Shapes with shardings.
        batch: Shapes, or a batch on the host.

    Raises:
        ValueError: The rows cannot be dealt out evenly to the devices.
    """

    def placed_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with use_mesh(mesh, rules):
            return train_step(state, batch)

    rows = batch_shardings(mesh, rules)
    raise_if_indivisible(batch.tokens.shape[0], rows)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(
        placed_step,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    return jitted.lower(state, shapes).compile()


def raise_if_indivisible(
    num_rows: int, shardings: Batch, image_buffer: tuple[int, int] | None = None
) -> None:
    """Raises ValueError if the rows of a batch cannot be dealt out evenly to the devices.

    Args:
        image_buffer: How many rows share how many slots for images; these must be, too.
    """
    sharding = shardings.tokens
    num_shards = math.prod(
        sharding.mesh.shape[axis] for axis in jax.tree.leaves(tuple(sharding.spec))
    )
    if num_rows % num_shards:
        raise ValueError(
            f"input.batch_size={num_rows} is not divisible by the {num_shards} devices that share "
            f"the rows in the mesh {dict(sharding.mesh.shape)}; change it, or trainer.parallelism"
        )
    if image_buffer is not None:
        group_rows, group_slots = image_buffer
        shards_per_group(num_rows, num_rows * group_slots // group_rows, group_rows, num_shards)


def _mean_of_one(value: jax.Array) -> Mean:
    return Mean(value, jnp.ones((), jnp.float32))
