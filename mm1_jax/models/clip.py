"""CLIP and SigLIP: an image tower and a text tower whose features are compared (MM1, section 3.1).

The feature of a picture and that of its caption are unit vectors; their dot product, times a
learned scale, is the logit that they belong together. `train/contrastive_loss.py` has the losses.

Legend: B rows, J images, h w pixels, T positions, Dc dim of the features that both towers share.
"""

import enum
import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import constant
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
from mm1_jax.field_types import Decay, Positive, PositiveInt
from mm1_jax.layers.linear import Linear
from mm1_jax.layers.module import Module, cast, checked, param
from mm1_jax.models.image_pooling import ClassPooling
from mm1_jax.models.text_encoder import TextEncoder
from mm1_jax.models.vision_encoder import VisionEncoder, kept_patches
from mm1_jax.parallel.sharding import constrain

# Smallest squared length that features are divided by, so that a zero vector has a gradient.
_MIN_SQUARE = 1e-24


class ScaleCap(enum.Enum):
    """Rule that keeps the logit scale at most `max_scale`.

    AFTER_STEP clamps the parameter to 1..max_scale after each step of the optimizer, as open_clip
    does. FORWARD clips the scale where it is used, as AXLearn does; beyond the cap it then has no
    gradient, and only weight decay could bring it back.
    """

    AFTER_STEP = "after_step"
    FORWARD = "forward"


class CLIPOutput(NamedTuple):
    """Normalized features of the images and captions of a batch, in float32.

    Attributes:
        scale: Factor from dot product to logit.
        bias: Summand of all logits; None without one.
    """

    images: Float[Array, "B Dc"]
    texts: Float[Array, "B Dc"]
    scale: Float[Array, ""]
    bias: Float[Array, ""] | None


