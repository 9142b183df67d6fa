import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from mm1_jax.train.optimizer import Optimizer, decay_mask, mm1_learning_rate


def make_optimizer(**fields):
    fields = {"learning_rate": 1e-2, "warmup_steps": 4, "decay_steps": 20, **fields}
    return Optimizer.default_config().set(**fields).instantiate()


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
def test_the_learning_rate_law_gives_the_rates_of_the_paper(num_parameters, rate):
    # Half a unit of the third digit.
    assert mm1_learning_rate(num_parameters) == pytest.approx(rate, rel=5e-3)


def test_the_rate_warms_up_linearly_and_decays_to_its_final_fraction():
    rate = make_optimizer(learning_rate=2.0, warmup_steps=4, decay_steps=24).learning_rate
    np.testing.assert_allclose([rate(i) for i in range(4)], [0.5, 1, 1.5, 2], rtol=1e-6)
    # Half way of the cosine is half way between the peak and its tenth.
    np.testing.assert_allclose([rate(13), rate(23), rate(1000)], [1.1, 0.2, 0.2], rtol=1e-6)
    later = np.array([rate(i) for i in range(3, 30)])
    assert (np.diff(later) <= 0).all()


def test_the_cosine_is_that_of_optax():
    rate = make_optimizer(learning_rate=2.0, warmup_steps=0, decay_steps=10).learning_rate
    expected = optax.cosine_decay_schedule(2.0, decay_steps=10, alpha=0.1)
    np.testing.assert_allclose(
        [rate(i) for i in range(10)], [expected(i + 1) for i in range(10)], rtol=1e-6
    )


@pytest.mark.parametrize("clip", [None, 0.5])
def test_updates_are_those_of_torch(params, clip):
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


def test_the_decay_is_a_tenth_of_the_learning_rate(params):
    """MM1's rule as the default means it: without a gradient a parameter shrinks by 0.1 eta."""
    optimizer = make_optimizer(warmup_steps=0)
    transformation = optimizer.transformation(params)
    before = nnx.to_pure_dict(params)
    updates, _ = transformation.update(
        jax.tree.map(jnp.zeros_like, before), transformation.init(before), before
    )
    factor = -0.1 * optimizer.learning_rate(0)
    np.testing.assert_allclose(updates["kernel"], factor * before["kernel"], rtol=1e-6)


def test_only_matrices_decay_where_that_is_chosen(params):
    assert decay_mask(params) == {"kernel": True, "scale": False}
    transformation = make_optimizer(decayed="matrices").transformation(params)
    before = nnx.to_pure_dict(params)
    updates, _ = transformation.update(
        jax.tree.map(jnp.zeros_like, before), transformation.init(before), before
    )
    assert (updates["kernel"] != 0).all()
    np.testing.assert_array_equal(updates["scale"], 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learning_rate": None}, "optimizer.learning_rate is None"),
        ({"decay_steps": None}, "optimizer.decay_steps is None"),
        ({"warmup_steps": 30}, "warmup_steps=30.*decay_steps=20"),
        ({"decayed": "vectors"}, "decayed='vectors'"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**fields)
