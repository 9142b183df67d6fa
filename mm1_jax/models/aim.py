"""Vision encoders trained to predict the next patch: AIM (arXiv 2401.08541) and AIMv2 (2411.14402).

A prefix of the patches sees itself; each later patch sees the prefix and the patches before its
own. The features of a patch then predict the pixels of the next one. AIM predicts them with an MLP
per patch. AIMv2 predicts them with a causal decoder, which continues with the caption. Only the
encoder is kept after training; it then lets every patch see all others.

Legend: B batch rows, one image each, h w pixels, P patches/image, C pixel values/patch, T text
positions, D model dim.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from mm1_jax.batch import ImageTextBatch
from mm1_jax.config import (
    REQUIRED,
    InstantiableConfig,
    Required,
    config_class,
    derived,
    maybe_set_config,
)
from mm1_jax.field_types import PositiveInt
from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module, cast, checked
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import SequencePositions, SinCosPositions
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import FeedForwardBlock
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.vision_encoder import VisionEncoder, normalise, to_patches
from mm1_jax.parallel.sharding import constrain

# Added to the variance of the pixels of a patch, as in MAE (arXiv 2111.06377) and L3M.
_EPS = 1e-6
# Separates the draws of prefixes from others that derive from the same row seeds.
_PREFIX = 2


class PatchPredictions(NamedTuple):
    """Predicted and true pixels of patches.

    Attributes:
        predictions: Predictions made at each patch for the next one, in float32.
        targets: Standardized pixels of each patch itself, in float32.
        prefix_lengths: Number of leading patches that every patch sees, and that are not predicted.
    """

    predictions: Float[Array, "B P C"]
    targets: Float[Array, "B P C"]
    prefix_lengths: Int[Array, "B"]


class AIMv2Output(NamedTuple):
    """Predicted patches, and the hidden states at each text position, which predict the next."""

    patches: PatchPredictions
    text_hidden: Float[Array, "B T D"]


class PixelHead(Module):
    """MLP that maps the features of each patch to pixels; thrown away after training."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()
        output_dim: Required[PositiveInt] = derived()
        model_dim: Required[PositiveInt] = REQUIRED
        num_layers: Required[PositiveInt] = REQUIRED
        hidden_dim: Required[PositiveInt] = REQUIRED
        projection: InstantiableConfig = Linear.default_config().set(
            bias=True, axes=("embed", None)
        )
        # Added again, because the features of deep layers need not contain them.
        positions: InstantiableConfig | None = SinCosPositions.default_config()
        stack: InstantiableConfig = Stack.default_config().set(
            layer=FeedForwardBlock.default_config()
        )
        norm: InstantiableConfig = LayerNorm.default_config()
        output: InstantiableConfig = Linear.default_config().set(bias=True, axes=("embed", None))

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.projection = cfg.projection.set(
            input_dim=cfg.input_dim, output_dim=cfg.model_dim
        ).instantiate(rngs=rngs)
        self.positions = None if cfg.positions is None else cfg.positions.instantiate(rngs=rngs)
        cfg.stack.layer.feed_forward.set(hidden_dim=cfg.hidden_dim)
        self.stack = cfg.stack.set(input_dim=cfg.model_dim, num_layers=cfg.num_layers).instantiate(
            rngs=rngs
        )
        self.norm = cfg.norm.set(input_dim=cfg.model_dim).instantiate(rngs=rngs)
        self.output = cfg.output.set(
            input_dim=cfg.model_dim, output_dim=cfg.output_dim
        ).instantiate(rngs=rngs)

    def __call__(
        self, features: Float[Array, "B P Dv"], grid: tuple[int, int]
    ) -> Float[Array, "B P C"]:
        """Returns pixels of patches in a grid of rows and columns, numbered in row-major order."""
        x = self.projection(features)
        if self.positions is not None:
            cells = x.reshape(len(x), *grid, x.shape[-1])
            x = checked(self.positions, self.positions(cells), cells.shape, x.dtype)
            x = x.reshape(len(x), -1, x.shape[-1])
        x, _, _ = self.stack(x)
        return self.output(checked(self.norm, self.norm(x), x.shape, x.dtype))


