"""Linear probe: logistic regression on frozen features of pictures.

Features are standardized by the mean and variance of the training pictures. The strength of the
penalty is chosen on a part of the training split; the final classifier is fitted to the whole of it
(Radford et al. 2021, appendix A.3). Raw pixels as features give the score that a model must beat.
"""

import enum
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mm1_jax.config import config_class
from mm1_jax.evals.encoders.encoder_evaluator import (
    Report,
    classification_scores,
    raise_if_lacking,
)
from mm1_jax.evals.encoders.features import image_vectors, without_bad
from mm1_jax.evals.encoders.logistic import Classifier, Scaling, fit
from mm1_jax.evals.encoders.pictures import LabeledPictures
from mm1_jax.evals.encoders.probe import Probe
from mm1_jax.evals.scoring.nearest import ranks_of
from mm1_jax.field_types import Positive, PositiveInt
from mm1_jax.models.frozen_features import patch_features
from mm1_jax.parallel.sharding import Placement, constrain


class ProbeFeatures(enum.Enum):
    """The features that a classifier is fitted to."""

    PATCHES = "patches"  # The mean over patches of the vision encoder's output.
    IMAGE = "image"  # The vector that is compared with texts, for models that have one.
    PIXELS = "pixels"  # The pixels themselves, without a model.


class LinearProbe(Probe):
    """Logistic regression on features of the training split, scored on the test split."""

    @config_class
    class Config(Probe.Config):
        features: ProbeFeatures = ProbeFeatures.PATCHES
        # Strengths of the penalty to choose from.
        l2s: tuple[Positive, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        max_iterations: PositiveInt = 1000

    def report(self, model: Any) -> Report:
        function = _FUNCTIONS[self.config.features]
        if self.config.features is not ProbeFeatures.PIXELS:
            is_image = self.config.features is ProbeFeatures.IMAGE
            raise_if_lacking(
                model, ("encode_image",) if is_image else ("vision_encoder", "cast"), "LinearProbe"
            )
        features, labels, num_bad = self._split(function, model, self._train)
        test_features, test_labels, num_bad_test = self._split(function, model, self._test)
        fitted, chosen = self._parts(len(labels))
        scaling = Scaling.of(features[fitted])
        features, test_features = scaling(features), scaling(test_features)
        l2, start = self._best(features, labels, fitted, chosen)
        num_classes = len(self._train.class_names)
        found = fit(
            features,
            labels,
            num_classes,
            l2,
            start=start,
            max_iterations=self.config.max_iterations,
        )
        logits = found.logits(test_features)
        metrics, right = classification_scores(
            ranks_of(logits, test_labels), logits.argmax(axis=1), test_labels, num_classes
        )
        protocol = (
            f"logistic regression on {features.shape[1]:,} features ({self.config.features.value}) "
            f"of {len(labels):,} pictures, l2 {l2:g} of {len(self.config.l2s)} chosen on "
            f"{len(chosen):,} of them; tested on {len(test_labels):,}, {self._shown}"
        )
        return Report(metrics, right, protocol, num_bad + num_bad_test)

    def _split(
        self, function: Callable[..., Array], model: Any, data: LabeledPictures
    ) -> tuple[np.ndarray, np.ndarray, int]:
        reader = self._features(data.pictures)
        features = reader.all(function, model)
        kept = without_bad(self.config.name, reader, len(features))
        return features[kept], data.labels[kept], int(np.sum(~kept))

    def _best(
        self, features: np.ndarray, labels: np.ndarray, fitted: np.ndarray, chosen: np.ndarray
    ) -> tuple[float, Classifier | None]:
        """Returns the penalty with the best accuracy on the chosen part; the strongest of equals.

        Each search starts from the classifier of the next stronger penalty.
        """
        best, best_accuracy, start, found = 0.0, -1.0, None, None
        num_classes = len(self._train.class_names)
        for l2 in sorted(self.config.l2s, reverse=True):
            found = fit(
                features[fitted],
                labels[fitted],
                num_classes,
                l2,
                start=found,
                max_iterations=self.config.max_iterations,
            )
            predicted = found.logits(features[chosen]).argmax(axis=1)
            accuracy = float(np.mean(predicted == labels[chosen]))
            if accuracy > best_accuracy:
                best, best_accuracy, start = l2, accuracy, found
        return best, start


@functools.partial(jax.jit, static_argnames=("placement",))
def _patches(
    model: Any, images: UInt8[Array, "J h w 3"], *, placement: Placement | None
) -> Float[Array, "J Dv"]:
    images = constrain(images, "images", None, None, None)
    features = patch_features(model.cast().vision_encoder, images)
    return constrain(jnp.mean(features.astype(jnp.float32), axis=1), None, None)


def _pixels(model: Any, images: Any, *, placement: Placement | None) -> Float[Array, "J D"]:
    return _flat(images, placement=placement)


@functools.partial(jax.jit, static_argnames=("placement",))
def _flat(images: UInt8[Array, "J h w 3"], *, placement: Placement | None) -> Float[Array, "J D"]:
    return constrain(images.reshape(len(images), -1).astype(jnp.float32) / 255, None, None)


_FUNCTIONS: dict[ProbeFeatures, Callable[..., Array]] = {
    ProbeFeatures.PATCHES: _patches,
    ProbeFeatures.IMAGE: image_vectors,
    ProbeFeatures.PIXELS: _pixels,
}
