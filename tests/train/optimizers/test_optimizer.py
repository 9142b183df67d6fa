import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from mm1_jax.layers.attention import Attention
from mm1_jax.layers.position_embedding import PositionEmbedding
from mm1_jax.train.optimizers.adamw import AdamW
from mm1_jax.train.optimizers.learning_rate import Schedule, mm1_learning_rate
from mm1_jax.train.optimizers.optimizer import decay_mask


def make_optimizer(**fields):
    fields = {"learning_rate": 1e-2, "warmup_steps": 4, "decay_steps": 20, **fields}
    return AdamW.default_config().set(**fields).instantiate()


@pytest.fixture
def params(prng_key):
    keys = jax.random.split(prng_key, 2)
    return nnx.State(
        {
            "kernel": nnx.Param(jax.random.normal(keys[0], (3, 4)), out_sharding=("embed", "mlp")),
            "scale": nnx.Param(jax.random.normal(keys[1], (2, 4)), out_sharding=("layers", "mlp")),
        }
    )


@pytest.mark.parametrize(
    ("num_parameters", "rate"),
    [
        (9e6, 6.75e-4),
        (85e6, 2.62e-4),
        (302e6, 1.54e-4),
        (1.2e9, 8.58e-5),
        (2.9e9, 5.92e-5),
        (6.4e9, 4.24e-5),
        (30e9, 2.21e-5),
    ],
)
def test_the_learning_rate_law_reproduces_the_paper(num_parameters, rate):
    # The tolerance is half a unit of the third digit.
    assert mm1_learning_rate(num_parameters) == pytest.approx(rate, rel=5e-3)


def test_the_learning_rate_warms_up_linearly_and_decays_to_its_final_fraction():
    rate = make_optimizer(learning_rate=2.0, warmup_steps=4, decay_steps=24).learning_rate
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.5, 1, 1.5, 2], rtol=1e-6)
    # Half way, the cosine is half way between the peak and a tenth of it.
    np.testing.assert_allclose([rate(13), rate(23), rate(1000)], [1.1, 0.2, 0.2], rtol=1e-6)
    later = np.array([rate(i) for i in range(3, 30)])
    assert (np.diff(later) <= 0).all()


def test_the_cosine_schedule_equals_optaxs():
    rate = make_optimizer(learning_rate=2.0, warmup_steps=0, decay_steps=10).learning_rate
    expected = optax.cosine_decay_schedule(2.0, decay_steps=10, alpha=0.1)
    np.testing.assert_allclose(
        [rate(i) for i in range(10)], [expected(i + 1) for i in range(10)], rtol=1e-6
    )


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR])
def test_warmup_stable_decay_equals_joined_optax_schedules(schedule):
    rate = make_optimizer(
        learning_rate=2.0, warmup_steps=4, stable_steps=6, decay_steps=30, schedule=schedule
    ).learning_rate
    decay = {
        Schedule.COSINE: optax.cosine_decay_schedule(2.0, decay_steps=20, alpha=0.1),
        Schedule.LINEAR: optax.linear_schedule(2.0, 0.2, 20),
    }[schedule]
    parts = [optax.linear_schedule(0.0, 2.0, 4), optax.constant_schedule(2.0), decay]
    expected = optax.join_schedules(parts, [4, 10])
    np.testing.assert_allclose(
        [rate(i) for i in range(40)], [expected(i + 1) for i in range(40)], rtol=1e-5
    )


def test_schedules_without_an_end_ignore_decay_steps():
    fields = {"learning_rate": 2.0, "warmup_steps": 4}
    rates = {
        (schedule, steps): make_optimizer(**fields, schedule=schedule, decay_steps=steps)
        for schedule in (Schedule.CONSTANT, Schedule.INVERSE_SQUARE_ROOT)
        for steps in (8, 1000)
    }
    for steps in (8, 1000):
        constant = rates[Schedule.CONSTANT, steps].learning_rate
        root = rates[Schedule.INVERSE_SQUARE_ROOT, steps].learning_rate
        np.testing.assert_allclose([constant(i) for i in (1, 3, 7, 500)], [1, 2, 2, 2], rtol=1e-6)
        # After four times the warmup steps it is half of the peak, after 100 times a tenth.
        np.testing.assert_allclose([root(i) for i in (1, 3, 15, 399)], [1, 2, 1, 0.2], rtol=1e-6)


