"""Next-token prediction with an `MM1` over packed rows: the objective of pre-training.

Its `resolve` fills in

    input.chat_format                   -> chat_format of all documents and tasks that are
                                           conversations
    input.tokenizer                     -> model.decoder.vocab_size, model.image_token
    input.image_group_rows              -> model.image_group_rows
    model.connector.num_image_tokens    -> input.num_image_tokens
    model.vision_encoder.image_size     -> input.image_size
    model.vision_encoder = None         -> no images in the input
    size of model.decoder               -> trainer.optimizer.learning_rate (MM1, section 3.1)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig, fill
from mm1_jax.field_types import class_name
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.module import ContractError, checked, checked_tuple
from mm1_jax.layers.parameter_paths import union
from mm1_jax.models.cross_entropy import corpus_sums, token_losses
from mm1_jax.models.decoder import num_non_embedding_parameters
from mm1_jax.models.flops import ForwardFlops, forward_flops
from mm1_jax.models.mm1 import MM1, reads_images
from mm1_jax.parallel.sharding import AxisRules, batch_shardings, constrain_batch
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.objective import Objective, agree, raise_if_a_part_is_another
from mm1_jax.train.optimizers.learning_rate import LearningRateLaw, mm1_learning_rate

# Fields and class attributes that are read from the parts.
_NEEDED = {
    "model.vision_encoder": ("image_size", "patch_size", "model_dim"),
    "model.connector": ("num_image_tokens",),
    "model.decoder": ("vocab_size", "model_dim", "num_layers", "stack"),
    "input": ("max_images", "num_image_tokens"),
    "input.tokenizer": ("klass.vocabulary",),
}


@dataclass(frozen=True)
class NextToken(Objective):
    """Objective of MM1's pre-training and fine-tuning.

    Attributes:
        image_buffer: Layout of the image buffer: rows that share one, and its slots.
    """

    batch: Batch
    image_buffer: ImageBuffer

    @classmethod
    def of(cls, model: InstantiableConfig, loss: InstantiableConfig, input: Any) -> "NextToken":
        """Creates the objective for the batches of a resolved `Input.Config`."""
        rows, size = (input.batch_size,), input.image_size
        buffer: ImageBuffer = input.klass.buffer_of(input)
        tokens = jax.ShapeDtypeStruct((*rows, input.max_sequence_length), jnp.int32)
        images = (buffer.num_slots(input.batch_size), size, size, 3)
        batch = Batch(
            tokens=tokens,
            targets=tokens,
            loss_mask=jax.ShapeDtypeStruct(tokens.shape, jnp.bool_),
            positions=tokens,
            segment_ids=tokens,
            corpus_ids=tokens,
            images=jax.ShapeDtypeStruct(images, jnp.uint8),
            image_index=jax.ShapeDtypeStruct((*rows, input.max_images), jnp.int32),
        )
        return cls(model, loss, batch, input.klass.num_corpora(input), buffer)

    @staticmethod
    def resolve(cfg: Any) -> None:
        model: Any = cfg.model
        if not isinstance(model, MM1.Config):
            raise ValueError(
                f"model is a config of {class_name(type(model))}, and trainer.loss="
                f"{cfg.trainer.loss.klass.__name__} trains an MM1; change one of them"
            )
        raise_if_a_part_is_another(cfg, _NEEDED)
        for part in (cfg.input, *cfg.evals.values()):
            fill(part, "chat_format", cfg.input.chat_format)
        vocabulary = cfg.input.tokenizer.klass.vocabulary(cfg.input.tokenizer)
        agree(cfg, "model.decoder.vocab_size", vocabulary.vocab_size, "input.tokenizer")
        agree(cfg, "model.image_token", vocabulary.image_token, "input.tokenizer")
        agree(cfg, "model.image_group_rows", cfg.input.image_group_rows, "input.image_group_rows")
        if reads_images(cfg.model):
            if not cfg.input.max_images:
                raise ValueError(
                    "input.max_images=0: the model reads images, and rows have no room for one; "
                    "set it to 1 or more, or model.vision_encoder=None and model.connector=None"
                )
            tokens, size = cfg.model.connector.num_image_tokens, cfg.model.vision_encoder.image_size
            agree(cfg, "input.num_image_tokens", tokens, "model.connector.num_image_tokens")
            agree(cfg, "input.image_size", size, "model.vision_encoder.image_size")
        else:
            for name in ("max_images", "num_image_tokens", "image_size"):
                agree(cfg, f"input.{name}", 0, "model.vision_encoder=None")
            if cfg.input.tiling is not None:
                raise ValueError("input.tiling: the model reads no images to tile; set it to None")
        optimizer = cfg.trainer.optimizer
        if optimizer.learning_rate_law is not None:
            law = LearningRateLaw.read(optimizer.learning_rate_law)
            rate = law.learning_rate(num_non_embedding_parameters(cfg.model.decoder))
            path = "trainer.optimizer.learning_rate"
            agree(cfg, path, rate, f"{path}_law={optimizer.learning_rate_law}")
        elif optimizer.learning_rate is None:
            num_parameters = num_non_embedding_parameters(cfg.model.decoder)
            optimizer.learning_rate = mm1_learning_rate(num_parameters)

    @staticmethod
    def check_parts(cfg: Any, input: Any) -> None:
        tokenizer = input.tokenizer
        for name, made, declared in (
            ("vocab_size", tokenizer.vocab_size, cfg.model.decoder.vocab_size),
            ("image_token", tokenizer.image_token, cfg.model.image_token),
        ):
            if made != declared:
                raise ValueError(
                    f"input.tokenizer: {type(tokenizer).__name__} has {name}={made}, and its "
                    f"`vocabulary` says {declared}, which the model is built for"
                )

    @property
    def num_rows(self) -> int:
        return self.batch.tokens.shape[0]

    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        loss = self.loss.instantiate()

        def next_token_loss(
            trained: Any, frozen: Any, batch: Batch, totals: Any = None
        ) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(graphdef, union(trained, frozen))
            output = model(batch)
            result = loss(
                output.hidden,
                model.output_layer(),
                batch,
                output.router,
                num_corpora=self.num_corpora,
                totals=totals,
            )
            total, metrics = checked_tuple(loss, result, ("total", "metrics"))
            if not isinstance(metrics, dict) or not {"loss", "corpus_loss"} <= metrics.keys():
                raise ContractError(
                    type(loss),
                    f"{type(loss).__name__} returned metrics {metrics!r}, expected a dict with "
                    "means 'loss' and 'corpus_loss'",
                )
            return checked(loss, total, (), jnp.float32), metrics

        return next_token_loss

    def held_out_loss(self, model: Any, batch: Batch) -> Mean:
        """Returns the cross entropy of scored targets, with which experts drop no token."""
        logits_BTV = model.logits(model(batch, dropless=True).hidden)
        cross_entropy_BT, _ = token_losses(logits_BTV, batch.targets)
        return Mean(*corpus_sums(cross_entropy_BT, batch, self.num_corpora))

    def totals(self, batch: Batch) -> Any:
        return self.loss.instantiate().totals(batch)

    def counts(self, batch: Batch) -> Metrics:
        return {
            "tokens": jnp.sum(batch.segment_ids > 0),
            "images": jnp.sum(batch.image_index >= 0),
        }

    def shardings(self, mesh: Mesh, rules: AxisRules) -> Batch:
        return batch_shardings(mesh, rules)

    def constrain(self, batch: Batch) -> Batch:
        return constrain_batch(batch)

    def raise_if_unshareable(self, num_rows: int, num_shards: int) -> None:
        self.image_buffer.shards_per_group(num_rows, num_shards)

    def flops(self) -> ForwardFlops:
        return forward_flops(self.model, self.batch.tokens.shape[1])
