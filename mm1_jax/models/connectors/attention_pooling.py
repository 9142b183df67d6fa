"""Attention pooling: learned queries that read the patches by cross-attention (MM1, section 3.1).

It is similar to Q-Former and resamplers, but without attention among the queries. Any number of
image tokens is supported. No positions are added, so the features must encode where a patch is.

Legend: J images, P patches/image, M image tokens/image, Dv vision dim, D model dim.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.layers.attention import Attention
from mm1_jax.layers.feed_forward import FeedForward
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module, param
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.models.connectors.base import Connector


class AttentionPooling(Connector):
    """One learned query per image token, cross-attention blocks, and a linear map."""

    @config_class
    class Config(Connector.Config):
        num_layers: PositiveInt = 1
        num_heads: PositiveInt = 16
        # Dims of the queries and of the feed-forward layers.
        model_dim: PositiveInt = 1024
        hidden_dim: PositiveInt = 4096
        query_init_std: NonNegative = 0.02
        norm: InstantiableConfig = LayerNorm.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.queries = param(
            rngs,
            (cfg.num_image_tokens, cfg.model_dim),
            (None, "embed"),
            jax.nn.initializers.truncated_normal(cfg.query_init_std),
        )
        self.input_norm = cfg.norm.clone(input_dim=cfg.input_dim).instantiate(rngs=rngs)
        block = CrossAttentionBlock.default_config().set(
            input_dim=cfg.model_dim, source_dim=cfg.input_dim, norm=cfg.norm
        )
        block.attention.set(num_heads=cfg.num_heads)
        block.feed_forward.set(hidden_dim=cfg.hidden_dim)
        self.blocks = nnx.List(block.instantiate(rngs=rngs) for _ in range(cfg.num_layers))
        self.output_norm = cfg.norm.clone(input_dim=cfg.model_dim).instantiate(rngs=rngs)
        output = Linear.default_config().set(bias=True, axes=("embed", "mlp"))
        self.output = output.set(input_dim=cfg.model_dim, output_dim=cfg.output_dim).instantiate(
            rngs=rngs
        )

    def __call__(self, image_features: Float[Array, "J P Dv"]) -> Float[Array, "J M D"]:
        source = self.input_norm(image_features)
        queries = self.queries[...].astype(source.dtype)
        x = jnp.broadcast_to(queries[None], (len(source), *queries.shape))
        for block in self.blocks:
            x = block(x, source)
        return self.output(self.output_norm(x))


class CrossAttentionBlock(Module):
    """x + attention(norm(x), source), then x + feed_forward(norm(x))."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        source_dim: Required[PositiveInt] = derived()
        attention: InstantiableConfig = Attention.default_config().set(bias=True)
        feed_forward: InstantiableConfig = FeedForward.default_config()
        norm: InstantiableConfig = LayerNorm.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        norm = cfg.norm.set(input_dim=cfg.input_dim)
        self.attention_norm = norm.instantiate(rngs=rngs)
        self.attention = cfg.attention.set(
            input_dim=cfg.input_dim, source_dim=cfg.source_dim
        ).instantiate(rngs=rngs)
        self.feed_forward_norm = norm.instantiate(rngs=rngs)
        self.feed_forward = cfg.feed_forward.set(input_dim=cfg.input_dim).instantiate(rngs=rngs)

    def __call__(
        self, x: Float[Array, "J M D"], source: Float[Array, "J P Dv"]
    ) -> Float[Array, "J M D"]:
        attended, _ = self.attention(self.attention_norm(x), source=source)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x))
