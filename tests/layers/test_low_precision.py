"""Products of 8-bit operands against NumPy, floats and one device."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments import pretrain
from mm1_jax.experiment import Experiment
from mm1_jax.layers import low_precision
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.lora import Adapter
from mm1_jax.layers.low_precision import LowPrecision, Precision, Product, quantize
from mm1_jax.layers.moe import Capacity, MoE

ALL = tuple(Product)
SUBSCRIPTS = (
    "...d,df->...f",
    "...d,dnh->...nh",
    "...d,fd->...f",
    "btnh,dnh->btd",
    "seqd,edf->seqf",
)


def rule(precision=Precision.INT8, products=ALL):
    return LowPrecision.default_config().set(precision=precision, products=products).instantiate()


def arrays(subscripts, seed=0):
    sizes = {"b": 2, "t": 6, "d": 24, "f": 20, "n": 3, "h": 4, "s": 2, "e": 3, "q": 5}
    left, right = subscripts.replace("...", "bt").partition("->")[0].split(",")
    keys = jax.random.split(jax.random.key(seed), 2)
    return tuple(
        jax.random.normal(key, [sizes[letter] for letter in letters])
        for key, letters in zip(keys, (left, right), strict=True)
    )


def relative_error(ours, exact):
    return float(jnp.linalg.norm((ours - exact).ravel()) / jnp.linalg.norm(exact.ravel()))


def numpy_int8(x, axes):
    x = np.asarray(x, np.float32)
    largest = np.maximum(np.abs(x).max(axis=axes, keepdims=True), np.float32(1e-30))
    values = np.rint(x * (np.float32(127) / largest)).astype(np.int32)
    return values, largest * np.float32(1 / 127)


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_int8_products_are_those_of_integers_in_numpy(subscripts):
    """All three products: values bit for bit, sums in int32, then two scales in float32."""
    x, kernel = arrays(subscripts)
    names = subscripts.replace("...", "bt")
    (a, b), c = names.partition("->")[0].split(","), names.partition("->")[2]
    y, backward = jax.vjp(lambda x, k: rule().einsum(subscripts, x, k), x, kernel)
    g = jax.random.normal(jax.random.key(2), y.shape)

    def outside(letters, others):
        return tuple(i for i, letter in enumerate(letters) if letter not in others)

    def expected(left, left_letters, right, right_letters, letters):
        (values, scale), (other, other_scale) = left, right
        spec = f"{left_letters},{right_letters}->{letters}"
        sums = np.einsum(spec, values, other, dtype=np.int32).astype(np.float32)
        kept = [
            np.einsum(f"{own}->{''.join(x for x in own if x in letters)}", s)
            for own, s in ((left_letters, scale), (right_letters, other_scale))
        ]
        for own, s in zip((left_letters, right_letters), kept, strict=True):
            own = "".join(x for x in own if x in letters)
            ones = np.ones([1] * len(letters), np.float32)
            sums = sums * np.einsum(f"{own},{letters}->{letters}", s, ones)
        return sums

    q_x, q_kernel = numpy_int8(x, outside(a, c)), numpy_int8(kernel, outside(b, c))
    np.testing.assert_array_equal(y, expected(q_x, a, q_kernel, b, c))
    dx, dkernel = backward(g)
    scales = np.einsum(f"{b}->{''.join(x for x in b if x in c)}", q_kernel[1])
    own = "".join(x for x in b if x in c)
    scaled = np.einsum(f"{c},{own}->{c}", np.asarray(g), scales)
    unscaled = (q_kernel[0], np.ones([1] * kernel.ndim, np.float32))
    np.testing.assert_array_equal(
        dx, expected(numpy_int8(scaled, outside(c, a)), c, unscaled, b, a)
    )
    rows = numpy_int8(x, outside(a, b)), numpy_int8(g, outside(c, b))
    np.testing.assert_array_equal(dkernel, expected(rows[0], a, rows[1], c, b))


@pytest.mark.parametrize(("precision", "bound"), [(Precision.INT8, 0.015), (Precision.FP8, 0.06)])
@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
def test_products_and_gradients_are_close_to_those_of_floats(subscripts, precision, bound):
    x, kernel = arrays(subscripts)
    y, backward = jax.vjp(lambda x, k: rule(precision).einsum(subscripts, x, k), x, kernel)
    names = subscripts.replace("...", "bt")
    exact, exact_backward = jax.vjp(lambda x, k: jnp.einsum(names, x, k), x, kernel)
    g = jax.random.normal(jax.random.key(2), y.shape)
    assert relative_error(y, exact) < bound
    for ours, float_gradient in zip(backward(g), exact_backward(g), strict=True):
        # Gradients of fp8 have one bit less of mantissa.
        assert relative_error(ours, float_gradient) < 1.5 * bound


@pytest.mark.parametrize("product", Product)
def test_products_that_are_not_chosen_are_those_of_floats(product):
    x, kernel = arrays(SUBSCRIPTS[0])
    others = tuple(each for each in Product if each is not product)
    y, backward = jax.vjp(
        lambda x, k: rule(products=(product,)).einsum(SUBSCRIPTS[0], x, k), x, kernel
    )
    exact, exact_backward = jax.vjp(lambda x, k: jnp.einsum("btd,df->btf", x, k), x, kernel)
    g = jax.random.normal(jax.random.key(2), y.shape)
    found = dict(zip(ALL, (y, *backward(g)), strict=True))
    floats = dict(zip(ALL, (exact, *exact_backward(g)), strict=True))
    assert relative_error(found[product], floats[product]) > 1e-4
    for each in others:
        np.testing.assert_allclose(found[each], floats[each], rtol=1e-5, atol=1e-5)


def test_rounding_is_unbiased_and_at_most_half_a_step():
    x = jax.random.normal(jax.random.key(0), (64, 512))
    values, scale = quantize(x, (1,), jnp.int8)
    error = np.asarray(x / scale - values)
    assert np.abs(error).max() <= 0.5 + 1e-4
    # A uniform error has a standard deviation of 0.29 steps; this is 4 deviations of the mean.
    assert abs(error.mean()) < 4 * 0.29 / math.sqrt(error.size)


@pytest.mark.parametrize("precision", Precision)
def test_scaling_an_operand_scales_the_product(precision):
    x, kernel = arrays(SUBSCRIPTS[0])
    y = rule(precision).einsum(SUBSCRIPTS[0], x, kernel)
    per_row = jnp.exp2(jnp.arange(12.0).reshape(2, 6, 1) - 6)
    per_column = jnp.exp2(jnp.arange(20.0) - 10)[None]
    scaled = rule(precision).einsum(SUBSCRIPTS[0], x * per_row, kernel * per_column)
    np.testing.assert_array_equal(scaled, y * per_row * per_column[None])


@pytest.mark.parametrize("precision", Precision)
def test_rows_of_zeros_give_zeros_and_non_finite_values_show(precision):
    x, kernel = arrays(SUBSCRIPTS[0])
    x = x.at[0, 0].set(0.0).at[0, 1, 3].set(jnp.nan).at[0, 2, 3].set(jnp.inf)
    y, backward = jax.vjp(lambda x, k: rule(precision).einsum(SUBSCRIPTS[0], x, k), x, kernel)
    assert not y[0, 0].any() and jnp.isfinite(y[0, 3:]).all()
    assert not jnp.isfinite(y[0, 1:3]).any()
    dx, _ = backward(jnp.zeros_like(y))
    assert not dx.any()


def test_sums_of_any_length_fit_into_int32():
    """A million equal products, which int8 values of 127 would add up to 7.5 times the limit."""
    x = jnp.ones((1 << 20, 1))
    _, backward = jax.vjp(lambda k: rule().einsum(SUBSCRIPTS[0], x, k), jnp.ones((1, 1)))
    np.testing.assert_allclose(backward(x)[0], [[1 << 20]], rtol=0.02)


@pytest.mark.parametrize("split", ["rows", "summed dim"])
def test_eight_devices_compute_what_one_does(split):
    x, kernel = arrays(SUBSCRIPTS[0])
    x = jax.random.normal(jax.random.key(3), (8, 6, 24))
    mesh = Mesh(jax.devices(), ("fsdp",), axis_types=(AxisType.Auto,))
    specs = ("fsdp",), ("fsdp",)
    if split == "summed dim":
        specs = (None, None, "fsdp"), ("fsdp",)

    @jax.jit
    def loss_and_gradients(x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(rule().einsum(SUBSCRIPTS[0], x, kernel)))

        return jax.value_and_grad(loss, (0, 1))(x, kernel)

    split_arrays = (
        jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
        for a, spec in zip((x, kernel), specs, strict=True)
    )
    ours, one = loss_and_gradients(*split_arrays), loss_and_gradients(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, one)


def test_a_layer_computes_in_low_precision_if_asked(prng_key):
    cfg = Linear.default_config().set(input_dim=24, output_dim=20)
    x = jax.random.normal(prng_key, (2, 6, 24))
    for first in (False, True):
        cfg.output_first = first
        plain = cfg.clone().instantiate(rngs=nnx.Rngs(params=prng_key))
        low = cfg.clone(low_precision=LowPrecision.default_config())
        low = low.instantiate(rngs=nnx.Rngs(params=prng_key))
        assert 1e-4 < relative_error(low(x), plain(x)) < 0.015
        assert jax.tree.leaves(nnx.state(low))[0].dtype == jnp.float32


def test_adapters_of_a_layer_in_low_precision_keep_their_dtype(prng_key):
    """The update is added to the product of the frozen kernel, and trained through it."""
    cfg = Linear.default_config().set(input_dim=24, output_dim=20)
    cfg.low_precision = LowPrecision.default_config()
    layer = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    x = jax.random.normal(prng_key, (2, 6, 24))
    base = layer(x)
    layer.lora = Adapter.default_config().instantiate(
        layer=layer, is_rank_stabilized=False, rngs=nnx.Rngs(params=prng_key)
    )
    layer.lora.b[...] = jax.random.normal(prng_key, layer.lora.b.shape)
    np.testing.assert_array_equal(layer(x), base + layer.lora(x))


def test_equal_rules_share_a_compiled_program(prng_key):
    cfg = GatedFeedForward.default_config().set(input_dim=8, hidden_dim=16)
    cfg.up.low_precision = LowPrecision.default_config()
    first, second = (cfg.clone().instantiate(rngs=nnx.Rngs(params=prng_key)) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)


def small_config():
    """A sparse and a dense layer, whose sizes differ from those of all other parts."""
    cfg = pretrain.mm1_tiny_moe()
    cfg.model.decoder.set(model_dim=40, hidden_dim=56, num_heads=5, num_kv_heads=5, num_layers=2)
    cfg.model.decoder.set(moe_every=2, low_precision=LowPrecision.default_config())
    cfg.model.decoder.moe.set(num_experts=3, dispatch=Capacity.default_config())
    return Experiment.resolve(cfg)


def dots(jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from dots(inner)


def test_a_train_step_has_8_bit_products_in_decoder_layers_and_nowhere_else():
    program = Experiment.program(small_config(), jax.devices()[:1])
    step = jax.make_jaxpr(program.train_step)(program.abstract_state, program.objective.batch)
    low, others = [], []
    for dot in dots(step.jaxpr):
        dtypes = {x.aval.dtype for x in dot.invars}
        (low if dtypes == {jnp.dtype(jnp.int8)} else others).append(dot)
    assert all(dot.outvars[0].aval.dtype == jnp.int32 for dot in low)
    # Forward, recomputed and gradient of the inputs; the output of a layer is not recomputed.
    expected = {(40, 5, 8): 2 * 4 * 3, (40, 56): 3 * 3 - 1, (3, 40, 56): 3 * 3 - 1}
    assert Counter(dot.invars[1].aval.shape for dot in low) == expected
    # No other product has a kernel of a layer, but as a result.
    assert not {dot.invars[1].aval.shape for dot in others} & set(expected)


def test_experts_of_any_dispatch_compute_the_same(prng_key):
    """Without drops; grouped products round their operands instead of multiplying integers."""
    cfg = MoE.default_config().set(input_dim=8, hidden_dim=6, num_experts=4)
    cfg.dispatch = Capacity.default_config().set(capacity_factor=4.0)
    cfg.experts.low_precision = LowPrecision.default_config()
    moe = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    x = jax.random.normal(prng_key, (2, 12, 8))
    run = jax.jit(lambda moe, x, dropless: moe(x, dropless=dropless), static_argnums=2)
    (y, statistics), (grouped, _) = (run(moe, x, dropless) for dropless in (False, True))
    assert statistics.dropped == 0
    np.testing.assert_allclose(grouped, y, rtol=1e-5, atol=1e-5)


def test_dropless_experts_refuse_to_train_in_low_precision(prng_key):
    cfg = MoE.default_config().set(input_dim=8, hidden_dim=6, num_experts=4)
    cfg.experts.low_precision = LowPrecision.default_config()
    with pytest.raises(ValueError, match=r"dispatch=Capacity \(model.decoder.moe.dispatch\)"):
        cfg.clone().instantiate(rngs=nnx.Rngs(params=prng_key))
    cfg.experts.low_precision.products = ()
    moe = cfg.instantiate(rngs=nnx.Rngs(params=prng_key))
    assert moe.experts.low_precision is None


@pytest.mark.parametrize(
    ("kind", "able"),
    [
        ("TPU v4", set()),
        ("TPU v5p", {Precision.INT8}),
        ("TPU v6e", {Precision.INT8}),
        ("TPU7x", {Precision.FP8}),
        ("NVIDIA H200", set(Precision)),
        ("a new kind", set(Precision)),
    ],
)
def test_chips_that_would_be_no_faster_are_errors(monkeypatch, kind, able):
    monkeypatch.setattr(low_precision, "current_device_kind", lambda: kind)
    monkeypatch.setattr(low_precision, "current_platform", lambda: "tpu")
    x, kernel = arrays(SUBSCRIPTS[0])
    for precision in Precision:
        if precision in able:
            rule(precision).einsum(SUBSCRIPTS[0], x, kernel)
        else:
            with pytest.raises(ValueError, match=f"precision={precision.value}: .*none"):
                rule(precision).einsum(SUBSCRIPTS[0], x, kernel)
