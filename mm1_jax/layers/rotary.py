"""Rotary position embedding (RoFormer): rotates pairs of dims by angles proportional to position.

Pairs are (i, i + H/2), the convention of the Llama weights on Hugging Face.

Legend: B batch, T positions, N heads, H head dim.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import config_class
from mm1_jax.field_types import Positive, PositiveInt
from mm1_jax.layers.module import Module
from mm1_jax.parallel.sharding import current_platform


class Rotary(Module):
    """Applies `rotary` with a configured base; has no parameters."""

    @config_class
    class Config(Module.Config):
        theta: Positive = 10_000.0  # the slowest pair has a period of about 2 pi theta positions

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.theta = cfg.theta

    def __call__(
        self,
        x_BTNH: Float[Array, "B T N H"],
        positions_BT: Int[Array, "B T"],
        *,
        scale: float = 1.0,
    ) -> Float[Array, "B T N H"]:
        return rotary(x_BTNH, positions_BT, self.theta, scale=scale)


class StretchedRotary(Module):
    """`rotary` with scaled low frequencies, for rows longer than those trained on (Llama 3.1).

    Pairs that complete fewer than `low_freq_factor` turns over the original row length are slowed
    down by `factor`. Pairs that complete more than `high_freq_factor` turns are unchanged. Between
    the two, the frequency is interpolated. The field names are those of Hugging Face configs.
    """

    @config_class
    class Config(Module.Config):
        theta: Positive = 500_000.0
        factor: Positive = 8.0
        low_freq_factor: Positive = 1.0
        high_freq_factor: Positive = 4.0
        original_max_position_embeddings: PositiveInt = 8192

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.high_freq_factor <= cfg.low_freq_factor:
            raise ValueError(
                f"rotary: high_freq_factor={cfg.high_freq_factor} must be above "
                f"low_freq_factor={cfg.low_freq_factor}"
            )
        self.theta, self.factor = cfg.theta, cfg.factor
        self.turns = cfg.low_freq_factor, cfg.high_freq_factor
        self.original_length = cfg.original_max_position_embeddings

    def __call__(
        self,
        x_BTNH: Float[Array, "B T N H"],
        positions_BT: Int[Array, "B T"],
        *,
        scale: float = 1.0,
    ) -> Float[Array, "B T N H"]:
        return rotary(x_BTNH, positions_BT, self.theta, scale=scale, stretch=self._stretch)

    def _stretch(self, frequencies: Float[Array, "_"]) -> Float[Array, "_"]:
        low, high = self.turns
        turns = frequencies * (self.original_length / (2 * math.pi))
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary(
    x_BTNH: Float[Array, "B T N H"],
    positions_BT: Int[Array, "B T"],
    theta: float,
    *,
    scale: float = 1.0,
    stretch: Callable[[Array], Array] | None = None,
) -> Float[Array, "B T N H"]:
    """Rotates queries or keys, so that their products depend only on relative positions.

    Args:
        scale: Multiplies the result, at no extra cost.
        stretch: Maps the frequencies of the pairs, in radians per position, to new ones.
    """
    if x_BTNH.shape[-1] % 2:
        raise ValueError(
            f"attention: head_dim={x_BTNH.shape[-1]} must be even, because rotary positions rotate "
            "pairs of dims"
        )
    half = x_BTNH.shape[-1] // 2
    frequencies = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    if stretch is not None:
        frequencies = stretch(frequencies)
    # float32 throughout: bfloat16 cannot hold positions above 256, let alone their angles.
    angles = positions_BT[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    cos, sin = scale * jnp.cos(angles), scale * jnp.sin(angles)
    cos_BT1H, sin_BT1H = (jnp.concatenate(x, axis=-1) for x in ((cos, cos), (-sin, sin)))
    return _rotate(x_BTNH, cos_BT1H, sin_BT1H, current_platform() == "tpu")


# The gradient is the inverse rotation. It is written by hand so that the halves are swapped in the
# dtype of the incoming gradient, not in a float32 product of it.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, by_product: bool) -> jax.Array:
    swapped = _swap_halves_by_product(x) if by_product else _swap_halves(x)
    return (x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin).astype(x.dtype)


def _rotate_forward(x, cos, sin, by_product):
    return _rotate(x, cos, sin, by_product), (cos, sin)


def _rotate_backward(by_product, residuals, gradient):
    cos, sin = residuals
    return _rotate(gradient, cos, -sin, by_product), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def _swap_halves(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((second, first), axis=-1)


def _swap_halves_by_product(x: jax.Array) -> jax.Array:
    """Equals `_swap_halves` exactly, computed as a product with a permutation matrix.

    The TPU compiler writes the halves to memory, each padded to 128 lanes, and reads them back to
    join them. A small product is cheaper because it fuses with the surrounding operations.
    """
    size = x.shape[-1]
    permutation = jnp.roll(jnp.eye(size, dtype=x.dtype), size // 2, axis=0)
    # At default precision the matrix unit would round float32 inputs to bfloat16.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x, permutation, (((x.ndim - 1,), (0,)), ((), ())), precision=precision
    )
