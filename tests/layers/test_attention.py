"""Properties of the attention module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.attention import Attention, Pattern
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import Rotary

T = 6
POSITIONS = jnp.arange(T)[None]
ONE_DOCUMENT = jnp.ones((1, T), jnp.int32)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _attention(seed: int = 0, **fields) -> Attention:
    cfg = Attention.default_config().set(input_dim=8, num_heads=4, num_kv_heads=2)
    return cfg.set(**fields).instantiate(rngs=nnx.Rngs(params=jax.random.key(seed)))


@pytest.mark.parametrize("pattern", Pattern)
def test_a_pattern_reads_later_positions_only_where_it_allows(pattern):
    attention = _attention(pattern=pattern, rotary=Rotary.default_config())
    prefix_lengths = jnp.array([2]) if pattern is Pattern.PREFIX else None
    places = {"positions": POSITIONS, "segment_ids": ONE_DOCUMENT}

    def output(x):
        return attention(x, **places, prefix_lengths=prefix_lengths)[0][0]

    jacobian_TDTD = jax.jit(jax.jacobian(output))(_normal(1, 1, T, 8))[:, :, 0]
    depends_TT = jnp.any(jacobian_TDTD != 0, axis=(1, 3))
    expected = np.ones((T, T), bool)
    if pattern is not Pattern.BIDIRECTIONAL:
        expected = np.tril(expected)
    if pattern is Pattern.PREFIX:
        expected[:, :2] = True
    np.testing.assert_array_equal(depends_TT, expected)


def test_rotary_attention_depends_only_on_position_differences():
    attention, x = _attention(rotary=Rotary.default_config()), _normal(1, 1, T, 8)

    @jax.jit
    def output(positions):
        return attention(x, positions=positions, segment_ids=ONE_DOCUMENT)[0]

    np.testing.assert_allclose(output(POSITIONS + 50), output(POSITIONS), rtol=1e-3, atol=1e-4)
    assert not np.allclose(output(2 * POSITIONS), output(POSITIONS), atol=1e-2)


def test_one_segment_without_padding_is_the_same_as_no_segment_ids():
    attention, x = _attention(bias=True), _normal(1, 1, T, 8)
    y, _ = attention(x, positions=POSITIONS, segment_ids=ONE_DOCUMENT)
    np.testing.assert_allclose(attention(x)[0], y, rtol=1e-6, atol=1e-6)


def test_cross_attention_reads_a_source_of_another_width_in_any_order():
    attention = _attention(source_dim=5)
    x, source = _normal(1, 2, 3, 8), _normal(2, 2, T, 5)
    y, _ = attention(x, source=source)
    assert y.shape == x.shape
    np.testing.assert_allclose(attention(x, source=source[:, ::-1])[0], y, rtol=1e-4, atol=1e-5)
    assert not np.allclose(attention(x, source=source[:, :-1])[0], y)


def test_query_key_norm_removes_the_scale_of_queries():
    attention, x = _attention(qk_norm=RMSNorm.default_config()), _normal(1, 1, T, 8)
    y, _ = attention(x)
    attention.query.kernel[...] = 100 * attention.query.kernel[...]
    np.testing.assert_allclose(attention(x)[0], y, rtol=1e-3, atol=1e-3)


def test_causal_attention_without_segment_ids_is_an_error():
    with pytest.raises(ValueError, match="causal attention needs positions"):
        _attention(pattern=Pattern.CAUSAL)(_normal(1, 1, T, 8))
    with pytest.raises(ValueError, match="needs positions"):
        _attention(rotary=Rotary.default_config())(_normal(1, 1, T, 8))


def test_a_prefix_and_the_prefix_pattern_require_each_other():
    x, prefix_lengths = _normal(1, 1, T, 8), jnp.array([2])
    with pytest.raises(ValueError, match="pattern is 'prefix', but prefix_lengths are missing"):
        _attention(pattern=Pattern.PREFIX)(x, positions=POSITIONS, segment_ids=ONE_DOCUMENT)
    with pytest.raises(ValueError, match="'bidirectional', but prefix_lengths are given"):
        _attention()(x, prefix_lengths=prefix_lengths)
    with pytest.raises(ValueError, match="causal attention needs positions"):
        _attention(pattern=Pattern.PREFIX)(x, prefix_lengths=prefix_lengths)


def test_head_counts_that_do_not_divide_are_errors():
    with pytest.raises(ValueError, match="num_kv_heads=3 must divide num_heads=4"):
        _attention(num_kv_heads=3)
    with pytest.raises(ValueError, match="model dim 9 is not divisible by num_heads 4"):
        _attention(input_dim=9)