class AIM(Module):
    """A vision encoder with a head that predicts the next patch.

    Parameters are float32. A call first casts them to the compute dtype, except those of norms.
    """

    @config_class
    class Config(Module.Config):
        # Needs attention with pattern PREFIX, and no class token.
        vision_encoder: InstantiableConfig = VisionEncoder.default_config()
        pixel_head: InstantiableConfig = PixelHead.default_config()
        # Compute dtype of activations and matrix products.
        dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        encoder: Any = cfg.vision_encoder
        _raise_if_not_causal(encoder)
        self.dtype = cfg.dtype
        self.vision_encoder = encoder.instantiate(rngs=rngs)
        self.pixel_head = maybe_set_config(
            cfg.pixel_head, input_dim=encoder.model_dim, output_dim=3 * encoder.patch_size**2
        ).instantiate(rngs=rngs)

    def __call__(self, batch: ImageTextBatch) -> PatchPredictions:
        """Predicts every patch behind the prefix of its image, whose length the row seeds give."""
        encoder, images = self.vision_encoder, batch.images
        model = self.cast()
        targets = patch_targets(images, encoder)
        prefix_lengths = draw_prefix_lengths(batch.row_seeds, targets.shape[1])
        features = _features(model.vision_encoder, images, prefix_lengths, self.dtype)
        grid = tuple(size // encoder.patch_size for size in images.shape[1:3])
        predictions = model.pixel_head(features, grid)
        checked(self.pixel_head, predictions, targets.shape, self.dtype)
        return PatchPredictions(predictions.astype(jnp.float32), targets, prefix_lengths)

    def cast(self) -> "AIM":
        """Returns the model with parameters cast to the compute dtype; idempotent."""
        graphdef, params = nnx.split(self)
        return nnx.merge(graphdef, cast(params, self.dtype))


class AIMv2(Module):
    """A vision encoder, and a decoder that predicts the next patch and then the caption.

    The decoder reads the features of the patches, followed by the tokens of the caption. Patches
    have no positions but those of the encoder, tokens have learned ones. Parameters are float32. A
    call first casts them to the compute dtype, except those of norms.
    """

    @config_class
    class Config(Module.Config):
        # Needs attention with pattern PREFIX, and no class token.
        vision_encoder: InstantiableConfig = VisionEncoder.default_config()
        # Maps features to the decoder's model dim.
        projection: InstantiableConfig = Linear.default_config().set(
            bias=True, axes=("embed", None)
        )
        text_positions: InstantiableConfig = SequencePositions.default_config()
        decoder: InstantiableConfig = Decoder.default_config()
        # Maps hidden states of the decoder to pixels.
        pixel_head: InstantiableConfig = Linear.default_config().set(axes=("embed", None))
        # Number of text positions; the experiment sets it from the input.
        max_text_length: PositiveInt | None = derived(None)
        # Compute dtype of activations and matrix products.
        dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        encoder: Any = cfg.vision_encoder
        dim = cfg.decoder.model_dim
        _raise_if_not_causal(encoder)
        if cfg.max_text_length is None:
            raise ValueError(
                "max_text_length=None: set it to input.max_sequence_length (done automatically "
                "when an experiment is resolved)"
            )
        self.dtype = cfg.dtype
        self.vision_encoder = encoder.instantiate(rngs=rngs)
        self.projection = cfg.projection.set(
            input_dim=encoder.model_dim, output_dim=dim
        ).instantiate(rngs=rngs)
        self.text_positions = maybe_set_config(
            cfg.text_positions, length=cfg.max_text_length, model_dim=dim
        ).instantiate(rngs=rngs)
        self.decoder = cfg.decoder.instantiate(rngs=rngs)
        self.pixel_head = cfg.pixel_head.set(
            input_dim=dim, output_dim=3 * encoder.patch_size**2
        ).instantiate(rngs=rngs)

    def __call__(self, batch: ImageTextBatch) -> AIMv2Output:
        """Predicts the patches behind the prefix of each image, and the states for its caption."""
        model = self.cast()
        targets = patch_targets(batch.images, self.vision_encoder)
        num_patches = targets.shape[1]
        prefix_lengths = draw_prefix_lengths(batch.row_seeds, num_patches)
        features = _features(model.vision_encoder, batch.images, prefix_lengths, self.dtype)
        text = model.decoder.embed(batch.tokens)
        text = checked(self.text_positions, model.text_positions(text), text.shape, text.dtype)
        embeddings = jnp.concatenate([model.projection(features), text], axis=1)
        positions = jnp.broadcast_to(jnp.arange(embeddings.shape[1])[None], embeddings.shape[:2])
        ends = num_patches + batch.lengths
        hidden = model.decoder(
            constrain(embeddings, "batch", "sequence", None),
            positions=positions,
            segment_ids=(positions < ends[:, None]).astype(jnp.int32),
        ).hidden
        predictions = model.pixel_head(hidden[:, :num_patches])
        checked(self.pixel_head, predictions, targets.shape, self.dtype)
        patches = PatchPredictions(predictions.astype(jnp.float32), targets, prefix_lengths)
        return AIMv2Output(patches, hidden[:, num_patches:])

    def output_layer(self) -> Embedding:
        """Returns the output layer, for losses that compute logits in chunks."""
        return self.cast().decoder.output_layer

    def cast(self) -> "AIMv2":
        """Returns the model with parameters cast to the compute dtype; idempotent."""
        graphdef, params = nnx.split(self)
        return nnx.merge(graphdef, cast(params, self.dtype))


def patch_targets(
    images: UInt8[Array, "B h w 3"] | Float[Array, "B h w 3"], encoder: VisionEncoder
) -> Float[Array, "B P C"]:
    """Standardizes the pixels that the encoder reads, each patch by its own mean and variance.

    The variance is the unbiased one. A patch is flattened in row-major order with color innermost,
    as in MAE and L3M.
    """
    pixels = normalise(images, encoder.pixel_mean, encoder.pixel_std)
    patches = to_patches(pixels, encoder.patch_size)
    patches = patches.reshape(len(patches), -1, patches.shape[-1])
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + _EPS)


