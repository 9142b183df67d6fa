"""The language decoder: embeddings -> hidden -> logits, dense or sparse (MM1, sections 3 and 4).

Pre-norm blocks with RMSNorm, causal grouped-query attention with rotary positions and a gated
feed-forward layer, no biases. With `moe`, the feed-forward layer of every `moe_every`-th block is
sparse; all else stays.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.attention import Attention, Pattern, head_sizes
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.kv_cache import Caches, empty_cache
from mm1_jax.layers.module import Module, checked, checked_tuple
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import Rotary
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.parallel.sharding import constrain


class DecoderOutput(NamedTuple):
    """`hidden` is normalised; `router` has an entry per sparse layer, None without any.

    It is None with caches, too.
    """

    hidden: Float[Array, "B T D"]
    caches: Caches | None
    router: RouterStatistics | None


def _block() -> TransformerBlock.Config:
    attention = Attention.default_config().set(
        pattern=Pattern.CAUSAL, rotary=Rotary.default_config()
    )
    return TransformerBlock.default_config().set(attention=attention)


class Decoder(Module):
    """Token embedding, a stack of blocks, a final norm and the output layer."""

    @config_class
    class Config(Module.Config):
        vocab_size: PositiveInt | None = derived(None)  # the tokenizer's
        model_dim: Required[PositiveInt] = REQUIRED
        num_layers: Required[PositiveInt] = REQUIRED
        num_heads: Required[PositiveInt] = REQUIRED
        num_kv_heads: PositiveInt | None = None  # None is num_heads
        head_dim: PositiveInt | None = None  # None is model_dim / num_heads
        hidden_dim: Required[PositiveInt] = REQUIRED  # of every feed-forward layer and each expert
        moe: InstantiableConfig | None = None
        moe_every: PositiveInt = 1  # 2: every second layer is sparse, the first of them the second
        tied_embeddings: bool = False  # the token embedding is the output layer too
        embedding: InstantiableConfig = Embedding.default_config().set(init_std=1.0)
        head: InstantiableConfig = Embedding.default_config()  # not used with tied_embeddings
        stack: Stack.Config = Stack.default_config().set(layer=_block())
        norm: InstantiableConfig = RMSNorm.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.vocab_size is None:
            raise ValueError("decoder: vocab_size is None; set it to the tokenizer's")
        table = {"vocab_size": cfg.vocab_size, "model_dim": cfg.model_dim}
        self.vocab_size, self.model_dim = cfg.vocab_size, cfg.model_dim
        self.embedding = cfg.embedding.set(**table).instantiate(rngs=rngs)
        stack = decoder_stack(cfg)
        self.stack = stack.instantiate(rngs=rngs)
        self.norm = cfg.norm.set(input_dim=cfg.model_dim).instantiate(rngs=rngs)
        self.head = None if cfg.tied_embeddings else cfg.head.set(**table).instantiate(rngs=rngs)
        _, num_kv_heads, head_dim = head_sizes(stack.layer.attention)
        self.cache_shape = (cfg.num_layers, num_kv_heads, head_dim)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The token embeddings; image positions hold those of the image token until the merge."""
        embeddings = self.embedding(tokens)
        return checked(
            self.embedding, embeddings, (*tokens.shape, self.model_dim), embeddings.dtype
        )

    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        *,
        positions: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        caches: Caches | None = None,
        cache_start: Int[Array, "B"] | None = None,
        dropless: bool = False,
    ) -> DecoderOutput:
        """Runs the blocks over packed rows or, with caches, over the next T tokens of every row.

        Args:
            caches: Of rows that hold one document each; padding, of segment id 0, is at the end.
            cache_start: How many tokens each row holds in them; None: none, they are empty. The
                next T tokens must have the positions from there on.
            dropless: Sparse layers drop nothing, whatever their dispatch: for evaluation.
        """
        output = self.stack(
            embeddings,
            positions=positions,
            segment_ids=segment_ids,
            caches=caches,
            cache_start=cache_start,
            dropless=dropless,
        )
        names = ("hidden", "caches", "router statistics")
        hidden, caches, router = checked_tuple(self.stack, output, names)
        shape, dtype = embeddings.shape, embeddings.dtype
        hidden = checked(self.stack, hidden, shape, dtype)
        return DecoderOutput(checked(self.norm, self.norm(hidden), shape, dtype), caches, router)

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of the next token, float32. Entries that pad the vocabulary are ordinary ones."""
        logits = self.output_layer.attend(hidden)
        shape = (*hidden.shape[:-1], self.vocab_size)
        logits = checked(self.output_layer, logits, shape, jnp.float32)
        return constrain(logits, "batch", "sequence", "activation_vocab")

    @property
    def output_layer(self) -> Embedding:
        return self.embedding if self.head is None else self.head

    def init_caches(self, batch_size: int, num_slots: int, dtype: DTypeLike) -> Caches:
        """Empty caches of `num_slots` positions a row, for each layer."""
        num_layers, num_kv_heads, head_dim = self.cache_shape
        return tuple(
            empty_cache(batch_size, num_slots, num_kv_heads, head_dim, dtype)
            for _ in range(num_layers)
        )


def decoder_stack(cfg: Decoder.Config) -> Stack.Config:
    layer = cfg.stack.layer.clone(input_dim=cfg.model_dim)
    layer.attention.set(
        input_dim=cfg.model_dim,
        num_heads=cfg.num_heads,
        num_kv_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim,
    )
    layer.feed_forward.set(input_dim=cfg.model_dim, hidden_dim=cfg.hidden_dim)
    stack = cfg.stack.clone(input_dim=cfg.model_dim, num_layers=cfg.num_layers, layer=layer)
    if cfg.moe is None:
        return stack
    sparse = layer.clone(feed_forward=cfg.moe.clone(hidden_dim=cfg.hidden_dim))
    if cfg.moe_every == 1:
        return stack.set(layer=sparse)
    if cfg.moe_every < 1 or cfg.num_layers % cfg.moe_every:
        raise ValueError(
            f"decoder: moe_every is {cfg.moe_every}, which must divide num_layers {cfg.num_layers}"
        )
    return stack.set(last_layer=sparse, group_size=cfg.moe_every)


def num_non_embedding_parameters(cfg: Decoder.Config) -> int:
    """The N of the learning-rate law: all parameters but the embedding and the output layer.

    A sparse decoder counts as its dense parent, from which it takes its hyper-parameters.

    Raises:
        ValueError: The layers are not those that the formula is about.
    """
    layer = decoder_stack(cfg.clone(moe=None)).layer
    num_heads, num_kv_heads, head_dim = head_sizes(layer.attention)
    if not isinstance(layer.feed_forward, GatedFeedForward.Config):
        raise ValueError(
            f"decoder: no parameter formula for the feed-forward layer {type(layer.feed_forward)}"
        )
    D, F, H = cfg.model_dim, cfg.hidden_dim, head_dim
    heads = num_heads + 2 * num_kv_heads
    bias, output_bias = layer.attention.bias, layer.attention.output_bias
    biases = bias * heads * H + (bias if output_bias is None else output_bias) * D
    attention = D * H * (heads + num_heads) + biases
    query_key_norms = 2 * H if layer.attention.qk_norm else 0
    return cfg.num_layers * (attention + query_key_norms + 3 * D * F + 2 * D) + D
