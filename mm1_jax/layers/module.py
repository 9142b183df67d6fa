"""The base of all modules, how their parameters are made, and the check of what they return."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from mm1_jax.config import Configurable, config_class
from mm1_jax.parallel.sharding import LogicalAxes

Initializer = Callable[..., jax.Array]


class Module(nnx.Module, Configurable):
    """Holds parameters that a config describes; built by `Config.instantiate(rngs=...)`.

    Unlike a plain `Configurable` it keeps no config: static attributes enter the tree definition,
    where a mutable one cannot be hashed. A constructor keeps the few scalars that `__call__` needs.
    """

    @config_class
    class Config(Configurable.Config):
        pass


class ContractError(ValueError):
    """A part returned something else than the part that called it relies on.

    Attributes:
        part: Class of the part at fault.
    """

    def __init__(self, part: type, message: str):
        super().__init__(message)
        self.part = part


def checked(part: Any, output: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """`output`, which has to be an array of this shape and type.

    Arrays of other shapes may broadcast, or be gathered from, without an error. The check is made
    while tracing and costs nothing in a compiled program.

    Raises:
        ContractError: It is not; names the class of `part`.
    """
    found = (getattr(output, "shape", None), getattr(output, "dtype", None))
    if found != (tuple(shape), jnp.dtype(dtype)):
        raise ContractError(
            type(part),
            f"{type(part).__name__} returned {_described(output)}, "
            f"expected {_described(jax.ShapeDtypeStruct(shape, dtype))}",
        )
    return output


def checked_tuple(part: Any, output: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """`output`, which has to be a tuple of these values; an array of two rows would unpack too."""
    if not isinstance(output, tuple) or len(output) != len(names):
        raise ContractError(
            type(part),
            f"{type(part).__name__} returned {_described(output)}, "
            f"expected a tuple ({', '.join(names)})",
        )
    return output


def _described(output: Any) -> str:
    if hasattr(output, "shape") and hasattr(output, "dtype"):
        return f"{output.dtype}{list(output.shape)}"
    if isinstance(output, tuple):
        return f"a tuple of {len(output)}"
    return "None" if output is None else f"a {type(output).__name__}"


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
