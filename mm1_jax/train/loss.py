"""Next-token cross entropy, its z-loss, and the auxiliary losses of MoE layers, as weighted sums.

    B batch rows   T target positions   V vocabulary

The denominators are those of the global batch: a document counts by its targets, wherever its row
lands.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mm1_jax.batch import Batch
from mm1_jax.config import Configurable, config_class
from mm1_jax.models.cross_entropy import corpus_sums, token_losses
from mm1_jax.train.metrics import Mean, Metrics


class Loss(Configurable):
    """cross entropy + a mean((log Z)^2) + b load_balance + c mean((log Z_r)^2).

    The first two terms are means over scored targets, the last two over real tokens and MoE layers.
    Z and Z_r are the normalisers of the softmax over the vocabulary and over the experts; a, b and
    c are the fields of the config.
    """

    @config_class
    class Config(Configurable.Config):
        z_loss: float = 1e-4
        load_balance_loss: float = 0.01
        router_z_loss: float = 0.001

    def __call__(
        self,
        logits: Float[Array, "B T V"],
        batch: Batch,
        router: Any | None = None,
        *,
        num_corpora: int,
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss to differentiate, and its terms.

        Args:
            router: Statistics of the MoE layers, each stacked over them (`MM1Output.router`).
        """
        cfg = self._config
        cross_entropy_BT, log_normalizer_BT = token_losses(logits, batch.targets)
        scored_BT = batch.loss_mask
        num_scored = jnp.sum(scored_BT, dtype=jnp.float32)
        metrics = {
            "loss": Mean(_masked_sum(cross_entropy_BT, scored_BT), num_scored),
            "corpus_loss": Mean(*corpus_sums(cross_entropy_BT, batch, num_corpora)),
            "z_loss": Mean(_masked_sum(jnp.square(log_normalizer_BT), scored_BT), num_scored),
        }
        total = metrics["loss"].ratio() + cfg.z_loss * metrics["z_loss"].ratio()
        if router is not None:
            weight = jnp.sum(router.weight)
            metrics["load_balance_loss"] = Mean(jnp.sum(router.load_balance), weight)
            metrics["router_z_loss"] = Mean(jnp.sum(router.z), weight)
            metrics["expert_load"] = router.expert_load
            metrics["dropped_share"] = Mean(jnp.sum(router.dropped), jnp.sum(router.expert_load))
            total += cfg.load_balance_loss * metrics["load_balance_loss"].ratio()
            total += cfg.router_z_loss * metrics["router_z_loss"].ratio()
        return total, metrics


def _masked_sum(x_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    # A select, not a product: what is not scored may be infinite without spoiling the sum.
    return jnp.sum(jnp.where(mask_BT, x_BT, 0.0))
