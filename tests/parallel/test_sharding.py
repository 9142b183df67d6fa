"""Axis rules, meshes and shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mm1_jax.layers.linear import Linear
from mm1_jax.parallel.parallelism import Parallelism
from mm1_jax.parallel.sharding import (
    AxisRules,
    Placement,
    constrain,
    current_placement,
    parameter_shardings,
    use_mesh,
)


def _parallelism(**axes: int) -> Parallelism.Config:
    return Parallelism.default_config().set(**axes)


def _mesh(**axes: int) -> jax.sharding.Mesh:
    return _parallelism(**axes).instantiate().mesh()


def _linear_params(**fields) -> nnx.State:
    cfg = Linear.default_config().set(input_dim=4, output_dim=6, **fields)
    return nnx.state(cfg.instantiate(rngs=nnx.Rngs(params=0)), nnx.Param)


def test_specs_follow_the_rules_and_leave_out_absent_axes():
    rules = AxisRules()
    names = ("batch", None, "activation_heads")
    spec = rules.spec(names, _mesh(data=2, fsdp=2, model=2))
    assert spec == PartitionSpec(("data", "fsdp"), None, "model")
    assert rules.spec(names, _mesh(data=8)) == PartitionSpec("data", None, None)


def test_two_dims_on_one_mesh_axis_are_an_error():
    with pytest.raises(
        ValueError, match="'mlp' and 'heads'.*both split over the mesh axis 'model'"
    ):
        AxisRules().spec(("mlp", "heads"), _mesh(data=4, model=2))


def test_a_name_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="no axis rule for the logical name 'width'.*embed"):
        AxisRules().spec(("width",), _mesh(data=8))


def test_parameters_are_sharded_by_their_logical_names():
    mesh = _mesh(data=2, fsdp=2, model=2)
    params = _linear_params(bias=True)
    shardings = parameter_shardings(params, mesh, AxisRules())
    placed = jax.device_put(params, shardings)
    assert placed["kernel"][...].sharding == NamedSharding(mesh, PartitionSpec("fsdp", "model"))
    assert placed["bias"][...].sharding == NamedSharding(mesh, PartitionSpec("model"))
    abstract = jax.eval_shape(lambda: params)
    assert jax.tree.leaves(parameter_shardings(abstract, mesh, AxisRules())) == jax.tree.leaves(
        shardings
    )


def test_a_parameter_that_the_mesh_does_not_divide_is_named():
    mesh = _mesh(data=1, fsdp=8)
    message = r"parameter kernel: dim 0 \('embed', size 4\) is not divisible.*of 8 devices"
    with pytest.raises(ValueError, match=message):
        parameter_shardings(_linear_params(), mesh, AxisRules())


def test_a_parameter_whose_dims_collide_is_named():
    mesh = _mesh(data=4, model=2)
    with pytest.raises(ValueError, match="parameter kernel: logical names 'mlp' and 'vocab'"):
        parameter_shardings(_linear_params(axes=("mlp", "vocab")), mesh, AxisRules())


def test_a_parameter_without_a_name_for_each_dim_is_named():
    params = _linear_params(axes=("embed", "mlp"))
    params["kernel"].set_metadata(out_sharding=("embed",))
    with pytest.raises(ValueError, match=r"parameter kernel of shape \(4, 6\).*one name per dim"):
        parameter_shardings(params, _mesh(data=8), AxisRules())


def test_constrain_is_the_identity_without_a_mesh():
    x = jnp.ones((3, 5))
    assert constrain(x, "batch", None) is x
    assert current_placement() is None


def test_constrain_shards_activations_except_indivisible_dims():
    mesh = _mesh(data=4, model=2)
    with use_mesh(mesh):
        assert current_placement() == Placement(mesh, AxisRules())
        x = jax.jit(lambda x: constrain(2 * x, "batch", "activation_mlp"))(jnp.ones((8, 6)))
        y = jax.jit(lambda x: constrain(2 * x, "batch", "activation_mlp"))(jnp.ones((1, 6)))
    assert x.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", "model")), 2)
    np.testing.assert_array_equal(y, np.full((1, 6), 2.0))
    assert current_placement() is None
