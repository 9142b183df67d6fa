"""Normalization over the last dim, computed in float32 and returned in the dtype of the input."""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import constant, ones, zeros
from jaxtyping import Array, Float

from mm1_jax.config import Required, config_class, derived
from mm1_jax.field_types import NonNegative, Positive, PositiveInt
from mm1_jax.layers.module import Module, param


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * scale."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        eps: Positive = 1e-5

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        # Replicated on every device: gathering so few numbers costs more than storing them.
        self.scale = param(rngs, (cfg.input_dim,), (None,), ones, keep_float32=True)
        self.eps = cfg.eps

    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        x32 = x.astype(jnp.float32)
        y = x32 / jnp.sqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (y * _broadcast_to(self.scale, y)).astype(x.dtype)


class LayerNorm(Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * scale + bias."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        eps: Positive = 1e-6
        # Initial value of `scale`; with 0, the branch that this norm ends contributes nothing at
        # first.
        init_scale: NonNegative = 1.0

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        init = constant(cfg.init_scale)
        self.scale = param(rngs, (cfg.input_dim,), (None,), init, keep_float32=True)
        self.bias = param(rngs, (cfg.input_dim,), (None,), zeros, keep_float32=True)
        self.eps = cfg.eps

    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        y = x32 / jnp.sqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps)
        return (y * _broadcast_to(self.scale, y) + _broadcast_to(self.bias, y)).astype(x.dtype)


def _broadcast_to(values: nnx.Param, y: Array) -> Array:
    return jnp.expand_dims(values[...].astype(jnp.float32), tuple(range(y.ndim - 1)))
