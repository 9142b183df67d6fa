"""Text tower of CLIP: captions -> one feature vector each (arXiv 2103.00020).

It is causal in CLIP and bidirectional in SigLIP. Rows hold one caption each; they are not packed.

Legend: B captions, T positions, D model dim, Dc dim of the features that both towers share.
"""

import enum

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal
from jaxtyping import Array, Float, Int

from mm1_jax.config import REQUIRED, InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import NonNegative, NonNegativeInt, PositiveInt
from mm1_jax.layers.attention import Attention, Pattern
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.feed_forward import FeedForward
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module, checked, checked_tuple, param
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.parallel.sharding import constrain


class TextPooling(enum.Enum):
    """Position or positions whose features stand for a caption.

    EOS is the last token of the caption, as in CLIP. LAST is the last position of the row, as in
    SigLIP, where padding is part of the text and every position attends to it. MEAN averages over
    the tokens of the caption.
    """

    EOS = "eos"
    LAST = "last"
    MEAN = "mean"


class TextEncoder(Module):
    """Token and position embeddings, pre-norm blocks, a final norm, pooling and a projection."""

    @config_class
    class Config(Module.Config):
        vocab_size: PositiveInt | None = derived(None)  # vocabulary size of the tokenizer
        max_length: PositiveInt | None = derived(None)  # positions, `input.max_sequence_length`
        output_dim: PositiveInt | None = derived(None)  # dim of the features, set by the model
        model_dim: Required[PositiveInt] = REQUIRED
        num_layers: Required[PositiveInt] = REQUIRED
        num_heads: Required[PositiveInt] = REQUIRED
        hidden_dim: Required[PositiveInt] = REQUIRED
        embedding: InstantiableConfig = Embedding.default_config().set(init_std=0.02)
        position_init_std: NonNegative = 0.01
        # Its attention pattern makes the tower causal or bidirectional.
        stack: Stack.Config = Stack.default_config().set(
            layer=TransformerBlock.default_config().set(
                attention=Attention.default_config().set(bias=True, pattern=Pattern.CAUSAL),
                feed_forward=FeedForward.default_config(),
                norm=LayerNorm.default_config().set(eps=1e-5),
            )
        )
        final_norm: InstantiableConfig = LayerNorm.default_config().set(eps=1e-5)
        pooling: TextPooling = TextPooling.EOS
        # Token id that padding is embedded as with pooling LAST; otherwise nothing sees padding.
        padding_token: NonNegativeInt = 0
        projection: InstantiableConfig = Linear.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        vocab_size = _size(cfg, "vocab_size", "that of the tokenizer")
        self.max_length = _size(cfg, "max_length", "input.max_sequence_length")
        self.output_dim = _size(cfg, "output_dim", "the dim of the features")
        self.model_dim = cfg.model_dim
        self.pooling, self.padding_token = TextPooling(cfg.pooling), cfg.padding_token
        self.embedding = cfg.embedding.set(
            vocab_size=vocab_size, model_dim=cfg.model_dim
        ).instantiate(rngs=rngs)
        self.positions = param(
            rngs, (self.max_length, cfg.model_dim), (None, "embed"), normal(cfg.position_init_std)
        )
        cfg.stack.layer.attention.set(num_heads=cfg.num_heads)
        cfg.stack.layer.feed_forward.set(hidden_dim=cfg.hidden_dim)
        self.stack = cfg.stack.set(input_dim=cfg.model_dim, num_layers=cfg.num_layers).instantiate(
            rngs=rngs
        )
        self.final_norm = cfg.final_norm.set(input_dim=cfg.model_dim).instantiate(rngs=rngs)
        self.projection = cfg.projection.set(
            input_dim=cfg.model_dim, output_dim=cfg.output_dim
        ).instantiate(rngs=rngs)

    def __call__(self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]) -> Float[Array, "B Dc"]:
        """Returns the features of captions, not normalized.

        Args:
            lengths: Number of tokens per row, with the tokens of its begin and end; the rest is
                padding. A row of length 0 gets finite but meaningless features.
        """
        num_rows, length = tokens.shape
        if length > self.max_length:
            raise ValueError(
                f"captions of {length} positions: the text encoder has max_length="
                f"{self.max_length}; cut them, or set a larger input.max_sequence_length"
            )
        places = jnp.broadcast_to(jnp.arange(length)[None], tokens.shape)
        is_text = places < lengths[:, None]
        if self.pooling is TextPooling.LAST:
            tokens = jnp.where(is_text, tokens, self.padding_token)
            is_text = jnp.ones_like(is_text)
        x = self.embedding(tokens)
        shape, dtype = (num_rows, length, self.model_dim), x.dtype
        x = checked(self.embedding, x, shape, dtype) + self.positions[:length][None]
        output = self.stack(
            constrain(x, "batch", "sequence", None),
            positions=places,
            segment_ids=is_text.astype(jnp.int32),
        )
        x, _, _ = checked_tuple(self.stack, output, ("x", "caches", "router statistics"))
        pooled = self._pooled(checked(self.stack, x, shape, dtype), lengths, is_text)
        projected = self.projection(pooled)
        return checked(self.projection, projected, (num_rows, self.output_dim), dtype)

    def _pooled(
        self, x: Float[Array, "B T D"], lengths: Int[Array, "B"], is_text: Array
    ) -> Float[Array, "B D"]:
        if self.pooling is TextPooling.MEAN:
            weights = is_text / jnp.maximum(lengths, 1)[:, None]
            normed = checked(self.final_norm, self.final_norm(x), x.shape, x.dtype)
            return jnp.einsum("BTD,BT->BD", normed, weights.astype(x.dtype))
        if self.pooling is TextPooling.EOS:
            chosen = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)
        else:
            chosen = x[:, -1:]
        return checked(self.final_norm, self.final_norm(chosen), chosen.shape, x.dtype)[:, 0]


def _size(cfg: TextEncoder.Config, name: str, source: str) -> int:
    value = getattr(cfg, name)
    if value is None:
        raise ValueError(f"text_encoder.{name} is None: set it to {source}")
    return value
