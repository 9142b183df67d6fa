"""Models with random parameters from NumPy, which avoids compiling every initializer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mm1_jax.models.connectors.average_pooling import AveragePooling
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.mm1 import MM1
from mm1_jax.models.vision_encoder import VisionEncoder


def drawn_params(shapes: Any, seed: int = 0) -> Any:
    """Draws arrays of these shapes, large enough that different inputs have different outputs."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), shapes)


def drawn_model(cfg: Any, seed: int = 0) -> Any:
    """Builds the model of a config."""
    model = nnx.eval_shape(lambda: cfg.instantiate(rngs=nnx.Rngs(params=jax.random.key(0))))
    graphdef, shapes = nnx.split(model, nnx.Param)
    return nnx.merge(graphdef, drawn_params(shapes, seed))


@functools.cache
def tiny() -> MM1:
    """A model of 16 tokens, where token 3 stands for an image of 8 pixels, at 4 positions."""
    cfg = MM1.default_config().set(
        vision_encoder=VisionEncoder.default_config().set(
            image_size=8, patch_size=4, model_dim=8, num_layers=1, num_heads=2, hidden_dim=16
        ),
        connector=AveragePooling.default_config().set(num_image_tokens=4),
        decoder=Decoder.default_config().set(
            vocab_size=16, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, hidden_dim=24
        ),
        image_token=3,
    )
    return drawn_model(cfg)
