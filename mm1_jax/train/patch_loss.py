"""Losses of next-patch prediction, AIM's and AIMv2's, as sums over the batch.

The denominators are those of the global batch, so that neither micro-batches nor devices change
the loss.

Legend: B batch rows, P patches/image, C pixel values/patch, T text positions, K corpora.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mm1_jax.batch import ImageTextBatch
from mm1_jax.config import config_class
from mm1_jax.field_types import NonNegative, PositiveInt
from mm1_jax.models.aim import PatchPredictions
from mm1_jax.models.cross_entropy import chunked_token_losses
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.objective import TrainingLoss
from mm1_jax.train.patch_prediction import (
    PatchAndTextPrediction,
    PatchPrediction,
    PatchTotals,
    scored_tokens,
)


class AIMLoss(TrainingLoss):
    """Mean squared error of the standardized pixels of all patches behind the prefix.

    The prediction at a patch is compared with the next patch.
    """

    objective = PatchPrediction

    def __call__(
        self,
        model: Any,
        batch: ImageTextBatch,
        *,
        num_corpora: int,
        totals: PatchTotals | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of an `AIM` to differentiate, and metrics.

        Args:
            totals: Totals of the whole batch if `batch` is a micro-batch; None if it is the whole
                batch.
        """
        patches: PatchPredictions = model(batch)
        errors_B, number_B = patch_errors(patches, batch.corpus_ids >= 0)
        loss = Mean(jnp.sum(errors_B), jnp.sum(number_B))
        metrics = {
            "loss": loss,
            "corpus_loss": Mean(
                *(sums_per_corpus(x, batch.corpus_ids, num_corpora) for x in (errors_B, number_B))
            ),
            "prefix_share": prefix_share(patches, batch.corpus_ids >= 0),
        }
        return Mean(loss.total, loss.weight if totals is None else totals.patches).ratio(), metrics


class AIMv2Loss(TrainingLoss):
    """pixel_weight x AIM's loss + text_weight x mean cross entropy of the tokens of the texts.

    Each mean is over its own targets. The metrics `loss` and `corpus_loss` are means over rows, of
    the share that a row has in the loss of its batch.
    """

    objective = PatchAndTextPrediction

    @config_class
    class Config(TrainingLoss.Config):
        pixel_weight: NonNegative = 0.4
        text_weight: NonNegative = 1.0
        # Number of text positions for which logits are computed at a time; None is all.
        chunk_length: PositiveInt | None = None

    def __call__(
        self,
        model: Any,
        batch: ImageTextBatch,
        *,
        num_corpora: int,
        totals: PatchTotals | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Computes the loss of an `AIMv2` to differentiate, and metrics of its terms.

        Args:
            totals: Totals of the whole batch if `batch` is a micro-batch; None if it is the whole
                batch.
        """
        cfg = self._config
        patches, text_hidden = model(batch)
        is_used_B = batch.corpus_ids >= 0
        errors_B, num_patches_B = patch_errors(patches, is_used_B)
        scored_BT = scored_tokens(batch)
        cross_entropy_BT, _ = chunked_token_losses(
            model.output_layer(), text_hidden, jnp.roll(batch.tokens, -1, axis=1), cfg.chunk_length
        )
        cross_entropy_B = jnp.sum(jnp.where(scored_BT, cross_entropy_BT, 0.0), axis=1)
        pixel_loss = Mean(jnp.sum(errors_B), jnp.sum(num_patches_B))
        text_loss = Mean(jnp.sum(cross_entropy_B), jnp.sum(scored_BT, dtype=jnp.float32))
        if totals is None:
            rows = jnp.sum(is_used_B, dtype=jnp.float32)
            totals = PatchTotals(pixel_loss.weight, text_loss.weight, rows)
        share_B = cfg.pixel_weight * Mean(errors_B, totals.patches[None]).ratio()
        share_B += cfg.text_weight * Mean(cross_entropy_B, totals.tokens[None]).ratio()
        rows_K, shares_K = (
            sums_per_corpus(x, batch.corpus_ids, num_corpora)
            for x in (is_used_B.astype(jnp.float32), share_B)
        )
        total = jnp.sum(share_B)
        return total, {
            "loss": Mean(total * totals.rows, jnp.sum(rows_K)),
            "corpus_loss": Mean(shares_K * totals.rows, rows_K),
            "pixel_loss": pixel_loss,
            "text_loss": text_loss,
            "prefix_share": prefix_share(patches, is_used_B),
        }


def patch_errors(
    patches: PatchPredictions, is_used: Bool[Array, "B"]
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Returns per row the sum of squared errors of predicted patches, and their number.

    The error of a patch is the mean over its pixel values.
    """
    predicted_BPC, targets_BPC = patches.predictions[:, :-1], patches.targets[:, 1:]
    errors_BP = jnp.mean(jnp.square(predicted_BPC - targets_BPC), axis=-1)
    next_P = jnp.arange(1, patches.targets.shape[1])
    scored_BP = (next_P[None] >= patches.prefix_lengths[:, None]) & is_used[:, None]
    # A select instead of a product, so that infinite unscored values do not affect the sum.
    return (
        jnp.sum(jnp.where(scored_BP, errors_BP, 0.0), axis=1),
        jnp.sum(scored_BP, axis=1, dtype=jnp.float32),
    )


def prefix_share(patches: PatchPredictions, is_used: Bool[Array, "B"]) -> Mean:
    """Returns the mean share of an image's patches that are in its prefix."""
    shares = patches.prefix_lengths / patches.targets.shape[1]
    return Mean(jnp.sum(jnp.where(is_used, shares, 0)), jnp.sum(is_used, dtype=jnp.float32))


def sums_per_corpus(
    x: Float[Array, "B"], corpus_ids: Int[Array, "B"], num_corpora: int
) -> Float[Array, "K"]:
    is_own_KB = corpus_ids[None] == jnp.arange(num_corpora)[:, None]
    return jnp.sum(jnp.where(is_own_KB, x[None], 0.0), axis=1)
