"""Loss of the training objective on held-out documents, per corpus."""

import functools
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from mm1_jax.config import config_class
from mm1_jax.data.mixed_input import MixedInput
from mm1_jax.evals.evaluator import EvalResult, Evaluator
from mm1_jax.field_types import PositiveInt
from mm1_jax.multihost import distributed
from mm1_jax.multihost.agreement import agree
from mm1_jax.parallel.sharding import Placement, constrain, current_placement
from mm1_jax.train.host_batches import HostBatches


class HeldOutLoss(Evaluator):
    """Mean loss of each corpus over the first batches of the test split.

    The objective defines it: the cross entropy of scored targets for an `MM1`, and the training
    loss for an encoder. The batches are made like training batches, without augmentation, and are
    the same in every run. A corpus that does not occur in them has no metric.
    """

    takes_objective = True

    @config_class
    class Config(Evaluator.Config):
        num_batches: PositiveInt = 8

    def __init__(self, cfg: Config, *, input: MixedInput, objective: Any):
        super().__init__(cfg, input=input)
        self._train_input = input
        self._objective = objective
        # `placement` only belongs to the cache key: activations are placed while tracing.
        sums = functools.partial(loss_sums, objective)
        self._sums = jax.jit(sums, static_argnames=("placement",))

    @functools.cached_property
    def _input(self) -> MixedInput:
        # Built at the first run, so that the test split is not read before a model is evaluated.
        with distributed.together():
            held_out = self._train_input.config.instantiate(split="test")
        agree({f"held-out data: {name}": x for name, x in held_out.fingerprint().items()})
        return held_out

    def metric_names(self) -> list[str]:
        return [f"held_out_loss/0/{corpus}" for corpus in self._train_input.corpus_names]

    def run(self, model: Any) -> EvalResult:
        placement = current_placement()
        rows = None
        if placement is not None:
            spec = placement.rules.spec(("batch",), placement.mesh)
            rows = NamedSharding(placement.mesh, spec)
        with closing(HostBatches(self._input, rows)) as batches:
            sums = [
                self._sums(model, self._next(batches, placement), placement=placement)
                for _ in range(self.config.num_batches)
            ]
        total, weight = np.sum([np.asarray(pair, np.float64) for pair in sums], axis=0)
        return EvalResult(
            {
                f"held_out_loss/0/{corpus}": float(total[i] / weight[i])
                for i, corpus in enumerate(self._input.corpus_names)
                if weight[i]
            }
        )

    def _next(self, batches: HostBatches, placement: Placement | None) -> Any:
        # If one process cannot read its rows, the others must not wait for it in a computation.
        with distributed.together():
            batch = next(batches)
        if placement is None:
            return batch.parts[0].batch
        return batch.place(self._objective.shardings(placement.mesh, placement.rules))


def loss_sums(
    objective: Any, model: Any, batch: Any, *, placement: Placement | None
) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
    """Returns the summed loss of each corpus, and the sum of its weights."""
    mean = objective.held_out_loss(model, batch)
    # Replicated, so that every process can read them.
    return constrain(mean.total, None), constrain(mean.weight, None)
