"""The whole model: vision encoder, connector, decoder (MM1, section 3)."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig, config_class, maybe_set_config
from mm1_jax.layers.module import Module, cast
from mm1_jax.layers.moe import RouterStatistics
from mm1_jax.models.connectors.c_abstractor import CAbstractor
from mm1_jax.models.decoder import Cache, Decoder
from mm1_jax.models.image_exchange import merge_images
from mm1_jax.models.vision_encoder import VisionEncoder
from mm1_jax.sharding import constrain


class MM1Output(NamedTuple):
    """`router` is None where the decoder has no experts."""

    hidden: Float[Array, "B T D"]
    router: RouterStatistics | None


class MM1(Module):
    """Images become `connector.num_image_tokens` embeddings each, where the image token stands.

    Parameters are float32; each public method first casts them to the dtype that it computes in,
    all but those of norms and routers, which are used in float32.
    """

    @config_class
    class Config(Module.Config):
        vision_encoder: InstantiableConfig = VisionEncoder.default_config()
        connector: InstantiableConfig = CAbstractor.default_config()
        decoder: InstantiableConfig = Decoder.default_config()
        # Id of the placeholder token; None until the experiment sets the tokenizer's.
        image_token: int | None = None
        # Consecutive rows that share a buffer of images; the experiment sets the input's. None:
        # an image may be anywhere in the batch, which on a mesh is sent to all devices.
        image_group_rows: int | None = None
        # What activations and matrix products are computed in: "float32" or "bfloat16".
        dtype: str = "float32"

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        if cfg.image_token is None:
            raise ValueError(
                "image_token=None: set it to the tokenizer's id of the image placeholder "
                "(an experiment does it when it is resolved)"
            )
        if cfg.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={cfg.dtype!r}: must be 'float32' or 'bfloat16'")
        encoder = cfg.vision_encoder
        maybe_set_config(
            cfg.connector,
            input_dim=encoder.model_dim,
            output_dim=cfg.decoder.model_dim,
            grid_size=encoder.image_size // encoder.patch_size,
        )
        self.image_token = cfg.image_token
        self.image_group_rows = cfg.image_group_rows
        self.dtype = cfg.dtype
        self.vision_encoder = encoder.instantiate(rngs=rngs)
        self.connector = cfg.connector.instantiate(rngs=rngs)
        self.decoder = cfg.decoder.instantiate(rngs=rngs)

    def __call__(self, batch: Batch, *, dropless: bool = False) -> MM1Output:
        """The decoder's states over packed rows.

        Args:
            dropless: Experts take every token that is routed to them, whatever their capacity.
        """
        model = self.cast()
        image_features = model.vision_encoder(batch.images)
        image_embeddings = model.connector(image_features)
        embeddings = model._merge(batch, image_embeddings)
        output = model.decoder(
            embeddings,
            positions=batch.positions,
            segment_ids=batch.segment_ids,
            dropless=dropless,
        )
        return MM1Output(output.hidden, output.router)

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """What the decoder reads: embeddings of tokens, and of images at their positions."""
        model = self.cast()
        return model._merge(batch, model.connector(model.vision_encoder(batch.images)))

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        return self.cast().decoder.logits(hidden)

    def init_cache(self, batch_size: int, length: int) -> Cache:
        """An empty cache for rows of at most `length` positions, prompt and padding included."""
        return self.decoder.init_cache(batch_size, length, jnp.dtype(self.dtype))

    def prefill(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "B T D"], Cache]:
        """The states over whole prompts, and the cache with them in it."""
        output = self.cast().decoder(
            self.embed(batch),
            positions=batch.positions,
            segment_ids=batch.segment_ids,
            cache=cache,
            dropless=True,
        )
        return output.hidden, output.cache

    def decode_step(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: Cache
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """The states of the next text tokens of rows that hold one document each (segment 1)."""
        model = self.cast()
        output = model.decoder(
            model.decoder.embed(tokens),
            positions=positions,
            segment_ids=jnp.ones_like(tokens),
            cache=cache,
            dropless=True,
        )
        return output.hidden, output.cache

    def cast(self) -> "MM1":
        """This model as it computes: its parameters cast; casting twice changes nothing.

        A loop over `logits` or `decode_step` gains by calling it once, outside.
        """
        graphdef, params = nnx.split(self)
        return nnx.merge(graphdef, cast(params, self.dtype))

    def _merge(
        self, batch: Batch, image_embeddings: Float[Array, "J M D"]
    ) -> Float[Array, "B T D"]:
        embeddings = merge_images(
            self.decoder.embed(batch.tokens),
            constrain(image_embeddings, "images", None, None),
            batch.tokens == self.image_token,
            batch.image_index,
            group_rows=self.image_group_rows,
        )
        return constrain(embeddings, "batch", "sequence", None)
