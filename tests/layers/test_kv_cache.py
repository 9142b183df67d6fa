import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.layers.attention_kernels import xla_attention
from mm1_jax.layers.attention_mask import Visibility
from mm1_jax.layers.kv_cache import check_cache_dtype, empty_cache, quantise

B, T, N, K, H, S = 3, 4, 6, 2, 8, 12
LENGTHS = np.array([5, 0, 8])
# Tolerances for normal values, relative to the largest: the rounding of each dtype.
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2, "int8": 2e-2}


def normal(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_queries_see_only_earlier_positions_of_their_row(dtype):
    """Compares four tokens after rows of unequal length with masked attention over whole rows."""
    keys, values = normal(B, S, K, H, seed=0), normal(B, S, K, H, seed=1)
    query = normal(B, T, N, H, seed=2)
    start = jnp.asarray(LENGTHS, jnp.int32)
    positions = start[:, None] + jnp.arange(T)[None]

    @jax.jit
    def cached(query, keys, values):
        cache = empty_cache(B, S, K, H, dtype)
        # Also writes beyond the rows' ends, where nothing may be read before it is overwritten.
        cache = cache.write(
            keys + 100 * (jnp.arange(S)[None] >= start[:, None])[..., None, None],
            values + 100,
            None,
        )
        cache = cache.write(keys, values, jnp.zeros(B, jnp.int32))
        rows = jnp.arange(B)[:, None]
        cache = cache.write(keys[rows, positions], values[rows, positions], start)
        return cache.attend(query, positions)

    places = jnp.broadcast_to(jnp.arange(S)[None], (B, S))
    ones = jnp.ones((B, S), jnp.int32)
    visibility = Visibility(positions, ones[:, :T], places, ones, causal=True)
    expected = xla_attention(query, keys, values, visibility.mask())
    np.testing.assert_allclose(
        cached(query, keys, values), expected, rtol=0, atol=TOLERANCE[dtype] * 3
    )


def test_int8_rounds_to_half_a_step_with_a_scale_per_head_and_position():
    x = normal(2, 3, 5, 8, seed=3) * jnp.asarray([1e-3, 1.0, 1e3])[None, :, None, None]
    stored, scales = quantise(x)
    assert stored.dtype == jnp.int8 and scales.shape == (2, 3, 5)
    off = np.abs(stored.astype(jnp.float32) * scales[..., None] - x)
    assert np.all(off <= 0.501 * np.asarray(scales)[..., None])
    np.testing.assert_allclose(scales * 127, np.abs(x).max(-1), rtol=1e-6)
    nothing, _ = quantise(jnp.zeros((1, 4)))
    np.testing.assert_array_equal(nothing, np.zeros((1, 4)))


def test_an_unknown_dtype_is_named():
    with pytest.raises(ValueError, match="cache_dtype='int4': must be one of float32, bfloat16"):
        check_cache_dtype("int4")
