"""Interface of training objectives: model, batch structure and loss in one object.

Experiment, program, step and loop only see configs, parameters and trees of arrays; only the
objective knows their meaning. The class of `trainer.loss` names its objective. To add another one,
add a file with a class next to `next_token.py`, and a loss that names it.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mm1_jax.config import REQUIRED, Configurable, InstantiableConfig
from mm1_jax.field_types import class_name
from mm1_jax.models.flops import ForwardFlops
from mm1_jax.parallel.sharding import AxisRules
from mm1_jax.train.metrics import Mean, Metrics


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
        num_corpora: Number of corpora, whose losses are reported separately.
    """

    model: InstantiableConfig
    loss: InstantiableConfig
    batch: Any
    num_corpora: int

    @classmethod
    @abc.abstractmethod
    def of(cls, model: InstantiableConfig, loss: InstantiableConfig, input: Any) -> "Objective":
        """Creates the objective of a resolved config, for the batches of `input`."""

    @staticmethod
    @abc.abstractmethod
    def resolve(cfg: Any) -> None:
        """Fills in the fields of the root config on which model, input and loss must agree.

        Raises:
            ValueError: A part is of another kind than the objective trains, or two fields disagree.
        """

    @staticmethod
    @abc.abstractmethod
    def check_parts(cfg: Any, input: Any) -> None:
        """Raises ValueError if the built input contradicts the resolved root config."""

    @property
    @abc.abstractmethod
    def num_rows(self) -> int:
        """Number of rows of a global batch."""

    @abc.abstractmethod
    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        """Returns the function (trained, frozen, batch, totals) -> (loss, metrics).

        If `batch` is a micro-batch, `totals` is its element of `totals_of_micro_batches`; it is
        None for the whole batch. The metrics must contain the means "loss" and "corpus_loss", the
        latter with an entry per corpus.
        """

    def held_out_loss(self, model: nnx.Module, batch: Any) -> Mean:
        """Returns the loss of each corpus in a held-out batch; by default, that of training."""
        graphdef, params = nnx.split(model)
        _, metrics = self.loss_function(graphdef)(params, {}, batch)
        return metrics["corpus_loss"]

    @abc.abstractmethod
    def totals(self, batch: Any) -> Any:
        """Computes the denominators of a whole batch, which divide the losses of micro-batches."""

    def totals_of_micro_batches(
        self, graphdef: nnx.GraphDef, trained: Any, frozen: Any, batch: Any, micro_batches: Any
    ) -> Any:
        """Computes what the loss of each micro-batch needs of the whole batch.

        Args:
            micro_batches: The batch split along a new leading dim.

        Returns:
            A tree of arrays with the same leading dim; by default, copies of `totals`.
        """
        number = len(jax.tree.leaves(micro_batches)[0])
        totals = self.totals(batch)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (number, *jnp.shape(x))), totals)

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


class TrainingLoss(Configurable):
    """Base of all losses, the field `trainer.loss`. Its class decides what is trained.

    Attributes:
        objective: The objective of this loss.
    """

    objective: ClassVar[type[Objective]]


def agree(cfg: Any, path: str, value: Any, source: str) -> None:
    """Sets the field at `path` to `value`, which `source` implies.

    Raises:
        ValueError: It has another value.
    """
    present = cfg.get_recursively(path.split("."))
    if present is None or present is REQUIRED:
        cfg.set_recursively(path.split("."), value=value)
    elif present != value:
        raise ValueError(
            f"{path} is {present!r}, but {source} makes it {value!r}: "
            f"leave {path} unset and change only {source}"
        )


def raise_if_a_part_is_another(cfg: Any, needed: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError if a part is the config of another kind of part.

    Args:
        needed: Fields and class attributes that are read from the part at each path.
    """
    for path, names in needed.items():
        part = cfg.get_recursively(path.split("."))
        for name in names:
            holder, _, attribute = name.rpartition(".")
            if part is not None and not hasattr(getattr(part, holder, part), attribute):
                kind = path.rpartition(".")[2].replace("_", " ")
                article = "an" if kind[0] in "aeiou" else "a"
                raise ValueError(
                    f"{path} is a config of {class_name(type(part))}, which has no {attribute}; "
                    f"expected that of {article} {kind}"
                )