class CLIP(Module):
    """Vision encoder with pooling and projection, text encoder, logit scale and bias.

    Parameters are float32. Each public method first casts them to the compute dtype, except those
    of norms, scale and bias, which stay float32.
    """

    @config_class
    class Config(Module.Config):
        vision_encoder: InstantiableConfig = VisionEncoder.default_config()
        image_pooling: InstantiableConfig = ClassPooling.default_config()
        # None for MAP pooling in SigLIP; features_dim is then the dim of the vision encoder.
        image_projection: InstantiableConfig | None = Linear.default_config()
        text_encoder: InstantiableConfig = TextEncoder.default_config()
        features_dim: Required[PositiveInt] = REQUIRED
        # Logit scale at the start; its logarithm is the parameter.
        initial_scale: Positive = 1 / 0.07
        max_scale: Positive | None = 100.0  # None leaves the scale free
        scale_cap: ScaleCap = ScaleCap.AFTER_STEP
        # Bias at the start. With the sigmoid loss, the experiment defaults to ln(p / (1 - p)) for
        # the share p of pairs that belong together; None is a model without bias.
        initial_bias: float | None = derived(None)
        # Share of patches that training leaves out; a short last stage should train without.
        patch_dropout: Decay = 0.0
        # Compute dtype of activations and matrix products.
        dtype: Literal["float32", "bfloat16"] = "float32"

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        encoder_cfg: Any = cfg.vision_encoder
        dim = encoder_cfg.model_dim
        if cfg.image_projection is None and dim != cfg.features_dim:
            raise ValueError(
                f"model.features_dim={cfg.features_dim}: without image_projection it must be "
                f"vision_encoder.model_dim={dim}"
            )
        if cfg.max_scale is not None and cfg.max_scale < max(cfg.initial_scale, 1):
            raise ValueError(
                f"model.max_scale={cfg.max_scale}: must be at least 1 and at least initial_scale="
                f"{cfg.initial_scale}"
            )
        self.dtype, self.features_dim = cfg.dtype, cfg.features_dim
        self.patch_size, self.feature_dim = encoder_cfg.patch_size, dim
        self.patch_dropout = cfg.patch_dropout
        self.vision_encoder = encoder_cfg.instantiate(rngs=rngs)
        self.image_pooling = maybe_set_config(
            cfg.image_pooling,
            input_dim=dim,
            num_heads=encoder_cfg.num_heads,
            hidden_dim=encoder_cfg.hidden_dim,
        ).instantiate(rngs=rngs)
        # Set only once: NNX allows no parameters in an attribute that was None before.
        projection = cfg.image_projection
        if projection is not None:
            projection = projection.set(input_dim=dim, output_dim=cfg.features_dim)
            projection = projection.instantiate(rngs=rngs)
        self.image_projection = projection
        self.text_encoder = maybe_set_config(
            cfg.text_encoder, output_dim=cfg.features_dim
        ).instantiate(rngs=rngs)
        max_log = None if cfg.max_scale is None else math.log(cfg.max_scale)
        caps_after_step = cfg.scale_cap is ScaleCap.AFTER_STEP
        self.max_log_scale = None if caps_after_step else max_log
        self.logit_scale = param(
            rngs,
            (),
            (),
            constant(math.log(cfg.initial_scale)),
            keep_float32=True,
            limits=(0.0, max_log) if caps_after_step and max_log is not None else None,
        )
        self.logit_bias = (
            None
            if cfg.initial_bias is None
            else param(rngs, (), (), constant(cfg.initial_bias), keep_float32=True)
        )

    def __call__(self, batch: ImageTextBatch, *, dropless: bool = False) -> CLIPOutput:
        """Returns the features of a batch, with patch dropout as in training unless `dropless`."""
        return CLIPOutput(
            self.encode_image(batch.images, None if dropless else batch.row_seeds),
            self.encode_text(batch.tokens, batch.lengths),
            self.scale(),
            None if self.logit_bias is None else self.logit_bias[...],
        )

    def encode_image(
        self,
        images: UInt8[Array, "J h w 3"] | Float[Array, "J h w 3"],
        row_seeds: UInt32[Array, "J"] | None = None,
    ) -> Float[Array, "J Dc"]:
        """Returns normalized features of images, in float32.

        Args:
            row_seeds: Seeds of patch dropout, for training; None keeps all patches.
        """
        model = self.cast()
        num_images, height, width, _ = images.shape
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        kept = None
        if row_seeds is not None and self.patch_dropout:
            kept = kept_patches(row_seeds, num_patches, self.patch_dropout)
            num_patches = kept.shape[1]
        class_feature, patches = model.vision_encoder.features(images, kept=kept)
        shape = (num_images, num_patches, self.feature_dim)
        patches = checked(self.vision_encoder, patches, shape, self.dtype)
        pooled = model.image_pooling(class_feature, patches)
        x = checked(self.image_pooling, pooled, (num_images, self.feature_dim), self.dtype)
        if model.image_projection is not None:
            x = model.image_projection(x)
        shape = (num_images, self.features_dim)
        return _normalized(checked(self.image_projection, x, shape, self.dtype))

    def encode_text(
        self, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
    ) -> Float[Array, "B Dc"]:
        """Returns normalized features of captions, in float32; see `TextEncoder`."""
        x = self.cast().text_encoder(tokens, lengths)
        shape = (len(tokens), self.features_dim)
        return _normalized(checked(self.text_encoder, x, shape, self.dtype))

    def scale(self) -> Float[Array, ""]:
        """Returns the factor from dot product to logit."""
        log_scale = self.logit_scale[...]
        if self.max_log_scale is not None:
            log_scale = jnp.minimum(log_scale, self.max_log_scale)
        return jnp.exp(log_scale)

    def cast(self) -> "CLIP":
        """Returns the model with parameters cast to the compute dtype; idempotent."""
        graphdef, params = nnx.split(self)
        return nnx.merge(graphdef, cast(params, self.dtype))


def _normalized(x: Float[Array, "B Dc"]) -> Float[Array, "B Dc"]:
    x = constrain(x.astype(jnp.float32), "batch", None)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, _MIN_SQUARE))
