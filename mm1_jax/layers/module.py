"""Base class of all modules, creation of their parameters, and checks of their return values."""

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
    """Holds parameters described by a config; built by `Config.instantiate(rngs=...)`.

    Unlike a plain `Configurable`, it does not keep its config: static attributes become part of the
    tree definition, which must be hashable, and configs are mutable. Constructors keep only the few
    scalars that `__call__` needs.
    """

    @config_class
    class Config(Configurable.Config):
        pass


class ContractError(ValueError):
    """Raised when a module returns a value that breaks its contract with the caller.

    Attributes:
        part: Class of the module at fault.
    """

    def __init__(self, part: type, message: str):
        super().__init__(message)
        self.part = part


def checked(part: Any, output: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Returns `output` after checking that it is an array of this shape and dtype.

    Without the check, an array of the wrong shape may broadcast or be gathered from silently. The
    check runs while tracing and costs nothing in the compiled program.

    Raises:
        ContractError: `output` has another shape or dtype. The error names the class of `part`.
    """
    found = (getattr(output, "shape", None), getattr(output, "dtype", None))
    if found != (tuple(shape), jnp.dtype(dtype)):
        raise ContractError(
            type(part),
            f"{type(part).__name__} returned {_description(output)}, "
            f"expected {_description(jax.ShapeDtypeStruct(shape, dtype))}",
        )
    return output


def checked_tuple(part: Any, output: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """Returns `output` after checking that it is a tuple with an entry per name.

    The check is needed because an array also unpacks, along its first dim.
    """
    if not isinstance(output, tuple) or len(output) != len(names):
        raise ContractError(
            type(part),
            f"{type(part).__name__} returned {_description(output)}, "
            f"expected a tuple ({', '.join(names)})",
        )
    return output


def _description(output: Any) -> str:
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
    limits: tuple[float, float] | None = None,
) -> nnx.Param:
    """Creates a float32 parameter with a logical axis name per dim.

    Args:
        init: Initializer as in `jax.nn.initializers`: (key, shape, dtype) -> array.
        keep_float32: Exempts the parameter from `cast`, so that it stays float32 for any compute
            dtype.
        limits: Smallest and largest value, to which every step of an optimizer clamps it.
    """
    value = init(rngs.params(), shape, jnp.float32)
    metadata = {} if limits is None else {"limits": limits}
    return nnx.Param(value, out_sharding=names, keep_float32=keep_float32, **metadata)


def cast(params: nnx.State, dtype: DTypeLike) -> nnx.State:
    """Casts the parameters to `dtype`, except those created with `keep_float32`."""

    def cast_one(variable: nnx.Variable) -> nnx.Variable:
        if variable.get_metadata("keep_float32", False):
            return variable
        return variable.replace(variable.get_value().astype(dtype))

    return jax.tree.map(cast_one, params, is_leaf=lambda x: isinstance(x, nnx.Variable))
