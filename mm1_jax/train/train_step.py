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
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.module import ContractError, checked, checked_tuple
from mm1_jax.layers.parameter_paths import union
from mm1_jax.parallel.sharding import AxisRules, batch_shardings, constrain_batch, use_mesh
from mm1_jax.train.loss import Loss, Totals, totals
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.train_state import TrainState
from mm1_jax.train.update import Update

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_objective(graphdef: nnx.GraphDef, loss: Loss, num_corpora: int) -> Callable[..., Any]:
    """The function (trained, frozen, batch, totals) -> (total loss, metrics) of a model."""

    def objective(
        trained: Any, frozen: Any, batch: Batch, totals: Totals | None = None
    ) -> tuple[jax.Array, Metrics]:
        model = nnx.merge(graphdef, union(trained, frozen))
        output = model(batch)
        result = loss(
            output.hidden,
            model.output_layer(),
            batch,
            output.router,
            num_corpora=num_corpora,
            totals=totals,
        )
        total, metrics = checked_tuple(loss, result, ("total", "metrics"))
        if not isinstance(metrics, dict) or not {"loss", "corpus_loss"} <= metrics.keys():
            raise ContractError(
                type(loss),
                f"{type(loss).__name__} returned metrics {metrics!r}, expected a dict with means "
                "'loss' and 'corpus_loss'",
            )
        return checked(loss, total, (), jnp.float32), metrics

    return objective


def make_train_step(
    graphdef: nnx.GraphDef,
    loss: Loss,
    update: Update,
    learning_rate: Callable[[Any], jax.Array],
    num_corpora: int,
    gradient_accumulation: int = 1,
    accepts: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    norms_by_part: bool = False,
) -> TrainStep:
    """The function (state, batch) -> (state, metrics) for one model, loss and optimiser.

    Args:
        accepts: Of the total loss and the norm of the gradient, whether the update is taken; where
            it is not, parameters and moments stay as they are. None: it always is.
        norms_by_part: Whether metrics have the norms of gradient and update of each part.
        gradient_accumulation: Micro-batches that the rows are cut into, one after the other. Their
            gradients add up to that of the batch: all losses are divided by its totals.
    """

    objective = make_objective(graphdef, loss, num_corpora)
    value_and_gradient = jax.value_and_grad(objective, has_aux=True)
    dtype = update.accumulation_dtype

    def accumulated(
        trained: Any, frozen: Any, batch: Batch
    ) -> tuple[tuple[jax.Array, Metrics], Any]:
        whole = totals(batch)

        def add_micro_batch(gradient: Any, micro_batch: Batch) -> tuple[Any, Any]:
            result, addend = value_and_gradient(trained, frozen, micro_batch, whole)
            return jax.tree.map(lambda x, y: x + y.astype(dtype), gradient, addend), result

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), trained)
        gradient, results = jax.lax.scan(
            add_micro_batch, zeros, micro_batches(batch, gradient_accumulation)
        )
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), results), gradient

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        differentiate = value_and_gradient if gradient_accumulation == 1 else accumulated
        (total, metrics), gradient = differentiate(*update.weights(state), batch)
        # Its norm and its moments are not those of rounded numbers.
        gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        params, opt_state = update.apply(state, gradient)
        norm = optax.tree_utils.tree_norm(gradient)
        if norms_by_part:
            metrics |= _norms("grad_norm", gradient)
            metrics |= _norms("update_norm", jax.tree.map(_difference, params, state.params))
        if accepts is not None:
            is_accepted = accepts(total, norm)
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(is_accepted, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
            metrics["skipped_steps"] = 1 - is_accepted.astype(jnp.int32)
        metrics |= {
            "total_loss": _mean_of_one(total),
            "grad_norm": _mean_of_one(norm),
            "learning_rate": _mean_of_one(learning_rate(state.step)),
            "tokens": jnp.sum(batch.segment_ids > 0),
            "images": jnp.sum(batch.image_index >= 0),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def micro_batches(batch: Batch, number: int) -> Batch:
    """The rows, in order, as `number` batches that are stacked: fields get a leading dim.

    The image buffer is cut likewise; `image_index` goes on counting in that of the whole batch.
    """
    # The rows of a few devices go to all of them, once: left to itself, the compiler splits the
    # leading dim, and then moves what the model makes of the rows.
    return constrain_batch(jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), batch))


def lower_train_step(
    train_step: TrainStep, state: TrainState, batch: Batch, mesh: Mesh, rules: AxisRules
) -> jax.stages.Lowered:
    """The program of `train_step` for these shapes, before XLA has compiled it; donates the state.

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
    return jitted.lower(state, shapes)


def raise_if_indivisible(
    num_rows: int,
    shardings: Batch,
    image_buffer: ImageBuffer | None = None,
    gradient_accumulation: int = 1,
) -> None:
    """Raises ValueError if the rows of a batch cannot be dealt out evenly to the devices.

    Args:
        image_buffer: Its groups of rows and their slots must be, too.
        gradient_accumulation: Micro-batches, each of which is dealt out on its own.
    """
    if num_rows % gradient_accumulation:
        raise ValueError(
            f"input.batch_size={num_rows} is not divisible by gradient_accumulation="
            f"{gradient_accumulation} of trainer.parallelism; change one of them"
        )
    num_rows //= gradient_accumulation
    sharding = shardings.tokens
    num_shards = math.prod(
        sharding.mesh.shape[axis] for axis in jax.tree.leaves(tuple(sharding.spec))
    )
    if num_rows % num_shards:
        raise ValueError(
            f"input.batch_size={num_rows * gradient_accumulation} is not divisible by the "
            f"{num_shards} devices that share the rows in the mesh {dict(sharding.mesh.shape)}, "
            f"times gradient_accumulation={gradient_accumulation}; change it, or "
            "trainer.parallelism"
        )
    if image_buffer is not None:
        image_buffer.shards_per_group(num_rows, num_shards)


def _mean_of_one(value: jax.Array) -> Mean:
    return Mean(value, jnp.ones((), jnp.float32))


def _norms(name: str, tree: Any) -> Metrics:
    """The norm of each part of a tree like that of the parameters: encoder, connector, decoder."""
    return {f"{name}/{part}": _mean_of_one(optax.tree_utils.tree_norm(tree[part])) for part in tree}


def _difference(new: jax.Array, old: jax.Array) -> jax.Array:
    return new.astype(jnp.float32) - old.astype(jnp.float32)
