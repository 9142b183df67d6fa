"""The kernel for short rows, interpreted, compared with XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import Mesh

from mm1_jax.layers import attention_kernels, row_attention
from mm1_jax.layers.attention import Attention, Pattern
from mm1_jax.layers.attention_kernels import (
    ATTENTION_OUTPUT,
    KEY,
    QUERY,
    VALUE,
    Kernel,
    attend,
    row_length,
    rows_fit,
)
from mm1_jax.layers.attention_mask import Visibility
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, use_mesh


def _arrays(*shape, dtype=jnp.float32):
    """Returns scaled queries, keys, values, and the gradient of the output."""
    q, k, v, dy = (jax.random.normal(jax.random.key(seed), shape) for seed in range(4))
    return tuple(x.astype(dtype) for x in (q * shape[-1] ** -0.5, k, v, dy))


def _prefix_visibility(num_rows, length):
    positions = jnp.broadcast_to(jnp.arange(length)[None], (num_rows, length))
    prefixes = 1 + 17 * jnp.arange(num_rows) % length
    return Visibility(positions, None, positions, None, causal=True, prefix_lengths=prefixes)


def _output_and_gradients(kernel, arrays, visibility=None):
    *qkv, dy = arrays

    @jax.jit
    def run(*qkv):
        y, gradients = jax.vjp(lambda *qkv: attend(*qkv, visibility, kernel), *qkv)
        return y, *gradients(dy)

    return run(*qkv)


def _assert_close(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b)))


def _limit(monkeypatch, **limits):
    for name, value in limits.items():
        monkeypatch.setattr(row_attention, f"_MAX_{name.upper()}", value)
        if name == "queries":
            monkeypatch.setattr(row_attention, "_QUERY_BLOCKS", (value,))


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize(
    ("length", "num_heads", "head_dim"),
    [(77, 4, 64), (257, 2, 64), (77, 8, 80), (300, 1, 128), (77, 4, 32), (50, 16, 72)],
)
def test_output_and_gradients_equal_those_of_xla(length, num_heads, head_dim, has_prefix):
    arrays = _arrays(2, length, num_heads, head_dim)
    visibility = _prefix_visibility(2, length) if has_prefix else None
    expected = _output_and_gradients(Kernel.XLA, arrays, visibility)
    _assert_close(_output_and_gradients(Kernel.ROWS, arrays, visibility), expected, 1e-5)


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize(
    ("length", "limits"),
    [
        (256, {"queries": 128}),
        (300, {"queries": 128}),  # the last block of queries is ragged
        (384, {"keys": 128}),
        (300, {"keys": 128}),
        (300, {"queries": 256, "keys": 200}),
        (300, {"logits": 1}),  # heads of one tile per step
    ],
)
def test_blocks_do_not_change_the_result(length, limits, has_prefix, monkeypatch):
    arrays = _arrays(2, length, 4, 64)
    visibility = _prefix_visibility(2, length) if has_prefix else None
    expected = _output_and_gradients(Kernel.XLA, arrays, visibility)
    _limit(monkeypatch, **limits)
    _assert_close(_output_and_gradients(Kernel.ROWS, arrays, visibility), expected, 1e-5)


def test_heads_that_span_tiles_are_the_same_in_blocks(monkeypatch):
    arrays = _arrays(1, 300, 8, 80)
    expected = _output_and_gradients(Kernel.XLA, arrays)
    _limit(monkeypatch, queries=128, keys=128)
    _assert_close(_output_and_gradients(Kernel.ROWS, arrays), expected, 1e-5)


def test_the_softmax_is_computed_in_float32():
    arrays = _arrays(2, 257, 2, 64, dtype=jnp.bfloat16)
    expected = _output_and_gradients(Kernel.XLA, [x.astype(jnp.float32) for x in arrays])
    actual = _output_and_gradients(Kernel.ROWS, arrays)
    assert all(x.dtype == jnp.bfloat16 for x in actual)
    _assert_close([x.astype(jnp.float32) for x in actual], expected, 1e-2)


def test_large_logits_neither_overflow_nor_vanish():
    q, *others = _arrays(1, 77, 2, 64)
    arrays = (1e3 * q, *others)
    actual = _output_and_gradients(Kernel.ROWS, arrays)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in actual)
    # Gradients of a saturated softmax are differences of nearly equal numbers.
    _assert_close(actual[:1], _output_and_gradients(Kernel.XLA, arrays)[:1], 1e-4)


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize(
    ("axes", "num_rows"),
    [({"data": 2, "fsdp": 4}, 8), ({"data": 2, "model": 4}, 2), ({"data": 8}, 1)],
)
def test_the_kernel_is_the_same_on_a_mesh(axes, num_rows, has_prefix):
    arrays = _arrays(num_rows, 77, 8, 64)
    visibility = _prefix_visibility(num_rows, 77) if has_prefix else None
    expected = _output_and_gradients(Kernel.XLA, arrays, visibility)
    with use_mesh(Parallelism.default_config().set(**{"data": 1} | axes).instantiate().mesh()):
        actual = _output_and_gradients(Kernel.ROWS, arrays, visibility)
    _assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((8, 257, 16, 64), True),
        ((8, 2304, 16, 80), True),
        ((8, 2305, 16, 80), True),
        ((8, 16384, 16, 80), False),  # more than vector memory
        ((8, 257, 3, 64), False),  # half a tile of lanes
        ((8, 257, 2, 192), False),
    ],
)
def test_rows_fit_into_vector_memory_and_heads_into_tiles(shape, fits):
    assert rows_fit(shape, shape[2], jnp.bfloat16) is fits


def test_sharded_heads_and_queries_and_grouped_heads_may_not_fit():
    shape = (8, 256, 16, 64)
    assert not rows_fit(shape, 8, jnp.bfloat16)
    for axes, fits in (({"model": 8}, True), ({"seq": 8}, False)):
        mesh = Parallelism.default_config().set(data=1, **axes).instantiate().mesh()
        with use_mesh(mesh):
            assert rows_fit(shape, 16, jnp.bfloat16) is fits
    with use_mesh(Parallelism.default_config().set(data=1, model=8).instantiate().mesh()):
        assert not rows_fit((8, 256, 8, 64), 8, jnp.bfloat16)  # one head, half a tile, per device


class _TPU:
    platform = "tpu"

    def __init__(self, device_kind="TPU v5p"):
        self.device_kind = device_kind


def test_longer_rows_fit_on_chips_with_more_vector_memory():
    for kind, fits in (("TPU v5p", True), ("TPU v4", False)):
        with use_mesh(Mesh(np.array([_TPU(kind)]), ("data",)), AxisRules()):
            assert rows_fit((1, 257, 16, 64), 16, jnp.bfloat16)
            assert rows_fit((1, 2304, 16, 80), 16, jnp.bfloat16) is fits


@pytest.mark.parametrize(
    ("kernel", "has_prefix", "expected"),
    [
        (Kernel.ROWS, False, "_attention_of_rows"),
        (Kernel.ROWS, True, "_attention_of_rows"),
        (Kernel.AUTO, False, "fused_attention"),
        (Kernel.AUTO, True, "xla_attention"),
    ],
)
def test_only_our_kernel_masks_prefixes(kernel, has_prefix, expected, monkeypatch):
    used = []
    for name in ("_attention_of_rows", "fused_attention", "xla_attention"):
        record = functools.partial(lambda name, q, *_: used.append(name) or q, name)
        monkeypatch.setattr(attention_kernels, name, record)
    x = jnp.zeros((1, 257, 16, 64))
    with use_mesh(Mesh(np.array([_TPU()]), ("data",)), AxisRules()):
        attend(x, x, x, _prefix_visibility(1, 257) if has_prefix else None, kernel)
    assert used == [expected]


def test_an_unsupported_call_names_the_need():
    q, k, v, _ = _arrays(1, 77, 3, 64)
    with pytest.raises(ValueError, match="tiles of 128 lanes; use Kernel.AUTO"):
        attend(q, k, v, None, Kernel.ROWS)


def _attention(kernel, pattern=Pattern.BIDIRECTIONAL):
    cfg = Attention.default_config().set(
        input_dim=32, num_heads=2, head_dim=64, bias=True, pattern=pattern, kernel=kernel
    )
    return cfg.instantiate(rngs=nnx.Rngs(params=0))


@pytest.mark.parametrize("pattern", [Pattern.BIDIRECTIONAL, Pattern.PREFIX])
def test_the_module_has_the_same_output_and_gradients(pattern):
    x = jax.random.normal(jax.random.key(0), (2, 77, 32))
    places = {}
    if pattern is Pattern.PREFIX:
        visibility = _prefix_visibility(2, 77)
        places = {
            "positions": visibility.query_positions,
            "prefix_lengths": visibility.prefix_lengths,
        }

    @jax.jit
    @jax.value_and_grad
    def loss(attention, x):
        return jnp.sum(attention(x, **places)[0] ** 2)

    actual, expected = (
        jax.tree.leaves(loss(_attention(kernel, pattern), x))
        for kernel in (Kernel.ROWS, Kernel.XLA)
    )
    # The gradient of the key's bias is zero but for rounding, so compare with an absolute error.
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_rows_are_padded_up_front_for_other_kernels_only():
    with use_mesh(Mesh(np.array([_TPU()]), ("data",)), AxisRules()):
        assert row_length(77, Kernel.ROWS) == 77
        assert row_length(77, Kernel.AUTO) == row_length(77, Kernel.SPLASH) == 128


def _num_kernels(jaxpr) -> int:
    """Counts Pallas calls whose results are used."""
    used = {id(value) for equation in jaxpr.eqns for value in equation.invars}
    used |= {id(value) for value in jaxpr.outvars}
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            count += any(id(value) in used for value in equation.outvars)
        elif equation.outvars:
            inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
            count += sum(_num_kernels(value) for value in inner if hasattr(value, "eqns"))
    return count


@pytest.mark.parametrize("on_mesh", [False, True])
def test_saved_names_avoid_recomputing_the_forward_kernel(on_mesh):
    attention = _attention(Kernel.ROWS)
    x = jax.random.normal(jax.random.key(1), (8, 77, 32))

    def num_kernels(*names: str) -> int:
        policy = checkpoint_policies.save_only_these_names(*names)

        @functools.partial(jax.checkpoint, policy=policy)
        def output(x):
            return attention(x)[0]

        return _num_kernels(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(output(x) ** 2)))(x).jaxpr)

    with use_mesh(Parallelism.default_config().instantiate().mesh() if on_mesh else None):
        assert num_kernels() - num_kernels(QUERY, KEY, VALUE, ATTENTION_OUTPUT) == 1
