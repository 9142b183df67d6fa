"""Linear maps over the last dim, including those that split it into attention heads and join them.

Every kernel is stored with the model dim first, including those that project back to it, because
FSDP splits the model dim. A shard is then a contiguous run of rows. Shards of columns would have to
be transposed after the gather, which took 7% of the step time of a 30B model on 256 chips.

Legend: B batch, T positions, D model dim, N heads, H head dim, C = N * H.
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mm1_jax.config import Required, config_class, derived
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.layers.low_precision import LowPrecision, einsum, instantiated
from mm1_jax.layers.module import Initializer, Module, param
from mm1_jax.parallel.sharding import current_platform


def fan_in(scale: float, input_dims: tuple[int, ...] = (0,)) -> Initializer:
    """Initializes with normal values of standard deviation `scale / sqrt(inputs)`."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        std = scale / math.sqrt(math.prod(shape[dim] for dim in input_dims))
        return std * jax.random.normal(key, shape, dtype)

    return init


def product(
    x: Float[Array, "... D"],
    kernel: Float[Array, "D ..."],
    low_precision: LowPrecision | None = None,
) -> Float[Array, "..."]:
    """Returns x kernel, summed over the last dim of x and the first of the kernel.

    JAX computes the gradient of the kernel as the transpose of g^T x, for a gradient g of the
    result. XLA keeps that order on CPUs: it writes the transpose of g, often the larger of the two,
    and multiplies two transposed matrices. There, it is computed as x^T g, and a step of a small
    decoder takes 0.7 times as long.
    """
    if low_precision is not None:
        outputs = "fgh"[: kernel.ndim - 1]
        return low_precision.einsum(f"...d,d{outputs}->...{outputs}", x, kernel)
    if current_platform() == "cpu":
        return _product(x, kernel)
    return jnp.tensordot(x, kernel, 1)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.tensordot(x, kernel, 1)


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _product(x, kernel), (x, kernel)


def _product_backward(operands: Any, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    rows, outputs = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, g.ndim))
    return (
        jnp.tensordot(g, kernel, (outputs, tuple(range(1, kernel.ndim)))),
        jnp.tensordot(x, g, (rows, rows)),
    )


_product.defvjp(_product_forward, _product_backward)


class LinearMap(Module, abc.ABC):
    """Base class of linear maps: y = x kernel + bias, plus the update of an adapter."""

    @config_class
    class Config(Module.Config):
        # Precision of x kernel and of its gradients; None is the dtype of x.
        low_precision: LowPrecision.Config | None = None

    kernel: nnx.Param
    bias: nnx.Param | None
    low_precision: LowPrecision | None
    # A `lora.Adapter`, set on the instance; NNX allows no parameters where None was set before.
    lora: Any = None

    @property
    @abc.abstractmethod
    def input_dims(self) -> tuple[int, ...]:
        """Dims of the kernel that are summed over, in the order of the last dims of x."""

    def _completed(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns y = x kernel with the adapter's update and the bias added."""
        if self.lora is not None:
            y = y + self.lora(x)
        if self.bias is None:
            return y
        bias = self.bias[...]
        return y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))


class Linear(LinearMap):
    """y = x kernel + bias. The kernel is stored as [input, output] or as [output, input]."""

    @config_class
    class Config(LinearMap.Config):
        input_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()
        bias: bool = False
        axes: tuple[str | None, str | None] = ("embed", "mlp")  # logical names of input and output
        output_first: bool = False  # store the kernel as [output, input]
        init_scale: NonNegative = 1.0  # standard deviation is init_scale / sqrt(input_dim)

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape, axes = (cfg.input_dim, cfg.output_dim), tuple(cfg.axes)
        init = fan_in(cfg.init_scale, input_dims=(1,) if cfg.output_first else (0,))
        order = slice(None, None, -1 if cfg.output_first else 1)
        self.kernel = param(rngs, shape[order], axes[order], init)
        self.bias = param(rngs, shape[1:], axes[1:], zeros) if cfg.bias else None
        self.output_first = cfg.output_first
        self.low_precision = instantiated(cfg.low_precision)

    @property
    def input_dims(self) -> tuple[int, ...]:
        return (1,) if self.output_first else (0,)

    def __call__(self, x: Float[Array, "*dims input"]) -> Float[Array, "*dims output"]:
        kernel = self.kernel[...]
        if self.output_first:
            y = einsum(self.low_precision, "...d,fd->...f", x, kernel)
        else:
            y = product(x, kernel, self.low_precision)
        return self._completed(x, y)