def test_the_state_has_the_layout_of_optaxs(params):
    """Checkpoints from before there were several optimizers can then be restored."""
    ours = nnx.to_pure_dict(params)
    for decayed, mask in (("all", None), ("matrices", decay_mask(params))):
        transformation = make_optimizer(decayed=decayed).transformation(params)
        reference = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1.0, b2=0.95, mask=mask)
        )
        state, expected = transformation.init(ours), reference.init(ours)
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_updates_equal_those_of_torch(params, clip):
    optimizer = make_optimizer(weight_decay=0.3, clip=clip)
    transformation = optimizer.transformation(params)
    ours = nnx.to_pure_dict(params)
    state = transformation.init(ours)
    theirs = {k: torch.nn.Parameter(torch.from_numpy(np.array(v))) for k, v in ours.items()}
    adamw = torch.optim.AdamW(theirs.values(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3)
    rng = np.random.default_rng(0)
    for step in range(8):
        gradient = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in ours.items()}
        updates, state = transformation.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(gradient[name].copy())
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), clip)
        adamw.param_groups[0]["lr"] = float(optimizer.learning_rate(step))
        adamw.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(
            ours[name], parameter.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_weight_decay_is_a_tenth_of_the_learning_rate(params):
    """MM1's rule, the default: without a gradient, a parameter shrinks by 0.1 eta."""
    optimizer = make_optimizer(warmup_steps=0)
    transformation = optimizer.transformation(params)
    before = nnx.to_pure_dict(params)
    updates, _ = transformation.update(
        jax.tree.map(jnp.zeros_like, before), transformation.init(before), before
    )
    factor = -0.1 * optimizer.learning_rate(0)
    np.testing.assert_allclose(updates["kernel"], factor * before["kernel"], rtol=1e-6)


def test_only_matrices_decay_if_configured(params):
    assert decay_mask(params) == {"kernel": True, "scale": False}
    transformation = make_optimizer(decayed="matrices").transformation(params)
    before = nnx.to_pure_dict(params)
    updates, _ = transformation.update(
        jax.tree.map(jnp.zeros_like, before), transformation.init(before), before
    )
    assert (updates["kernel"] != 0).all()
    np.testing.assert_array_equal(updates["scale"], 0)


def test_biases_of_attention_are_no_matrices():
    cfg = Attention.default_config().set(input_dim=8, num_heads=2, bias=True)
    make = lambda: cfg.instantiate(rngs=nnx.Rngs(params=0))  # noqa: E731
    mask = decay_mask(nnx.state(nnx.eval_shape(make), nnx.Param))
    assert mask["query"]["bias"] is False and mask["query"]["kernel"] is True


def test_learned_positions_do_not_decay_if_configured():
    params = nnx.state(
        nnx.eval_shape(
            lambda: (
                PositionEmbedding.default_config()
                .set(grid_size=2, model_dim=3)
                .instantiate(rngs=nnx.Rngs(params=0))
            )
        )
    )
    assert decay_mask(params) == {"positions": True}
    assert decay_mask(params, positions=False) == {"positions": False}
    optimizer = make_optimizer(weight_decay=0.1, decayed="matrices_but_positions", clip=None)
    transformation = optimizer.transformation(params)
    before = {"positions": jnp.ones((4, 3))}
    zeros = jax.tree.map(jnp.zeros_like, before)
    updates, _ = transformation.update(zeros, transformation.init(before), before)
    np.testing.assert_array_equal(updates["positions"], 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": None}, "optimizer.learning_rate is None"),
        ({"decay_steps": None}, "optimizer.decay_steps is None"),
        ({"warmup_steps": 30}, "warmup_steps=30.*decay_steps=20"),
        ({"decayed": "vectors"}, "decayed='vectors'"),
        ({"stable_steps": 17}, "stable_steps=17.*warmup_steps = 16"),
        ({"ema_decay": 1.0}, "ema_decay=1.0.*less than 1"),
        (
            {"learning_rate_factors": {"a": 0.0}},
            r"learning_rate_factors\['a'\]=0.0: expected more than 0",
        ),
        ({"parameters_dtype": "float16"}, "parameters_dtype='float16'"),
        ({"moments_dtype": "bfloat16", "b2": 0.999}, "b2=0.999.*lost in rounding"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**fields)


def test_moments_in_bfloat16_are_rounded_float32_moments(params):
    """After a step from equal states, the stored moments differ only by rounding."""
    ours = nnx.to_pure_dict(params)
    full, low = (
        make_optimizer(moments_dtype=dtype, clip=None).transformation(params)
        for dtype in ("float32", "bfloat16")
    )
    full_state, low_state = full.init(ours), low.init(ours)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        gradient = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in ours.items()}
        # Both start from the bfloat16 state.
        full_state = jax.tree.map(lambda x, y: y.astype(x.dtype), full_state, low_state)
        full_updates, full_state = full.update(gradient, full_state, ours)
        low_updates, low_state = low.update(gradient, low_state, ours)
        for a, b in zip(jax.tree.leaves(full_updates), jax.tree.leaves(low_updates), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(jax.tree.leaves(full_state), jax.tree.leaves(low_state), strict=True):
            assert b.dtype == (jnp.bfloat16 if a.dtype == jnp.float32 else a.dtype)
            np.testing.assert_array_equal(a.astype(b.dtype), b)


def test_a_learning_rate_factor_applies_to_the_first_matching_rule(params):
    plain, scaled = (
        make_optimizer(learning_rate_factors=factors).transformation(params)
        for factors in ({}, {"ker.*": 0.5, ".*": 3.0})
    )
    before = nnx.to_pure_dict(params)
    gradient = jax.tree.map(jnp.sin, before)
    expected, _ = plain.update(gradient, plain.init(before), before)
    updates, _ = scaled.update(gradient, scaled.init(before), before)
    np.testing.assert_allclose(updates["kernel"], 0.5 * expected["kernel"], rtol=1e-6)
    np.testing.assert_allclose(updates["scale"], 3.0 * expected["scale"], rtol=1e-6)


def test_a_rule_that_matches_nothing_is_named(params):
    with pytest.raises(ValueError, match="optimizer.frozen: 'kernal' picks no.*kernel"):
        make_optimizer(frozen=("kernal",)).update(params)
    with pytest.raises(ValueError, match="learning_rate_factors: 'kernal'"):
        make_optimizer(learning_rate_factors={"kernal": 0.5}).update(params)
    # Frozen parameters have no learning rate.
    with pytest.raises(ValueError, match="learning_rate_factors: 'kernel' picks no"):
        make_optimizer(frozen=("kernel",), learning_rate_factors={"kernel": 0.5}).update(params)
    with pytest.raises(ValueError, match="no parameter is left to train"):
        make_optimizer(frozen=(".*",)).update(params)
