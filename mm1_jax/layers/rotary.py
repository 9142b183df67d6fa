"""Rotary position embedding (RoFormer): turns pairs of dims by angles proportional to the position.

Pairs are (i, i + H/2), the convention of the Llama weights on Hugging Face.
Legend: B batch, T positions, N heads, H head dim.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import config_class
from mm1_jax.layers.module import Module


class Rotary(Module):
    """`rotary` with its base; it has no parameters."""

    @config_class
    class Config(Module.Config):
        theta: float = 10_000.0  # the slowest pair turns once in about 2 pi theta positions

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.theta = cfg.theta

    def __call__(
        self, x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"]
    ) -> Float[Array, "B T N H"]:
        return rotary(x_BTNH, positions_BT, self.theta)


def rotary(
    x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Turns queries or keys; their products then depend on the difference of positions only."""
    half = x_BTNH.shape[-1] // 2
    frequencies = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    # float32 throughout: bfloat16 cannot hold positions above 256, let alone their angles.
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)
