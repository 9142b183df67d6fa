"""Training loss on held-out documents, per corpus."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Float

from mm1_jax.batch import Batch
from mm1_jax.config import config_class
from mm1_jax.data.input import Input
from mm1_jax.evals.evaluator import EvalResult, Evaluator
from mm1_jax.field_types import PositiveInt
from mm1_jax.models.cross_entropy import corpus_sums, token_losses
from mm1_jax.models.mm1 import MM1
from mm1_jax.multihost import distributed
from mm1_jax.multihost.agreement import agree
from mm1_jax.parallel.sharding import Placement, constrain, current_placement


class HeldOutLoss(Evaluator):
    """Mean cross-entropy of the scored targets over the first batches of the test split.

    The batches are packed like training batches and are the same in every run. A corpus that does
    not occur in them has no metric.
    """

    @config_class
    class Config(Evaluator.Config):
        num_batches: PositiveInt = 8

    def __init__(self, cfg: Config, *, input: Input):
        super().__init__(cfg, input=input)
        self._train_input = input

    @functools.cached_property
    def _input(self) -> Input:
        # Built at the first run, so that the test split is not read before a model is evaluated.
        with distributed.together():
            held_out = self._train_input.config.instantiate(split="test")
        agree({f"held-out data: {name}": x for name, x in held_out.fingerprint().items()})
        return held_out

    def metric_names(self) -> list[str]:
        return [f"held_out_loss/0/{corpus}" for corpus in self._train_input.corpus_names]

    def run(self, model: MM1) -> EvalResult:
        names = self._input.corpus_names
        iterator = self._input.iterator()
        try:
            sums = [
                loss_sums(
                    model,
                    next(iterator),
                    num_corpora=len(names),
                    placement=current_placement(),
                )
                for _ in range(self.config.num_batches)
            ]
        finally:
            iterator.close()
        total, weight = np.sum([np.asarray(pair, np.float64) for pair in sums], axis=0)
        return EvalResult(
            {
                f"held_out_loss/0/{corpus}": float(total[i] / weight[i])
                for i, corpus in enumerate(names)
                if weight[i]
            }
        )


# `placement` only belongs to the cache key of jit: activations are placed while tracing.
@functools.partial(jax.jit, static_argnames=("num_corpora", "placement"))
def loss_sums(
    model: MM1, batch: Batch, *, num_corpora: int, placement: Placement | None = None
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Returns the summed cross-entropy of each corpus's scored targets, and their number."""
    logits_BTV = model.logits(model(batch, dropless=True).hidden)
    cross_entropy_BT, _ = token_losses(logits_BTV, batch.targets)
    # Replicated, so that every process can read them.
    total, weight = corpus_sums(cross_entropy_BT, batch, num_corpora)
    return constrain(total, None), constrain(weight, None)
