"""The base of all modules, and how their parameters are made."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mm1_jax.config import Configurable, config_class
from mm1_jax.sharding import LogicalAxes

Initializer = Callable[..., jax.Array]


class Module(nnx.Module, Configurable):
    """Holds parameters that a config describes; built by `Config.instantiate(rngs=...)`.

    Unlike a plain `Configurable` it keeps no config: static attributes enter the tree definition,
    where a mutable one cannot be hashed. A constructor keeps the few scalars that `__call__` needs.
    """

    @config_class
    class Config(Configurable.Config):
        pass


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    names: LogicalAxes,
    init: Initializer,
    *,
    keep_float32: bool = False,
) -> nnx.Param:
    """A float32 parameter with a logical name per dim.

    Args:
        init: As in `jax.nn.initializers`: (key, shape, dtype) -> array.
        keep_float32: `cast` leaves it alone: it is used in float32 whatever the compute dtype.
    """
    value = init(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, out_sharding=names, keep_float32=keep_float32)


def cast(params: nnx.State, dtype: DTypeLike) -> nnx.State:
    """The parameters in `dtype`, except those that are to stay float32."""

    def cast_one(variable: nnx.Variable) -> nnx.Variable:
        if variable.get_metadata("keep_float32", False):
            return variable
        return variable.replace(variable.get_value().astype(dtype))

    return jax.tree.map(cast_one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))
