"""AdaFactor, compared layer by layer with optax's, which does not support stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import AxisRules
from mm1_jax.train.optimizers.adafactor import Adafactor
from mm1_jax.train.train_state import state_shardings

# Logical names and shapes of one parameter of each kind.
SHAPES = {
    "query": (("layers", "embed", "heads", None), (3, 8, 2, 6)),
    "down": (("layers", "expert", "embed", "mlp"), (3, 2, 4, 12)),
    "embedding": (("vocab", "embed"), (16, 8)),
    "narrow": (("embed", None), (8, 2)),
    "scale": (("layers", None), (3, 8)),
    "new": ((None,), (4,)),
}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    values = {
        # Layers have different scales, so that a root mean square over all of them is wrong.
        name: rng.normal(size=shape)
        * np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
        for name, (_, shape) in SHAPES.items()
    }
    values["new"] = np.zeros(4)
    return nnx.State(
        {
            name: nnx.Param(jnp.asarray(value, jnp.float32), out_sharding=SHAPES[name][0])
            for name, value in values.items()
        }
    )


def make_optimizer(**fields):
    fields = {"learning_rate": 1e-2, "warmup_steps": 2, "decay_steps": 20, "clip": None, **fields}
    return Adafactor.default_config().set(min_factored_dim=4, **fields).instantiate()


def unstacked(tree):
    """Splits stacked parameters into one parameter per layer and expert."""
    result = {}
    for name, x in tree.items():
        depth = sum(dim in ("layers", "expert") for dim in SHAPES[name][0])
        for index in np.ndindex(*x.shape[:depth]):
            result[name, *index] = x[index]
    return result


@pytest.mark.parametrize(
    "fields", [{}, {"relative": False}, {"update_clip": None, "decay_exponent": 0.5}]
)
def test_updates_equal_optaxs_for_every_layer(params, fields):
    optimizer = make_optimizer(**fields)
    reference = optax.adafactor(
        optimizer.learning_rate,
        min_dim_size_to_factor=4,
        decay_rate=fields.get("decay_exponent", 0.8),
        multiply_by_parameter_scale=fields.get("relative", True),
        clipping_threshold=fields.get("update_clip", 1.0),
    )
    transformation = optimizer.transformation(params)
    ours = nnx.to_pure_dict(params)
    theirs = unstacked(ours)
    state, their_state = transformation.init(ours), reference.init(theirs)
    step, their_step = jax.jit(transformation.update), jax.jit(reference.update)
    rng = np.random.default_rng(1)
    for _ in range(4):
        gradient = {
            # A few large entries, so that clipping acts on some layers and not on others.
            k: (rng.normal(size=v.shape) ** 3).astype(np.float32)
            for k, v in ours.items()
        }
        updates, state = step(gradient, state, ours)
        their_updates, their_state = their_step(unstacked(gradient), their_state, theirs)
        ours = optax.apply_updates(ours, updates)
        theirs = optax.apply_updates(theirs, their_updates)
        for name, value in unstacked(ours).items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_large_matrices_have_factored_moments_and_small_ones_full_moments(params):
    state = make_optimizer().transformation(params).init(nnx.to_pure_dict(params))
    (adafactor,) = (x for x in jax.tree.leaves(state, is_leaf=_is_adafactor) if _is_adafactor(x))
    shapes = {name: (adafactor.rows[name].shape, adafactor.columns[name].shape) for name in SHAPES}
    assert shapes == {
        "query": ((3, 1, 2, 6), (3, 8, 2, 1)),
        "down": ((3, 2, 4, 1), (3, 2, 1, 12)),
        "embedding": ((1, 8), (16, 1)),
        "narrow": ((8, 2), (1, 1)),
        "scale": ((3, 8), (1, 1)),
        "new": ((4,), (1,)),
    }


def _is_adafactor(node):
    return hasattr(node, "rows")


def test_factored_moments_are_sharded_like_their_parameters_along_kept_dims(params):
    optimizer = make_optimizer().update(params)
    mesh = Parallelism.default_config().set(data=1, fsdp=4, model=2).instantiate().mesh()
    state = jax.eval_shape(optimizer.first_state, nnx.to_pure_dict(params))
    shardings = state_shardings(state, params, state.params, mesh, AxisRules())
    (adafactor,) = (
        x for x in jax.tree.leaves(shardings.opt_state, is_leaf=_is_adafactor) if _is_adafactor(x)
    )
    assert tuple(shardings.params["embedding"].spec) == ("model", "fsdp")
    assert tuple(adafactor.rows["embedding"].spec) == (None, "fsdp")
    assert tuple(adafactor.columns["embedding"].spec) == ("model", None)
    assert tuple(adafactor.rows["down"].spec) == (None, None, "fsdp", None)
    assert tuple(adafactor.count.spec) == ()
    # A state with these shardings can be initialized and updated.
    placed = jax.jit(optimizer.first_state, out_shardings=shardings)(nnx.to_pure_dict(params))
    gradient = jax.tree.map(jnp.cos, nnx.to_pure_dict(params))
    on_mesh, _ = jax.jit(optimizer.apply)(placed, gradient)
    alone, _ = jax.jit(optimizer.apply)(optimizer.first_state(nnx.to_pure_dict(params)), gradient)
    for name in SHAPES:
        np.testing.assert_allclose(on_mesh[name], alone[name], rtol=1e-5, atol=1e-7)


def test_weight_decay_is_scaled_by_the_learning_rate(params):
    before = nnx.to_pure_dict(params)
    optimizer = make_optimizer(weight_decay=0.1, decayed="matrices", warmup_steps=0)
    transformation = optimizer.transformation(params)
    zeros = jax.tree.map(jnp.zeros_like, before)
    updates, _ = transformation.update(zeros, transformation.init(before), before)
    factor = -0.1 * optimizer.learning_rate(0)
    np.testing.assert_allclose(updates["query"], factor * before["query"], rtol=1e-5)
    np.testing.assert_array_equal(updates["scale"], 0)
