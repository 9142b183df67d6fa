import jax
import jax.numpy as jnp
import numpy as np

from mm1_jax.train.metrics import Mean, add, divide


def test_metrics_of_parts_add_up_to_the_whole(prng_key):
    values = np.asarray(jax.random.normal(prng_key, (12,)))

    def metrics(x):
        return {"mean": Mean(jnp.sum(x), jnp.float32(x.size)), "count": jnp.sum(x > 0)}

    # Parts have unequal weights, so the mean of their means would be another number.
    total = divide(add(metrics(values[:2]), metrics(values[2:9]), metrics(values[9:])))
    np.testing.assert_allclose(total["mean"], values.mean(), rtol=1e-6)
    assert total["count"] == (values > 0).sum()


def test_a_mean_without_weight_is_nan_with_zero_gradient():
    assert np.isnan(divide({"mean": Mean(jnp.zeros(()), jnp.zeros(()))})["mean"])
    value_and_grad = jax.value_and_grad(lambda total: Mean(total, jnp.zeros(())).ratio())
    assert value_and_grad(jnp.float32(3)) == (0, 0)
