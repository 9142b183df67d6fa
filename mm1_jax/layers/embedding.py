"""Token embedding, whose table can also serve as the output layer.

Legend: B batch, T positions, V vocabulary, D model dim.
"""

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int

from mm1_jax.config import Required, config_class, derived
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.layers.module import Module, param


class Embedding(Module):
    """Table of one vector per token."""

    @config_class
    class Config(Module.Config):
        vocab_size: Required[PositiveInt] = derived()
        model_dim: Required[PositiveInt] = derived()
        # Initial standard deviation; None is 1 / sqrt(model_dim), for logits of unit scale.
        init_std: NonNegative | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        std = cfg.model_dim**-0.5 if cfg.init_std is None else cfg.init_std
        shape = (cfg.vocab_size, cfg.model_dim)
        self.weight = param(rngs, shape, ("vocab", "embed"), normal(std))

    def __call__(self, tokens_BT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return jnp.take(self.weight[...], tokens_BT, axis=0, mode="clip")

    def attend(self, hidden_BTD: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns float32 logits, the dot products of hidden states and token vectors."""
        return jnp.einsum(
            "BTD,VD->BTV", hidden_BTD, self.weight[...], preferred_element_type=jnp.float32
        )
