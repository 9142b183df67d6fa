"""Attention kernels: XLA's compared with torch; the fused ones, interpreted, with XLA's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax import export
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, use_abstract_mesh

from mm1_jax.layers import attention_kernels
from mm1_jax.layers.attention import Attention, Pattern
from mm1_jax.layers.attention_kernels import (
    ATTENTION_OUTPUT,
    KEY,
    QUERY,
    VALUE,
    Kernel,
    attend,
    resolve_kernel,
)
from mm1_jax.layers.attention_mask import Visibility
from mm1_jax.layers.rotary import Rotary
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, tracing_for, use_mesh

T = 6
POSITIONS = jnp.arange(T)[None]
ONE_DOCUMENT = jnp.ones((1, T), jnp.int32)
FUSED = [Kernel.SPLASH, Kernel.TRITON]


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def _torch_attention(q, k, v, **kwargs) -> np.ndarray:
    heads_first = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v)]
    y = torch.nn.functional.scaled_dot_product_attention(*heads_first, **kwargs)
    return y.transpose(1, 2).numpy()


@pytest.mark.parametrize("causal", [False, True])
def test_equal_numbers_of_heads_equal_torch(causal):
    q, k, v = (_normal(i, 2, T, 4, 8) for i in range(3))
    places = (jnp.tile(POSITIONS, (2, 1)), jnp.tile(ONE_DOCUMENT, (2, 1)))
    visibility = Visibility(*places, *places, causal=True) if causal else None
    expected = _torch_attention(q, k, v, is_causal=causal)
    actual = attend(q * 8**-0.5, k, v, visibility)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("num_queries", [1, 9])
def test_grouped_heads_and_their_gradients_equal_torch(platform, num_queries):
    q, g = (_normal(i, 2, num_queries, 6, 4) for i in (0, 3))
    k, v = (_normal(i, 2, 9, 2, 4) for i in (1, 2))
    positions = jnp.tile(jnp.arange(9), (2, 1))
    segment_ids = jnp.array([[1, 1, 2, 2, 2, 2, 3, 3, 3], [1] * 9])
    places = (positions, segment_ids)
    queries = tuple(x[:, -num_queries:] for x in places)
    visibility = Visibility(*queries, *places, causal=True)

    mask = torch.tensor(np.asarray(visibility.mask()))[:, None]
    leaves = [torch.tensor(np.asarray(x)).requires_grad_() for x in (q, k, v)]
    y = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    y.backward(torch.tensor(np.asarray(g)))

    with tracing_for(platform):
        actual, gradient = jax.vjp(lambda q, k, v: attend(q * 4**-0.5, k, v, visibility), q, k, v)
    for ours, theirs in zip((actual, *gradient(g)), (y, *(x.grad for x in leaves)), strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-5)


def test_a_query_without_visible_keys_has_finite_output_and_gradients():
    q, k, v = (_normal(i, 1, T, 2, 4) for i in range(3))
    places = (POSITIONS, jnp.array([[1, 1, 1, 0, 0, 0]]))
    visibility = Visibility(*places, *places, causal=True)

    @jax.jit
    @jax.value_and_grad
    def loss(qkv):
        return jnp.sum(attend(*qkv, visibility) ** 2)

    value, grads = loss((q, k, v))
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in (value, *grads))


def test_softmax_is_computed_in_float32():
    q, k, v = (_normal(i, 1, 64, 2, 16).astype(jnp.bfloat16) for i in range(3))
    q *= 16**-0.5
    y = attend(q, k, v, None)
    expected = attend(*(x.astype(jnp.float32) for x in (q, k, v)), None)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y, expected, atol=6e-3)


def _packed(seed: int, num_rows: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Draws positions and segment ids of rows of documents with random lengths and padding."""
    rng = np.random.default_rng(seed)
    positions, segment_ids = np.zeros((2, num_rows, length), np.int32)
    for row in range(num_rows):
        start, document = 0, 1
        while start + (size := int(rng.integers(1, length // 2))) <= length:
            segment_ids[row, start : start + size] = document
            positions[row, start : start + size] = np.arange(size)
            start, document = start + size, document + 1
    return jnp.asarray(positions), jnp.asarray(segment_ids)


def _queries_keys_values(num_rows, length, num_heads, num_kv_heads, head_dim):
    q = _normal(0, num_rows, length, num_heads, head_dim) * head_dim**-0.5
    return q, *(_normal(i, num_rows, length, num_kv_heads, head_dim) for i in (1, 2))


def _output_and_gradients(kernel, qkv, visibility):
    """Returns the output, zero at padding, and the gradients of a random function of it."""
    seen = 1.0
    if visibility is not None:
        seen = (visibility.query_segment_ids > 0)[:, :, None, None].astype(jnp.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(qkv):
        y = seen * attend(*qkv, visibility, kernel)
        return jnp.sum(y * _normal(3, *y.shape)), y

    gradients, y = run(qkv)
    return y, *gradients


def _assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize(
    ("length", "num_heads", "num_kv_heads", "head_dim", "causal"),
    [(256, 4, 2, 64, True), (384, 2, 1, 128, True), (1030, 1, 1, 64, True), (256, 2, 2, 80, False)],
)
def test_a_fused_kernel_equals_masked_attention_in_packed_rows(
    kernel, length, num_heads, num_kv_heads, head_dim, causal
):
    qkv = _queries_keys_values(2, length, num_heads, num_kv_heads, head_dim)
    places = _packed(length, 2, length)
    visibility = Visibility(*places, *places, causal=causal)
    expected = _output_and_gradients(Kernel.XLA, qkv, visibility)
    _assert_equal(_output_and_gradients(kernel, qkv, visibility), expected)


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("num_patches", [50, 128])
def test_a_fused_kernel_attends_to_every_patch_and_no_padding(kernel, num_patches):
    qkv = _queries_keys_values(2, num_patches, 2, 2, 80)
    expected = _output_and_gradients(Kernel.XLA, qkv, None)
    _assert_equal(_output_and_gradients(kernel, qkv, None), expected)


@pytest.mark.parametrize(
    ("kernel", "axes", "num_rows", "num_kv_heads"),
    [
        (Kernel.SPLASH, {"data": 2, "fsdp": 4}, 8, 2),
        (Kernel.SPLASH, {"data": 2, "model": 4}, 4, 2),  # two shards of queries per kv head
        (Kernel.SPLASH, {"data": 4, "seq": 2}, 4, 2),
        (Kernel.SPLASH, {"data": 8}, 1, 2),  # a single row, whole on every device
        (Kernel.TRITON, {"data": 2, "model": 4}, 4, 4),
    ],
)
def test_a_fused_kernel_is_the_same_on_a_mesh(kernel, axes, num_rows, num_kv_heads):
    qkv = _queries_keys_values(num_rows, 256, 4, num_kv_heads, 64)
    places = _packed(1, num_rows, 256)
    visibility = Visibility(*places, *places, causal=True)
    expected = _output_and_gradients(Kernel.XLA, qkv, visibility)
    mesh = Parallelism.default_config().set(**{"data": 1} | axes).instantiate().mesh()
    with use_mesh(mesh):
        actual = _output_and_gradients(kernel, qkv, visibility)
    _assert_equal(actual, expected)


def test_the_gpu_kernel_rejects_sharded_queries():
    mesh = Parallelism.default_config().set(data=4, seq=2).instantiate().mesh()
    with use_mesh(mesh), pytest.raises(ValueError, match="cannot split queries"):
        attend(*_queries_keys_values(4, 256, 1, 1, 64), None, Kernel.TRITON)


def test_the_gpu_kernel_lowers_for_cuda_forward_and_backward(monkeypatch):
    monkeypatch.setattr(attention_kernels, "current_platform", lambda: "gpu")
    q, k = (jax.ShapeDtypeStruct((2, 256, heads, 80), jnp.bfloat16) for heads in (4, 2))
    places = jax.ShapeDtypeStruct((2, 256), jnp.int32)

    def loss(q, k, v, positions, segment_ids):
        visibility = Visibility(*(positions, segment_ids) * 2, causal=True)
        return jnp.sum(attend(q, k, v, visibility, Kernel.AUTO).astype(jnp.float32))

    gpu = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        exported = export.export(
            jax.jit(jax.grad(loss, argnums=(0, 1, 2))),
            platforms=["cuda"],
            disabled_checks=[export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(q, k, k, places, places)
    kernels = ("mha_forward", "mha_preprocess_backward", "mha_backward")
    assert all(f'"{name}"' in exported.mlir_module() for name in kernels)


class _Device:
    def __init__(self, platform: str):
        self.platform = platform


@pytest.mark.parametrize(
    ("platform", "expected"),
    [("tpu", Kernel.SPLASH), ("gpu", Kernel.TRITON), ("cpu", Kernel.XLA)],
)
def test_the_kernel_is_chosen_by_the_devices_of_the_mesh(platform, expected):
    mesh = Mesh(np.array([_Device(platform)]), ("data",))
    with use_mesh(mesh, AxisRules()):
        assert resolve_kernel(Kernel.AUTO) is expected
        assert resolve_kernel(Kernel.XLA) is Kernel.XLA
    assert resolve_kernel(Kernel.AUTO) is Kernel.XLA  # tests run on CPUs


def _attention(kernel: Kernel) -> Attention:
    cfg = Attention.default_config().set(
        input_dim=32,
        num_heads=2,
        head_dim=64,
        pattern=Pattern.CAUSAL,
        rotary=Rotary.default_config(),
        kernel=kernel,
    )
    return cfg.instantiate(rngs=nnx.Rngs(params=0))


@pytest.mark.parametrize("kernel", FUSED)
def test_the_module_has_the_same_output_with_a_fused_kernel(kernel):
    x, (positions, segment_ids) = _normal(1, 1, 128, 32), _packed(0, 1, 128)
    y, expected = (
        _attention(choice)(x, positions=positions, segment_ids=segment_ids)[0]
        for choice in (kernel, Kernel.XLA)
    )
    is_token = np.asarray(segment_ids) > 0
    np.testing.assert_allclose(y[is_token], expected[is_token], rtol=1e-4, atol=1e-4)


def test_cross_attention_never_uses_a_fused_kernel():
    cfg = Attention.default_config().set(input_dim=8, num_heads=2, kernel=Kernel.SPLASH)
    attention = cfg.instantiate(rngs=nnx.Rngs(params=0))
    jaxpr = jax.make_jaxpr(lambda x, s: attention(x, source=s)[0])(
        _normal(0, 1, 4, 8), _normal(1, 1, T, 8)
    )
    assert "pallas_call" not in str(jaxpr)


def _num_kernels(jaxpr) -> int:
    """Counts Pallas calls whose results are used; equations without results are dropped."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            count += 1
        elif equation.outvars:
            inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
            count += sum(_num_kernels(value) for value in inner if hasattr(value, "eqns"))
    return count


@pytest.mark.parametrize("kernel", FUSED)
@pytest.mark.parametrize("on_mesh", [False, True])
def test_saved_names_avoid_recomputing_the_forward_kernel(kernel, on_mesh):
    attention = _attention(kernel)
    x, (positions, segment_ids) = _normal(1, 8, 128, 32), _packed(0, 8, 128)

    def num_kernels(*names: str) -> int:
        policy = checkpoint_policies.save_only_these_names(*names)

        @functools.partial(jax.checkpoint, policy=policy)
        def output(x):
            return attention(x, positions=positions, segment_ids=segment_ids)[0]

        return _num_kernels(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(output(x) ** 2)))(x).jaxpr)

    with use_mesh(Parallelism.default_config().instantiate().mesh() if on_mesh else None):
        assert num_kernels() - num_kernels(QUERY, KEY, VALUE, ATTENTION_OUTPUT) == 1
