"""Next-token cross entropy, z-loss, and auxiliary losses of MoE layers, as weighted sums.

The denominators are those of the global batch. A document therefore counts by its number of
targets, or as `weighting` says, independent of the device or micro-batch that its row is assigned
to.

Legend: B batch rows, T target positions, D model dim, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mm1_jax.batch import Batch
from mm1_jax.config import config_class
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.models.cross_entropy import chunked_token_losses, corpus_sums
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.next_token import NextToken
from mm1_jax.train.objective import TrainingLoss
from mm1_jax.train.target_weights import Weighting, target_weights


class Totals(NamedTuple):
    """Denominators of a whole batch.

    Attributes:
        scored: Number of scored targets.
        real: Number of real (non-padding) tokens.
        weight: Sum of the weights of the scored targets; None if each has weight 1.
    """

    scored: Float[Array, ""]
    real: Float[Array, ""]
    weight: Float[Array, ""] | None = None


class Loss(TrainingLoss):
    """cross entropy + a mean((log Z)^2) + b load_balance + c mean((log Z_r)^2).

    The first two terms are means over scored targets, the last two over real tokens and MoE layers.
    The first mean is weighted, if `weighting` says so. Z and Z_r are the softmax normalizers over
    the vocabulary and over the experts. The coefficients a, b and c are the config fields `z_loss`,
    `load_balance_loss` and `router_z_loss`.

    The metric `loss` is the mean over scored targets under every weighting, so that runs and
    held-out losses can be compared. A weighting other than "token" adds `weighted_loss`, the mean
    that is minimized.
    """

    objective = NextToken

    @config_class
    class Config(TrainingLoss.Config):
        # Weights of the scored targets of a document; see `target_weights`.
        weighting: Weighting = "token"
        z_loss: NonNegative = 1e-4
        load_balance_loss: NonNegative = 0.01
        router_z_loss: NonNegative = 0.001
        # Number of positions per row for which logits are computed at a time; None is all.
        chunk_length: PositiveInt | None = None

    def totals(self, batch: Batch) -> Totals:
        """Computes the totals of a batch, the denominators shared by its micro-batches."""
        weighting: Weighting = self._config.weighting
        weights_BT = (
            None
            if weighting == "token"
            else target_weights(batch.loss_mask, batch.segment_ids, weighting)
        )
        return Totals(
            jnp.sum(batch.loss_mask, dtype=jnp.float32),
            jnp.sum(batch.segment_ids > 0, dtype=jnp.float32),
            None if weights_BT is None else jnp.sum(weights_BT),
        )

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
        """Computes the loss to differentiate, and metrics of its terms.

        Args:
            output_layer: Module whose `attend(hidden)` returns the logits.
            router: Statistics stacked over the MoE layers (`MM1Output.router`).
            totals: Totals of the whole batch if `batch` is a micro-batch; None if it is the whole
                batch.
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
        minimized, weight = metrics["loss"], scored
        if cfg.weighting != "token":
            weights_BT = target_weights(scored_BT, batch.segment_ids, cfg.weighting)
            weighted = _masked_sum(weights_BT * cross_entropy_BT, scored_BT)
            minimized = metrics["weighted_loss"] = Mean(weighted, jnp.sum(weights_BT))
            weight = (self.totals(batch) if totals is None else totals).weight
            assert weight is not None, "totals of another weighting"
        total = _over(minimized, weight) + cfg.z_loss * _over(metrics["z_loss"], scored)
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
    # A select instead of a product, so that infinite unscored values do not affect the sum.
    return jnp.sum(jnp.where(mask_BT, x_BT, 0.0))
