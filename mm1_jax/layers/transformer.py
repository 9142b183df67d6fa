"""Pre-norm transformer block of the decoder and the vision encoder, and one without attention.

The first computes x + attention(norm(x)), then x + feed_forward(norm(x)), the other the latter.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.attention import Attention
from mm1_jax.layers.feed_forward import FeedForward, GatedFeedForward
from mm1_jax.layers.kv_cache import KVCache
from mm1_jax.layers.module import Module, checked, checked_tuple
from mm1_jax.layers.moe import MoE, RouterStatistics
from mm1_jax.layers.norm import LayerNorm, RMSNorm
from mm1_jax.parallel.sharding import constrain


class TransformerBlock(Module):
    """Attention and a dense or sparse feed-forward layer, each on normalized input."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        attention: InstantiableConfig = Attention.default_config()
        feed_forward: InstantiableConfig = GatedFeedForward.default_config()  # or FeedForward, MoE
        norm: InstantiableConfig = RMSNorm.default_config()  # applied before each of the two

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        dim = cfg.input_dim
        self.attention_norm = cfg.norm.clone(input_dim=dim).instantiate(rngs=rngs)
        self.attention = cfg.attention.set(input_dim=dim).instantiate(rngs=rngs)
        self.feed_forward_norm = cfg.norm.clone(input_dim=dim).instantiate(rngs=rngs)
        self.feed_forward = cfg.feed_forward.set(input_dim=dim).instantiate(rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        cache_start: Int[Array, "B"] | None = None,
        dropless: bool = False,
        prefix_lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None, RouterStatistics | None]:
        """Returns the new x, the cache extended by it, and router statistics (None if dense)."""
        x = constrain(x, "batch", "sequence", None)
        normed = checked(self.attention_norm, self.attention_norm(x), x.shape, x.dtype)
        output = self.attention(
            normed,
            positions=positions,
            segment_ids=segment_ids,
            cache=cache,
            cache_start=cache_start,
            prefix_lengths=prefix_lengths,
        )
        attended, cache = checked_tuple(self.attention, output, ("x", "cache"))
        x = x + checked(self.attention, attended, x.shape, x.dtype)
        normed = checked(self.feed_forward_norm, self.feed_forward_norm(x), x.shape, x.dtype)
        if isinstance(self.feed_forward, MoE):
            y, statistics = self.feed_forward(normed, segment_ids, dropless=dropless)
        else:
            y, statistics = self.feed_forward(normed), None
        y = checked(self.feed_forward, y, x.shape, x.dtype)
        return constrain(x + y, "batch", "sequence", None), cache, statistics


class FeedForwardBlock(Module):
    """x + feed_forward(norm(x)): a layer of a `Stack` in which positions do not see each other."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        feed_forward: InstantiableConfig = FeedForward.default_config()
        norm: InstantiableConfig = LayerNorm.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm = cfg.norm.set(input_dim=cfg.input_dim).instantiate(rngs=rngs)
        self.feed_forward = cfg.feed_forward.set(input_dim=cfg.input_dim).instantiate(rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], **_: Any
    ) -> tuple[Float[Array, "B T D"], None, None]:
        """Returns the new x, without cache or router statistics; ignores options of attention."""
        x = constrain(x, "batch", "sequence", None)
        y = self.feed_forward(checked(self.norm, self.norm(x), x.shape, x.dtype))
        return x + checked(self.feed_forward, y, x.shape, x.dtype), None, None
