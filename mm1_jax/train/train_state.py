"""What training changes, as a plain pytree: as shapes, with shardings, and initialised in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.sharding import AxisRules, parameter_shardings


class TrainState(NamedTuple):
    """Number of updates made, float32 parameters as nested dicts, and the optimiser's state.

    The same type holds arrays, shapes (`jax.ShapeDtypeStruct`) or shardings. With the model's graph
    definition, `nnx.merge(graphdef, state.params)` is the model.
    """

    step: Any
    params: Any
    opt_state: Any


def abstract_model(make_model: Callable[[jax.Array], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph definition and parameter shapes, logical names included, without array or device."""
    prng_key = jax.eval_shape(lambda: jax.random.key(0))
    return nnx.split(nnx.eval_shape(make_model, prng_key), nnx.Param)


def make_initialize(
    make_model: Callable[[jax.Array], nnx.Module], optimizer: optax.GradientTransformation
) -> Callable[[jax.Array], TrainState]:
    """A pure function from a PRNG key to the first state."""

    def initialize(prng_key: jax.Array) -> TrainState:
        params = nnx.to_pure_dict(nnx.state(make_model(prng_key), nnx.Param))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return initialize


def state_shardings(
    state: TrainState,
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: AxisRules,
) -> TrainState:
    """Where every leaf of `state` lives: moments with their parameters, scalars everywhere.

    Left to `jit`, the moments would come out replicated.

    Args:
        state: Values or shapes.
        params: The parameters (values or shapes) with their logical names.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    params_shardings = nnx.to_pure_dict(parameter_shardings(params, mesh, rules))
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params_shardings,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, params_shardings, opt_state)


def with_shardings(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Shapes that also say where the arrays live."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
