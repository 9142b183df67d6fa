"""The objective of training: model, type of its batches and loss of its output, as one object.

Program, step and loop see parameters and trees of arrays; what these mean is known to an objective
alone. Another one (contrastive, say) is a class in a file of its own beside `next_token.py`, which
an experiment makes in `Experiment.objective`.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from mm1_jax.config import InstantiableConfig
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.parallel.sharding import AxisRules
from mm1_jax.train.metrics import Metrics


@dataclass(frozen=True)
class Objective(abc.ABC):
    """The interface of everything that can be trained.

    A batch is a pytree of arrays of which 1/n of the rows takes 1/n of the first dim of each. Rows
    are split over the mesh axes of the logical name "batch".

    Attributes:
        model: Config of the model; `instantiate(rngs=...)` makes it.
        loss: Config of the loss, the field `trainer.loss`.
        batch: Shapes and dtypes of a global batch.
    """

    model: InstantiableConfig
    loss: InstantiableConfig
    batch: Any

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Rows of a global batch."""

    @abc.abstractmethod
    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        """Returns the function (trained, frozen, batch, totals) -> (loss, metrics).

        `totals` are those of the batch that `batch` is a micro-batch of; None: it is the whole.
        Metrics have the means "loss" and, with an entry for each corpus, "corpus_loss".
        """

    @abc.abstractmethod
    def totals(self, batch: Any) -> Any:
        """Sums over a whole batch that the losses of its micro-batches are divided by."""

    @abc.abstractmethod
    def counts(self, batch: Any) -> Metrics:
        """Counts for the record of a step: "tokens" and "images", at least."""

    @abc.abstractmethod
    def shardings(self, mesh: Mesh, rules: AxisRules) -> Any:
        """The sharding of every array of a batch."""

    @abc.abstractmethod
    def constrain(self, batch: Any) -> Any:
        """Splits a batch as `shardings` does; a leading dim, of micro-batches, stays whole."""

    @abc.abstractmethod
    def raise_if_unshareable(self, num_rows: int, num_shards: int) -> None:
        """Raises ValueError where rows that divide evenly over the shards still cannot be split.

        Args:
            num_rows: Rows of a micro-batch.
            num_shards: Into how many parts the mesh splits them.
        """

    @abc.abstractmethod
    def flops(self) -> ForwardFlops:
        """FLOPs of a forward pass; raises ValueError where there is no rule for a layer."""
