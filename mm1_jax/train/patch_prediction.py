"""Prediction of the next patch by an `AIM`, and of patches and text by an `AIMv2`.

Their `resolve` fills in

    model.vision_encoder.image_size     -> input.image_size
    input.tokenizer                     -> model.decoder.vocab_size (AIMv2)
    input.max_sequence_length           -> model.max_text_length (AIMv2)

Legend: B batch rows, T text positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mm1_jax.batch import ImageTextBatch
from mm1_jax.field_types import class_name
from mm1_jax.layers.module import checked
from mm1_jax.layers.parameter_paths import union
from mm1_jax.models.aim import AIM, AIMv2, draw_prefix_lengths
from mm1_jax.models.flops import ForwardFlops, patch_prediction_flops
from mm1_jax.train.image_text import ImageTextObjective, raise_if_for_decoders
from mm1_jax.train.metrics import Metrics
from mm1_jax.train.objective import agree, raise_if_a_part_is_another


class PatchTotals(NamedTuple):
    """Denominators of a whole batch: predicted patches, predicted tokens, and rows in use."""

    patches: Float[Array, ""]
    tokens: Float[Array, ""]
    rows: Float[Array, ""]


def patch_totals(batch: ImageTextBatch, num_patches: int) -> PatchTotals:
    """Computes the totals of a batch of images of `num_patches` patches."""
    is_used_B = batch.corpus_ids >= 0
    patches_B = num_patches - draw_prefix_lengths(batch.row_seeds, num_patches)
    return PatchTotals(
        *(
            jnp.sum(jnp.where(is_used_B, x_B, 0), dtype=jnp.float32)
            for x_B in (patches_B, scored_tokens(batch).sum(1), is_used_B)
        )
    )


@dataclass(frozen=True)
class PatchPrediction(ImageTextObjective):
    """Objective of AIM, which reads no text."""

    kind: ClassVar[type] = AIM
    # Fields and class attributes that are read from the parts.
    needed: ClassVar[dict[str, tuple[str, ...]]] = {
        "model.vision_encoder": ("image_size", "patch_size", "model_dim", "stack"),
    }

    @classmethod
    def resolve(cls, cfg: Any) -> None:
        if not isinstance(cfg.model, cls.kind.Config):
            raise ValueError(
                f"model is a config of {class_name(type(cfg.model))}, and trainer.loss="
                f"{cfg.trainer.loss.klass.__name__} trains an {cls.kind.__name__}; change one "
                "of them"
            )
        raise_if_for_decoders(cfg)
        raise_if_a_part_is_another(cfg, cls.needed)
        size = cfg.model.vision_encoder.image_size
        agree(cfg, "input.image_size", size, "model.vision_encoder.image_size")

    @staticmethod
    def check_parts(cfg: Any, input: Any) -> None:
        """Nothing of the built input is declared twice."""

    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        loss = self.loss.instantiate()

        def patch_prediction_loss(
            trained: Any, frozen: Any, batch: ImageTextBatch, totals: Any = None
        ) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(graphdef, union(trained, frozen))
            total, metrics = loss(model, batch, num_corpora=self.num_corpora, totals=totals)
            return checked(loss, total, (), jnp.float32), metrics

        return patch_prediction_loss

    def totals(self, batch: ImageTextBatch) -> PatchTotals:
        return patch_totals(batch, self._num_patches)

    @property
    def _num_patches(self) -> int:
        _, height, width, _ = self.batch.images.shape
        model: Any = self.model
        return (height * width) // model.vision_encoder.patch_size**2

    def flops(self) -> ForwardFlops:
        return patch_prediction_flops(self.model, self.batch.tokens.shape[1])


@dataclass(frozen=True)
class PatchAndTextPrediction(PatchPrediction):
    """Objective of AIMv2."""

    kind: ClassVar[type] = AIMv2
    needed: ClassVar[dict[str, tuple[str, ...]]] = {
        **PatchPrediction.needed,
        "model.decoder": ("vocab_size", "model_dim", "num_layers", "stack"),
        "input.tokenizer": ("klass.vocabulary",),
    }

    @classmethod
    def resolve(cls, cfg: Any) -> None:
        super().resolve(cfg)
        length = cfg.input.max_sequence_length
        if not length:
            raise ValueError(
                "input.max_sequence_length=0: AIMv2 predicts the text of each picture; set it, "
                "or train an AIM"
            )
        vocabulary = cfg.input.tokenizer.klass.vocabulary(cfg.input.tokenizer)
        agree(cfg, "model.decoder.vocab_size", vocabulary.vocab_size, "input.tokenizer")
        agree(cfg, "model.max_text_length", length, "input.max_sequence_length")

    @staticmethod
    def check_parts(cfg: Any, input: Any) -> None:
        made, declared = input.tokenizer.vocab_size, cfg.model.decoder.vocab_size
        if made != declared:
            raise ValueError(
                f"input.tokenizer: {type(input.tokenizer).__name__} has vocab_size={made}, and its "
                f"`vocabulary` says {declared}, which the model is built for"
            )


def scored_tokens(batch: ImageTextBatch) -> Bool[Array, "B T"]:
    """Returns the text positions of used rows that have a next token, which they predict."""
    next_T = jnp.arange(1, batch.tokens.shape[1] + 1)
    return (next_T[None] < batch.lengths[:, None]) & (batch.corpus_ids >= 0)[:, None]
