"""Pooling of image features to one vector per image, for models that compare images with texts.

Legend: J images, P patches/image, Dv vision dim.
"""

import abc

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.config import InstantiableConfig, Required, config_class, derived
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.layers.attention import Attention
from mm1_jax.layers.feed_forward import FeedForward
from mm1_jax.layers.module import Module, param
from mm1_jax.layers.norm import LayerNorm


class ImagePooling(Module, abc.ABC):
    """Base class of poolings; a subclass reads the class token, the patches, or both."""

    @config_class
    class Config(Module.Config):
        input_dim: Required[PositiveInt] = derived()

    @abc.abstractmethod
    def __call__(
        self, class_feature: Float[Array, "J Dv"] | None, patches: Float[Array, "J P Dv"]
    ) -> Float[Array, "J Dv"]:
        """Returns the feature of each image.

        Args:
            class_feature: Features of the class token; None if the encoder has none.
        """


class ClassPooling(ImagePooling):
    """The normalized class token, as in CLIP."""

    @config_class
    class Config(ImagePooling.Config):
        norm: InstantiableConfig = LayerNorm.default_config().set(eps=1e-5)

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.norm = cfg.norm.set(input_dim=cfg.input_dim).instantiate(rngs=rngs)

    def __call__(
        self, class_feature: Float[Array, "J Dv"] | None, patches: Float[Array, "J P Dv"]
    ) -> Float[Array, "J Dv"]:
        if class_feature is None:
            raise ValueError(
                "image_pooling reads the class token, and model.vision_encoder.class_token is "
                "None; set it, or image_pooling to MeanPooling or MAPPooling"
            )
        return self.norm(class_feature)


class MeanPooling(ImagePooling):
    """The normalized mean of the patches."""

    @config_class
    class Config(ImagePooling.Config):
        # Norm after the mean; None for an encoder whose final norm has normalized the patches.
        norm: InstantiableConfig | None = LayerNorm.default_config().set(eps=1e-5)

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        norm = None if cfg.norm is None else cfg.norm.set(input_dim=cfg.input_dim)
        self.norm = None if norm is None else norm.instantiate(rngs=rngs)

    def __call__(
        self, class_feature: Float[Array, "J Dv"] | None, patches: Float[Array, "J P Dv"]
    ) -> Float[Array, "J Dv"]:
        mean = jnp.mean(patches.astype(jnp.float32), axis=1).astype(patches.dtype)
        return mean if self.norm is None else self.norm(mean)


class MAPPooling(ImagePooling):
    """One learned query that reads the patches, as in SigLIP (arXiv 2303.15343).

    Computes y = attention(query, patches), then y + feed_forward(norm(y)).
    """

    @config_class
    class Config(ImagePooling.Config):
        num_heads: Required[PositiveInt] = derived()
        hidden_dim: Required[PositiveInt] = derived()
        query_init_std: NonNegative = 0.02
        attention: InstantiableConfig = Attention.default_config().set(bias=True)
        norm: InstantiableConfig = LayerNorm.default_config()
        feed_forward: InstantiableConfig = FeedForward.default_config()

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        dim = cfg.input_dim
        init = jax.nn.initializers.truncated_normal(cfg.query_init_std)
        self.query = param(rngs, (dim,), ("embed",), init)
        self.attention = cfg.attention.set(input_dim=dim, num_heads=cfg.num_heads).instantiate(
            rngs=rngs
        )
        self.norm = cfg.norm.set(input_dim=dim).instantiate(rngs=rngs)
        self.feed_forward = cfg.feed_forward.set(
            input_dim=dim, hidden_dim=cfg.hidden_dim
        ).instantiate(rngs=rngs)

    def __call__(
        self, class_feature: Float[Array, "J Dv"] | None, patches: Float[Array, "J P Dv"]
    ) -> Float[Array, "J Dv"]:
        query = self.query[...].astype(patches.dtype)
        query = jnp.broadcast_to(query[None, None], (len(patches), 1, len(query)))
        y, _ = self.attention(query, source=patches)
        return (y + self.feed_forward(self.norm(y)))[:, 0]
