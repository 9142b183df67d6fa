"""The scanned stack, compared with a Python loop, and its remat policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mm1_jax.layers.attention import Attention
from mm1_jax.layers.feed_forward import FeedForward
from mm1_jax.layers.moe import MoE
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.parallel.rematerialisation import Remat

X = jax.random.normal(jax.random.key(1), (2, 5, 8))


def _config(grouped: bool, **fields) -> Stack.Config:
    """Layers of a vision encoder: 3, or, if `grouped`, 4 of which every second is sparse."""
    layer = TransformerBlock.default_config().set(
        attention=Attention.default_config().set(num_heads=2, bias=True),
        feed_forward=FeedForward.default_config().set(hidden_dim=6),
        norm=LayerNorm.default_config(),
    )
    cfg = Stack.default_config().set(input_dim=8, num_layers=3, layer=layer)
    if grouped:
        moe = MoE.default_config().set(hidden_dim=6, num_experts=3)
        cfg.set(num_layers=4, last_layer=layer.clone(feed_forward=moe), group_size=2)
    return cfg.set(**fields)


def _stack(grouped: bool, **fields) -> Stack:
    rngs = nnx.Rngs(params=jax.random.key(0))
    return _config(grouped, **fields).instantiate(rngs=rngs)


@jax.jit
@jax.value_and_grad
def _loss(stack):
    y, _, statistics = stack(X)
    return jnp.sum(y**2) + (0 if statistics is None else jnp.sum(statistics.z))


# The scan with full remat, the reference of all comparisons, is compiled once.
_default = functools.cache(lambda grouped: _loss(_stack(grouped)))


def _assert_values_and_gradients_of_the_default(grouped: bool, **fields) -> None:
    value, grads = _default(grouped)
    other_value, other_grads = _loss(_stack(grouped, **fields))
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grouped", [False, True])
def test_scan_equals_a_python_loop(grouped):
    _assert_values_and_gradients_of_the_default(grouped, unroll=True, remat=Remat.NONE)


@pytest.mark.parametrize("grouped, remat", [(False, Remat.NONE), (True, "dots")])
def test_remat_does_not_change_the_result(grouped, remat):
    _assert_values_and_gradients_of_the_default(grouped, remat=remat)


def test_full_remat_saves_only_layer_inputs():
    def num_saved(remat):
        stack = _stack(False, remat=remat)
        pullback = jax.eval_shape(lambda stack: jax.vjp(lambda s: s(X)[0], stack)[1], stack)
        return sum(x.size for x in jax.tree.leaves(pullback))

    assert num_saved(Remat.FULL) < num_saved(Remat.DOTS) < num_saved(Remat.NONE)


def test_offloading_to_host_memory_changes_no_bit():
    def gradients(**fields):
        stack = _stack(True, **fields)
        function = jax.jit(jax.grad(lambda stack: jnp.sum(stack(X)[0] ** 2)))
        return jax.tree.leaves(function(stack)), str(jax.make_jaxpr(function)(stack))

    kept, jaxpr = gradients(saved_names=("query", "mlp_up"))
    assert "host" not in jaxpr.lower()
    offloaded, jaxpr = gradients(saved_names=("query",), offloaded_names=("mlp_up",))
    assert "host" in jaxpr.lower()
    for a, b in zip(kept, offloaded, strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_and_offloaded_names_are_disjoint_and_need_full_remat():
    with pytest.raises(ValueError, match="saved_names and offloaded_names both have query"):
        _stack(False, saved_names=("query",), offloaded_names=("query",))(X)
    with pytest.raises(ValueError, match="offloaded_names=.'query',. need remat=full, got none"):
        _stack(False, offloaded_names=("query",), remat=Remat.NONE)(X)


def test_layers_are_drawn_independently_and_run_in_order():
    stack = _stack(False)
    kernels = stack.layer.feed_forward.up.kernel[...]
    assert len({float(k) for k in kernels[:, 0, 0]}) == 3
    x, run = X, jax.jit(lambda layer, x: layer(x)[0])
    for i in range(3):
        x = run(jax.tree.map(lambda p, i=i: p[i], stack.layer), x)
    np.testing.assert_allclose(run(stack, X), x, rtol=1e-4, atol=1e-5)


def test_stacked_parameters_have_the_layers_name_for_each_leading_dim():
    stack = _stack(True)
    up, router = stack.layer.feed_forward.up.kernel, stack.last_layer.feed_forward.router
    assert up.get_metadata("out_sharding") == ("layers", "layers", "embed", "mlp")
    assert up[...].shape == (2, 1, 8, 6)
    assert router.get_metadata("out_sharding") == ("layers", "embed", None)
    assert router[...].shape == (2, 8, 3)


def test_router_statistics_have_an_entry_per_sparse_layer():
    _, _, statistics = jax.jit(lambda stack: stack(X))(_stack(True))
    assert statistics.expert_load.shape == (2, 3)
    np.testing.assert_array_equal(statistics.weight, [10, 10])


def test_layers_that_do_not_divide_into_groups_are_errors():
    with pytest.raises(ValueError, match="group_size=2 must divide num_layers=5"):
        _stack(True, num_layers=5)
    with pytest.raises(ValueError, match="group_size is 1; with a last_layer"):
        _stack(True, group_size=1)
    with pytest.raises(ValueError, match="there is no last_layer"):
        _stack(False, group_size=2)
    with pytest.raises(ValueError, match="'everything' is not a valid Remat"):
        _stack(False, remat="everything")


def test_names_that_no_layer_has_are_errors():
    with pytest.raises(ValueError, match="no layer has a value 'atention_output'.*attention_out"):
        _stack(False, saved_names=("query", "atention_output"))
    with pytest.raises(ValueError, match="offloaded_names: no layer has a value 'mlp_upp'.*mlp_up"):
        _stack(False, offloaded_names=("mlp_upp",))
