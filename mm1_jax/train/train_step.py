"""The train step: one update as a pure function of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.objective import Objective
from mm1_jax.train.optimizers.update import Update
from mm1_jax.train.train_state import TrainState

TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def make_train_step(
    objective: Objective,
    graphdef: nnx.GraphDef,
    update: Update,
    *,
    gradient_accumulation: int = 1,
    accepts: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    norms_by_part: bool = False,
) -> TrainStep:
    """Returns the function (state, batch) -> (state, metrics) for an objective and optimizer.

    Args:
        gradient_accumulation: Number of micro-batches, processed one after the other. Their
            gradients sum to that of the batch, because all losses are divided by its totals.
        accepts: Decides from total loss and gradient norm whether to apply the update. If not,
            parameters and moments stay unchanged. None always applies it.
        norms_by_part: Adds gradient and update norms per part of the model to the metrics.
    """
    value_and_gradient = jax.value_and_grad(objective.loss_function(graphdef), has_aux=True)
    dtype = update.accumulation_dtype

    def accumulate(trained: Any, frozen: Any, batch: Any) -> tuple[tuple[jax.Array, Metrics], Any]:
        batches = micro_batches(objective, batch, gradient_accumulation)
        totals = objective.totals_of_micro_batches(graphdef, trained, frozen, batch, batches)

        def add_micro_batch(gradient: Any, micro_batch: Any) -> tuple[Any, Any]:
            result, addend = value_and_gradient(trained, frozen, *micro_batch)
            return jax.tree.map(lambda x, y: x + y.astype(dtype), gradient, addend), result

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), trained)
        gradient, results = jax.lax.scan(add_micro_batch, zeros, (batches, totals))
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), results), gradient

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        differentiate = value_and_gradient if gradient_accumulation == 1 else accumulate
        (total, metrics), gradient = differentiate(*update.weights(state), batch)
        # Compute the norm and the moments in float32.
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
            "learning_rate": _mean_of_one(update.learning_rate(state.step)),
            **objective.counts(batch),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def micro_batches(objective: Objective, batch: Any, number: int) -> Any:
    """Splits the rows, in order, into `number` batches stacked along a new leading dim.

    The image buffer is split in the same way, but `image_index` still indexes the buffer of the
    whole batch.
    """
    # Reshard each micro-batch over all devices once. Otherwise the compiler would shard the leading
    # dim, and then reshard activations.
    return objective.constrain(jax.tree.map(lambda x: _split(x, number), batch))


def _split(x: jax.Array, number: int) -> jax.Array:
    # A size of -1 cannot be inferred for empty arrays, such as the tokens of pictures alone.
    return x.reshape(number, len(x) // number, *x.shape[1:])


def _mean_of_one(value: jax.Array) -> Mean:
    return Mean(value, jnp.ones((), jnp.float32))


def _norms(name: str, tree: Any) -> Metrics:
    """Returns the norm per part of the model (encoder, connector, decoder) of a parameter tree."""
    return {f"{name}/{part}": _mean_of_one(optax.tree_utils.tree_norm(tree[part])) for part in tree}


def _difference(new: jax.Array, old: jax.Array) -> jax.Array:
    return new.astype(jnp.float32) - old.astype(jnp.float32)
