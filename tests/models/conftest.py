from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


@pytest.fixture
def build() -> Callable:
    """Makes a module with random parameters; zero biases and unit scales would hide mistakes.

    NumPy draws them, because compiling the initializers takes longer than most tests.
    """

    def build(cfg, scale=0.4):
        module = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=0)))
        generator = np.random.default_rng(0)

        def draw(x):
            return jnp.asarray(scale * generator.standard_normal(x.shape), x.dtype)

        graphdef, shapes = nnx.split(module)
        return nnx.merge(graphdef, jax.tree.map(draw, shapes))

    return build
