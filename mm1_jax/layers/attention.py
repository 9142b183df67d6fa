"""Grouped-query attention over packed rows, over a KV cache, or over other features.

Legend: B batch, T query positions, S key positions, D model dim, N query heads, K kv heads,
G query heads per kv head, H head dim.
"""

import enum

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.attention_kernels import (
    ATTENTION_PROJECTION,
    KEY,
    QUERY,
    VALUE,
    Kernel,
    attend,
)
from mm1_jax.layers.attention_mask import Visibility
from mm1_jax.layers.kv_cache import KVCache
from mm1_jax.layers.linear import JoinHeads, SplitHeads
from mm1_jax.layers.module import Module
from mm1_jax.parallel.sharding import constrain


class Pattern(enum.Enum):
    """Attention pattern within a document.

    PREFIX is causal, except that every position also sees a prefix of its row. The prefix lengths
    are an argument of the call (AIM, arXiv 2401.08541, section 3.1).
    """

    CAUSAL = "causal"
    BIDIRECTIONAL = "bidirectional"
    PREFIX = "prefix"


class Attention(Module):
    """softmax(q k / sqrt(H)) v, where each kv head serves G = N / K query heads."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        source_dim: PositiveInt | None = None  # dim of cross-attention sources; None is input_dim
        num_heads: Required[PositiveInt] = derived()
        num_kv_heads: PositiveInt | None = None  # None is num_heads
        head_dim: PositiveInt | None = None  # None is input_dim / num_heads
        pattern: Pattern = Pattern.BIDIRECTIONAL
        kernel: Kernel = Kernel.AUTO  # for self-attention over whole rows; all else uses XLA
        bias: bool = False
        output_bias: bool | None = None  # None is bias; Qwen 2 has biases except on the output
        rotary: InstantiableConfig | None = None
        qk_norm: InstantiableConfig | None = None  # norm of queries and keys per head, pre-rotary
        query: InstantiableConfig = SplitHeads.default_config()
        key: InstantiableConfig = SplitHeads.default_config().set(axis="kv_heads")
        value: InstantiableConfig = SplitHeads.default_config().set(axis="kv_heads")
        output: InstantiableConfig = JoinHeads.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        num_heads, num_kv_heads, head_dim = head_sizes(cfg)
        source_dim = cfg.source_dim or cfg.input_dim
        heads = {"head_dim": head_dim, "bias": cfg.bias}
        self.query = cfg.query.set(
            input_dim=cfg.input_dim, num_heads=num_heads, **heads
        ).instantiate(rngs=rngs)
        self.key = cfg.key.set(input_dim=source_dim, num_heads=num_kv_heads, **heads).instantiate(
            rngs=rngs
        )
        self.value = cfg.value.set(
            input_dim=source_dim, num_heads=num_kv_heads, **heads
        ).instantiate(rngs=rngs)
        if cfg.output_bias is not None:
            heads["bias"] = cfg.output_bias
        self.output = cfg.output.set(
            output_dim=cfg.input_dim, num_heads=num_heads, **heads
        ).instantiate(rngs=rngs)
        self.rotary = cfg.rotary.instantiate(rngs=rngs) if cfg.rotary is not None else None
        norm = None if cfg.qk_norm is None else cfg.qk_norm.set(input_dim=head_dim)
        self.query_norm = None if norm is None else norm.instantiate(rngs=rngs)
        self.key_norm = None if norm is None else norm.instantiate(rngs=rngs)
        self.pattern = Pattern(cfg.pattern)
        self.kernel = Kernel(cfg.kernel)
        self.scale = head_dim**-0.5

    def __call__(
        self,
        x: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"] | None = None,
        segment_ids: Int[Array, "B T"] | None = None,
        source: Float[Array, "B S Ds"] | None = None,
        cache: KVCache | None = None,
        cache_start: Int[Array, "B"] | None = None,
        prefix_lengths: Int[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Attends from x to itself, to all of `source`, or to a KV cache extended by x.

        If a cache is given, the keys and values of x are written to it. It is read only if
        `cache_start` is given as well.

        Args:
            positions: Required by causal, prefix and rotary attention.
            segment_ids: Required by causal attention. None makes every row one document without
                padding, as in images.
            cache: KV cache of this layer. A row holds one document, possibly followed by padding.
            cache_start: First slot per row to write x to. None means that the cache is empty.
            prefix_lengths: Required by prefix attention; an error with any other pattern.
        """
        # The fused kernels mask by index, so queries and keys must be at the same positions.
        kernel = self.kernel if source is None else Kernel.XLA
        layout = {"joined": True} if kernel is Kernel.ROWS else {}
        source = x if source is None else source
        query, key, value = (
            project(x, **layout)
            for project, x in ((self.query, x), (self.key, source), (self.value, source))
        )
        query = constrain(query, "batch", "sequence", "activation_heads", None)
        key = constrain(key, "batch", None, "activation_kv_heads", None)
        value = constrain(value, "batch", None, "activation_kv_heads", None)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if positions is None and (self.rotary is not None or segment_ids is not None):
            raise ValueError("attention with rotary positions or segment_ids needs positions")
        if (prefix_lengths is None) is (self.pattern is Pattern.PREFIX):
            raise ValueError(
                f"attention: pattern is {self.pattern.value!r}, but prefix_lengths are "
                f"{'missing' if prefix_lengths is None else 'given'}; prefix attention, and no "
                "other pattern, needs them"
            )
        # Scale the queries in float32 instead of scaling the logits.
        if self.rotary is None:
            query = (query.astype(jnp.float32) * self.scale).astype(query.dtype)
        else:
            query = self.rotary(query, positions, scale=self.scale)
            key = self.rotary(key, positions)
        query = checkpoint_name(query, QUERY)
        key, value = checkpoint_name(key, KEY), checkpoint_name(value, VALUE)
        if cache is not None:
            cache = cache.write(key, value, cache_start)
            if cache_start is not None:
                assert self.pattern is Pattern.CAUSAL and positions is not None, self.pattern
                return self.output(cache.attend(query, positions)), cache
        visibility = None
        has_documents = segment_ids is not None or prefix_lengths is not None
        if source is x and positions is not None and has_documents:
            places = (positions, segment_ids)
            causal = self.pattern is not Pattern.BIDIRECTIONAL
            visibility = Visibility(*places, *places, causal, prefix_lengths)
        elif self.pattern is not Pattern.BIDIRECTIONAL:
            raise ValueError("causal attention needs positions and segment_ids, and no source")
        y = self.output(attend(query, key, value, visibility, kernel), **layout)
        return checkpoint_name(y, ATTENTION_PROJECTION), cache


def head_sizes(cfg: Attention.Config) -> tuple[int, int, int]:
    """Returns num_heads, num_kv_heads and head_dim, with unset ones derived.

    Raises:
        ValueError: The sizes do not divide evenly.
    """
    num_heads, num_kv_heads = cfg.num_heads, cfg.num_kv_heads or cfg.num_heads
    if num_heads % num_kv_heads:
        raise ValueError(
            f"attention: num_kv_heads={num_kv_heads} must divide num_heads={num_heads}"
        )
    if cfg.head_dim is None and cfg.input_dim % num_heads:
        raise ValueError(
            f"attention: the model dim {cfg.input_dim} is not divisible by num_heads {num_heads}; "
            "set head_dim or change one of them"
        )
    return num_heads, num_kv_heads, cfg.head_dim or cfg.input_dim // num_heads
