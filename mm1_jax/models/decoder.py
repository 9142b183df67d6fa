"""Language decoder, dense or sparse: embeddings -> hidden -> logits (MM1, sections 3 and 4).

The blocks are pre-norm, with RMSNorm, causal grouped-query attention with rotary positions, a gated
feed-forward layer, and no biases. If `moe` is set, the feed-forward layer of every `moe_every`-th
block is sparse.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class, derived, fill
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.attention import Attention, Pattern, head_sizes
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.feed_forward import GatedFeedForward
from mm1_jax.layers.kv_cache import Caches, empty_cache
from mm1_jax.layers.low_precision import LowPrecision
from mm1_jax.layers.module import Module, checked, checked_tuple
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.layers.norm import RMSNorm
from mm1_jax.layers.rotary import Rotary
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.parallel.sharding import constrain


class DecoderOutput(NamedTuple):
    """Decoder output.

    Attributes:
        hidden: Hidden states after the final norm.
        router: Statistics with an entry per sparse layer; None for a dense decoder or with caches.
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
        vocab_size: PositiveInt | None = derived(None)  # vocabulary size of the tokenizer
        model_dim: Required[PositiveInt] = REQUIRED
        num_layers: Required[PositiveInt] = REQUIRED
        num_heads: Required[PositiveInt] = REQUIRED
        num_kv_heads: PositiveInt | None = None  # None is num_heads
        head_dim: PositiveInt | None = None  # None is model_dim / num_heads
        hidden_dim: Required[PositiveInt] = REQUIRED  # of feed-forward layers and experts
        moe: InstantiableConfig | None = None
        moe_every: PositiveInt = 1  # 2: layers 2, 4, 6, ... are sparse
        # Without it, a packed token also attends to the earlier documents of its row, as if they
        # were one, which MM1 (section 3) finds to harm few-shot learning.
        document_mask: bool = True
        tied_embeddings: bool = False  # use the token embedding as the output layer too
        embedding: InstantiableConfig = Embedding.default_config().set(init_std=1.0)
        head: InstantiableConfig = Embedding.default_config()  # ignored with tied_embeddings
        stack: Stack.Config = Stack.default_config().set(layer=_block())
        norm: InstantiableConfig = RMSNorm.default_config()
        # Precision of the products of linear layers and experts that set none of their own. Router,
        # embedding and output layer keep the dtype of the model.
        low_precision: LowPrecision.Config | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.vocab_size is None:
            raise ValueError("decoder: vocab_size is None; set it to that of the tokenizer")
        table = {"vocab_size": cfg.vocab_size, "model_dim": cfg.model_dim}
        self.vocab_size, self.model_dim = cfg.vocab_size, cfg.model_dim
        self.document_mask = cfg.document_mask
        self.embedding = cfg.embedding.set(**table).instantiate(rngs=rngs)
        stack = decoder_stack(cfg)
        self.stack = stack.instantiate(rngs=rngs)
        self.norm = cfg.norm.set(input_dim=cfg.model_dim).instantiate(rngs=rngs)
        self.head = None if cfg.tied_embeddings else cfg.head.set(**table).instantiate(rngs=rngs)
        _, num_kv_heads, head_dim = head_sizes(stack.layer.attention)
        self.cache_shape = (cfg.num_layers, num_kv_heads, head_dim)

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeds tokens; until the merge, image positions hold the embedding of the image token."""
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
        """Runs the blocks over packed rows or, with caches, over the next T tokens of each row.

        Args:
            caches: KV caches. Each row holds one document; padding (segment id 0) is at the end.
            cache_start: Number of tokens per row already in the caches; None means that they are
                empty. The positions of the next T tokens must continue from there.
            dropless: Sparse layers drop nothing, regardless of their dispatch; for evaluation.
        """
        if not self.document_mask and caches is None:
            positions = jnp.broadcast_to(jnp.arange(positions.shape[1]), positions.shape)
            segment_ids = jnp.minimum(segment_ids, 1)
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
        """Returns float32 logits of the next token; vocabulary padding is not masked."""
        logits = self.output_layer.attend(hidden)
        shape = (*hidden.shape[:-1], self.vocab_size)
        logits = checked(self.output_layer, logits, shape, jnp.float32)
        return constrain(logits, "batch", "sequence", "activation_vocab")

    @property
    def output_layer(self) -> Embedding:
        return self.embedding if self.head is None else self.head

    def init_caches(self, batch_size: int, num_slots: int, dtype: DTypeLike) -> Caches:
        """Allocates an empty cache per layer, of `num_slots` positions per row."""
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
    fill(layer, "low_precision", cfg.low_precision)
    stack = cfg.stack.clone(input_dim=cfg.model_dim, num_layers=cfg.num_layers, layer=layer)
    if cfg.moe is None:
        return stack
    sparse = layer.clone(feed_forward=cfg.moe.clone(hidden_dim=cfg.hidden_dim))
    fill(sparse, "low_precision", cfg.low_precision)
    if cfg.moe_every == 1:
        return stack.set(layer=sparse)
    if cfg.moe_every < 1 or cfg.num_layers % cfg.moe_every:
        raise ValueError(
            f"decoder: moe_every={cfg.moe_every} must divide num_layers={cfg.num_layers}"
        )
    return stack.set(last_layer=sparse, group_size=cfg.moe_every)


def num_non_embedding_parameters(cfg: Decoder.Config) -> int:
    """Counts all parameters except embedding and output layer: N in the learning-rate law.

    A sparse decoder counts as its dense counterpart, whose hyperparameters it inherits.

    Raises:
        ValueError: The feed-forward layer is not one that the formula covers.
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
