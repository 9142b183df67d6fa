"""Training state as a plain pytree: its shapes, shardings and initialization."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.layers.parameter_paths import map_with_paths, parameter_paths
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings


class TrainState(NamedTuple):
    """Number of updates so far, parameters as nested dicts, and the optimizer state.

    Parameters are float32, unless the optimizer is configured to store another dtype. If the
    optimizer keeps an average of the parameters, `params` is that average. The same type holds
    arrays, shapes (`jax.ShapeDtypeStruct`) or shardings. `nnx.merge(graphdef, state.params)` is the
    model.
    """

    step: Any
    params: Any
    opt_state: Any


def abstract_model(make_model: Callable[[jax.Array], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns graph definition and parameter shapes with logical names; creates no arrays."""
    prng_key = jax.eval_shape(lambda: jax.random.key(0))
    return nnx.split(nnx.eval_shape(make_model, prng_key), nnx.Param)


def first_shapes(params: nnx.State, first_state: Callable[[Any], TrainState]) -> TrainState:
    """Returns the shapes of the initial state of a model with these parameter shapes."""
    return jax.eval_shape(first_state, nnx.to_pure_dict(params))


def make_initialize(
    make_model: Callable[[jax.Array], nnx.Module], first_state: Callable[[Any], TrainState]
) -> Callable[..., TrainState]:
    """Returns the pure function (PRNG key, loaded) -> initial state.

    `loaded` has parameters by path that replace randomly initialized ones.
    """

    def initialize(prng_key: jax.Array, loaded: Mapping[str, jax.Array] = {}) -> TrainState:  # noqa: B006
        params = nnx.to_pure_dict(nnx.state(make_model(prng_key), nnx.Param))
        return first_state(map_with_paths(lambda path, drawn: loaded.get(path, drawn), params))

    return initialize


def state_shardings(
    state: TrainState, params: nnx.State, trained: Any, mesh: Mesh, rules: AxisRules
) -> TrainState:
    """Returns the sharding of every leaf: moments like their parameters, scalars replicated.

    Without explicit shardings, `jit` would replicate the moments.

    Args:
        state: Shapes of the state.
        params: Parameters (values or shapes) with their logical names.
        trained: Trained parameters of `state`; moments are trees of this structure.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = nnx.to_pure_dict(parameter_shardings(params, mesh, rules))
    of_path = dict(zip(parameter_paths(shardings), jax.tree.leaves(shardings), strict=True))
    structure = jax.tree.structure(trained)

    def is_like_trained(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def place(node: Any) -> Any:
        if not is_like_trained(node):
            return replicated
        return map_with_paths(lambda path, x: _moment_sharding(x.shape, of_path[path]), node)

    opt_state = jax.tree.map(place, state.opt_state, is_leaf=is_like_trained)
    return TrainState(replicated, shardings, opt_state)


def _moment_sharding(shape: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    """Adapts the sharding of a parameter to a moment, some of whose dims may have size 1."""
    spec = (axes if size > 1 else None for size, axes in zip(shape, sharding.spec, strict=True))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def with_shardings(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Returns the shapes with shardings attached."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
