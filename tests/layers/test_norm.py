"""Norms, compared with torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from mm1_jax.layers.norm import LayerNorm, RMSNorm


def test_rms_norm_equals_torch(prng_key):
    norm = RMSNorm.default_config().set(input_dim=6, eps=1e-2).instantiate(rngs=nnx.Rngs(params=0))
    norm.scale[...] = jnp.arange(6.0)
    x = jax.random.normal(prng_key, (2, 3, 6))
    expected = torch.nn.functional.rms_norm(
        torch.tensor(np.asarray(x)), (6,), weight=torch.arange(6.0), eps=1e-2
    )
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm_equals_torch(prng_key):
    cfg = LayerNorm.default_config().set(input_dim=6, eps=1e-2)
    norm = cfg.instantiate(rngs=nnx.Rngs(params=0))
    norm.scale[...], norm.bias[...] = jnp.arange(6.0), jnp.arange(6.0) - 3
    x = jax.random.normal(prng_key, (2, 3, 6)) + 5
    expected = torch.nn.functional.layer_norm(
        torch.tensor(np.asarray(x)), (6,), torch.arange(6.0), torch.arange(6.0) - 3, eps=1e-2
    )
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_bfloat16_input_is_normalized_in_float32(norm, prng_key):
    norm = norm.default_config().set(input_dim=512).instantiate(rngs=nnx.Rngs(params=0))
    x = (100 + jax.random.normal(prng_key, (4, 512))).astype(jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    # Only the last rounding differs.
    np.testing.assert_allclose(y, norm(x.astype(jnp.float32)), rtol=2**-8, atol=1e-6)
