"""Rotary position embedding."""

import jax
import jax.numpy as jnp
import numpy as np

from mm1_jax.layers.rotary import rotary


def test_pairs_turn_as_complex_numbers(prng_key):
    x = np.asarray(jax.random.normal(prng_key, (2, 5, 3, 8)))
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 100, 0, 1]])
    z = x[..., :4] + 1j * x[..., 4:]
    frequencies = 50.0 ** (-np.arange(4) / 4)
    z = z * np.exp(1j * positions[:, :, None, None] * frequencies)
    expected = np.concatenate([z.real, z.imag], axis=-1)
    actual = rotary(jnp.asarray(x), jnp.asarray(positions), 50.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_products_depend_on_the_difference_of_positions_only(prng_key):
    q, k = jax.random.normal(prng_key, (2, 1, 1, 1, 16))

    def product(query_position: int, key_position: int) -> jax.Array:
        turned_q = rotary(q, jnp.array([[query_position]]), 10_000.0)
        return jnp.sum(turned_q * rotary(k, jnp.array([[key_position]]), 10_000.0))

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


def test_bfloat16_keeps_large_positions_apart(prng_key):
    x = jax.random.normal(prng_key, (1, 1, 1, 16)).astype(jnp.bfloat16)
    a, b = (rotary(x, jnp.array([[position]]), 10_000.0) for position in (4000, 4001))
    assert a.dtype == jnp.bfloat16
    assert float(jnp.max(jnp.abs(a - b))) > 0.1
