"""Rotary position embedding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mm1_jax.layers.rotary import _swap_halves, _swap_halves_by_product, rotary


def test_pairs_rotate_like_complex_numbers(prng_key):
    x = np.asarray(jax.random.normal(prng_key, (2, 5, 3, 8)))
    positions = np.array([[0, 1, 2, 3, 4], [7, 8, 100, 0, 1]])
    z = x[..., :4] + 1j * x[..., 4:]
    frequencies = 50.0 ** (-np.arange(4) / 4)
    z = z * np.exp(1j * positions[:, :, None, None] * frequencies)
    expected = np.concatenate([z.real, z.imag], axis=-1)
    actual = rotary(jnp.asarray(x), jnp.asarray(positions), 50.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_products_depend_only_on_position_differences(prng_key):
    q, k = jax.random.normal(prng_key, (2, 1, 1, 1, 16))

    def product(query_position: int, key_position: int) -> jax.Array:
        turned_q = rotary(q, jnp.array([[query_position]]), 10_000.0)
        return jnp.sum(turned_q * rotary(k, jnp.array([[key_position]]), 10_000.0))

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


def test_bfloat16_distinguishes_large_positions(prng_key):
    x = jax.random.normal(prng_key, (1, 1, 1, 16)).astype(jnp.bfloat16)
    a, b = (rotary(x, jnp.array([[position]]), 10_000.0) for position in (4000, 4001))
    assert a.dtype == jnp.bfloat16
    assert float(jnp.max(jnp.abs(a - b))) > 0.1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_matrix_product_swaps_halves_exactly(prng_key, dtype):
    x = jax.random.normal(prng_key, (2, 3, 4, 16)).astype(dtype)
    np.testing.assert_array_equal(_swap_halves_by_product(x), _swap_halves(x))


def test_rotary_has_the_gradient_of_a_linear_map():
    positions = jnp.array([[3, 40]])

    def turn(x):
        return rotary(x, positions, 100.0, scale=0.3)

    basis = jnp.eye(16).reshape(16, 1, 2, 1, 8)
    expected = jnp.stack([turn(x) for x in basis]).reshape(16, 16).T
    jacobian = jax.jacrev(turn)(basis[0]).reshape(16, 16)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-6)


def test_scale_multiplies_the_output(prng_key):
    x, positions = jax.random.normal(prng_key, (1, 2, 1, 8)), jnp.array([[5, 6]])
    scaled = rotary(x, positions, 100.0, scale=0.5)
    np.testing.assert_allclose(scaled, 0.5 * rotary(x, positions, 100.0), rtol=1e-6)