class SplitHeads(LinearMap):
    """Projects features to heads: BTD -> BTNH."""

    @config_class
    class Config(LinearMap.Config):
        input_dim: Required[PositiveInt] = derived()
        num_heads: Required[PositiveInt] = derived()
        head_dim: Required[PositiveInt] = derived()
        bias: bool = False
        axis: str | None = "heads"
        init_scale: NonNegative = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape = (cfg.input_dim, cfg.num_heads, cfg.head_dim)
        self.kernel = param(rngs, shape, ("embed", cfg.axis, None), fan_in(cfg.init_scale))
        self.bias = param(rngs, shape[1:], (cfg.axis, None), zeros) if cfg.bias else None
        self.low_precision = instantiated(cfg.low_precision)

    @property
    def input_dims(self) -> tuple[int, ...]:
        return (0,)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], joined: bool = False
    ) -> Float[Array, "B T N H"]:
        """Projects to heads.

        Args:
            joined: Computes the product with the dims of the heads joined, so that the compiler
                also stores it that way, without padding each head to whole tiles.
        """
        kernel_DNH = self.kernel[...]
        if not joined:
            return self._completed(x_BTD, product(x_BTD, kernel_DNH, self.low_precision))
        y_BTC = product(x_BTD, _joined(kernel_DNH), self.low_precision)
        if self.bias is not None:
            y_BTC = y_BTC + self.bias[...].reshape(-1)[None, None]
        y_BTNH = y_BTC.reshape(*y_BTC.shape[:2], *kernel_DNH.shape[1:])
        return y_BTNH if self.lora is None else y_BTNH + self.lora(x_BTD)


class JoinHeads(LinearMap):
    """Projects heads back to features: BTNH -> BTD."""

    @config_class
    class Config(LinearMap.Config):
        num_heads: Required[PositiveInt] = derived()
        head_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()
        bias: bool = False
        axis: str | None = "heads"
        init_scale: NonNegative = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape = (cfg.output_dim, cfg.num_heads, cfg.head_dim)
        init = fan_in(cfg.init_scale, input_dims=(1, 2))
        self.kernel = param(rngs, shape, ("embed", cfg.axis, None), init)
        self.bias = param(rngs, shape[:1], ("embed",), zeros) if cfg.bias else None
        self.low_precision = instantiated(cfg.low_precision)

    @property
    def input_dims(self) -> tuple[int, ...]:
        return (1, 2)

    def __call__(
        self, x_BTNH: Float[Array, "B T N H"], joined: bool = False
    ) -> Float[Array, "B T D"]:
        """Projects from heads; see `SplitHeads` for `joined`."""
        kernel_DNH = self.kernel[...]
        if joined:
            x_BTC = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
            y_BTD = einsum(self.low_precision, "BTC,DC->BTD", x_BTC, _joined(kernel_DNH))
        else:
            y_BTD = einsum(self.low_precision, "BTNH,DNH->BTD", x_BTNH, kernel_DNH)
        return self._completed(x_BTNH, y_BTD)


def _joined(kernel_DNH: Float[Array, "D N H"]) -> Float[Array, "D C"]:
    # Without the barrier the compiler moves the reshape from the kernel's gradient to its factors,
    # which are larger, and transposes them.
    return jax.lax.optimization_barrier(kernel_DNH.reshape(len(kernel_DNH), -1))
