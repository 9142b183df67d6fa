"""Feed-forward layers, compared with torch."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from mm1_jax.layers.feed_forward import Activation, FeedForward, GatedFeedForward

functional = torch.nn.functional
TORCH = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
}


def _torch(parameter: nnx.Param) -> torch.Tensor:
    return torch.tensor(np.asarray(parameter[...]))


@pytest.mark.parametrize("activation", [a.value for a in Activation])
def test_the_plain_layer_equals_torch(activation, prng_key):
    cfg = FeedForward.default_config().set(input_dim=4, hidden_dim=9, activation=activation)
    layer = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    layer.up.bias[...] = jax.random.normal(prng_key, (9,))
    layer.down.bias[...] = jax.random.normal(prng_key, (4,))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    hidden = torch.tensor(np.asarray(x)) @ _torch(layer.up.kernel) + _torch(layer.up.bias)
    expected = TORCH[activation](hidden) @ _torch(layer.down.kernel).T + _torch(layer.down.bias)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_the_gated_layer_equals_torch(prng_key):
    cfg = GatedFeedForward.default_config().set(input_dim=4, hidden_dim=9)
    layer = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    x = jax.random.normal(jax.random.key(1), (2, 3, 4))
    y = torch.tensor(np.asarray(x))
    hidden = functional.silu(y @ _torch(layer.gate.kernel)) * (y @ _torch(layer.up.kernel))
    np.testing.assert_allclose(layer(x), hidden @ _torch(layer.down.kernel).T, rtol=1e-4, atol=1e-5)


def test_unknown_activation_is_an_error(prng_key):
    cfg = FeedForward.default_config().set(input_dim=4, hidden_dim=9, activation="gel")
    with pytest.raises(ValueError, match="gel"):
        cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
