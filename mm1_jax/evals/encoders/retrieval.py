"""Retrieval between pictures and captions, by the rules of CLIP_benchmark.

`image_recall@k` is the share of captions whose picture is among the k most similar pictures.
`text_recall@k` is the share of pictures that have any of their captions among the k most similar
captions.
"""

from typing import Any

import numpy as np

from mm1_jax.config import config_class
from mm1_jax.evals.encoders.encoder_evaluator import EncoderEvaluator, Report, raise_if_lacking
from mm1_jax.evals.encoders.features import image_vectors, without_bad
from mm1_jax.evals.encoders.pictures import PictureSource
from mm1_jax.evals.scoring.nearest import retrieve, unit_vectors
from mm1_jax.field_types import PositiveInt


class Retrieval(EncoderEvaluator):
    """Recall of pictures from captions, and of captions from pictures."""

    @config_class
    class Config(EncoderEvaluator.Config):
        ks: tuple[PositiveInt, ...] = (1, 5, 10)

    def _read(self, source: PictureSource) -> None:
        self._data = self._captioned(source)

    def fingerprint(self) -> str:
        return self._data.fingerprint()

    def metric_names(self) -> list[str]:
        cfg, data = self.config, self._data
        numbers = {"image": len(data.pictures), "text": sum(map(len, data.captions))}
        return [
            f"{cfg.name}/0/{side}_recall@{k}"
            for side in numbers
            for k in cfg.ks
            if k <= numbers[side]
        ]

    def report(self, model: Any) -> Report:
        raise_if_lacking(model, ("encode_image", "encode_text"), "Retrieval")
        features = self._features(self._data.pictures)
        images = unit_vectors(features.all(image_vectors, model))
        kept = without_bad(self.config.name, features, len(images))
        captions = [own for own, is_kept in zip(self._data.captions, kept, strict=True) if is_kept]
        images = images[kept]
        texts = unit_vectors(self._texts(model, [text for own in captions for text in own]))
        image_of_text = np.repeat(np.arange(len(images)), [len(own) for own in captions])
        found = zip(("image", "text"), retrieve(images, texts, image_of_text), strict=True)
        numbers = {"image": len(images), "text": len(texts)}
        # Among fewer than k candidates, all would be found.
        right = {
            f"{side}_recall@{k}": ranks < k
            for side, ranks in found
            for k in self.config.ks
            if k <= numbers[side]
        }
        metrics = {name: float(np.mean(values)) for name, values in right.items()}
        protocol = f"{len(images):,} pictures, {len(texts):,} captions, {self._shown}"
        units = {name: image_of_text for name in right if name.startswith("image")}
        return Report(metrics, right, protocol, int(np.sum(~kept)), units)
