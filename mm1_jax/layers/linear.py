"""Linear maps over the last dim, and the two that split it into attention heads and join them.

Legend: B batch, T positions, D model dim, N heads, H head dim.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.layers.module import Initializer, Module, param


def fan_in(scale: float, num_input_dims: int = 1) -> Initializer:
    """Normal values of standard deviation `scale / sqrt(inputs)`; the first dims are the inputs."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        std = scale / math.sqrt(math.prod(shape[:num_input_dims]))
        return std * jax.random.normal(key, shape, dtype)

    return init


class Linear(Module):
    """y = x kernel + bias."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[int] = REQUIRED
        output_dim: Required[int] = REQUIRED
        bias: bool = False
        axes: tuple[str | None, str | None] = ("embed", "mlp")  # logical names of input and output
        init_scale: float = 1.0  # standard deviation is init_scale / sqrt(input_dim)

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape = (cfg.input_dim, cfg.output_dim)
        self.kernel = param(rngs, shape, tuple(cfg.axes), fan_in(cfg.init_scale))
        self.bias = param(rngs, shape[1:], (cfg.axes[1],), zeros) if cfg.bias else None

    def __call__(self, x: Float[Array, "*dims input"]) -> Float[Array, "*dims output"]:
        y = jnp.einsum("...d,df->...f", x, self.kernel[...])
        return y if self.bias is None else y + _like(self.bias, y)


class SplitHeads(Module):
    """Projects features to heads: BTD -> BTNH."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[int] = REQUIRED
        num_heads: Required[int] = REQUIRED
        head_dim: Required[int] = REQUIRED
        bias: bool = False
        axis: str | None = "heads"
        init_scale: float = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape = (cfg.input_dim, cfg.num_heads, cfg.head_dim)
        self.kernel = param(rngs, shape, ("embed", cfg.axis, None), fan_in(cfg.init_scale))
        self.bias = param(rngs, shape[1:], (cfg.axis, None), zeros) if cfg.bias else None

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T N H"]:
        y_BTNH = jnp.einsum("BTD,DNH->BTNH", x_BTD, self.kernel[...])
        return y_BTNH if self.bias is None else y_BTNH + _like(self.bias, y_BTNH)


class JoinHeads(Module):
    """Projects heads back to features: BTNH -> BTD."""

    @config_class
    class Config(Module.Config):
        num_heads: Required[int] = REQUIRED
        head_dim: Required[int] = REQUIRED
        output_dim: Required[int] = REQUIRED
        bias: bool = False
        axis: str | None = "heads"
        init_scale: float = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        shape = (cfg.num_heads, cfg.head_dim, cfg.output_dim)
        init = fan_in(cfg.init_scale, num_input_dims=2)
        self.kernel = param(rngs, shape, (cfg.axis, None, "embed"), init)
        self.bias = param(rngs, shape[2:], ("embed",), zeros) if cfg.bias else None

    def __call__(self, x_BTNH: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        y_BTD = jnp.einsum("BTNH,NHD->BTD", x_BTNH, self.kernel[...])
        return y_BTD if self.bias is None else y_BTD + _like(self.bias, y_BTD)


def _like(bias: nnx.Param, y: jax.Array) -> jax.Array:
    value = bias[...]
    return jnp.expand_dims(value, tuple(range(y.ndim - value.ndim)))
