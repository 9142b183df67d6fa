"""Interface of the evaluators of vision encoders, which share data, preprocessing and batches."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from mm1_jax.batch import Image
from mm1_jax.config import REQUIRED, Required, config_class
from mm1_jax.data.tokenizers.sentencepiece import check_tokenizer
from mm1_jax.evals.encoders.features import PictureFeatures, TextEncoder
from mm1_jax.evals.encoders.pictures import (
    CaptionedPictures,
    LabeledPictures,
    PictureSource,
    Preprocessing,
)
from mm1_jax.evals.evaluator import EvalResult, Evaluator
from mm1_jax.evals.scoring.nearest import mean_per_class_recall
from mm1_jax.field_types import NonEmpty, PositiveInt, Seed
from mm1_jax.multihost import distributed

TOP = 5


@dataclass(frozen=True)
class EncoderInput:
    """The parts of an input that evaluators of encoders share. Creating them reads no pictures."""

    tokenizer: Any
    image_size: int
    max_sequence_length: int

    @classmethod
    def of(cls, cfg: Any) -> "EncoderInput":
        """Builds the parts from the resolved config of an input."""
        tokenizer = cfg.tokenizer.instantiate()
        check_tokenizer(tokenizer)
        return cls(tokenizer, cfg.image_size, cfg.max_sequence_length)


@dataclass(frozen=True)
class Report:
    """Scores of an encoder on one data set.

    Attributes:
        metrics: Values by name, in 0..1.
        right: For each metric that is a mean, whether each query is answered; for intervals.
        protocol: How the scores were computed, for people to read.
        units: For some of these metrics, the picture that each query belongs to.
        num_bad: Number of pictures left out because they cannot be decoded.
    """

    metrics: Mapping[str, float]
    right: Mapping[str, np.ndarray]
    protocol: str
    num_bad: int = 0
    units: Mapping[str, np.ndarray] = field(default_factory=dict)


class EncoderEvaluator(Evaluator):
    """Scores the features of a model on a data set."""

    @config_class
    class Config(Evaluator.Config):
        # The name in metric keys.
        name: Required[NonEmpty] = REQUIRED
        data: Required[PictureSource.Config] = REQUIRED
        preprocessing: Preprocessing.Config = Preprocessing.default_config()
        batch_size: PositiveInt = 256  # Pictures, or texts.
        # Number of pictures of each split, drawn at random; None means all.
        num_pictures: PositiveInt | None = None
        # If True, pictures that cannot be decoded are counted and left out.
        allow_bad_pictures: bool = False
        seed: Seed = 0

    def __init__(self, cfg: Config, *, input: Any):
        super().__init__(cfg, input=input)
        self._input = input
        self._preprocessing: Preprocessing = cfg.preprocessing.instantiate()
        self._texts = TextEncoder(input.tokenizer, input.max_sequence_length, cfg.batch_size)
        try:
            self._source: PictureSource = cfg.data.instantiate()
            self._read(self._source)
        except ValueError as error:
            raise ValueError(f"evals: {cfg.name}: {error}") from error

    @abc.abstractmethod
    def _read(self, source: PictureSource) -> None:
        """Reads labels or captions; raises ValueError for files that are not as documented."""

    @abc.abstractmethod
    def report(self, model: Any) -> Report:
        """Scores a model. All processes call it and get the same scores."""

    def run(self, model: Any) -> EvalResult:
        # Processors may round differently, and all processes must take the same decisions.
        metrics = distributed.broadcast(dict(self.report(model).metrics))
        return EvalResult({f"{self.config.name}/0/{key}": x for key, x in metrics.items()})

    def _features(self, pictures: Sequence[Image]) -> PictureFeatures:
        cfg = self.config
        return PictureFeatures(
            pictures,
            self._preprocessing,
            image_size=self._input.image_size,
            batch_size=cfg.batch_size,
            allow_bad=cfg.allow_bad_pictures,
        )

    def _drawn(self, number: int) -> np.ndarray | None:
        """Returns the indices of the pictures that count, in order; None for all."""
        limit = self.config.num_pictures
        if limit is None or limit >= number:
            return None
        return np.sort(np.random.default_rng(self.config.seed).permutation(number)[:limit])

    def _labeled(self, source: PictureSource, split: str) -> LabeledPictures:
        found = source.labeled(split)
        if (drawn := self._drawn(len(found.pictures))) is None:
            return found
        pictures = [found.pictures[int(i)] for i in drawn]
        return replace(found, pictures=pictures, labels=found.labels[drawn])

    def _captioned(self, source: PictureSource) -> CaptionedPictures:
        found = source.captioned()
        if (drawn := self._drawn(len(found.pictures))) is None:
            return found
        return CaptionedPictures(
            [found.pictures[int(i)] for i in drawn], [found.captions[int(i)] for i in drawn]
        )

    @property
    def _shown(self) -> str:
        """Describes the preprocessing for people to read."""
        cfg, size = self.config.preprocessing, self._input.image_size
        return f"{size} x {size} pixels, {cfg.resize.value} side resized, crop {cfg.crop:g}"


def classification_scores(
    ranks: Int[np.ndarray, "n"],
    predicted: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the metrics of `classification_names`, and whether each label is among the first."""
    right = {"acc1": ranks < 1}
    if num_classes >= TOP:
        right[f"acc{TOP}"] = ranks < TOP
    metrics = {name: float(np.mean(values)) for name, values in right.items()}
    return metrics | {"mean_per_class_recall": mean_per_class_recall(labels, predicted)}, right


def classification_names(num_classes: int) -> list[str]:
    """Returns the names of metrics; CLIP_benchmark has no top-5 accuracy of fewer classes."""
    top = [f"acc{TOP}"] if num_classes >= TOP else []
    return ["acc1", *top, "mean_per_class_recall"]


def raise_if_lacking(model: Any, names: Sequence[str], evaluator: str) -> None:
    """Raises ValueError if a model lacks the methods that an evaluator calls."""
    if lacking := [name for name in names if not hasattr(model, name)]:
        raise ValueError(
            f"evals: {evaluator} needs a model with {' and '.join(lacking)}; "
            f"{type(model).__name__} has none. Probes need only a vision_encoder"
        )
