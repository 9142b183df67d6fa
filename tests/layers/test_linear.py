"""Linear maps, and their variants for attention heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.linear import JoinHeads, Linear, SplitHeads, product


def test_linear_is_a_matrix_product_plus_a_bias(prng_key):
    linear = Linear.default_config().set(input_dim=3, output_dim=5, bias=True)
    linear = linear.instantiate(rngs=nnx.Rngs(params=prng_key))
    linear.bias[...] = np.arange(5.0)
    x = jax.random.normal(prng_key, (2, 4, 3))
    expected = np.asarray(x) @ np.asarray(linear.kernel[...]) + np.arange(5.0)
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-6)


def test_head_splits_and_joins_equal_the_reshaped_matrix(prng_key):
    split = SplitHeads.default_config().set(input_dim=6, num_heads=2, head_dim=3)
    split = split.instantiate(rngs=nnx.Rngs(params=prng_key))
    join = JoinHeads.default_config().set(num_heads=2, head_dim=3, output_dim=6, bias=True)
    join = join.instantiate(rngs=nnx.Rngs(params=jax.random.key(1)))
    x = jax.random.normal(prng_key, (2, 4, 6))
    into, out = (np.asarray(module.kernel[...]).reshape(6, 6) for module in (split, join))
    matrix = into @ out.T
    np.testing.assert_allclose(join(split(x)), np.asarray(x) @ matrix, rtol=1e-4, atol=1e-5)


def test_heads_with_joined_dims_are_the_same(prng_key):
    rngs = nnx.Rngs(params=prng_key)
    sizes = {"num_heads": 2, "head_dim": 3, "bias": True}
    split = SplitHeads.default_config().set(input_dim=6, **sizes).instantiate(rngs=rngs)
    join = JoinHeads.default_config().set(output_dim=6, **sizes).instantiate(rngs=rngs)
    split.bias[...], join.bias[...] = np.arange(6.0).reshape(2, 3), np.arange(6.0)
    x = jax.random.normal(prng_key, (2, 4, 6))
    heads = split(x)
    np.testing.assert_allclose(split(x, joined=True), heads, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(join(heads, joined=True), join(heads), rtol=1e-5, atol=1e-6)


def test_outputs_have_unit_variance_at_initialization(prng_key):
    x = jax.random.normal(prng_key, (4, 64, 256))
    rngs = nnx.Rngs(params=jax.random.key(1))
    linear = Linear.default_config().set(input_dim=256, output_dim=64)
    split = SplitHeads.default_config().set(input_dim=256, num_heads=4, head_dim=16)
    join = JoinHeads.default_config().set(num_heads=4, head_dim=64, output_dim=64)
    for y in (
        linear.clone().instantiate(rngs=rngs)(x),
        linear.clone(output_first=True).instantiate(rngs=rngs)(x),
        split.instantiate(rngs=rngs)(x),
        join.instantiate(rngs=rngs)(x.reshape(4, 64, 4, 64)),
    ):
        np.testing.assert_allclose(np.std(y), 1.0, atol=0.05)


def test_every_parameter_has_a_logical_name_for_each_dim(prng_key):
    rngs = nnx.Rngs(params=prng_key)
    cfg = Linear.default_config().set(input_dim=2, output_dim=3, bias=True, axes=("mlp", "embed"))
    linear = cfg.instantiate(rngs=rngs)
    assert linear.kernel.get_metadata("out_sharding") == ("mlp", "embed")
    assert linear.bias.get_metadata("out_sharding") == ("embed",)
    linear = cfg.clone(output_first=True).instantiate(rngs=rngs)
    assert linear.kernel.get_metadata("out_sharding") == ("embed", "mlp")
    assert linear.bias.get_metadata("out_sharding") == ("embed",)


def test_both_kernel_layouts_are_the_same_map(prng_key):
    cfg = Linear.default_config().set(input_dim=4, output_dim=5)
    first, second = (
        cfg.clone(output_first=order).instantiate(rngs=nnx.Rngs(params=prng_key))
        for order in (False, True)
    )
    assert second.kernel.shape == (5, 4)
    second.kernel[...] = first.kernel[...].T
    x = jax.random.normal(prng_key, (2, 4))
    np.testing.assert_allclose(first(x), second(x), rtol=1e-6)


@pytest.mark.parametrize("output_dims", [(5,), (2, 3)])
def test_products_have_the_gradients_of_einsum(prng_key, output_dims):
    x_key, kernel_key, g_key = jax.random.split(prng_key, 3)
    x = jax.random.normal(x_key, (2, 3, 4))
    kernel = jax.random.normal(kernel_key, (4, *output_dims))
    g = jax.random.normal(g_key, (2, 3, *output_dims))
    names = "nh"[: len(output_dims)]

    def einsum(x, kernel):
        return jnp.einsum(f"btd,d{names}->bt{names}", x, kernel)

    ours, theirs = (jax.vjp(function, x, kernel) for function in (product, einsum))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for own, other in zip(ours[1](g), theirs[1](g), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-6)
