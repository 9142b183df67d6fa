"""Zero-shot classification: the class whose prompts are most similar to a picture.

The protocol is that of CLIP (Radford et al. 2021, section 3.1): the vector of a class is the
normalized mean over templates of normalized sentences. Scores are those of CLIP_benchmark: `acc1`,
`acc5` with five classes or more, and `mean_per_class_recall`.
"""

from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.evals.encoders.encoder_evaluator import (
    EncoderEvaluator,
    Report,
    classification_names,
    classification_scores,
    raise_if_lacking,
)
from mm1_jax.evals.encoders.features import image_vectors, without_bad
from mm1_jax.evals.encoders.pictures import PictureSource
from mm1_jax.evals.encoders.prompts import PLACE
from mm1_jax.evals.scoring.nearest import class_vectors, classify, unit_vectors

# Classes whose sentences are encoded before their mean is taken.
_CLASSES_AT_ONCE = 64


class ZeroShot(EncoderEvaluator):
    """Zero-shot classification of labeled pictures."""

    @config_class
    class Config(EncoderEvaluator.Config):
        pass

    def _read(self, source: PictureSource) -> None:
        self._data = self._labeled(source, "test")

    def fingerprint(self) -> str:
        return self._data.fingerprint()

    def metric_names(self) -> list[str]:
        names = classification_names(len(self._data.class_names))
        return [f"{self.config.name}/0/{name}" for name in names]

    def report(self, model: Any) -> Report:
        raise_if_lacking(model, ("encode_image", "encode_text"), "ZeroShot")
        data, features = self._data, self._features(self._data.pictures)
        classes = self._class_vectors(model)
        images = unit_vectors(features.all(image_vectors, model))
        kept = without_bad(self.config.name, features, len(images))
        labels = data.labels[kept]
        ranks, predicted = classify(images[kept], classes, labels)
        metrics, right = classification_scores(ranks, predicted, labels, len(classes))
        protocol = (
            f"{len(labels):,} pictures of {len(classes):,} classes, {self._shown}; {data.about}"
        )
        return Report(metrics, right, protocol, num_bad=int(np.sum(~kept)))

    def _class_vectors(self, model: Any) -> np.ndarray:
        names, templates = self._data.class_names, self._data.templates
        found = []
        for start in range(0, len(names), _CLASSES_AT_ONCE):
            own = names[start : start + _CLASSES_AT_ONCE]
            sentences = [text.replace(PLACE, name) for name in own for text in templates]
            vectors = self._texts(model, sentences)
            found.append(class_vectors(vectors.reshape(len(own), len(templates), -1)))
        return np.concatenate(found)
