"""The base of all modules, and how their parameters are made."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

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
    rngs: nnx.Rngs, shape: tuple[int, ...], names: LogicalAxes, init: Initializer
) -> nnx.Param:
    """A float32 parameter with a logical name per dim.

    Args:
        init: As in `jax.nn.initializers`: (key, shape, dtype) -> array.
    """
    return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=names)
