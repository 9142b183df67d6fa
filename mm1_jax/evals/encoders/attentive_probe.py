"""AIM's attentive probe (El-Nouby et al. 2024): attention pooling and a linear layer, trained.

A learned query attends to the features of the patches, which are the mean output of the last blocks
of the frozen encoder after a batch norm without parameters. Queries, keys and values have as many
heads as the encoder, and no bias; nor has the linear layer. Pictures are not augmented, so that
their features are computed once if they fit into memory.

All learning rates of a sweep are trained at once, on the same batches; the one with the best
accuracy on a part of the training split is scored.

J images   P patches/image   D vision dim   N heads   H head dim   K classifiers   C classes
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mm1_jax.config import config_class
from mm1_jax.evals.encoders.encoder_evaluator import (
    Report,
    classification_scores,
    raise_if_lacking,
)
from mm1_jax.evals.encoders.features import PictureFeatures, without_bad
from mm1_jax.evals.encoders.pictures import LabeledPictures
from mm1_jax.evals.encoders.probe import Probe
from mm1_jax.evals.scoring.nearest import ranks_of
from mm1_jax.field_types import NonNegative, Positive, PositiveInt, Share
from mm1_jax.models.frozen_features import patch_features
from mm1_jax.parallel.sharding import Placement, constrain, current_placement, use_mesh

_EPS = 1e-6
# Weight of a batch in the running mean and variance, as in PyTorch's BatchNorm1d.
_MOMENTUM = 0.1
_BETAS = (0.9, 0.999)
_QUERY_STD = 0.02


class Head(NamedTuple):
    """Parameters of a classifier; with a leading dim K, of several ones."""

    query: Any
    key: Any
    value: Any
    linear: Any


class Statistics(NamedTuple):
    """Mean and variance of features."""

    mean: Any
    variance: Any


class ProbeState(NamedTuple):
    """State of the training of K classifiers.

    Attributes:
        heads: Their parameters.
        moments: State of the optimizer.
        running: Running statistics of the features, which normalize them after training.
    """

    heads: Head
    moments: Any
    running: Statistics


class AttentiveProbe(Probe):
    """Attention pooling and a linear layer over the features of the patches."""

    @config_class
    class Config(Probe.Config):
        # Blocks whose mean output is read; all of an encoder that has fewer.
        num_layers: PositiveInt = 6
        learning_rates: tuple[Positive, ...] = (1e-4, 3e-4, 1e-3, 3e-3)
        weight_decay: NonNegative = 0.1
        num_epochs: PositiveInt = 20
        warmup: Share = 0.05  # Fraction of the steps; the rate then follows half a cosine to zero.
        # Features of a split beyond this are computed again in each epoch instead of being kept.
        max_gigabytes: Positive = 8.0

    def report(self, model: Any) -> Report:
        raise_if_lacking(model, ("vision_encoder", "cast"), "AttentiveProbe")
        cfg, encoder = self.config, model.vision_encoder
        num_layers = min(cfg.num_layers, encoder.stack.num_layers)
        num_heads = encoder.stack.layer.attention.query.kernel.shape[-2]
        train = self._examples(self._train, model, num_layers)
        test = self._examples(self._test, model, num_layers)
        fitted, chosen = self._parts(len(train.labels))
        num_classes = len(self._train.class_names)
        state = first_state(encoder.model_dim, num_classes, len(cfg.learning_rates), seed=cfg.seed)
        for inputs, labels, factor in self._steps(train, fitted):
            rates = np.asarray(cfg.learning_rates, np.float32) * np.float32(factor)
            state = train.call(
                train_step, state, inputs, labels, rates, cfg.weight_decay, num_heads=num_heads
            )
        logits = train.logits(state, chosen, num_heads)
        accuracies = np.mean(logits.argmax(axis=-1) == train.labels[chosen][None], axis=1)
        best = int(accuracies.argmax())
        logits = test.logits(state, np.arange(len(test.labels)), num_heads)[best]
        kept = test.kept()
        logits, labels = logits[kept], test.labels[kept]
        metrics, right = classification_scores(
            ranks_of(logits, labels), logits.argmax(axis=1), labels, num_classes
        )
        protocol = (
            f"attention pooling with {num_heads} heads over the mean of the last {num_layers} "
            f"blocks, {cfg.num_epochs} epochs of {len(fitted):,} pictures, learning rate "
            f"{cfg.learning_rates[best]:g} of {len(cfg.learning_rates)} chosen on {len(chosen):,} "
            f"others; tested on {len(labels):,}, {self._shown}"
        )
        num_bad = train.num_bad + test.num_bad + int(np.sum(~kept))
        return Report(metrics, right, protocol, num_bad)

    def _examples(self, data: LabeledPictures, model: Any, num_layers: int) -> "_Examples":
        cfg, encoder = self.config, model.vision_encoder
        num_patches = (self._input.image_size // encoder.patch_size) ** 2
        num_bytes = 4 * len(data.labels) * num_patches * encoder.model_dim
        return _Examples(
            cfg.name,
            self._features(data.pictures),
            data.labels,
            model,
            batch_size=cfg.batch_size,
            num_layers=num_layers,
            keeps=num_bytes <= cfg.max_gigabytes * 1e9,
        )

    def _steps(
        self, train: "_Examples", fitted: np.ndarray
    ) -> Iterator[tuple[Any, np.ndarray, float]]:
        """Yields inputs, labels and the factor of the learning rate of each step."""
        cfg = self.config
        size = min(cfg.batch_size, len(fitted))
        per_epoch = len(fitted) // size
        total = cfg.num_epochs * per_epoch
        warmup = round(cfg.warmup * total)
        step = 0
        for epoch in range(cfg.num_epochs):
            order = np.random.default_rng((cfg.seed, epoch)).permutation(fitted)
            for inputs, own in train.batches(order[: per_epoch * size], size):
                is_warm = step >= warmup
                progress = (step - warmup) / max(1, total - warmup)
                yield (
                    inputs,
                    train.labels[own],
                    0.5 * (1 + math.cos(math.pi * progress)) if is_warm else (step + 1) / warmup,
                )
                step += 1


class _Examples:
    """Inputs of the classifiers: features that are kept, or pictures to encode in each step."""

    def __init__(
        self,
        name: str,
        reader: PictureFeatures,
        labels: np.ndarray,
        model: Any,
        *,
        batch_size: int,
        num_layers: int,
        keeps: bool,
    ):
        self.labels, self.num_bad = labels.astype(np.int32), 0
        self._name, self._reader, self._batch_size = name, reader, batch_size
        self._num_layers, self._features, self._model = num_layers, None, model
        if keeps:
            function = functools.partial(_features, num_layers=num_layers)
            features = reader.all(function, model)
            kept = without_bad(name, reader, len(features))
            self.num_bad = int(np.sum(~kept))
            self._features, self.labels = features[kept], self.labels[kept]
            self._model = None

    def batches(self, indices: np.ndarray, size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields batches of `size` inputs, the last filled up, and the indices of the examples."""
        if self._features is None:
            yield from self._reader.image_batches(indices, size)
            return
        for start in range(0, len(indices), size):
            own = indices[start : start + size]
            features = self._features[own]
            yield np.pad(features, ((0, size - len(own)), (0, 0), (0, 0))), own

    def call(self, function: Any, state: Any, *args: Any, **options: Any) -> Any:
        """Calls a compiled function on the mesh, or on one device if features are kept."""
        # All processes keep all features, so that each computes the same without the others.
        is_local = self._features is not None
        with use_mesh(None) if is_local else contextlib.nullcontext():
            return function(
                state,
                self._model,
                *args,
                num_layers=self._num_layers,
                placement=current_placement(),
                **options,
            )

    def logits(
        self, state: ProbeState, indices: np.ndarray, num_heads: int
    ) -> Float[np.ndarray, "K n C"]:
        # The state may be on other devices than these inputs.
        state = jax.tree.map(np.asarray, state)
        found = []
        for inputs, own in self.batches(indices, self._batch_size):
            logits = self.call(_logits, (state.heads, state.running), inputs, num_heads=num_heads)
            found.append(np.asarray(logits)[:, : len(own)])
        return np.concatenate(found, axis=1)

    def kept(self) -> np.ndarray:
        """Returns which of the examples could be decoded."""
        if self._features is not None:
            return np.ones(len(self.labels), bool)
        return without_bad(self._name, self._reader, len(self.labels))


