"""Contrastive training of a `CLIP` over the global batch: pictures find their texts and vice versa.

Its `resolve` fills in

    model.vision_encoder.image_size     -> input.image_size
    input.max_sequence_length           -> model.text_encoder.max_length
    input.tokenizer                     -> model.text_encoder.vocab_size
    input.batch_size                    -> model.initial_bias, with the sigmoid loss

Micro-batches keep the negatives of the whole batch (GradCache, arXiv 2101.06983). A first pass
computes the features of all rows, and their gradients; each micro-batch then computes its features
again and back-propagates their gradients. Gradients are exact, and a step costs one more forward
pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt32

from mm1_jax.batch import ImageTextBatch
from mm1_jax.field_types import class_name
from mm1_jax.layers.module import checked, checked_tuple
from mm1_jax.layers.parameter_paths import union
from mm1_jax.models.clip import CLIP, CLIPOutput
from mm1_jax.models.flops import ForwardFlops, contrastive_flops
from mm1_jax.parallel.sharding import constrain
from mm1_jax.train.image_text import ImageTextObjective, raise_if_for_decoders
from mm1_jax.train.metrics import Mean, Metrics
from mm1_jax.train.objective import agree, raise_if_a_part_is_another
from mm1_jax.train.pair_losses import PairLosses

# Fields and class attributes that are read from the parts.
_NEEDED = {
    "model.vision_encoder": ("image_size", "patch_size", "model_dim"),
    "model.text_encoder": ("vocab_size", "max_length"),
    "input.tokenizer": ("klass.vocabulary",),
}


class Share(NamedTuple):
    """Part of a micro-batch in the loss of the whole batch.

    Attributes:
        pairs: Losses of its rows.
        gradient: Gradient of the mean loss of the batch by its output, with an equal part of that
            by scale and bias.
        num_rows: Number of rows with a record in the whole batch.
    """

    pairs: PairLosses
    gradient: CLIPOutput
    num_rows: Float[Array, ""]


@dataclass(frozen=True)
class Contrastive(ImageTextObjective):
    """Objective of CLIP and SigLIP."""

    @staticmethod
    def resolve(cfg: Any) -> None:
        if not isinstance(cfg.model, CLIP.Config):
            raise ValueError(
                f"model is a config of {class_name(type(cfg.model))}, and trainer.loss="
                f"{cfg.trainer.loss.klass.__name__} trains a CLIP; change one of them"
            )
        raise_if_for_decoders(cfg)
        raise_if_a_part_is_another(cfg, _NEEDED)
        length, size = cfg.input.max_sequence_length, cfg.model.vision_encoder.image_size
        if not length:
            raise ValueError(
                "input.max_sequence_length=0: a CLIP reads the text of each picture; set it, such "
                "as to 77"
            )
        vocabulary = cfg.input.tokenizer.klass.vocabulary(cfg.input.tokenizer)
        agree(cfg, "input.image_size", size, "model.vision_encoder.image_size")
        agree(cfg, "model.text_encoder.max_length", length, "input.max_sequence_length")
        agree(cfg, "model.text_encoder.vocab_size", vocabulary.vocab_size, "input.tokenizer")
        cfg.trainer.loss.klass.resolve_bias(cfg.model, cfg.input.batch_size)

    @staticmethod
    def check_parts(cfg: Any, input: Any) -> None:
        made, declared = input.tokenizer.vocab_size, cfg.model.text_encoder.vocab_size
        if made != declared:
            raise ValueError(
                f"input.tokenizer: {type(input.tokenizer).__name__} has vocab_size={made}, and its "
                f"`vocabulary` says {declared}, which the model is built for"
            )

    def loss_function(self, graphdef: nnx.GraphDef) -> Callable[..., tuple[jax.Array, Metrics]]:
        def contrastive_loss(
            trained: Any, frozen: Any, batch: ImageTextBatch, totals: Share | None = None
        ) -> tuple[jax.Array, Metrics]:
            output = self._output(nnx.merge(graphdef, union(trained, frozen)), batch)
            if totals is None:
                num_rows = _num_rows(batch)
                pairs = self._compare(output, batch.corpus_ids, text_ids(batch))
                total = Mean(jnp.sum(pairs.losses), num_rows).ratio()
            else:
                pairs, gradient, num_rows = totals
                total = Mean(jnp.sum(pairs.losses), num_rows).ratio()
                # The gradient of the loss, through a sum that has this gradient and the value 0.
                products = jax.tree.map(lambda x, g: jnp.sum(x * g), output, gradient)
                product = jax.tree.reduce(jnp.add, products)
                total += product - jax.lax.stop_gradient(product)
            return total, self._metrics(output, pairs, batch, num_rows)

        return contrastive_loss

    def held_out_loss(self, model: nnx.Module, batch: ImageTextBatch) -> Mean:
        """Returns the loss of each corpus among all rows of a batch, without patch dropout."""
        output = self._output(model, batch, dropless=True)
        pairs = self._compare(output, batch.corpus_ids, text_ids(batch))
        return self._corpus_loss(pairs, batch)

    def totals(self, batch: ImageTextBatch) -> Any:
        return _num_rows(batch)

    def totals_of_micro_batches(
        self,
        graphdef: nnx.GraphDef,
        trained: Any,
        frozen: Any,
        batch: ImageTextBatch,
        micro_batches: ImageTextBatch,
    ) -> Share:
        model: Any = nnx.merge(graphdef, union(trained, frozen))
        # The rows of a device stay on it: those of all its micro-batches follow each other.
        outputs = jax.lax.map(lambda each: self._output(model, each), micro_batches)
        images, texts, ids, corpus_ids = (
            _joined(x)
            for x in (
                outputs.images,
                outputs.texts,
                jax.vmap(text_ids)(micro_batches),
                micro_batches.corpus_ids,
            )
        )
        number = len(micro_batches.corpus_ids)
        num_rows = _num_rows(batch)

        def mean_loss(output: CLIPOutput) -> tuple[jax.Array, PairLosses]:
            pairs = self._compare(output, corpus_ids, ids)
            return Mean(jnp.sum(pairs.losses), num_rows).ratio(), pairs

        bias = None if outputs.bias is None else outputs.bias[0]
        whole = CLIPOutput(images, texts, outputs.scale[0], bias)
        gradient, pairs = jax.grad(mean_loss, has_aux=True)(whole)

        def shared(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x / number, (number,))

        return Share(
            PairLosses(*(_split(x, number) for x in pairs)),
            CLIPOutput(
                _split(gradient.images, number),
                _split(gradient.texts, number),
                shared(gradient.scale),
                None if gradient.bias is None else shared(gradient.bias),
            ),
            jnp.broadcast_to(num_rows, (number,)),
        )

    def flops(self) -> ForwardFlops:
        return contrastive_flops(self.model, self.batch.tokens.shape[1], self.num_rows)

    def _output(self, model: Any, batch: ImageTextBatch, *, dropless: bool = False) -> CLIPOutput:
        """Computes the features of a batch or micro-batch."""
        names = ("image features", "text features", "scale", "bias")
        output = model(batch, dropless=dropless)
        images, texts, scale, bias = checked_tuple(model, output, names)
        for features in (images, texts):
            checked(model, features, (len(batch.images), images.shape[-1]), jnp.float32)
        for number in (scale,) if bias is None else (scale, bias):
            checked(model, number, (), jnp.float32)
        return CLIPOutput(images, texts, scale, bias)

    def _compare(
        self, output: CLIPOutput, corpus_ids: Int[Array, "B"], ids: UInt32[Array, "B 2"]
    ) -> PairLosses:
        loss = self.loss.instantiate()
        pairs = checked_tuple(loss, loss(output, corpus_ids >= 0, ids), PairLosses._fields)
        checked(loss, pairs[0], corpus_ids.shape, jnp.float32)
        return PairLosses(*pairs)

    def _metrics(
        self, output: CLIPOutput, pairs: PairLosses, batch: ImageTextBatch, num_rows: jax.Array
    ) -> Metrics:
        """Returns sums over the rows of a micro-batch, and means that all micro-batches share."""
        own, one = _num_rows(batch), jnp.ones((), jnp.float32)
        metrics = {
            "loss": Mean(jnp.sum(pairs.losses), own),
            "corpus_loss": self._corpus_loss(pairs, batch),
            "image_to_text_accuracy": Mean(jnp.sum(pairs.finds_text, dtype=jnp.float32), own),
            "text_to_image_accuracy": Mean(jnp.sum(pairs.finds_image, dtype=jnp.float32), own),
            "chance_loss": Mean(self.loss.instantiate().chance(num_rows), one),
            "logit_scale": Mean(output.scale, one),
        }
        if output.bias is not None:
            metrics["logit_bias"] = Mean(output.bias, one)
        return metrics

    def _corpus_loss(self, pairs: PairLosses, batch: ImageTextBatch) -> Mean:
        is_of_corpus = batch.corpus_ids[None] == jnp.arange(self.num_corpora)[:, None]
        sums = jnp.sum(jnp.where(is_of_corpus, pairs.losses[None], 0.0), axis=1)
        return Mean(sums, jnp.sum(is_of_corpus, axis=1, dtype=jnp.float32))


def text_ids(batch: ImageTextBatch) -> UInt32[Array, "B 2"]:
    """Returns a hash of 64 bits of the text of each row, which differs for different texts."""
    length = batch.tokens.shape[1]
    is_text = jnp.arange(length)[None] < batch.lengths[:, None]
    tokens = jnp.where(is_text, batch.tokens + 1, 0).astype(jnp.uint32)
    factors = jax.random.bits(jax.random.key(0), (length, 2))
    return jnp.sum(tokens[:, :, None] * factors[None], axis=1, dtype=jnp.uint32)


def _num_rows(batch: ImageTextBatch) -> Float[Array, ""]:
    return jnp.sum(batch.corpus_ids >= 0, dtype=jnp.float32)


def _joined(x: Array) -> Array:
    """Joins the rows of micro-batches; row i of each follows row i of the one before."""
    x = jnp.swapaxes(x, 0, 1)
    return constrain(x.reshape(-1, *x.shape[2:]), "batch", *[None] * (x.ndim - 2))


def _split(x: Array, number: int) -> Array:
    """Inverts `_joined`."""
    x = jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1)
    return constrain(x, None, "batch", *[None] * (x.ndim - 2))
