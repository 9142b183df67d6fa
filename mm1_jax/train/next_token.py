"""Next-token prediction with an `MM1` over packed rows: the objective of pre-training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mm1_jax.batch import Batch
from mm1_jax.config import InstantiableConfig
from mm1_jax.image_buffer import ImageBuffer
from mm1_jax.layers.module import ContractError, checked, checked_tuple
from mm1_jax.layers.parameter_paths import union
from mm1_jax.models.flops import ForwardFlops, forward_flops
from mm1_jax.parallel.sharding import AxisRules, batch_shardings, constrain_batch
from mm1_jax.train.loss import Totals
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.objective import Objective


@dataclass(frozen=True)
class NextToken(Objective):
    """Objective of MM1's pre-training and fine-tuning.

    Attributes:
        image_buffer: Layout of the image buffer: rows that share one, and its slots.
        num_corpora: Number of corpora, whose losses are reported separately.
    """

    batch: Batch
    image_buffer: ImageBuffer
    num_corpora: int

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
        return cls(model, loss, batch, buffer, input.klass.num_corpora(input))

    @property
    def num_rows(self) -> int:
        return self.batch.tokens.shape[0]

    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        loss = self.loss.instantiate()

        def next_token_loss(
            trained: Any, frozen: Any, batch: Batch, totals: Totals | None = None
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

    def totals(self, batch: Batch) -> Totals:
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
