"""Interface of training objectives: model, batch structure and loss in one object.

Program, step and loop only see parameters and trees of arrays; only the objective knows their
meaning. To add another objective, such as a contrastive one, add a class in a file next to
`next_token.py` and create it in `Experiment.objective`.
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
    """Interface of training objectives.

    A batch is a pytree of arrays whose first dims are divided in proportion to the rows: 1/n of the
    rows has 1/n of the first dim of each array. Rows are split over the mesh axes of the logical
    name "batch".

    Attributes:
        model: Config of the model, instantiated with `rngs`.
        loss: Config of the loss, from the field `trainer.loss`.
        batch: Shapes and dtypes of a global batch.
    """

    model: InstantiableConfig
    loss: InstantiableConfig
    batch: Any

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Number of rows of a global batch."""

    @abc.abstractmethod
    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        """Returns the function (trained, frozen, batch, totals) -> (loss, metrics).

        `totals` are those of the whole batch if `batch` is a micro-batch, and None if it is the
        whole batch. The metrics must contain the means "loss" and "corpus_loss", the latter with
        an entry per corpus.
        """

    @abc.abstractmethod
    def totals(self, batch: Any) -> Any:
        """Computes the denominators of a whole batch, which divide the losses of micro-batches."""

    @abc.abstractmethod
    def counts(self, batch: Any) -> Metrics:
        """Returns counts for the step record, at least "tokens" and "images"."""

    @abc.abstractmethod
    def shardings(self, mesh: Mesh, rules: AxisRules) -> Any:
        """Returns the sharding of every array of a batch."""

    @abc.abstractmethod
    def constrain(self, batch: Any) -> Any:
        """Shards a batch like `shardings`; a leading dim of micro-batches is not split."""

    @abc.abstractmethod
    def raise_if_unshareable(self, num_rows: int, num_shards: int) -> None:
        """Raises ValueError if rows cannot be split although they divide evenly over the shards.

        Args:
            num_rows: Number of rows of a micro-batch.
            num_shards: Number of shards into which the mesh splits the rows.
        """

    @abc.abstractmethod
    def flops(self) -> ForwardFlops:
        """Returns the FLOPs of a forward pass; raises ValueError if a layer has no rule."""
