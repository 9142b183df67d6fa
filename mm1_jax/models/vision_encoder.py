"""Vision transformer that maps pixels to a feature vector per patch (MM1, section 3.1).

CLIP towers and AIM trunks are configs of it. It returns the patch features of the last block. A
class token, if there is one, takes part in attention; only `features` returns it.

Legend: J images, h w pixels, P patches/image, Dv vision dim, R patches/image left by patch dropout.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8, UInt32

from mm1_jax.config import (
    REQUIRED,
    InstantiableConfig,
    Required,
    config_class,
    derived,
    maybe_set_config,
)
from mm1_jax.field_types import NonNegative, Positive, PositiveInt
from mm1_jax.layers.attention import Attention
from mm1_jax.layers.attention_kernels import row_length
from mm1_jax.layers.feed_forward import FeedForward
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module, checked, checked_tuple, param
from mm1_jax.layers.norm import LayerNorm
from mm1_jax.layers.position_embedding import PositionEmbedding, resize_grid
from mm1_jax.layers.stack import Stack
from mm1_jax.layers.transformer import TransformerBlock
from mm1_jax.parallel.sharding import constrain

# Maximum share of padding appended to the patches if the attention kernel needs longer rows.
# Padding up front saves each layer from padding and copying queries, keys and values.
MAX_PADDING = 1 / 16

# Separates the draws of patch dropout from others that derive from the same row seeds.
_DROPOUT = 1


class ClassToken(Module):
    """Prepends a learned token, with a position of its own (separate parameters, as in CLIP)."""

    @config_class
    class Config(Module.Config):
        model_dim: Required[PositiveInt] = derived()
        init_std: NonNegative = 0.02

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.truncated_normal(cfg.init_std)
        self.token = param(rngs, (cfg.model_dim,), ("embed",), init)
        # Zero, so that the token alone determines the sum at first.
        self.position = param(rngs, (cfg.model_dim,), ("embed",), jax.nn.initializers.zeros)

    def __call__(self, x: Float[Array, "J P Dv"]) -> Float[Array, "J P+1 Dv"]:
        num_images, _, model_dim = x.shape
        token = (self.token[...] + self.position[...]).astype(x.dtype)
        first = jnp.broadcast_to(token[None, None], (num_images, 1, model_dim))
        return jnp.concatenate([first, x], axis=1)


class VisionEncoder(Module):
    """Projects patches, adds positions, and applies pre-norm transformer blocks."""

    @config_class
    class Config(Module.Config):
        # Side in pixels of the square images for which positions are stored. Learned positions are
        # resized for images of other sizes.
        image_size: Required[PositiveInt] = REQUIRED
        patch_size: Required[PositiveInt] = REQUIRED
        model_dim: Required[PositiveInt] = REQUIRED
        num_layers: Required[PositiveInt] = REQUIRED
        num_heads: Required[PositiveInt] = REQUIRED
        hidden_dim: Required[PositiveInt] = REQUIRED
        # Mean and standard deviation per color of pixels in 0..1; the defaults are those of CLIP.
        pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
        pixel_std: tuple[Positive, Positive, Positive] = (0.26862954, 0.26130258, 0.27577711)
        patch_embedding: InstantiableConfig = Linear.default_config().set(axes=(None, "embed"))
        # Norm between patch embedding and positions, as in AIM trunks.
        patch_norm: InstantiableConfig | None = None
        positions: InstantiableConfig = PositionEmbedding.default_config()  # or SinCosPositions
        class_token: InstantiableConfig | None = None
        # Norm between positions and blocks, as in CLIP towers.
        pre_norm: InstantiableConfig | None = None
        # Norm after the last block; None for CLIP towers, which normalize only the class token.
        final_norm: InstantiableConfig | None = LayerNorm.default_config()
        stack: InstantiableConfig = Stack.default_config().set(
            layer=TransformerBlock.default_config().set(
                attention=Attention.default_config().set(bias=True),
                feed_forward=FeedForward.default_config(),
                norm=LayerNorm.default_config(),
            )
        )

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.image_size % cfg.patch_size:
            raise ValueError(
                f"vision_encoder.image_size={cfg.image_size}: must be a multiple of "
                f"vision_encoder.patch_size={cfg.patch_size}"
            )

        def optional(child: InstantiableConfig | None, **dims: int) -> Module | None:
            return None if child is None else child.set(**dims).instantiate(rngs=rngs)

        self.patch_size, self.model_dim = cfg.patch_size, cfg.model_dim
        self.pixel_mean, self.pixel_std = tuple(cfg.pixel_mean), tuple(cfg.pixel_std)
        self.patch_embedding = cfg.patch_embedding.set(
            input_dim=3 * cfg.patch_size**2, output_dim=cfg.model_dim
        ).instantiate(rngs=rngs)
        self.patch_norm = optional(cfg.patch_norm, input_dim=cfg.model_dim)
        self.positions = maybe_set_config(
            cfg.positions,
            grid_size=cfg.image_size // cfg.patch_size,
            model_dim=cfg.model_dim,
        ).instantiate(rngs=rngs)
        self.class_token = optional(cfg.class_token, model_dim=cfg.model_dim)
        self.pre_norm = optional(cfg.pre_norm, input_dim=cfg.model_dim)
        cfg.stack.layer.attention.set(num_heads=cfg.num_heads)
        cfg.stack.layer.feed_forward.set(hidden_dim=cfg.hidden_dim)
        self.stack = cfg.stack.set(input_dim=cfg.model_dim, num_layers=cfg.num_layers).instantiate(
            rngs=rngs
        )
        self.final_norm = optional(cfg.final_norm, input_dim=cfg.model_dim)

    def __call__(
        self,
        images: UInt8[Array, "J h w 3"] | Float[Array, "J h w 3"],
        prefix_lengths: Int[Array, "J"] | None = None,
    ) -> Float[Array, "J P Dv"]:
        """Returns the patch features in row-major order.

        Args:
            images: Pixels in 0..255 in either dtype; floats allow gradients.
            prefix_lengths: Number of leading positions per image that every position sees. Required
                with attention pattern PREFIX, as in AIM pre-training.
        """
        return self.features(images, prefix_lengths)[1]

    def features(
        self,
        images: UInt8[Array, "J h w 3"] | Float[Array, "J h w 3"],
        prefix_lengths: Int[Array, "J"] | None = None,
        kept: Int[Array, "J R"] | None = None,
    ) -> tuple[Float[Array, "J Dv"] | None, Float[Array, "J P Dv"]]:
        """Returns the features of the class token, or None without one, and of the patches.

        Args:
            kept: Indices of the patches that the blocks see (see `kept_patches`), in the order of
                the returned features; None keeps all.
        """
        pixels = normalise(images, self.pixel_mean, self.pixel_std)
        pixels = pixels.astype(self.patch_embedding.kernel[...].dtype)
        patches = to_patches(pixels, self.patch_size)
        shape, dtype = (*patches.shape[:-1], self.model_dim), patches.dtype

        def checked_call(part: Any, x: Array) -> Array:
            return x if part is None else checked(part, part(x), shape, dtype)

        x = checked_call(self.patch_embedding, patches)
        x = checked_call(self.patch_norm, x)
        x = checked_call(self.positions, x)
        x = x.reshape(len(x), -1, x.shape[-1])
        if kept is not None:
            x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
        shape = (len(x), x.shape[1] + (self.class_token is not None), self.model_dim)
        x = checked_call(self.class_token, x)
        x = checked_call(self.pre_norm, x)
        length = x.shape[1]
        positions = segment_ids = None
        if prefix_lengths is not None:
            positions = jnp.broadcast_to(jnp.arange(length)[None], x.shape[:2])
        padding = row_length(length, self.stack.layer.attention.kernel) - length
        if prefix_lengths is None and 0 < padding <= MAX_PADDING * length:
            x = jnp.pad(x, ((0, 0), (0, padding), (0, 0)))
            positions = jnp.broadcast_to(jnp.arange(length + padding)[None], x.shape[:2])
            segment_ids = (positions < length).astype(jnp.int32)
        output = self.stack(
            constrain(x, "images", None, None),
            positions=positions,
            segment_ids=segment_ids,
            prefix_lengths=prefix_lengths,
        )
        x, _, _ = checked_tuple(self.stack, output, ("x", "caches", "router statistics"))
        class_feature = None
        if self.class_token is not None:
            shape = (len(x), 1, self.model_dim)
            class_feature = checked_call(self.final_norm, x[:, :1])[:, 0]
        x = x[:, self.class_token is not None : length]
        shape = x.shape
        return class_feature, checked_call(self.final_norm, x)


def num_kept_patches(num_patches: int, dropout: float) -> int:
    """Returns the number of patches that patch dropout keeps, at least one, as in open_clip."""
    return max(1, int(num_patches * (1 - dropout)))


def kept_patches(
    row_seeds: UInt32[Array, "J"], num_patches: int, dropout: float
) -> Int[Array, "J R"]:
    """Draws the patches per image that patch dropout keeps (arXiv 2212.00794), in their order.

    Every image keeps the same number of patches. The draw depends only on the seed, so hosts and
    micro-batches do not change it.
    """
    num_kept = num_kept_patches(num_patches, dropout)

    def draw(seed: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(_DROPOUT), seed)
        return jnp.sort(jax.random.permutation(key, num_patches)[:num_kept])

    return jax.vmap(draw)(row_seeds)


def resized_positions(
    positions: Float[Array, "P Dv"], num_positions: int
) -> Float[Array, "num_positions Dv"]:
    """Resizes learned positions of a square grid, in the same way as the encoder does."""
    side, new_side = math.isqrt(len(positions)), math.isqrt(num_positions)
    assert side**2 == len(positions) and new_side**2 == num_positions, num_positions
    grid = resize_grid(positions.reshape(side, side, -1), new_side, new_side)
    return grid.reshape(num_positions, -1)


def normalise(
    images: UInt8[Array, "J h w 3"] | Float[Array, "J h w 3"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Array, "J h w 3"]:
    """Scales pixels from 0..255 to 0..1 in float32, then normalizes each color by mean and std."""
    shift, scale = (jnp.asarray(colours)[None, None, None] for colours in (mean, std))
    return (images.astype(jnp.float32) / 255 - shift) / scale


def to_patches(
    pixels: Float[Array, "J h w 3"], patch_size: int
) -> Float[Array, "J rows columns patch"]:
    """Cuts images into square patches, each flattened in row-major order with color innermost."""
    num_images, height, width, _ = pixels.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height} x {width} pixels: both must be multiples of "
            f"vision_encoder.patch_size={patch_size}"
        )
    rows, columns = height // patch_size, width // patch_size
    x = pixels.reshape(num_images, rows, patch_size, columns, patch_size, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(num_images, rows, columns, -1)
