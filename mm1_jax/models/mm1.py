"""The complete model: vision encoder, connector, decoder (MM1, section 3)."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig, config_class, derived, maybe_set_config
from mm1_jax.field_types import NonNegativeInt, PositiveInt
from mm1_jax.layers.embedding import Embedding
from mm1_jax.layers.kv_cache import Caches
from mm1_jax.layers.lora import LoRA
from mm1_jax.layers.module import Module, cast, checked
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Decoder
from mm1_jax.models.image_exchange import merge_images
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.parallel.sharding import constrain


class MM1Output(NamedTuple):
    """Hidden states, and router statistics (None for a dense decoder)."""

    hidden: Float[Array, "B T D"]
    router: RouterStatistics | None


class MM1(Module):
    """Multimodal model that replaces image tokens by `connector.num_image_tokens` embeddings each.

    Without encoder and connector it is a text-only language model.

    Parameters are float32. Each public method first casts them to the compute dtype, except those
    of norms and routers, which stay float32.
    """

    @config_class
    class Config(Module.Config):
        # Set both to None for a text-only language model.
        vision_encoder: InstantiableConfig | None = VisionEncoder.default_config()
        connector: InstantiableConfig | None = CAbstractor.default_config()
        decoder: InstantiableConfig = Decoder.default_config()
        # Token id of the image placeholder; the experiment sets it from the tokenizer.
        image_token: NonNegativeInt | None = derived(None)
        # Number of consecutive rows that share an image buffer; the experiment sets it from the
        # input. None means that an image may be anywhere in the batch; on a mesh, all images are
        # then sent to all devices.
        image_group_rows: PositiveInt | None = derived(None)
        # Compute dtype of activations and matrix products.
        dtype: Literal["float32", "bfloat16"] = "float32"
        # Trains low-rank updates of linear layers, and freezes everything else.
        lora: LoRA.Config | None = None

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.image_token is None:
            raise ValueError(
                "image_token=None: set it to the tokenizer's id of the image placeholder "
                "(done automatically when an experiment is resolved)"
            )
        self.image_token = cfg.image_token
        self.image_group_rows = cfg.image_group_rows
        self.dtype = cfg.dtype
        # Each attribute is set only once: NNX allows no parameters in one that was None before.
        vision_encoder = connector = None
        if reads_images(cfg):
            encoder_cfg: Any = cfg.vision_encoder
            connector_cfg: Any = cfg.connector
            maybe_set_config(
                connector_cfg,
                input_dim=encoder_cfg.model_dim,
                output_dim=cfg.decoder.model_dim,
                grid_size=encoder_cfg.image_size // encoder_cfg.patch_size,
            )
            self.patch_size = encoder_cfg.patch_size
            self.feature_dim = encoder_cfg.model_dim
            self.num_image_tokens = connector_cfg.num_image_tokens
            vision_encoder = encoder_cfg.instantiate(rngs=rngs)
            connector = connector_cfg.instantiate(rngs=rngs)
        self.vision_encoder, self.connector = vision_encoder, connector
        self.decoder = cfg.decoder.instantiate(rngs=rngs)
        if cfg.lora is not None:
            cfg.lora.instantiate().attach(self, rngs=rngs)

    def __call__(self, batch: Batch, *, dropless: bool = False) -> MM1Output:
        """Returns the hidden states of packed rows.

        Args:
            dropless: Experts accept every token routed to them, regardless of their capacity.
        """
        model = self.cast()
        output = model.decoder(
            model._embed(batch),
            positions=batch.positions,
            segment_ids=batch.segment_ids,
            dropless=dropless,
        )
        return MM1Output(output.hidden, output.router)

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """Returns the decoder input: token embeddings with image embeddings merged in."""
        return self.cast()._embed(batch)

    def output_layer(self) -> Embedding:
        """Returns the output layer, for losses that compute logits in chunks."""
        return self.cast().decoder.output_layer

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.cast().decoder.logits(hidden)

    def init_caches(self, batch_size: int, num_slots: int, dtype: str | None = None) -> Caches:
        """Allocates caches of `num_slots` positions per row; dtype defaults to the model's."""
        return self.decoder.init_caches(batch_size, num_slots, jnp.dtype(dtype or self.dtype))

    def prefill(self, batch: Batch, caches: Caches) -> tuple[Float[Array, "B T D"], Caches]:
        """Returns the hidden states of whole prompts, one per row, and the filled caches."""
        output = self.cast().decoder(
            self.embed(batch),
            positions=batch.positions,
            segment_ids=batch.segment_ids,
            caches=caches,
            dropless=True,
        )
        return output.hidden, output.caches

    def extend(
        self, batch: Batch, start: Int[Array, "B"], caches: Caches
    ) -> tuple[Float[Array, "B T D"], Caches]:
        """Continues `prefill` for prompts whose first `start` positions are in the caches."""
        output = self.cast().decoder(
            self.embed(batch),
            positions=start[:, None] + batch.positions,
            segment_ids=batch.segment_ids,
            caches=caches,
            cache_start=start,
            dropless=True,
        )
        return output.hidden, output.caches

    def decode_step(
        self, tokens: Int[Array, "B"], positions: Int[Array, "B"], caches: Caches
    ) -> tuple[Float[Array, "B 1 D"], Caches]:
        """Returns the hidden states of the next text token per row, and the extended caches."""
        model = self.cast()
        output = model.decoder(
            model.decoder.embed(tokens[:, None]),
            positions=positions[:, None],
            segment_ids=jnp.ones_like(tokens)[:, None],
            caches=caches,
            cache_start=positions,
            dropless=True,
        )
        return output.hidden, output.caches

    def for_decoding(self) -> "MM1":
        """Returns the model with cast parameters and unstacked layers.

        Call it once, outside of a loop over `decode_step`.
        """
        model = self.cast()
        model.decoder.stack = model.decoder.stack.unstacked()
        return model

    def cast(self) -> "MM1":
        """Returns the model with parameters cast to the compute dtype; idempotent.

        Calling it once, outside of a loop over `logits`, saves time.
        """
        graphdef, params = nnx.split(self)
        return nnx.merge(graphdef, cast(params, self.dtype))

    def _checked_features(self, features: Any, batch: Batch) -> Float[Array, "J P Dv"]:
        num_images, height, width, _ = batch.images.shape
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        shape = (num_images, num_patches, self.feature_dim)
        return checked(self.vision_encoder, features, shape, self.dtype)

    def _embed(self, batch: Batch) -> Float[Array, "B T D"]:
        embeddings = self.decoder.embed(batch.tokens)
        # The later turns of a conversation may have no picture, and an image buffer without slots.
        has_images = len(batch.images) > 0
        if has_images and self.vision_encoder is not None and self.connector is not None:
            image_features = self._checked_features(self.vision_encoder(batch.images), batch)
            shape = (len(batch.images), self.num_image_tokens, embeddings.shape[-1])
            image_embeddings = checked(
                self.connector, self.connector(image_features), shape, embeddings.dtype
            )
            embeddings = merge_images(
                embeddings,
                constrain(image_embeddings, "images", None, None),
                batch.tokens == self.image_token,
                batch.image_index,
                group_rows=self.image_group_rows,
            )
        return constrain(embeddings, "batch", "sequence", None)


def reads_images(cfg: Any) -> bool:
    """Returns whether an `MM1.Config` describes a multimodal model.

    Raises:
        ValueError: Exactly one of `vision_encoder` and `connector` is None.
    """
    parts = {name: getattr(cfg, name) for name in ("vision_encoder", "connector")}
    missing = [name for name, part in parts.items() if part is None]
    if len(missing) == 1:
        raise ValueError(
            f"model.{missing[0]} is None: set both {' and '.join(parts)}, or neither for a "
            "text-only model"
        )
    return not missing
