"""Features of the patches of a frozen vision encoder, as probes read them.

Every patch sees all others, also in an encoder that is trained with prefix attention.

Legend: J images, h w pixels, P patches/image, Dv vision dim, T positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from mm1_jax.layers.attention import Pattern
from mm1_jax.layers.module import Module, checked_tuple
from mm1_jax.layers.stack import Stack
from mm1_jax.models.vision_encoder import VisionEncoder


def patch_features(
    encoder: VisionEncoder, images: UInt8[Array, "J h w 3"], num_layers: int | None = None
) -> Float[Array, "J P Dv"]:
    """Returns the features of the patches in the dtype of the parameters.

    Args:
        num_layers: Returns the mean output of the last `num_layers` blocks, before the final norm,
            as AIM's attentive probe reads it; None returns the output of the encoder.
    """
    prefix_lengths = None
    if encoder.stack.layer.attention.pattern is Pattern.PREFIX:
        num_patches = (images.shape[1] // encoder.patch_size) * (
            images.shape[2] // encoder.patch_size
        )
        prefix_lengths = jnp.full(len(images), num_patches)
    if num_layers is not None:
        graphdef, params = nnx.split(encoder)
        encoder = nnx.merge(graphdef, params)
        encoder.stack = _LastLayers(encoder.stack, num_layers)
        if encoder.final_norm is not None:
            encoder.final_norm = _Identity()
    return encoder(images, prefix_lengths)


class _LastLayers(nnx.Module):
    """A stack that returns the mean output of its last layers."""

    def __init__(self, stack: Stack, num_layers: int):
        if not 0 < num_layers <= stack.num_layers or stack.last_layer is not None:
            raise ValueError(
                f"num_layers={num_layers}: expected 1 to {stack.num_layers}, the blocks of the "
                "encoder, which must be of one kind"
            )
        self.num_layers, self.layer = num_layers, stack.layer

    def __call__(self, x: Float[Array, "J T Dv"], **options: Any) -> tuple[Array, None, None]:
        total = jax.tree.leaves(self.layer)[0].shape[0]
        weights = (jnp.arange(total) >= total - self.num_layers) / self.num_layers

        def run(carry: tuple[Array, Array], layer: tuple[Any, Array]) -> tuple[Any, None]:
            x, mean = carry
            block, weight = layer
            x, _, _ = checked_tuple(block, block(x, **options), ("x", "cache", "statistics"))
            return (x, mean + weight * x.astype(jnp.float32)), None

        start = (x, jnp.zeros(x.shape, jnp.float32))
        (_, mean), _ = jax.lax.scan(run, start, (self.layer, weights))
        return mean.astype(x.dtype), None, None


class _Identity(Module):
    def __init__(self):
        pass

    def __call__(self, x: Array) -> Array:
        return x
