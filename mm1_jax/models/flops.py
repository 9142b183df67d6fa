"""Model FLOPs of a training step, independent of how it is compiled.

Counting rules:

- A parameter of a matrix product costs 2 FLOPs per position in the forward pass and 4 in the
  backward pass, 6 in total. Recomputation is not counted.
- Attention costs its two products, queries with keys and weights with values. The vision encoder
  counts all pairs, even where a prefix mask hides some; the decoder counts the half that a causal
  mask leaves, as if each row were one document.
- A sparse layer counts its router and the experts that a token is routed to.
- Embedding lookups cost nothing. The output layer is counted even if it shares the embedding table.
- All positions of a row are counted, including padding.
- Only real images are counted, not empty slots of the image buffer, even if the compiled program
  spends time on them.
- A connector counts the matrix products of its forward pass.
- Norms, activations, rotary positions and the optimizer are not counted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mm1_jax.config import maybe_set_config
from mm1_jax.field_types import class_name
from mm1_jax.layers.attention import Pattern, head_sizes
from mm1_jax.layers.feed_forward import FeedForward, GatedFeedForward
from mm1_jax.layers.moe import MoE
from mm1_jax.models.aim import AIM, AIMv2
from mm1_jax.models.clip import CLIP
from mm1_jax.models.decoder import decoder_stack
from mm1_jax.models.mm1 import MM1, reads_images
from mm1_jax.models.vision_encoder import num_kept_patches

# FLOPs of training relative to a forward pass: the backward pass has two products per forward one.
TRAINING = 3


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of a forward pass: per packed row in the decoder, and per image up to the merge."""

    row: float
    image: float

    def of_training(self, num_rows: int, num_images: int | float) -> float:
        """Returns the FLOPs of a training step on `num_rows` rows and `num_images` images."""
        return TRAINING * (num_rows * self.row + num_images * self.image)


def forward_flops(cfg: Any, sequence_length: int) -> ForwardFlops:
    """Computes the forward FLOPs of a complete `MM1.Config`.

    Raises:
        ValueError: The model is not an MM1, or has a feed-forward layer without a rule.
    """
    if not isinstance(cfg, MM1.Config):
        raise ValueError(f"model FLOPs: no rule for {class_name(type(cfg))}, only for MM1")
    image = 0.0
    if reads_images(cfg):
        image = vision_encoder_flops(cfg.vision_encoder) + connector_flops(cfg)
    return ForwardFlops(decoder_flops(cfg.decoder, sequence_length), image)


