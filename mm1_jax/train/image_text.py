"""Base of objectives whose batches are pictures with a text each (`ImageTextBatch`)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mm1_jax.batch import ImageTextBatch
from mm1_jax.config import InstantiableConfig
from mm1_jax.field_types import class_name
from mm1_jax.parallel.sharding import AxisRules, batch_shardings, constrain_batch
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.objective import Objective


@dataclass(frozen=True)
class ImageTextObjective(Objective):
    """Objective on an `ImageTextBatch`; a subclass knows the model and its loss."""

    batch: ImageTextBatch

    @classmethod
    def of(cls, model: InstantiableConfig, loss: InstantiableConfig, input: Any) -> Any:
        """Creates the objective for the batches of a resolved `PairInput.Config`."""
        rows, size = (input.batch_size,), input.image_size
        number = jax.ShapeDtypeStruct(rows, jnp.int32)
        batch = ImageTextBatch(
            images=jax.ShapeDtypeStruct((*rows, size, size, 3), jnp.uint8),
            tokens=jax.ShapeDtypeStruct((*rows, input.max_sequence_length), jnp.int32),
            lengths=number,
            row_seeds=jax.ShapeDtypeStruct(rows, jnp.uint32),
            corpus_ids=number,
        )
        return cls(model, loss, batch, input.klass.num_corpora(input))

    @property
    def num_rows(self) -> int:
        return self.batch.images.shape[0]

    def counts(self, batch: ImageTextBatch) -> Metrics:
        is_used = batch.corpus_ids >= 0
        return {
            "tokens": jnp.sum(jnp.where(is_used, batch.lengths, 0)),
            "images": jnp.sum(is_used),
        }

    def shardings(self, mesh: Mesh, rules: AxisRules) -> ImageTextBatch:
        return batch_shardings(mesh, rules, ImageTextBatch)

    def constrain(self, batch: ImageTextBatch) -> ImageTextBatch:
        return constrain_batch(batch)

    def raise_if_unshareable(self, num_rows: int, num_shards: int) -> None:
        """Rows share nothing, so any split will do."""


def raise_if_for_decoders(cfg: Any) -> None:
    """Raises ValueError if a root config packs rows or names a law of the learning rate."""
    law = cfg.trainer.optimizer.learning_rate_law
    if law is not None:
        raise ValueError(
            f"trainer.optimizer.learning_rate_law={law}: a law is by the size of a decoder, which "
            f"trainer.loss={cfg.trainer.loss.klass.__name__} does not train; set it to None"
        )
    if "packing" in cfg.input:
        raise ValueError(
            f"input is a config of {class_name(type(cfg.input))}, which packs rows, and "
            f"trainer.loss={cfg.trainer.loss.klass.__name__} reads a picture with its text per "
            "row; use a PairInput"
        )