def first_state(dim: int, num_classes: int, num_heads_trained: int, *, seed: int) -> ProbeState:
    """Returns K classifiers with the same parameters, drawn as PyTorch's `Linear` does."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(math.sqrt(dim))

    head = Head(
        query=rng.normal(0, _QUERY_STD, dim).astype(np.float32),
        key=drawn(dim, dim),
        value=drawn(dim, dim),
        linear=drawn(dim, num_classes),
    )
    heads = Head(*(np.repeat(x[None], num_heads_trained, axis=0) for x in head))
    running = Statistics(np.zeros(dim, np.float32), np.ones(dim, np.float32))
    return ProbeState(heads, jax.tree.map(np.asarray, _adam().init(heads)), running)


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam(*_BETAS)


@functools.partial(jax.jit, static_argnames=("num_heads", "num_layers", "placement"))
def train_step(
    state: ProbeState,
    model: Any,
    inputs: Array,
    labels: Int[Array, "J"],
    rates: Float[Array, "K"],
    weight_decay: Float[Array, ""] | float,
    *,
    num_heads: int,
    num_layers: int = 0,
    placement: Placement | None = None,
) -> ProbeState:
    """Updates each classifier by AdamW with its own learning rate.

    Args:
        model: Encodes the inputs; None if they are features.
    """
    features = _inputs(model, inputs, num_layers)
    own = statistics_of(features)
    normalized = normalize(features, own)

    def loss_of(heads: Head) -> Float[Array, ""]:
        logits = _all_logits(heads, normalized, num_heads)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(labels[None], logits.shape[:2])
        )
        # The gradient of each classifier is that of its own mean.
        return jnp.sum(jnp.mean(losses, axis=1))

    gradients = jax.grad(loss_of)(state.heads)
    updates, moments = _adam().update(gradients, state.moments)

    def updated(parameter: Array, update: Array) -> Array:
        rate = rates.reshape(-1, *(1,) * (parameter.ndim - 1))
        return parameter - rate * (update + weight_decay * parameter)

    heads = jax.tree.map(updated, state.heads, updates)
    number = features.shape[0] * features.shape[1]
    unbiased = own._replace(variance=own.variance * (number / max(1, number - 1)))
    running = jax.tree.map(
        lambda a, b: (1 - _MOMENTUM) * a + _MOMENTUM * b, state.running, unbiased
    )
    return jax.tree.map(_replicated, ProbeState(heads, moments, running))


@functools.partial(jax.jit, static_argnames=("num_heads", "num_layers", "placement"))
def _logits(
    trained: tuple[Head, Statistics],
    model: Any,
    inputs: Array,
    *,
    num_heads: int,
    num_layers: int = 0,
    placement: Placement | None = None,
) -> Float[Array, "K J C"]:
    heads, running = trained
    normalized = normalize(_inputs(model, inputs, num_layers), running)
    return _replicated(_all_logits(heads, normalized, num_heads))


def _all_logits(
    heads: Head, features: Float[Array, "J P D"], num_heads: int
) -> Float[Array, "K J C"]:
    return jax.vmap(lambda head: head_logits(head, features, num_heads))(heads)


def head_logits(head: Head, features: Float[Array, "J P D"], num_heads: int) -> Float[Array, "J C"]:
    """Returns the logits of one classifier for normalized features.

    The query is the same for all pictures. So it is multiplied with the key projection first, and
    features are pooled before the value projection, which costs a product with N, and not with D,
    columns per patch.
    """
    dim = features.shape[-1]
    query_NH = head.query.reshape(num_heads, -1)
    key_DNH, value_DNH = (x.reshape(dim, num_heads, -1) for x in (head.key, head.value))
    scale = query_NH.shape[-1] ** -0.5
    pooling_DN = jnp.einsum("DNH,NH->DN", key_DNH, query_NH) * scale
    weights_JPN = jax.nn.softmax(jnp.einsum("JPD,DN->JPN", features, pooling_DN), axis=1)
    pooled_JND = jnp.einsum("JPN,JPD->JND", weights_JPN, features)
    value_JNH = jnp.einsum("JND,DNH->JNH", pooled_JND, value_DNH)
    return value_JNH.reshape(len(value_JNH), -1) @ head.linear


def statistics_of(features: Float[Array, "J P D"]) -> Statistics:
    """Returns the mean and the biased variance over all patches of all pictures."""
    return Statistics(jnp.mean(features, axis=(0, 1)), jnp.var(features, axis=(0, 1)))


def normalize(features: Float[Array, "J P D"], statistics: Statistics) -> Float[Array, "J P D"]:
    mean, variance = statistics.mean[None, None], statistics.variance[None, None]
    return (features - mean) * jax.lax.rsqrt(variance + _EPS)


def _inputs(model: Any, inputs: Array, num_layers: int) -> Float[Array, "J P D"]:
    if model is None:
        return inputs
    images = constrain(inputs, "images", None, None, None)
    return patch_features(model.cast().vision_encoder, images, num_layers).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("num_layers", "placement"))
def _features(
    model: Any, images: Array, *, num_layers: int, placement: Placement | None
) -> Float[Array, "J P D"]:
    return _replicated(_inputs(model, images, num_layers))


def _replicated(x: Array) -> Array:
    return constrain(x, *[None] * x.ndim)