def patch_prediction_flops(cfg: Any, text_length: int) -> ForwardFlops:
    """Computes the forward FLOPs of a complete `AIM.Config` or `AIMv2.Config`.

    The decoder of AIMv2 reads a row of patches and text; only text positions have logits.
    """
    encoder = cfg.vision_encoder
    patches, pixels = (encoder.image_size // encoder.patch_size) ** 2, 3 * encoder.patch_size**2
    image = vision_encoder_flops(encoder)
    match cfg:
        case AIM.Config():
            head = cfg.pixel_head
            layer = head.stack.layer.feed_forward.clone(
                input_dim=head.model_dim, hidden_dim=head.hidden_dim
            )
            parameters = head.num_layers * _active_parameters(layer)
            parameters += head.model_dim * (encoder.model_dim + pixels)
            return ForwardFlops(0.0, image + 2.0 * patches * parameters)
        case AIMv2.Config():
            decoder = cfg.decoder
            image += 2.0 * patches * decoder.model_dim * (encoder.model_dim + pixels)
            row = decoder_flops(decoder, patches + text_length)
            row -= 2.0 * patches * decoder.model_dim * decoder.vocab_size
            return ForwardFlops(row, image)
        case _:
            raise ValueError(
                f"model FLOPs: no rule for {class_name(type(cfg))}, only for AIM and AIMv2"
            )


def contrastive_flops(cfg: Any, text_length: int, num_rows: int) -> ForwardFlops:
    """Computes the forward FLOPs of a complete `CLIP.Config` on batches of `num_rows` rows.

    A row counts its text and the logits of its picture, but not pooling and projections.
    """
    if not isinstance(cfg, CLIP.Config):
        raise ValueError(f"model FLOPs: no rule for {class_name(type(cfg))}, only for CLIP")
    text: Any = cfg.text_encoder
    causal = text.stack.layer.attention.pattern is Pattern.CAUSAL
    layer = _layer(text.stack.layer, text)
    row = text.num_layers * _layer_flops(layer, text_length, causal=causal)
    image = vision_encoder_flops(cfg.vision_encoder, dropout=cfg.patch_dropout)
    return ForwardFlops(row + 2.0 * num_rows * cfg.features_dim, image)


def decoder_flops(cfg: Any, sequence_length: int) -> float:
    """Returns the FLOPs of one row of `sequence_length` positions, including the output layer."""
    T = sequence_length
    stack = decoder_stack(cfg)
    sparse = 0 if stack.last_layer is None else cfg.num_layers // stack.group_size
    flops = (cfg.num_layers - sparse) * _layer_flops(stack.layer, T, causal=True)
    if sparse:
        flops += sparse * _layer_flops(stack.last_layer, T, causal=True)
    return flops + 2.0 * T * cfg.model_dim * cfg.vocab_size


def vision_encoder_flops(cfg: Any, dropout: float = 0.0) -> float:
    """Returns the FLOPs of one image of the configured size.

    Args:
        dropout: Share of patches that patch dropout leaves out.
    """
    patches = (cfg.image_size // cfg.patch_size) ** 2
    patch_embedding = 2.0 * patches * 3 * cfg.patch_size**2 * cfg.model_dim
    positions = num_kept_patches(patches, dropout) + (cfg.class_token is not None)
    layer = _layer(cfg.stack.layer, cfg)
    return patch_embedding + cfg.num_layers * _layer_flops(layer, positions, causal=False)


def connector_flops(cfg: Any) -> float:
    """Returns the FLOPs of one image in the connector of an `MM1.Config`, found by tracing it."""
    encoder = cfg.vision_encoder
    grid_size = encoder.image_size // encoder.patch_size
    connector = maybe_set_config(
        cfg.connector.clone(),
        input_dim=encoder.model_dim,
        output_dim=cfg.decoder.model_dim,
        grid_size=grid_size,
    )
    module = nnx.eval_shape(lambda: connector.instantiate(rngs=nnx.Rngs(params=0)))
    features = jax.ShapeDtypeStruct((1, grid_size**2, encoder.model_dim), jnp.float32)
    return product_flops(jax.make_jaxpr(lambda module, x: module(x))(module, features).jaxpr)


def product_flops(jaxpr: Any) -> float:
    """Sums the FLOPs of the matrix products of a jaxpr, including every iteration of its scans."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[dim] for dim in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * summed
        trips = equation.params.get("length", 1)
        total += trips * sum(product_flops(inner) for inner in _inner_jaxprs(equation))
    return total


def _inner_jaxprs(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                yield inner


def _layer(layer: Any, tower: Any) -> Any:
    """Returns the layer config of an encoder with the sizes that the encoder sets."""
    layer = layer.clone(input_dim=tower.model_dim)
    layer.attention.set(input_dim=tower.model_dim, num_heads=tower.num_heads)
    layer.feed_forward.set(input_dim=tower.model_dim, hidden_dim=tower.hidden_dim)
    return layer


def _layer_flops(layer: Any, positions: int, *, causal: bool) -> float:
    num_heads, num_kv_heads, head_dim = head_sizes(layer.attention)
    projections = layer.input_dim * head_dim * 2 * (num_heads + num_kv_heads)
    feed_forward = _active_parameters(layer.feed_forward.clone(input_dim=layer.input_dim))
    products = 2 * 2.0 * positions**2 * num_heads * head_dim * (0.5 if causal else 1.0)
    return 2.0 * positions * (projections + feed_forward) + products


def _active_parameters(cfg: Any) -> int:
    """Counts the matrix product parameters used per position."""
    D, F = cfg.input_dim, cfg.hidden_dim
    match cfg:
        case MoE.Config():
            return D * cfg.num_experts + cfg.experts_per_token * 3 * D * F
        case GatedFeedForward.Config():
            return 3 * D * F
        case FeedForward.Config():
            return 2 * D * F
        case _:
            raise ValueError(
                f"model FLOPs: no rule for the feed-forward layer {type(cfg).__qualname__}; add one"
                " in mm1_jax/models/flops.py"
            )
