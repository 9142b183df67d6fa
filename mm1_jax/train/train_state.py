"""The training state, a plain pytree: shapes, shardings, and its initialization in place."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mm1_jax.layers.parameter_paths import map_with_paths, parameter_paths
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings


class TrainState(NamedTuple):
    """Number of updates made, parameters as nested dicts, and the optimiser's state.

    Parameters are float32 unless the optimiser stores them otherwise, and their average where it
    keeps one. The same type holds arrays, shapes (`jax.ShapeDtypeStruct`) or shardings. With the
    model's graph definition, `nnx.merge(graphdef, state.params)` is the model.
    """

    step: Any
    params: Any
    opt_state: Any


def abstract_model(make_model: Callable[[jax.Array], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph definition and parameter shapes, logical names included, without array or device."""
    prng_key = jax.eval_shape(lambda: jax.random.key(0))
    return nnx.split(nnx.eval_shape(make_model, prng_key), nnx.Param)


def make_initialize(
    make_model: Callable[[jax.Array], nnx.Module], first_state: Callable[[Any], TrainState]
) -> Callable[..., TrainState]:
    """A pure function from a PRNG key to the first state, that of new parameters.

    Its second argument has parameters by path that stand where others were drawn.
    """

    def initialize(prng_key: jax.Array, loaded: Mapping[str, jax.Array] = {}) -> TrainState:  # noqa: B006
        params = nnx.to_pure_dict(nnx.state(make_model(prng_key), nnx.Param))
        return first_state(map_with_paths(lambda path, drawn: loaded.get(path, drawn), params))

    return initialize


def state_shardings(
    state: TrainState, params: nnx.State, trained: Any, mesh: Mesh, rules: AxisRules
) -> TrainState:
    """Returns the sharding of every leaf: moments as their parameters, scalars replicated.

    Left to `jit`, the moments would come out replicated.

    Args:
        state: Shapes.
        params: The parameters (values or shapes) with their logical names.
        trained: The trained parameters of `state`; moments are trees of this structure.
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
        return map_with_paths(lambda path, x: _of_moment(x.shape, of_path[path]), node)

    opt_state = jax.tree.map(place, state.opt_state, is_leaf=is_like_trained)
    return TrainState(replicated, shardings, opt_state)


def _of_moment(shape: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    """The sharding of a parameter, for what has its dims, some of them reduced to size 1."""
    spec = (axes if size > 1 else None for size, axes in zip(shape, sharding.spec, strict=True))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def with_shardings(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Shapes that also say where the arrays live."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
