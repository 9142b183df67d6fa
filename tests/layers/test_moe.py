"""Sparse layers: routing, both kinds of dispatch, statistics."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding

from mm1_jax.layers import grouped_matmul as grouped_matmul_file
from mm1_jax.layers.expert_dispatch import Routes, capacity_slots, from_slots, to_slots
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.grouped_matmul import expert_of, group_by_expert, grouped_matmul
from mm1_jax.layers.moe import (
    EXPERT_GATE,
    EXPERT_INPUTS,
    EXPERT_UP,
    Capacity,
    Dropless,
    MoE,
)
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules, parameter_shardings, use_mesh

B, T, D, E = 2, 12, 8, 4
SEGMENT_IDS = jnp.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])


def _moe(seed: int = 0, **fields) -> MoE:
    cfg = MoE.default_config().set(input_dim=D, hidden_dim=6, num_experts=E)
    return cfg.set(**fields).instantiate(rngs=nnx.Rngs(params=jax.random.key(seed)))


def _capacity(factor: float, min_capacity: int = 1) -> Capacity.Config:
    return Capacity.default_config().set(capacity_factor=factor, min_capacity=min_capacity)


@jax.jit
def _run(moe, x, segment_ids):
    return moe(x, segment_ids)


@jax.jit
def _run_dropless(moe, x, segment_ids):
    return moe(x, segment_ids, dropless=True)


def _x(seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (B, T, D))


def _plain_moe(moe: MoE, x: np.ndarray, is_real: np.ndarray) -> np.ndarray:
    """The definition of the layer, token by token."""
    y = np.zeros_like(x)
    gate, up, down = (np.asarray(getattr(moe.experts, k)[...]) for k in ("gate", "up", "down"))
    for b, t in np.argwhere(is_real):
        logits = x[b, t] @ np.asarray(moe.router[...])
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(-probabilities)[: moe.experts_per_token]
        for e in best:
            g = x[b, t] @ gate[e]
            output = (g / (1 + np.exp(-g)) * (x[b, t] @ up[e])) @ down[e].T
            y[b, t] += probabilities[e] / probabilities[best].sum() * output
    return y


@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_dropless_equals_the_definition(experts_per_token):
    moe = _moe(experts_per_token=experts_per_token)
    y, statistics = _run(moe, _x(), SEGMENT_IDS)
    expected = _plain_moe(moe, np.asarray(_x()), np.asarray(SEGMENT_IDS) > 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert statistics.dropped == 0


def test_dropless_is_exact_when_all_tokens_choose_the_same_experts():
    moe = _moe()
    moe.router[...] = jnp.zeros((D, E)).at[0].set(jnp.array([0.0, 3.0, 0.0, 2.0]))
    x = _x().at[:, :, 0].set(1.0)
    y, statistics = _run(moe, x, SEGMENT_IDS)
    np.testing.assert_array_equal(statistics.expert_load, [0, 21, 0, 21])
    expected = _plain_moe(moe, np.asarray(x), np.asarray(SEGMENT_IDS) > 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_identical_experts_equal_the_dense_layer():
    moe = _moe()
    cfg = GatedFeedForward.default_config().set(input_dim=D, hidden_dim=6)
    dense = cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(7)))
    for name in ("gate", "up", "down"):
        kernel = getattr(dense, name).kernel[...]
        getattr(moe.experts, name)[...] = jnp.broadcast_to(kernel[None], (E, *kernel.shape))
    y, _ = _run(moe, _x(), jnp.ones((B, T), jnp.int32))
    np.testing.assert_allclose(y, dense(_x()), rtol=1e-4, atol=1e-5)


def test_sufficient_capacity_equals_dropless_in_values_and_gradients():
    dropless, capacity = _moe(), _moe(dispatch=_capacity(float(E)))

    @jax.jit
    @jax.value_and_grad
    def loss(moe_and_x):
        moe, x = moe_and_x
        return jnp.sum(moe(x, SEGMENT_IDS)[0] ** 2)

    (value, (moe_grads, x_grads)) = loss((dropless, _x()))
    (capacity_value, (capacity_moe_grads, capacity_x_grads)) = loss((capacity, _x()))
    np.testing.assert_allclose(capacity_value, value, rtol=1e-5)
    np.testing.assert_allclose(capacity_x_grads, x_grads, rtol=1e-3, atol=1e-5)
    for a, b in zip(jax.tree.leaves(capacity_moe_grads), jax.tree.leaves(moe_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_dropped_choices_are_counted_and_the_dropless_override_drops_none():
    moe = _moe(dispatch=_capacity(1.0))
    moe.router[...] = jnp.zeros((D, E)).at[0].set(jnp.array([0.0, 3.0, 0.0, 2.0]))
    x = _x().at[:, :, 0].set(1.0)
    y, statistics = _run(moe, x, SEGMENT_IDS)
    # Experts 1 and 3 take T / E = 3 tokens of each row; each was chosen by 9 and by 12 tokens.
    assert statistics.dropped == 2 * (9 - 3) + 2 * (12 - 3)
    assert bool(jnp.all(y[:, 3:] == 0)) and bool(jnp.all(jnp.any(y[:, :3] != 0, axis=-1)))
    y, statistics = _run_dropless(moe, x, SEGMENT_IDS)
    assert statistics.dropped == 0
    expected = _plain_moe(moe, np.asarray(x), np.asarray(SEGMENT_IDS) > 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_first_choices_get_places_before_second_ones():
    # Expert 0 has two places. It is token 0's second choice and the first of tokens 1 and 2, who
    # get the places.
    experts = jnp.array([[[1, 0], [0, 1], [0, 2]]])
    routes = Routes(experts, jnp.full((1, 3, 2), 0.5), jnp.ones((1, 3), bool))
    slots, dropped = capacity_slots(routes, num_experts=3, capacity=2)
    np.testing.assert_array_equal(slots.slot_NX, [[2, 6], [0, 3], [1, 4]])
    np.testing.assert_array_equal(slots.choice_Q, [2, 4, 0, 3, 5, 6])
    np.testing.assert_array_equal(dropped, [1])


def test_padding_takes_no_place():
    moe = _moe(dispatch=_capacity(1.0))
    moe.router[...] = jnp.zeros((D, E)).at[0].set(jnp.array([0.0, 3.0, 0.0, 2.0]))
    x = _x().at[:, :, 0].set(1.0)
    padded_first = jnp.where(jnp.arange(T)[None] < 9, 0, jnp.ones((B, T), jnp.int32))
    y, statistics = _run(moe, x, padded_first)
    # Each row has 3 real tokens, and each expert has 3 places.
    assert statistics.dropped == 0
    assert bool(jnp.all(y[:, :9] == 0)) and bool(jnp.all(jnp.any(y[:, 9:] != 0, axis=-1)))


def test_groups_of_a_row_are_routed_like_separate_rows():
    moe, of_rows = (_moe(dispatch=_capacity(1.0).set(group_size=n)) for n in (4, None))
    y, statistics = _run(moe, _x(), SEGMENT_IDS)
    expected, expected_statistics = _run(
        of_rows, _x().reshape(-1, 4, D), SEGMENT_IDS.reshape(-1, 4)
    )
    np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=1e-5, atol=1e-6)
    assert statistics.dropped == expected_statistics.dropped > 0


def test_groups_that_do_not_divide_a_row_are_an_error():
    with pytest.raises(ValueError, match="group_size=5 must divide the 12 tokens"):
        _moe(dispatch=_capacity(1.0).set(group_size=5))(_x())


def test_slots_and_their_transposes_are_consistent():
    experts = jax.random.randint(jax.random.key(0), (3, 10, 2), 0, E)
    is_real = jax.random.uniform(jax.random.key(1), (3, 10)) < 0.8
    slots, _ = capacity_slots(Routes(experts, jnp.ones((3, 10, 2)), is_real), E, 4)
    is_filled_Q1 = (slots.choice_Q < 60)[:, None]
    x_ND = jax.random.normal(jax.random.key(2), (30, D))
    y_QD = jax.random.normal(jax.random.key(3), (len(slots.choice_Q), D)) * is_filled_Q1

    @jax.jit
    def transposed(x_ND, y_QD):
        xs_QD, back = jax.vjp(lambda x: to_slots(x, slots), x_ND)
        ys_ND, forth = jax.vjp(lambda y: from_slots(y, slots), y_QD)
        return xs_QD, back(y_QD)[0], ys_ND, forth(x_ND)[0]

    xs_QD, back_ND, ys_ND, forth_QD = transposed(x_ND, y_QD)
    np.testing.assert_allclose(np.vdot(xs_QD, y_QD), np.vdot(x_ND, back_ND), rtol=1e-5)
    np.testing.assert_allclose(np.vdot(ys_ND, x_ND), np.vdot(y_QD, forth_QD), rtol=1e-5)
    # Without drops, each real token is found once for each of its choices.
    slots, _ = capacity_slots(Routes(experts, jnp.ones((3, 10, 2)), is_real), E, 20)
    expected = 2 * x_ND * is_real.reshape(30, 1)
    np.testing.assert_allclose(from_slots(to_slots(x_ND, slots), slots), expected, rtol=1e-6)


def test_capacity_is_not_shared_between_rows():
    moe = _moe(dispatch=_capacity(0.7))
    y, _ = _run(moe, _x(), SEGMENT_IDS)
    alone, _ = _run(moe, _x()[1:], SEGMENT_IDS[1:])
    np.testing.assert_allclose(y[1:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dispatch", [None, 0.7])
def test_statistics_ignore_padding(dispatch):
    moe = _moe() if dispatch is None else _moe(dispatch=_capacity(dispatch))
    x = _x()
    _, statistics = _run(moe, x, SEGMENT_IDS)
    _, other = _run(moe, jnp.where(SEGMENT_IDS[:, :, None] > 0, x, 100.0), SEGMENT_IDS)
    for a, b in zip(statistics, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert statistics.weight == 21
    assert jnp.sum(statistics.expert_load) == 2 * 21


def test_a_row_of_padding_has_zero_statistics_and_finite_gradients():
    @jax.jit
    @jax.value_and_grad
    def loss(moe):
        y, statistics = moe(_x(), jnp.zeros((B, T), jnp.int32))
        return jnp.sum(y) + statistics.load_balance + statistics.z

    value, grads = loss(_moe())
    assert value == 0
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(grads))


def test_statistics_equal_their_definitions():
    moe = _moe()
    _, statistics = _run(moe, _x(), SEGMENT_IDS)
    logits = np.asarray(_x()) @ np.asarray(moe.router[...])
    balance = z = 0.0
    for row, segment_ids in zip(logits, np.asarray(SEGMENT_IDS), strict=True):
        row = row[segment_ids > 0]
        probabilities = np.exp(row) / np.exp(row).sum(axis=1, keepdims=True)
        first = np.bincount(row.argmax(axis=1), minlength=E) / len(row)
        balance += len(row) * E * np.sum(first * probabilities.mean(axis=0))
        z += np.sum(np.log(np.exp(row).sum(axis=1)) ** 2)
    np.testing.assert_allclose(statistics.load_balance, balance, rtol=1e-5)
    np.testing.assert_allclose(statistics.z, z, rtol=1e-5)


@pytest.mark.parametrize("block", [1, 8])
def test_grouped_choices_are_a_permutation_in_blocks_of_one_expert(block):
    experts = jax.random.randint(jax.random.key(0), (100, 2), 0, 4)
    slots, sizes = group_by_expert(experts, num_experts=3, block=block)
    slot, choice, expert = np.ravel(slots.slot_NX), np.asarray(slots.choice_Q), np.ravel(experts)
    routed = np.flatnonzero(expert < 3)
    assert len(set(slot[routed])) == len(routed)
    np.testing.assert_array_equal(choice[slot[routed]], routed)
    np.testing.assert_array_equal(slot[expert == 3], len(choice))
    assert np.sum(choice < 200) == len(routed)
    assert bool(jnp.all(sizes % block == 0))
    expert_of_slot = expert_of(jnp.arange(len(choice)), jnp.cumsum(sizes))
    np.testing.assert_array_equal(expert_of_slot[slot[routed]], expert[routed])


def test_large_kernels_give_the_same_products_and_gradients_block_by_block(monkeypatch):
    generator = np.random.default_rng(0)
    x_QD, kernel_EDF, weights_QF = (
        jnp.asarray(generator.standard_normal(shape), jnp.float32)
        for shape in ((40, D), (E, D, 6), (40, 6))
    )
    # One expert has three blocks, and one has none.
    sizes_E = jnp.array([8, 24, 0, 8])

    def products_and_gradients():
        def loss(x_QD, kernel_EDF):
            y_QF = grouped_matmul(x_QD, kernel_EDF, sizes_E, 8)
            return jnp.sum(weights_QF * y_QF), y_QF

        step = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return jax.jit(step)(x_QD, kernel_EDF)

    expected = products_and_gradients()
    monkeypatch.setattr(grouped_matmul_file, "MAX_GATHERED", 0)
    for a, b in zip(
        jax.tree.leaves(products_and_gradients()), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_at_full_size_no_intermediate_exceeds_twice_the_kernels():
    """Sizes are 32k tokens in bfloat16 and the experts of a 7B model.

    Gradients of kernels are summed in float32, which is twice the size of the kernels.
    """
    cfg = MoE.default_config().set(input_dim=4096, hidden_dim=11_008, num_experts=32)
    moe = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), moe)
    x = jax.ShapeDtypeStruct((8, 4096, 4096), jnp.bfloat16)

    def loss(moe, x):
        return jnp.sum(moe(x)[0].astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(low, x).jaxpr
    kernels = 2 * 32 * 4096 * 11_008
    largest = max(x.size * x.dtype.itemsize for x in _intermediates(jaxpr))
    assert kernels <= largest <= 2 * kernels


def _intermediates(jaxpr):
    return (x.aval for equation in _equations(jaxpr) for x in equation.outvars)


MESHES = [
    {"data": 2, "expert": 4},
    {"expert": 2, "fsdp": 2, "model": 2},
    {"data": 2, "expert": 2, "seq": 2},
]
ROWS, LENGTH = 8, 16
PADDED = jnp.where(jnp.arange(LENGTH)[None] < jnp.arange(8, 16)[:, None], 1, 0)


def _rows() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (ROWS, LENGTH, D))


def _compiled_step(moe: MoE, axes: dict[str, int] | None):
    """Compiles a step that returns values, gradients and statistics; also returns its arguments."""
    graphdef, params = nnx.split(moe)

    def loss(params, x, segment_ids):
        y, statistics = nnx.merge(graphdef, params)(x, segment_ids)
        return jnp.sum(jnp.sin(y)) + statistics.load_balance + statistics.z, (y, statistics)

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    if axes is None:
        args = (params, _rows(), PADDED)
        return jax.jit(step).lower(*args).compile(), args
    mesh = Parallelism.default_config().set(**{"data": 1, **axes}).instantiate().mesh()
    rules = AxisRules()
    shardings = parameter_shardings(params, mesh, rules)
    x_sharding = NamedSharding(mesh, rules.spec(("batch", "sequence", None), mesh))
    ids_sharding = NamedSharding(mesh, rules.spec(("batch", "sequence"), mesh))
    args = jax.device_put((params, _rows(), PADDED), (shardings, x_sharding, ids_sharding))
    out_shardings = (None, (shardings, x_sharding))
    with use_mesh(mesh, rules):
        return jax.jit(step, out_shardings=out_shardings).lower(*args).compile(), args


def _assert_equal_on_one_device(moe: MoE, axes: dict[str, int]) -> None:
    step, args = _compiled_step(moe, axes)
    one_step, one_args = _compiled_step(moe, None)
    ours, theirs = jax.tree.leaves(step(*args)), jax.tree.leaves(one_step(*one_args))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axes", MESHES)
def test_capacity_on_eight_devices_equals_one(axes):
    moe = _moe(dispatch=_capacity(0.8).set(group_size=8))
    _assert_equal_on_one_device(moe, axes)


@pytest.mark.parametrize("axes", MESHES)
def test_dropless_on_eight_devices_equals_one(axes):
    _assert_equal_on_one_device(_moe(), axes)


def test_dropless_can_send_all_tokens_to_one_device():
    moe = _moe(experts_per_token=1)
    moe.router[...] = jnp.zeros((D, E)).at[:, 2].set(100 * jnp.ones(D))
    _assert_equal_on_one_device(moe, {"data": 2, "expert": 4})


@pytest.mark.parametrize(
    ("axes", "expert", "kept"),
    [
        # Four devices share 24 slots for rows of 8 to 11 or of 12 to 15 tokens.
        ({"data": 2, "expert": 4}, 2, [8, 9, 7, 0, 12, 12, 0, 0]),
        # Two devices share 24 slots, and each has two experts.
        ({"data": 4, "expert": 2}, 1, [8, 9, 10, 11, 12, 12, 14, 10]),
    ],
)
def test_choices_without_room_are_counted_and_contribute_zero(axes, expert, kept):
    """All tokens choose one expert, whose device has room for one and a half times its share."""
    cfg = Dropless.default_config().set(receive_factor=1.5)
    moe = _moe(experts_per_token=1, dispatch=cfg)
    moe.router[...] = jnp.zeros((D, E)).at[0, expert].set(3.0)
    x = _rows().at[:, :, 0].set(1.0)
    graphdef, params = nnx.split(moe)
    mesh = Parallelism.default_config().set(**axes).instantiate().mesh()
    with use_mesh(mesh):
        run = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, PADDED))
        y, statistics = run(params, x)
    one, _ = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x, PADDED))(params, x)
    # Each device has a row.
    is_kept = np.arange(LENGTH)[None, :, None] < np.array(kept)[:, None, None]
    expected = np.where(is_kept, one, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert statistics.dropped == np.sum(PADDED) - sum(kept)
    assert bool(jnp.all(jnp.any(y[0, :8] != 0, axis=-1)))


def _collectives(text: str) -> dict[str, int]:
    kinds = re.findall(r" (all-to-all|all-gather|reduce-scatter|collective-permute)\(", text)
    return {kind: kinds.count(kind) for kind in set(kinds)}


def test_capacity_communicates_only_over_the_expert_axis():
    moe = _moe(dispatch=_capacity(1.0))
    text = _compiled_step(moe, {"data": 2, "expert": 4})[0].as_text()
    # Rows and their weights go to the experts, rows come back, and gradients take the reverse path.
    assert _collectives(text) == {"all-to-all": 6}
    text = _compiled_step(moe, {"data": 1, "expert": 2, "fsdp": 4})[0].as_text()
    # The three kernels and the router are gathered while in use.
    assert _collectives(text) == {"all-to-all": 6, "all-gather": 4, "reduce-scatter": 3}


def test_saved_products_are_not_recomputed():
    graphdef, params = nnx.split(_moe(dispatch=_capacity(1.0), hidden_dim=7))

    def num_products(*names):
        @functools.partial(
            jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(*names)
        )
        def layer(params, x):
            return nnx.merge(graphdef, params)(x)[0]

        def loss(params, x):
            return jnp.sum(layer(params, x) ** 2)

        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(params, _x()).jaxpr
        kernel_sizes = {E * D * 7}
        return sum(
            1
            for equation in _equations(jaxpr)
            if equation.primitive.name == "dot_general"
            and {x.aval.size for x in (*equation.invars, *equation.outvars)} & kernel_sizes
        )

    # Three forward and six backward products; the last forward product is never recomputed.
    assert num_products(EXPERT_INPUTS) == 3 + 6 + 2
    assert num_products(EXPERT_INPUTS, EXPERT_GATE, EXPERT_UP) == 3 + 6


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from _equations(inner)


def test_more_experts_per_token_than_experts_is_an_error():
    with pytest.raises(ValueError, match="experts_per_token=5"):
        _moe(experts_per_token=5)
