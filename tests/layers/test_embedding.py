"""The token table as input and as output layer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm1_jax.layers.embedding import Embedding


def test_embedding_selects_rows_and_attend_multiplies_by_them(prng_key):
    cfg = Embedding.default_config().set(vocab_size=7, model_dim=4)
    embedding = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    weight = np.asarray(embedding.weight[...])
    tokens = jnp.array([[0, 6, 3]])
    np.testing.assert_array_equal(embedding(tokens)[0], weight[[0, 6, 3]])
    hidden = jax.random.normal(prng_key, (1, 2, 4))
    expected = np.asarray(hidden) @ weight.T
    np.testing.assert_allclose(embedding.attend(hidden), expected, rtol=1e-4, atol=1e-5)


def test_logits_are_float32_for_hidden_states_of_any_dtype(prng_key):
    cfg = Embedding.default_config().set(vocab_size=7, model_dim=4)
    embedding = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    embedding.weight[...] = embedding.weight[...].astype(jnp.bfloat16)
    assert embedding.attend(jnp.ones((1, 2, 4), jnp.bfloat16)).dtype == jnp.float32
