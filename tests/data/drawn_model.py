"""Models with random parameters from NumPy, which avoids compiling every initializer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def drawn_params(shapes: Any, seed: int = 0) -> Any:
    """Draws arrays of these shapes, large enough that different inputs have different outputs."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), shapes)


def drawn_model(cfg: Any, seed: int = 0) -> Any:
    """Builds the model of a config."""
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    graphdef, shapes = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, drawn_params(shapes, seed))
