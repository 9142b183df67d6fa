"""Losses of contrastive training: softmax over the global batch, as in CLIP, or sigmoid, as SigLIP.

A CLIP that cannot tell pictures apart has the metric `chance_loss`, ln(batch) for the softmax loss.
A run whose `loss` stays there does not learn.
"""

import abc
import math
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from mm1_jax.config import config_class
from mm1_jax.field_types import PositiveInt
from mm1_jax.models.clip import CLIPOutput
from mm1_jax.train.contrastive import Contrastive
from mm1_jax.train.objective import TrainingLoss
from mm1_jax.train.pair_losses import (
    Comparison,
    Exchange,
    PairLosses,
    PairRule,
    Sigmoid,
    Softmax,
    pair_losses,
)


class ContrastiveLoss(TrainingLoss, abc.ABC):
    """Base of losses over all pairs of pictures and texts of a batch."""

    objective = Contrastive
    rule: ClassVar[type[PairRule]]

    @config_class
    class Config(TrainingLoss.Config):
        # How texts reach the pictures of other devices.
        exchange: Exchange = Exchange.ALL_GATHER
        # Number of texts with which a device compares its pictures at a time, which bounds the
        # memory of the logits; None is all that it holds.
        chunk_size: PositiveInt | None = None
        # Does not count pictures with equal texts as negatives of each other.
        mask_equal_texts: bool = False

    def __call__(
        self, output: CLIPOutput, is_real: Bool[Array, "B"], text_ids: UInt32[Array, "B 2"]
    ) -> PairLosses:
        """Computes the loss of each row.

        Args:
            is_real: False for rows without a record.
            text_ids: Hashes of the texts.
        """
        cfg = self._config
        comparison = Comparison(
            self.rule, Exchange(cfg.exchange), cfg.chunk_size, cfg.mask_equal_texts
        )
        bias = jnp.zeros((), jnp.float32) if output.bias is None else output.bias
        return pair_losses(
            comparison, output.images, output.texts, output.scale, bias, is_real, text_ids
        )

    @staticmethod
    @abc.abstractmethod
    def resolve_bias(model: Any, batch_size: int) -> None:
        """Sets `model.initial_bias` of a `CLIP.Config`; raises ValueError if it cannot be used."""

    @staticmethod
    @abc.abstractmethod
    def chance(num_rows: Float[Array, ""]) -> Float[Array, ""]:
        """Returns the loss of a model whose logits are all equal, at the best bias."""


class SoftmaxLoss(ContrastiveLoss):
    """Mean cross entropy of finding the text of a picture, and the picture of a text (InfoNCE)."""

    rule = Softmax

    @config_class
    class Config(ContrastiveLoss.Config):
        pass

    @staticmethod
    def resolve_bias(model: Any, batch_size: int) -> None:
        if model.initial_bias is not None:
            raise ValueError(
                f"model.initial_bias={model.initial_bias}: the softmax loss does not depend on a "
                "bias; set it to None, or trainer.loss to SigmoidLoss"
            )

    @staticmethod
    def chance(num_rows: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.log(jnp.maximum(num_rows, 1))


class SigmoidLoss(ContrastiveLoss):
    """Binary cross entropy of whether a text belongs to a picture, summed over the texts (SigLIP).

    It is divided by the number of pictures, as in SigLIP, not by that of pairs.
    """

    rule = Sigmoid

    @config_class
    class Config(ContrastiveLoss.Config):
        pass

    @staticmethod
    def resolve_bias(model: Any, batch_size: int) -> None:
        # One text of the batch belongs to a picture: ln(p / (1 - p)) with p = 1 / batch_size. The
        # -10 of SigLIP fits 22,000 rows.
        if model.initial_bias is None:
            model.initial_bias = -math.log(max(batch_size - 1, 1))

    @staticmethod
    def chance(num_rows: Float[Array, ""]) -> Float[Array, ""]:
        negatives = jnp.maximum(num_rows - 1, 1)
        return jnp.log1p(negatives) + negatives * jnp.log1p(1 / negatives)