def draw_prefix_lengths(row_seeds: UInt32[Array, "B"], num_patches: int) -> Int[Array, "B"]:
    """Draws a length of 1 to `num_patches` - 1 per row, which depends only on the row's seed."""

    def draw(seed: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(_PREFIX), seed)
        return jax.random.randint(key, (), 1, num_patches)

    return jax.vmap(draw)(row_seeds)


def _features(
    encoder: Any, images: Array, prefix_lengths: Array, dtype: str
) -> Float[Array, "B P Dv"]:
    num_patches = images.shape[1] * images.shape[2] // encoder.patch_size**2
    shape = (len(images), num_patches, encoder.model_dim)
    return checked(encoder, encoder(images, prefix_lengths), shape, dtype)


def _raise_if_not_causal(encoder: Any) -> None:
    """Raises ValueError for an encoder in which a patch would see the patch that it predicts."""
    pattern = Pattern(encoder.stack.layer.attention.pattern)
    if pattern is not Pattern.PREFIX:
        raise ValueError(
            f"vision_encoder.stack.layer.attention.pattern={pattern.value!r}: predicting the next "
            "patch needs 'prefix', or a patch would see its target"
        )
    if encoder.class_token is not None:
        raise ValueError(
            "vision_encoder.class_token: it would take the first place of the prefix; set it to "
            "None"
        )
