"""Next-token cross entropy, its z-loss, and the auxiliary losses of MoE layers, as weighted sums.

    B batch rows   T target positions   D model dim   V vocabulary

The denominators are those of the global batch: a document counts by its targets, wherever its row
lands, on whichever device and in whichever micro-batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.batch import Batch
from mm1_jax.config import Configurable, config_class
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.models.cross_entropy import chunked_token_losses, corpus_sums
from mm1_jax.train.metrics import Mean, Metrics


class Totals(NamedTuple):
    """The denominators of a whole batch: its scored targets, and its real tokens."""

    scored: Float[Array, ""]
    real: Float[Array, ""]


def totals(batch: Batch) -> Totals:
    """The totals of a batch, for the losses of its micro-batches to add up to its own."""
    return Totals(
        jnp.sum(batch.loss_mask, dtype=jnp.float32),
        jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
    )


class Loss(Configurable):
    """cross entropy + a mean((log Z)^2) + b load_balance + c mean((log Z_r)^2).

    The first two terms are means over scored targets, the last two over real tokens and MoE layers.
    Z and Z_r are the normalisers of the softmax over the vocabulary and over the experts; a, b and
    c are the fields of the config.
    """

    @config_class
    class Config(Configurable.Config):
        z_loss: NonNegative = 1e-4
        load_balance_loss: NonNegative = 0.01
        router_z_loss: NonNegative = 0.001
        # Positions of a row whose logits are held at a time; None: all of them.
        chunk_length: PositiveInt | None = None

    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        output_layer: nnx.Module,
        batch: Batch,
        router: Any | None = None,
        *,
        num_corpora: int,
        totals: Totals | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss to differentiate, and its terms.

        Args:
            output_layer: Its `attend(hidden)` are the logits.
            router: Statistics of the MoE layers, each stacked over them (`MM1Output.router`).
            totals: Totals of the batch that `batch` is a micro-batch of; None: it is the whole.
        """
        cfg = self._config
        cross_entropy_BT, log_normalizer_BT = chunked_token_losses(
            output_layer, hidden, batch.targets, cfg.chunk_length
        )
        scored_BT = batch.loss_mask
        num_scored = jnp.sum(scored_BT, dtype=jnp.float32)
        metrics = {
            "loss": Mean(_masked_sum(cross_entropy_BT, scored_BT), num_scored),
            "corpus_loss": Mean(*corpus_sums(cross_entropy_BT, batch, num_corpora)),
            "z_loss": Mean(_masked_sum(jnp.square(log_normalizer_BT), scored_BT), num_scored),
        }
        scored = num_scored if totals is None else totals.scored
        total = _over(metrics["loss"], scored) + cfg.z_loss * _over(metrics["z_loss"], scored)
        if router is not None:
            weight = jnp.sum(router.weight)
            metrics["load_balance_loss"] = Mean(jnp.sum(router.load_balance), weight)
            metrics["router_z_loss"] = Mean(jnp.sum(router.z), weight)
            metrics["expert_load"] = router.expert_load
            metrics["dropped_share"] = Mean(jnp.sum(router.dropped), jnp.sum(router.expert_load))
            if totals is not None:
                weight = totals.real * len(router.weight)
            total += cfg.load_balance_loss * _over(metrics["load_balance_loss"], weight)
            total += cfg.router_z_loss * _over(metrics["router_z_loss"], weight)
        return total, metrics


def _over(mean: Mean, weight: jax.Array) -> jax.Array:
    return Mean(mean.total, weight).ratio()


def _masked_sum(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    # A select, not a product: what is not scored may be infinite without spoiling the sum.
    return jnp.sum(jnp.where(mask_BT, x_BT, 0.0))
